"""How long a plan takes: a model of the work in a call, with the costs of a kind of device."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from .costs import Costs, costs_of
from .leads import Leads
from .shapes import Ints, fast_length
from .tiling import Tiling

# Making band matrices, for each element of their rows.
_BAND = 6.0


class Problem(NamedTuple):
    """What a plan depends on: shapes of the normal form, element size and kind of device."""

    size: Ints
    window: Ints
    stride: Ints
    channels: int
    leads: Leads
    itemsize: int
    normalised: bool  # a score; a plain sum needs no norms
    device: str = "cpu"  # its kind, as `family` names it
    is_complex: bool = False  # transformed as a whole; its real parts are transformed in tiles
    of_bytes: bool = False  # scored from exact sums of 8-bit integers
    divisible: bool = False  # a large template may be divided into parts

    @property
    def costs(self) -> Costs:
        return costs_of(self.device)


def transformed_size(problem: Problem) -> int:
    """Bytes of an element that is transformed: on a GPU, sums are in float64."""
    in_dtype = problem.normalised or problem.costs.pairs
    return problem.itemsize if in_dtype else max(8, problem.itemsize)


def in_passes(problem: Problem) -> bool:
    """Whether each worker carries a unit of tiles through all steps."""
    return problem.costs.pairs


def folds_of(problem: Problem) -> list[Ints | None]:
    """How sums of a stride may be transformed back: all positions, or only those of the stride."""
    quick = tuple(s if fast_length(s) == s else 1 for s in problem.stride)
    can = problem.normalised and problem.costs.pairs and not problem.of_bytes
    return [None, quick] if can and max(quick) > 1 else [None]


# Workers that a plan counts on.
_WORKERS = (2, 4) if (os.cpu_count() or 1) >= 4 else (2,)
# Templates whose products are added together in registers of the dense loop.
_DENSE_LANES = 16
_FEWEST_TEMPLATES, _FEWEST_CHANNELS = 8, 4
# Rows of a template from which on it and its halves are halved, and how often at most; columns of
# sums that are needed for it.
_HALVED_ROWS, _MOST_HALVINGS, _HALVED_COLUMNS = 8, 3, 16
# Rows and columns of a template whose products are added up in registers, and how many of such sums
# are added at most: rounding grows with their number.
_SUMMED, _MOST_SUMS = (4, 8), 8


def is_dense(problem: Problem) -> bool:
    """Whether the direct loop is a product of matrices: templates by channels by positions.

    csrc/direct/dense.h computes calls with fewer channels in this way too; there the time of
    templates one by one holds.
    """
    leads, real = problem.leads, not (problem.is_complex or problem.of_bytes)
    many = leads.templates >= _FEWEST_TEMPLATES and problem.channels >= _FEWEST_CHANNELS
    return real and many and leads.paired == 1 and problem.costs.pairs


def is_halved(problem: Problem, tiling: Tiling) -> bool:
    """Whether direct scores without masks are made of halves of rows: csrc/direct/halved_rows.h."""
    planes = 2 if problem.channels > 1 else 3
    possible = problem.normalised and problem.costs.pairs and 1 < len(problem.window) <= planes
    if not possible or problem.is_complex or problem.of_bytes or set(problem.stride) != {1}:
        return False
    few = problem.leads.templates < _FEWEST_TEMPLATES
    if not few or tiling.outputs[-1] < _HALVED_COLUMNS:
        return False
    rows, columns = problem.window[-2:]
    planes, times = problem.channels * math.prod(problem.window[:-2]), halvings(rows)
    sums = planes * -(-(rows >> times) // _SUMMED[0]) * -(-columns // _SUMMED[1])
    return times > 0 and sums <= _MOST_SUMS


def halvings(rows: int) -> int:
    """How often a template of so many rows is halved."""
    times = 0
    while times < _MOST_HALVINGS and rows >> times >= _HALVED_ROWS:
        times += 1
    return times


def _rows(rows: int) -> float:
    """Rows of products of a template whose rows are halved."""
    times = halvings(rows)
    whole = rows % (1 << times)
    return whole + (rows - whole) * 0.75**times


def _idle(tiles: int, of_unit: int, shared: float) -> float:
    """Time on several workers relative to that of work which divides evenly among them.

    The mean of two and four workers, as far as the machine has them: a plan must not depend on the
    number of threads. Where workers share the steps of a single unit, `shared` says what it takes.
    """
    units = -(-tiles // of_unit)
    if units == 1 and shared:
        return shared
    times = []
    for workers in _WORKERS:
        rounds = (units - 1) // workers
        alone = units == rounds * workers + 1
        last = tiles - (units - 1) * of_unit if alone else of_unit
        times.append(workers * (rounds * of_unit + last) / tiles)
    return sum(times) / len(times)


def _byte_line(problem: Problem) -> int:
    """Elements of a template's row as they are multiplied: a band matrix, in whole cache lines."""
    size, line = problem.costs.byte_line, problem.window[-1]
    if size == 1:
        return line
    # Neighbouring places of its columns in a cache line share matrix tiles.
    return sum(-(-(line + end) // size) for end in (size // 2 - 1, size - 1)) * size // 2


def _computed(problem: Problem, positions: int) -> float:
    """Columns of a tile whose sums of bytes are computed, relative to those that are wanted."""
    if not problem.of_bytes:
        return 1.0
    dense, at_once = (positions - 1) * problem.stride[-1] + 1, problem.costs.byte_columns
    return -(-dense // at_once) * at_once / positions


def _products(problem: Problem, tiling: Tiling) -> float:
    """Time of the products of one sum in the direct loop."""
    costs, line = problem.costs, problem.window[-1]
    product = costs.product
    if problem.of_bytes:
        product = costs.byte_product
        line = _byte_line(problem)
    else:
        product *= costs.shape[len(problem.window) - 1]
        if problem.stride[-1] > 1:
            product *= costs.strided[0]
    if is_dense(problem):
        lanes = -(-problem.leads.templates // _DENSE_LANES) * _DENSE_LANES
        product = costs.dense_product * lanes / problem.leads.templates
    if problem.normalised:
        product *= costs.scored
    if is_halved(problem, tiling):
        product *= _rows(problem.window[-2]) / problem.window[-2]
    return problem.channels * math.prod(problem.window[:-1]) * line * product


def transform_cost(costs: Costs, ndim: int, elements: int, itemsize: int) -> float:
    """Nanoseconds of one transform of a tile."""
    held, per_mib = costs.strain[ndim - 1]
    strain = per_mib * max(0.0, 2 * itemsize * elements / (1 << 20) - held)
    time = costs.transform[ndim - 1] * math.log2(max(elements, 2)) * elements * itemsize / 4
    return time * (1 + min(costs.most_strain[ndim - 1], strain))


def preparation(costs: Costs, length: Ints) -> float:
    """Nanoseconds of a call of transforms, before any of its tiles."""
    if not costs.ready:
        return 0.0
    unready = (n for n in length if n < costs.ready[-1] and n not in costs.ready)
    return costs.prepared * sum(unready)


def cost(problem: Problem, tiling: Tiling, method: str, batch: int, templates: int) -> float:
    """Nanoseconds, on the cores that the costs were measured on."""
    leads = problem.leads
    costs, n, width = problem.costs, math.prod(tiling.length), problem.itemsize / 4
    each = leads.inputs * tiling.tiles
    tiles = leads.paired * (each + each % 2 if method == "fft" and costs.pairs else each)
    blocks = -(-leads.templates // templates)
    time = -(-tiles // batch) * blocks * costs.batch
    idle = 1.0
    if in_passes(problem):
        # A plain direct sum is one loop over everything.
        whole = method == "direct" and not problem.normalised
        units = 1 if whole else max(1, leads.paired * -(-each // batch))
        unit = costs.unit[method == "fft"]
        if problem.of_bytes and method == "direct":
            unit = costs.byte_unit
        time = units * blocks * unit
        shared = 0.0 if problem.of_bytes else costs.shared_unit[method == "fft"]
        idle = shared if whole else _idle(max(1, tiles), batch, shared)
    if method == "fft":
        width = transformed_size(problem) / 4
    element = costs.tile_element if method == "fft" else costs.score_element
    position = costs.scored_position if problem.normalised else costs.position
    if problem.of_bytes and method == "direct":
        element, position = costs.byte_score
    if problem.normalised or method == "fft":
        time += blocks * tiles * problem.channels * n * element * width
    if method == "direct":
        scores = tiles * leads.templates * math.prod(tiling.outputs)
        products = _products(problem, tiling) * _computed(problem, tiling.outputs[-1])
        loop = scores * (position + products) * width
        if problem.stride[-1] > 1 and not problem.of_bytes:
            loop += tiles * problem.channels * math.prod(tiling.extent) * costs.strided[1] * width
        if problem.of_bytes and costs.byte_line > 1:
            rows = leads.paired * leads.templates * problem.channels
            rows *= math.prod(problem.window[:-1])
            time += rows * _byte_line(problem) * _BAND
        return (time + loop) * idle if problem.normalised else time + loop
    # One for each channel of a tile and block of templates, an inverse for each template, and those
    # of templates.
    folds = math.prod(tiling.folds)
    planes = (tiles * (problem.channels * blocks + leads.templates / folds)) / 2
    planes += leads.paired * leads.templates * problem.channels
    others = tiles / 2 * leads.templates * (problem.channels - 1)
    others += tiles / 2 * leads.templates * (folds > 1)  # adding up parts of spectra
    time += others * n * costs.channel_product * width
    transform = transform_cost(costs, len(tiling.length), n, int(4 * width))
    if problem.of_bytes:
        transform *= costs.digits
    if not problem.normalised:
        transform *= costs.sums[problem.itemsize > 4]
    # Forward in each block, and back for each template.
    calls = -(-tiles // batch) * (blocks + leads.templates) + leads.templates
    time += calls * preparation(costs, tiling.length)
    time += tiles * leads.templates * math.prod(tiling.outputs) * costs.emitted * width
    time += 2 * planes * transform
    if problem.normalised and problem.itemsize == 4 and not problem.of_bytes:
        time *= costs.smooth
    return time * idle
