"""Which method computes a correlation and in which tiles: a plan made from shapes alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from .costs import costs_of
from .dtypes import BYTES
from .large import is_held, is_large, large_gradient_plans, large_plans, large_scratch
from .leads import Leads
from .plan import Plan, sizes_of
from .predict import Problem, cost, folds_of, in_passes, transformed_size
from .shapes import Ints, output_size
from .tiling import Block, Tiling, tile_length

# How many times faster a plan must be to take more scratch than allowed; and one for scores with
# weights, whose tiles are computed two at a time.
_WORTH_SCRATCH = 16
_WORTH_TILES = 2.5
_MOST_BYTE_PRODUCTS = 2**16
# Tiles of the direct loop that are tried, relative to what is kept, and what those of whole rows
# may hold with the rows that they share: of real numbers, and of bytes, of which these cost little.
_SHARES = (4.0, 2.0, 1.0, 0.5, 0.25)
_WITH_SHARED = (1.5, 4.0)
# By how much tiles of gradients are slower whose arrays fill the cache of a core: for each byte of
# its scratch, and at most.
_STRAIN_OF_GRADIENTS = (0.05 / (1 << 20), 0.6)
_MOST = 2**31 - 2**12  # elements of a tile that a GPU's kernels number


def _grids(problem: Problem) -> Iterator[Ints]:
    """Grids worth trying: one tile, and tiles of the same length along all axes."""
    total = output_size(problem.size, problem.window, problem.stride)
    costs, rest = problem.costs, (1,) * (len(total) - 1)
    tried = {(n, *rest) for n in ((1, 2, 4) if costs.pairs else (1,)) if n <= total[0]}
    yield from sorted(tried)
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


def _transformed_tilings(problem: Problem) -> Iterator[Tiling]:
    """Tiles worth trying by transforms."""
    grids = _grids(problem) if not problem.is_complex else [(1,) * len(problem.size)]
    for grid, folds in itertools.product(grids, folds_of(problem)):
        yield _tiling(problem, grid, True, folds=folds)


def _tiling(
    problem: Problem,
    grid: Sequence[int],
    fast: bool,
    parts: Ints | None = None,
    folds: Ints | None = None,
    fine: bool = False,
) -> Tiling:
    at, powers = (problem.size, problem.window, problem.stride, grid), not problem.costs.pairs
    return Tiling.cut(*at, parts=parts, folds=folds, fast=fast, powers=powers, fine=fine)


def _bytes(problem: Problem, tiling: Tiling, method: str) -> tuple[int, int]:
    """Bytes of scratch for a tile, and for each template that is applied to it."""
    n, m = math.prod(tiling.length), math.prod(tiling.outputs)
    fixed, each = n * problem.channels + m, m
    if method == "fft":
        fixed += n * problem.channels
        each = n if problem.leads.templates == problem.channels == 1 else 2 * n
    width = problem.itemsize if method == "direct" else transformed_size(problem)
    return fixed * width, each * width


def _batched(problem: Problem, tiling: Tiling, method: str) -> Plan:
    if in_passes(problem):
        return _passed(problem, tiling, method)
    return stepwise(problem, tiling, method)


def stepwise(problem: Problem, tiling: Tiling, method: str) -> Plan:
    """A plan whose steps each go over a batch of tiles with all workers."""
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
    size = batch * (fixed + templates * each)
    time = cost(problem, tiling, method, batch, templates) * 1e-6
    return Plan(method, *sizes_of(tiling), tiling.tiles, batch, templates, size, time)


def _spectra_bytes(problem: Problem, length: Ints) -> int:
    """Of the spectra of one template over a tile."""
    return 2 * problem.channels * math.prod(length) * problem.itemsize


def _passed(problem: Problem, tiling: Tiling, method: str) -> Plan:
    """Units of tiles that stay in the cache of a core, and templates whose spectra are kept."""
    leads, costs, width = problem.leads, problem.costs, problem.itemsize
    n, m, channels = math.prod(tiling.length), math.prod(tiling.outputs), problem.channels
    unit = costs.unit_bytes[len(tiling.length) - 1]
    each = max(1, leads.inputs * tiling.tiles)
    # A tile of bytes, and a norm and a sum of each window instead of a norm.
    bytes_and_sums = channels * n + 8 * m if problem.of_bytes else 0
    if method == "fft":
        spectra = _spectra_bytes(problem, tiling.length)
        templates = max(1, min(leads.templates, costs.spectra_bytes // spectra))
        products = 1 if templates == channels == 1 else 2
        if not problem.normalised and width < 8:
            # Some tiles are transformed in float64; what they were in float32 is not kept then.
            width, spectra = 8, 3 * spectra
            products = 0 if templates == channels == 1 else products
        # The tile and its spectrum, products and their inverse, and what is known of its windows.
        tile = ((2 * channels + products) * n + m) * width + bytes_and_sums
        batch = min(max(2, unit // tile // 2 * 2), each + each % 2)
    else:
        spectra = channels * math.prod(problem.window) * width
        tile = (channels * n + m) * width + bytes_and_sums
        templates = max(1, min(leads.templates, (unit - tile) // (m * width)))
        tile += templates * m * width
        batch = min(max(1, unit // tile), each)
    time = cost(problem, tiling, method, batch, templates) * 1e-6
    size = costs.workers * batch * tile + templates * spectra
    return Plan(method, *sizes_of(tiling), tiling.tiles, batch, templates, size, time)


def gradient_plan(problem: Problem, tiling: Tiling) -> Plan:
    """Units of tiles for both gradients of a score, and templates whose spectra are kept twice: as
    factors and as sums."""
    leads, costs, width = problem.leads, problem.costs, problem.itemsize
    n, m, channels = math.prod(tiling.length), math.prod(tiling.outputs), problem.channels
    unit = costs.unit_bytes[len(tiling.length) - 1]
    each = max(1, leads.inputs * tiling.tiles)
    spectra = 2 * _spectra_bytes(problem, tiling.length)
    templates = max(1, min(leads.templates, costs.spectra_bytes // spectra))
    # The input's spectrum, an upstream gradient and its transform, products, and of its windows
    # norms, means and what goes through both: of each channel, if these have a mean each.
    tile = ((2 * channels + 2) * n + (2 + 2 * channels) * m) * width
    batch = min(max(2, unit // tile // 2 * 2), each + each % 2)
    # What a unit adds to each template's spectra and to the input's gradient, kept for its turn.
    kept = (2 + batch) * channels * n * width
    size = costs.workers * (batch * tile + kept) + templates * spectra
    time = cost(problem, tiling, "fft", batch, templates) * 1e-6
    return Plan("fft", *sizes_of(tiling), tiling.tiles, batch, templates, size, time)


def masked_plan(problem: Problem, tiling: Tiling) -> Plan:
    """Two tiles at a time for scores with weights, and templates whose spectra are kept."""
    leads, costs = problem.leads, problem.costs
    n, m, channels = math.prod(tiling.length), math.prod(tiling.outputs), problem.channels
    # In three forms, in float64 and in the input's type.
    spectra = 3 * 2 * channels * n * (8 + problem.itemsize % 8)
    templates = max(1, min(leads.templates, costs.spectra_bytes // spectra))
    # Spectra, products, their inverse, and six sums of each window, of two tiles in float64.
    kept = 1 if templates == 1 else 3
    tile = 8 * 2 * ((kept * channels + 2) * n + 6 * m)
    time = cost(problem, tiling, "fft", 2, templates) * 1e-6
    size = costs.workers * tile + templates * spectra
    return Plan("fft", *sizes_of(tiling), tiling.tiles, 2, templates, size, time)


def tiling_of(problem: Problem, plan: Plan) -> Tiling:
    """The tiles of a plan."""
    total = output_size(problem.size, problem.window, problem.stride)
    grid = tuple(-(-n // m) for n, m in zip(total, plan.tile, strict=True))
    return _tiling(problem, grid, plan.method == "fft", plan.parts, plan.folds, plan.large)


def scratch_allowed(problem: Problem) -> float:
    """A fixed budget, or eight transforms that hold the template where that is more."""
    ndim = len(problem.window)
    length = math.prod(tile_length(k, ndim) for k in problem.window)
    width = problem.itemsize if problem.normalised else 8
    return max(problem.costs.scratch, 8 * 2 * width * length)


def gradient_scratch(problem: Problem, width: int) -> float:
    """The same of transforms of numbers of so many bytes, and an item of the input more, whose
    gradient is a result."""
    item = problem.itemsize * problem.channels * math.prod(problem.size)
    return scratch_allowed(problem._replace(itemsize=width)) + item


def make_plan(problem: Problem, method: str) -> Plan:
    """The cheapest plan of a method, or of all for `auto`."""
    plans = []
    if method in ("auto", "direct") and not _overflows(problem):
        plans.append(_direct_plan(problem))
    if method in ("auto", "fft") or not plans:
        plans += [_batched(problem, tiling, "fft") for tiling in _transformed_tilings(problem)]
    if not problem.costs.pairs:
        most = _MOST // problem.channels
        plans = [p for p in plans if p.method == "direct" or math.prod(p.transform) < most] or plans
    allowed = scratch_allowed(problem)
    if is_large(problem):
        of_large = large_scratch(problem)
        plans += large_plans(problem, of_large)
        held = [plan for plan in plans if is_held(plan)]
        fitting = [p for p in held if p.bytes <= (of_large if p.large else min(allowed, of_large))]
    else:
        fitting = [plan for plan in plans if plan.bytes <= allowed]
    best = min(fitting or plans, key=lambda plan: plan.cost)
    # A large template takes more scratch by transforms than allowed, and hours by the direct loop.
    quick = [plan for plan in plans if plan.cost * _WORTH_SCRATCH < best.cost]
    return min(quick, key=lambda plan: plan.bytes) if quick else best


def _overflows(problem: Problem) -> bool:
    """Whether direct sums of bytes may exceed 32 bits; by either method they are the same."""
    return problem.of_bytes and problem.channels * math.prod(problem.window) > _MOST_BYTE_PRODUCTS


def _direct_plan(problem: Problem) -> Plan:
    if problem.normalised:
        shares = _SHARES if in_passes(problem) else (1.0,)
        plans = [_batched(problem, _direct_tiling(problem, s), "direct") for s in shares]
        return min(plans, key=lambda plan: plan.cost)
    # A plain sum is one loop over the whole output, without tiles and without scratch.
    tiling, leads = _tiling(problem, (1,) * len(problem.size), False), problem.leads
    items = max(1, leads.paired * leads.inputs)
    time = cost(problem, tiling, "direct", items, leads.templates) * 1e-6
    return Plan("direct", *sizes_of(tiling), tiling.tiles, items, leads.templates, 0, time)


def _direct_tiling(problem: Problem, share: float) -> Tiling:
    """Tiles of the direct loop: whole rows, as many as fit into `share` times what is kept."""
    total = output_size(problem.size, problem.window, problem.stride)
    grid = [1] * len(total)
    for axis in range(len(total)):
        tiling = _tiling(problem, grid, False)
        excess = math.prod(tiling.length) * problem.channels / (share * problem.costs.direct_tile)
        if excess <= (1.0 if axis == 0 else _WITH_SHARED[problem.of_bytes]):
            break
        grid[axis] = min(total[axis], math.ceil(excess))
    return _tiling(problem, grid, False)


@dataclass(frozen=True)
class Arrangement:
    """A call in normal form, its plan and its tiles."""

    problem: Problem
    plan: Plan
    tiling: Tiling

    @cached_property
    def blocks(self) -> list[Block]:
        return list(blocks(self.problem, self.plan))


def arrange(
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    method: str,
    *,
    normalised: bool,
    dtype: torch.dtype,
    device: str,
) -> Arrangement:
    """How two tensors of these shapes, in normal form, are computed on a kind of device."""
    # A torch.Size is a tuple and is not copied: most calls find their plan in the cache.
    return _arranged(
        input if isinstance(input, tuple) else tuple(input),
        template if isinstance(template, tuple) else tuple(template),
        tuple(stride),
        method,
        normalised,
        dtype,
        device,
    )


def arrange_gradients(
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype,
    device: str,
    wide: bool = False,
) -> Arrangement:
    """How both gradients of a normalised score are computed: always by transforms. With `wide` all
    tiles are transformed in float64, and a large template's are as much smaller."""
    return _arranged_gradients(tuple(input), tuple(template), tuple(stride), dtype, device, wide)


