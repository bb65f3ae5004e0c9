"""Which method computes a correlation and in which tiles: a plan made from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ._geometry import Ints, Leads, Tiling, output_size

# The tile that fills up a pair.
EMPTY = -1
_CROSSOVER = 200  # elements of a window from which on transforms are mostly quicker
_MOST = 2**31 - 2**12  # elements of a tile that a GPU's kernels number


@dataclass(frozen=True)
class Costs:
    """What work costs on a kind of device, in nanoseconds; their ratios are what counts."""

    transform: float  # an element of a tile, forth and back, for each doubling of its size
    tile_element: float  # cutting a tile out, its norms and its scores, for each element
    score_element: float  # the same of a direct score, which sums moments on its way on a GPU
    position: float  # a position of the direct loop
    product: float  # a multiply-add of the direct loop
    scored: float  # how much more that is where moments are summed beside it
    shape: tuple[float, float, float]  # how much more that is for lines, planes and volumes
    batch: float  # a batch of tiles, whatever its size
    strain: tuple[float, float, float]  # of a transform: this more for each MiB of a tile
    cache: int  # bytes of scratch that a batch should take, for one template
    near_cache: int  # the same for several, which go over the same tiles again and again
    scratch: int  # bytes that it may take
    direct_tile: int  # elements of a tile of the direct loop
    pairs: bool  # two tiles are transformed as one complex one
    lengths: Ints  # of tiles that are tried, for inputs that are longer
    long: Ints  # the same of lines


# By kind of device. A family of GPUs that was measured has a row of its own, named after its
# compute capability ("cuda 9.0"); the others take that of their type.
_COSTS = {
    # Two cores with AVX-512, fitted by benchmarks/fit.py to float32.
    "cpu": Costs(
        transform=0.07,
        tile_element=1.2,
        score_element=1.2,
        position=0.2,
        product=0.0075,
        scored=1.0,
        shape=(1.7, 1.0, 2.0),
        batch=1.2e5,
        strain=(1.0, 0.25 / 12, 0.5 / 12),
        cache=8 << 20,
        near_cache=4 << 20,
        scratch=48 << 20,
        direct_tile=1 << 16,
        pairs=True,
        lengths=(
            64,
            96,
            128,
            160,
            192,
            240,
            288,
            320,
            384,
            480,
            576,
            640,
            768,
            960,
            1152,
            1280,
            1536,
        ),
        long=tuple(1 << p for p in range(9, 20)),
    ),
    # Not fitted: bytes at 4 TB/s, half the arithmetic peak of a large card, launches of 5 us.
    "cuda": Costs(
        transform=2e-4,
        tile_element=0.011,
        score_element=0.0,
        position=3e-3,
        product=6e-5,
        scored=2.5,
        shape=(1.0, 1.0, 1.0),
        batch=5e4,
        strain=(0.0, 0.0, 0.0),
        cache=256 << 20,
        near_cache=256 << 20,
        scratch=512 << 20,
        direct_tile=1 << 31,
        pairs=False,
        lengths=(64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
        long=tuple(1 << p for p in range(10, 23)),
    ),
}


@lru_cache
def family(device: torch.device) -> str:
    """The kind of a device that costs are known of."""
    if device.type == "cuda" and any(name.startswith("cuda ") for name in _COSTS):
        major, minor = torch.cuda.get_device_capability(device)
        name = f"cuda {major}.{minor}"
        return name if name in _COSTS else "cuda"
    return device.type


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
    device: str = "cpu"  # its kind, as `family` names it

    @property
    def costs(self) -> Costs:
        return _COSTS.get(self.device, _COSTS["cpu"])


def _grids(problem: Problem) -> Iterator[Ints]:
    """Divisions worth trying: into tiles of the same length along all axes, and none."""
    total = output_size(problem.size, problem.window, problem.stride)
    tried = {(1,) * len(total)}
    yield (1,) * len(total)
    costs = problem.costs
    lengths = list(costs.long if len(total) == 1 else costs.lengths)
    while not costs.pairs and lengths[-1] < 2 * max(problem.window):
        lengths.append(2 * lengths[-1])
    for wanted in lengths:
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
    powers = not problem.costs.pairs
    return Tiling.cut(problem.size, problem.window, problem.stride, grid, fast=fast, powers=powers)


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
    costs = problem.costs
    even = 2 if method == "fft" and costs.pairs else 1
    total = max(1, leads.paired * leads.inputs * tiling.tiles)
    cache = costs.cache if leads.templates == 1 else costs.near_cache
    fitting = cache // (fixed + each)
    batch = max(even, fitting // (2 * even) * 2 * even)
    batch = min(batch, total + total % even)
    templates = max(1, min(leads.templates, (cache // batch - fixed) // each))
    own = batch * (fixed + templates * each)
    cost = _cost(problem, tiling, method, batch, templates) * 1e-6
    return Plan(method, tiling.outputs, tiling.length, tiling.tiles, batch, templates, own, cost)


def _cost(problem: Problem, tiling: Tiling, method: str, batch: int, templates: int) -> float:
    leads = problem.leads
    costs, n, width = problem.costs, math.prod(tiling.length), problem.itemsize / 4
    each = leads.inputs * tiling.tiles
    tiles = leads.paired * (each + each % 2 if method == "fft" and costs.pairs else each)
    steps = -(-tiles // batch) * -(-leads.templates // templates)
    cost = steps * costs.batch
    if method == "fft":
        width = _transformed_size(problem) / 4
    element = costs.tile_element if method == "fft" else costs.score_element
    if problem.normalised or method == "fft":
        cost += tiles * problem.channels * n * element * width
    if method == "direct":
        scores = tiles * leads.templates * math.prod(tiling.outputs)
        products = problem.channels * math.prod(problem.window)
        product = costs.product * costs.shape[len(problem.window) - 1]
        if problem.normalised:
            product *= costs.scored
        return cost + scores * (costs.position + products * product) * width
    # Forward for each channel of a tile, back for each of its templates, and the templates' own.
    planes = (tiles * (problem.channels + leads.templates)) / 2
    planes += leads.paired * leads.templates * problem.channels
    ndim, size = len(tiling.length), 8 * width * n
    strain = costs.strain[ndim - 1] * size / (1 << 20)
    transform = costs.transform * math.log2(max(n, 2)) * n * width * (1 + min(2.0, strain))
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
    if not problem.costs.pairs:
        most = _MOST // problem.channels
        plans = [p for p in plans if p.method == "direct" or math.prod(p.transform) < most] or plans
    fitting = [plan for plan in plans if plan.bytes <= problem.costs.scratch]
    return min(fitting or plans, key=lambda plan: plan.cost)


def _direct_tiling(problem: Problem) -> Tiling:
    """Tiles of the direct loop: rows as long as they are, as many as fit."""
    total = output_size(problem.size, problem.window, problem.stride)
    grid = [1] * len(total)
    for axis in range(len(total)):
        tiling = _tiling(problem, grid, False)
        excess = math.prod(tiling.length) * problem.channels / problem.costs.direct_tile
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
    device: str,
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
        device,
    )
    plan = make_plan(problem, method)
    tiling = tiling_of(problem, plan)
    return Arrangement(problem, plan, tiling, tiling.numbers)


def arrange(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    normalised: bool,
    device: str | None = None,
    itemsize: int | None = None,
) -> Arrangement:
    """How two tensors in normal form will be computed, on their own kind of device or another, and
    with elements of their own size or another.
    """
    # A torch.Size is a tuple, and is not copied: looking up is what most calls do.
    return _arranged(
        input.shape,
        template.shape,
        tuple(stride),
        # Half types are computed in float32.
        max(4, input.element_size()) if itemsize is None else itemsize,
        torch.get_num_threads(),
        normalised,
        method,
        device or family(input.device),
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
