"""Which method computes a correlation and in which tiles: a plan made from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ._geometry import Ints, Leads, Tiling, output_size

# Bytes of scratch that a batch of tiles should take, so that it stays in cache: for one template,
# and for several, which go over the same tiles again and again. And that it may.
_CACHE = 8 << 20
_NEAR_CACHE = 4 << 20
_SCRATCH = 48 << 20
# The tile that fills up a pair.
EMPTY = -1

# Nanoseconds of two threads, fitted by benchmarks/fit.py to float32. Their ratios are what counts.
_TRANSFORM = 0.07  # an element of a real tile, forth and back, for each doubling of its size
_TILE_ELEMENT = 1.2  # cutting a tile out, its norms and its scores, for each element
_POSITION = 0.2  # a position of the direct loop
_PRODUCT = 0.0075  # a multiply-add of the direct loop
_SHAPE = (1.7, 1.0, 2.0)  # how much more that is for one line, and for rows in planes
_BATCH = 1.2e5  # a batch of tiles, whatever its size
_CROSSOVER = 200  # elements of a window from which on transforms are mostly quicker
_DIRECT_TILE = 1 << 16  # elements of a tile of the direct loop


@dataclass(frozen=True)
class Plan:
    """How one call will be computed: what `plan` returns.

    Sizes are those of a tile, one for each window axis; bytes depend on the dtype.

    Attributes
    ----------
    method : str
        ``"direct"`` or ``"fft"``.
    tile : tuple of int
        Positions that a tile covers, ``(*positions)``.
    transform : tuple of int
        Elements of a tile along each window axis: the length of its transforms.
    tiles : int
        Tiles of one item of the input.
    batch : int
        Tiles that are computed at once.
    templates : int
        Templates whose scores are computed at once.
    bytes : int
        Scratch of one batch, in bytes; input and result are not counted.
    cost : float
        Predicted time in milliseconds on the two cores that the model was fitted on. Only its
        ratio to the cost of another plan means something elsewhere.
    """

    method: str
    tile: Ints
    transform: Ints
    tiles: int
    batch: int
    templates: int
    bytes: int
    cost: float


@dataclass(frozen=True)
class Problem:
    """What a plan depends on: shapes of the normal form, element size and number of threads."""

    size: Ints
    window: Ints
    stride: Ints
    channels: int
    leads: Leads
    itemsize: int
    threads: int
    normalised: bool  # a score; a plain sum is transformed in float64 and needs no norms


# Lengths of tiles that are tried, for inputs that are longer.
_LENGTHS = (64, 96, 128, 160, 192, 240, 288, 320, 384, 480, 576, 640, 768, 960, 1152, 1280, 1536)
_LONG = tuple(1 << p for p in range(9, 20))


def _grids(problem: Problem) -> Iterator[Ints]:
    """Divisions worth trying: into tiles of the same length along all axes, and none."""
    total = output_size(problem.size, problem.window, problem.stride)
    tried = {(1,) * len(total)}
    yield (1,) * len(total)
    for wanted in _LONG if len(total) == 1 else _LENGTHS:
        if any(wanted < k for k in problem.window):
            continue
        grid = tuple(
            -(-n // ((wanted - k) // s + 1))
            for n, k, s in zip(total, problem.window, problem.stride, strict=True)
        )
        if grid not in tried:
            tried.add(grid)
            yield grid


def _tiling(problem: Problem, grid: Sequence[int], fast: bool) -> Tiling:
    return Tiling.cut(problem.size, problem.window, problem.stride, grid, fast=fast)


def _transformed_size(problem: Problem) -> int:
    """Bytes of an element that is transformed: sums take float64, scores what they come in."""
    return problem.itemsize if problem.normalised else max(8, problem.itemsize)


def _bytes(problem: Problem, tiling: Tiling, method: str) -> tuple[int, int]:
    """Of a tile whatever the templates, and of a tile and template."""
    n, m = math.prod(tiling.length), math.prod(tiling.outputs)
    fixed, each = n * problem.channels + m, m
    if method == "fft":
        fixed += n * problem.channels
        each = n if problem.leads.templates == problem.channels == 1 else 2 * n
    width = problem.itemsize if method == "direct" else _transformed_size(problem)
    return fixed * width, each * width


def _batched(problem: Problem, tiling: Tiling, method: str) -> Plan:
    leads = problem.leads
    fixed, each = _bytes(problem, tiling, method)
    even = 2 if method == "fft" else 1
    total = max(1, leads.paired * leads.inputs * tiling.tiles)
    cache = _CACHE if leads.templates == 1 else _NEAR_CACHE
    fitting = cache // (fixed + each)
    batch = max(even, fitting // (2 * even) * 2 * even)
    batch = min(batch, total + total % even)
    templates = max(1, min(leads.templates, (cache // batch - fixed) // each))
    own = batch * (fixed + templates * each)
    cost = _cost(problem, tiling, method, batch, templates) * 1e-6
    return Plan(method, tiling.outputs, tiling.length, tiling.tiles, batch, templates, own, cost)


def _cost(problem: Problem, tiling: Tiling, method: str, batch: int, templates: int) -> float:
    leads = problem.leads
    n, width = math.prod(tiling.length), problem.itemsize / 4
    each = leads.inputs * tiling.tiles
    tiles = leads.paired * (each + each % 2 if method == "fft" else each)
    steps = -(-tiles // batch) * -(-leads.templates // templates)
    cost = steps * _BATCH
    if method == "fft":
        width = _transformed_size(problem) / 4
    if problem.normalised or method == "fft":
        cost += tiles * problem.channels * n * _TILE_ELEMENT * width
    if method == "direct":
        scores = tiles * leads.templates * math.prod(tiling.outputs)
        products = problem.channels * math.prod(problem.window)
        product = _PRODUCT * _SHAPE[len(problem.window) - 1]
        return cost + scores * (_POSITION + products * product) * width
    # Forward for each channel of a tile, back for each of its templates, and the templates' own.
    planes = (tiles * (problem.channels + leads.templates)) / 2
    planes += leads.paired * leads.templates * problem.channels
    ndim, size = len(tiling.length), 8 * width * n
    strain = size / (1 << 20) if ndim == 1 else 0.25 * (ndim - 1) * size / (12 << 20)
    transform = _TRANSFORM * math.log2(max(n, 2)) * n * width * (1 + min(2.0, strain))
    return cost + 2 * planes * transform


def tiling_of(problem: Problem, plan: Plan) -> Tiling:
    """The tiles of a plan."""
    total = output_size(problem.size, problem.window, problem.stride)
    grid = tuple(-(-n // m) for n, m in zip(total, plan.tile, strict=True))
    return _tiling(problem, grid, plan.method == "fft")


def make_plan(problem: Problem, method: str) -> Plan:
    """The cheapest plan of a method, or of all for `auto`."""
    plans = []
    if method in ("auto", "direct"):
        plans.append(_batched(problem, _direct_tiling(problem), "direct"))
    if method in ("auto", "fft"):
        for grid in _grids(problem):
            plans.append(_batched(problem, _tiling(problem, grid, True), "fft"))
    fitting = [plan for plan in plans if plan.bytes <= _SCRATCH]
    return min(fitting or plans, key=lambda plan: plan.cost)


def _direct_tiling(problem: Problem) -> Tiling:
    """Tiles of the direct loop: rows as long as they are, as many as fit."""
    total = output_size(problem.size, problem.window, problem.stride)
    grid = [1] * len(total)
    for axis in range(len(total)):
        tiling = _tiling(problem, grid, False)
        excess = math.prod(tiling.length) * problem.channels / _DIRECT_TILE
        if excess <= 1:
            break
        grid[axis] = min(total[axis], math.ceil(excess))
    return _tiling(problem, grid, False)


@dataclass(frozen=True)
class Arrangement:
    """All that a call needs to know beforehand."""

    problem: Problem
    plan: Plan
    tiling: Tiling
    geometry: list[int]


@lru_cache(maxsize=1024)
def _arranged(
    input: Ints,
    template: Ints,
    stride: Ints,
    itemsize: int,
    threads: int,
    normalised: bool,
    method: str,
) -> Arrangement:
    ndim = len(stride)
    leads = Leads.of(tuple(input[: -ndim - 1]), tuple(template[: -ndim - 1]))
    problem = Problem(
        tuple(input[-ndim:]),
        tuple(template[-ndim:]),
        stride,
        input[-ndim - 1],
        leads,
        itemsize,
        threads,
        normalised,
    )
    plan = make_plan(problem, method)
    tiling = tiling_of(problem, plan)
    return Arrangement(problem, plan, tiling, tiling.numbers)


def arrange(
    input: Tensor, template: Tensor, stride: Sequence[int], method: str, normalised: bool
) -> Arrangement:
    """How two tensors in normal form will be computed."""
    # A torch.Size is a tuple, and is not copied: looking up is what most calls do.
    return _arranged(
        input.shape,
        template.shape,
        tuple(stride),
        input.element_size(),
        torch.get_num_threads(),
        normalised,
        method,
    )


def resolve(
    input: Tensor, template: Tensor, stride: Sequence[int], method: str, normalised: bool
) -> str:
    """`direct` or `fft` for two tensors in normal form."""
    if method != "auto":
        return method
    if torch.compiler.is_compiling():
        # Sizes may be symbols, which no plan can be looked up for: the usual crossover must do.
        products = math.prod(template.shape[-len(stride) - 1 :])
        return "direct" if products <= _CROSSOVER else "fft"
    return arrange(input, template, stride, method, normalised).plan.method


def batches(problem: Problem, plan: Plan) -> Iterator[tuple[slice, list[int]]]:
    """Pairs, and the tiles of their items, that are computed at once: equally many of each pair.

    Transforms take an even number of tiles, filled up with an empty one.
    """
    each, paired = problem.leads.inputs * plan.tiles, problem.leads.paired
    filler = [EMPTY] if plan.method == "fft" else []
    pairs = max(1, plan.batch // each)
    for pair in range(0, paired, pairs):
        last = min(pair + pairs, paired)
        if pairs > 1:
            ids = []
            for p in range(pair, last):
                ids += [*range(p * each, (p + 1) * each), *filler * (each % 2)]
            yield slice(pair, last), ids
            continue
        for first in range(pair * each, (pair + 1) * each, plan.batch):
            ids = list(range(first, min(first + plan.batch, (pair + 1) * each)))
            yield slice(pair, last), ids + filler * (len(ids) % 2)