@lru_cache(maxsize=1024)
def _arranged_gradients(
    input: Ints, template: Ints, stride: Ints, dtype: torch.dtype, device: str, wide: bool
) -> Arrangement:
    call = _problem(input, template, stride, True, dtype, device)
    problem, width = call._replace(divisible=False), 8 if wide else call.itemsize
    plans = [gradient_plan(problem, tiling) for tiling in _transformed_tilings(problem)]
    if is_large(call):
        large = large_gradient_plans(problem, width)
        plans = [*large] if wide else [*plans, *large]
    allowed = gradient_scratch(problem, width)
    fitting = [plan for plan in plans if plan.bytes <= allowed]
    per_byte, most = _STRAIN_OF_GRADIENTS

    def strained(plan: Plan) -> float:
        strain = 0.0 if plan.large else per_byte * plan.bytes / problem.costs.workers
        # The smallest tiles repeat most of their work.
        return plan.cost * (1 + min(most, strain)) * (1 if fitting else plan.bytes)

    best = min(fitting or plans, key=strained)
    return Arrangement(problem, best, tiling_of(problem, best))


def arrange_masked(
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype,
    device: str,
) -> Arrangement:
    """How scores with weights are computed: always by transforms."""
    return _arranged_masked(tuple(input), tuple(template), tuple(stride), dtype, device)


@lru_cache(maxsize=1024)
def _arranged_masked(
    input: Ints, template: Ints, stride: Ints, dtype: torch.dtype, device: str
) -> Arrangement:
    problem = _problem(input, template, stride, True, dtype, device)._replace(divisible=False)
    plans = [masked_plan(problem, _tiling(problem, grid, True)) for grid in _grids(problem)]
    fitting = [plan for plan in plans if plan.bytes <= scratch_allowed(problem)]
    best = min(fitting, key=lambda p: p.cost) if fitting else min(plans, key=lambda p: p.bytes)
    # Tiles that are little larger than the template repeat most of their work.
    quick = [plan for plan in plans if plan.cost * _WORTH_TILES < best.cost]
    plan = min(quick, key=lambda plan: plan.bytes) if quick else best
    return Arrangement(problem, plan, tiling_of(problem, plan))


def _problem(
    input: Ints,
    template: Ints,
    stride: Ints,
    normalised: bool,
    dtype: torch.dtype,
    device: str,
) -> Problem:
    ndim = len(stride)
    return Problem(
        size=tuple(input[-ndim:]),
        window=tuple(template[-ndim:]),
        stride=stride,
        channels=input[-ndim - 1],
        leads=Leads.of(tuple(input[: -ndim - 1]), tuple(template[: -ndim - 1])),
        itemsize=max(4, dtype.itemsize),  # half types are computed in float32
        normalised=normalised,
        device=device,
        is_complex=dtype.is_complex,
        of_bytes=normalised and dtype in BYTES and costs_of(device).pairs,
        divisible=costs_of(device).pairs and not dtype.is_complex,
    )


@lru_cache(maxsize=1024)
def _arranged(
    input: Ints,
    template: Ints,
    stride: Ints,
    method: str,
    normalised: bool,
    dtype: torch.dtype,
    device: str,
) -> Arrangement:
    problem = _problem(input, template, stride, normalised, dtype, device)
    plan = make_plan(problem, method)
    if problem.is_complex and problem.costs.pairs and method != "direct":
        whole = make_plan(problem, "fft")
        if whole.bytes > scratch_allowed(problem):
            return _in_real_parts(input, template, problem, method)
    return Arrangement(problem, plan, tiling_of(problem, plan))


def _in_real_parts(input: Ints, template: Ints, problem: Problem, method: str) -> Arrangement:
    """The real and the imaginary part of a complex input in tiles, with either part of a template.

    Each call of such a pair takes half of the time.
    """
    missing = max(0, len(template) - len(input))
    parts = (2, *(1,) * missing, *input)
    dtype = torch.float64 if problem.itemsize == 16 else torch.float32
    call = _arranged(parts, template, problem.stride, "fft", False, dtype, problem.device)
    plan = replace(call.plan, cost=2 * call.plan.cost)
    if method == "auto":
        loop = make_plan(problem, "direct")
        if loop.cost < plan.cost:
            return Arrangement(problem, loop, tiling_of(problem, loop))
    return Arrangement(call.problem, plan, call.tiling)


def blocks(problem: Problem, plan: Plan) -> Iterator[Block]:
    """Leading indices and templates that share one parallel region, as many as have room."""
    leads = problem.leads
    at_once = 1 if plan.large else max(1, leads.paired)
    if plan.method == "fft" and not plan.large:
        spectra = _spectra_bytes(problem, plan.transform) * plan.templates
        at_once = max(1, problem.costs.spectra_bytes // spectra)
    for pair in range(0, leads.paired, at_once):
        pairs = slice(pair, min(pair + at_once, leads.paired))
        for first in range(0, leads.templates, plan.templates):
            templates = slice(first, min(first + plan.templates, leads.templates))
            yield Block(pairs, templates, plan.batch, plan.large, plan.kept)
