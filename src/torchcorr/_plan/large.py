"""Plans for large templates: threads share the transforms of tiles, few of which are held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from .costs import Costs
from .plan import Plan, sizes_of
from .predict import Problem
from .shapes import output_size
from .tiling import Tiling, fine_length

# Sides of windows of lines, planes and volumes from which on such tiles may pay.
_LARGE_WINDOW = (1 << 15, 192, 64)
# Bytes of scratch, of lines and of others, and arrays of the template's size if these take more.
_SCRATCH = (58 << 20, 48 << 20)
_ARRAYS = 8
# Elements of a tile that a thread has for itself, of lines, planes and volumes: room for several
# stays with it when they are freed.
_OWN_TILE = (1 << 20, 3 << 18, 1 << 20)
# How much of those is planned: blocks of transforms come on top.
_PLANNED = 0.95
# Lengths of tiles that are tried, relative to parts of a template.
_SHARES = (1.0, 1.25, 1.5, 2.0, 3.0)
_SHORTEST = (1 << 15, 256, 64)
_APART = 1.05
# Twos of tiles from which on a batch gains nothing where spectra of templates are kept: of lines,
# and of others.
_TWOS = (1, 4)
# Times of transforms: in float64, of lines and of others; and of a template's part relative to that
# of two tiles. Of a step that threads share, in nanoseconds.
_WIDE = (1.9, 1.6)
_OF_PART = 0.4
_STEP = 1e4
# Times relative to those of other tiles, which take less than is predicted where windows are large.
_TIME = 1.2
# Extents of tiles that are tried for gradients, relative to the window.
_EXTENTS = (1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


def is_large(problem: Problem) -> bool:
    """Whether a template is so large that its tiles may be shared."""
    return problem.divisible and max(problem.window) >= _LARGE_WINDOW[len(problem.window) - 1]


def large_scratch(problem: Problem) -> float:
    """Bytes that such a call may take: a fixed budget, or arrays that hold the template, of lines
    in the precision of their transforms."""
    are_lines = len(problem.window) == 1
    width = _width(problem) if are_lines else problem.itemsize
    arrays = _ARRAYS * width * math.prod(problem.window)
    return max(_SCRATCH[not are_lines], _PLANNED * arrays)


def is_held(plan: Plan) -> bool:
    """Whether threads share its tiles, or each may hold some."""
    most = _OWN_TILE[len(plan.transform) - 1]
    return plan.large or plan.method == "direct" or math.prod(plan.transform) <= most


def large_plans(problem: Problem, allowed: float) -> Iterator[Plan]:
    """Plans whose tiles threads share."""
    for tiling in _tilings(problem, allowed):
        arrays = math.prod(tiling.parts) * problem.channels
        for kept in (True,) if arrays == 1 or len(problem.window) == 1 else (True, False):
            yield _Large(problem, tiling, kept).plan(allowed)


def large_gradient_plans(problem: Problem, width: int) -> Iterator[Plan]:
    """Plans of both gradients of a score by numbers of so many bytes, two tiles at a time, which
    hold whole windows."""
    total = output_size(problem.size, problem.window, problem.stride)
    ndim, channels = len(total), problem.channels
    for share in _EXTENTS:
        extents = [max(int(share * k), _SHORTEST[ndim - 1]) for k in problem.window]
        if ndim == 1:
            extents = [fine_length(n, 1) for n in extents]
        sizes = zip(total, extents, problem.window, problem.stride, strict=True)
        grid = tuple(-(-n // max(1, (wanted - k) // s + 1)) for n, wanted, k, s in sizes)
        tiling = Tiling.cut(problem.size, problem.window, problem.stride, grid, fine=True)
        n, m = math.prod(tiling.length), math.prod(tiling.outputs)
        # Complex arrays of the template and of its gradient; of the input, of the upstream gradient
        # and of the input's, which takes the place of that of one channel.
        common, own = 2 * channels, channels + 1 + (channels if channels > 1 else 0)
        # Of windows norms, means and what goes through both, of each of two tiles; and states.
        maps = 2 * m * ((2 + 2 * channels) * width + 1)
        # The template and its gradient are float64 numbers.
        templates = 2 * 8 * problem.leads.templates * channels * math.prod(problem.window)
        size = 2 * n * width * (common + own) + maps + templates
        twos = -(-problem.leads.inputs * tiling.tiles // 2)
        each = _transform(problem.costs, ndim, n, width)
        time = twos * ((2 * channels + 2) * each + 4 * n * problem.costs.tile_element)
        time *= max(1, problem.leads.paired) * problem.leads.templates * 1e-6
        yield Plan("fft", *sizes_of(tiling), tiling.tiles, 2, 1, size, time, True, True)


def _transform(costs: Costs, ndim: int, elements: int, width: int) -> float:
    """Nanoseconds of one transform of two tiles that are in no cache."""
    time = 2 * costs.transform[ndim - 1] * math.log2(elements) * elements
    return time * costs.uncached[ndim - 1] * (_WIDE[ndim > 1] if width > 4 else 1.0)


def _tilings(problem: Problem, allowed: float) -> Iterator[Tiling]:
    tried = set()
    total = output_size(problem.size, problem.window, problem.stride)
    # Of which the input and the scratch for two twos of tiles are not exceeded.
    most = allowed / (2 * 2 * _width(problem))
    for wanted, share in itertools.product(_lengths(problem, most), _SHARES):
        parts = tuple(-(-k // int(wanted / share)) for k in problem.window)
        longest = tuple(-(-k // p) for k, p in zip(problem.window, parts, strict=True))
        sizes = zip(total, longest, problem.stride, strict=True)
        grid = tuple(-(-n // ((wanted - k) // s + 1)) for n, k, s in sizes)
        if (grid, parts) in tried:
            continue
        tried.add((grid, parts))
        at = (problem.size, problem.window, problem.stride, grid)
        tiling = Tiling.cut(*at, parts=parts, fine=True)
        if len(tried) == 1 or math.prod(tiling.length) <= most:
            yield tiling


def _width(problem: Problem) -> int:
    """Bytes of a real number of a transform."""
    return problem.itemsize if problem.normalised and not problem.of_bytes else 8


def _lengths(problem: Problem, most: float) -> list[int]:
    """Lengths of tiles of at most so many elements."""
    ndim = len(problem.window)
    lengths = [_SHORTEST[ndim - 1]]
    while lengths[-1] < min(most ** (1 / ndim), max(problem.size)):
        lengths.append(fine_length(int(_APART * lengths[-1]), ndim))
    return lengths


class _Large(NamedTuple):
    """Tiles of a large template, and whether its spectra are kept for all of them."""

    problem: Problem
    tiling: Tiling
    kept: bool

    @property
    def arrays(self) -> int:
        """Spectra of a template."""
        return math.prod(self.tiling.parts) * self.problem.channels

    @property
    def twos(self) -> int:
        """Twos of tiles of a leading index."""
        return max(1, -(-self.problem.leads.inputs * self.tiling.tiles // 2))

    def plan(self, allowed: float) -> Plan:
        """Of batches that are as large as scratch allows."""
        most = max(1, min(self.twos, int(allowed // self._array())))
        while most > 1 and self._bytes(most) > allowed:
            most -= 1
        if self.kept:
            most = min(most, _TWOS[len(self.problem.window) > 1])
        # Batches of equal size.
        twos = -(-self.twos // -(-self.twos // most))
        size, time = self._bytes(twos), self._time(twos) * 1e-6
        sizes, tiles = sizes_of(self.tiling), self.tiling.tiles
        return Plan("fft", *sizes, tiles, 2 * twos, 1, size, time, True, self.kept)

    def _array(self) -> int:
        """Bytes of two tiles and of their spectra."""
        return 2 * _width(self.problem) * math.prod(self.tiling.length)

    def _bytes(self, twos: int) -> int:
        problem, leads = self.problem, self.problem.leads
        array, positions = self._array(), math.prod(self.tiling.outputs)
        kept = self.arrays * array // 2 if self.kept else 0
        size = kept + self._arrays_of(twos) * array
        if problem.normalised and problem.itemsize == 4 and not problem.of_bytes:
            # Where float32 is not exact enough, half as many tiles are transformed in float64.
            size = max(size, kept + self._arrays_of(max(1, twos // 2)) * 2 * array)
        if problem.normalised:
            # Norms and states of windows, or norms and sums.
            size += 2 * twos * positions * (16 if problem.of_bytes else problem.itemsize + 1)
        # Templates in float64.
        templates = max(1, leads.paired) * leads.templates * problem.channels
        return size + 8 * templates * math.prod(problem.window)

    def _arrays_of(self, twos: int) -> int:
        """Arrays of two tiles that so many take."""
        if len(self.problem.window) > 1:
            # A part of a template and a tile, or the sums of two tiles.
            return twos + 1
        # Sums and parts of two lines, and a part of a template.
        each = 2 * twos if self.arrays > 1 else twos
        return (each + (not self.kept)) * self.problem.costs.workers

    def _time(self, twos: int) -> float:
        """Nanoseconds, on the cores that the costs were measured on."""
        problem, tiling, costs = self.problem, self.tiling, self.problem.costs
        n, width, ndim = math.prod(tiling.length), _width(problem), len(tiling.length)
        batches = -(-self.twos // twos)
        forward, made = self.twos * self.arrays, self.arrays * (1 if self.kept else batches)
        transforms = forward + self.twos + _OF_PART * made
        each = _transform(costs, ndim, n, width)
        time = _TIME * transforms * each + 3 * (forward + made) * _STEP
        time += forward * n * costs.channel_product * width / 4
        # Cuts and emits the tiles.
        rows = forward * n * costs.tile_element * width / 8
        seen = 2 * self.twos * problem.channels * math.prod(tiling.extent)
        rows += seen * costs.tile_element * problem.itemsize / 4
        rows += 2 * self.twos * math.prod(tiling.outputs) * costs.emitted * width / 4
        leads = problem.leads
        units = batches * max(1, leads.paired)
        if ndim > 1:
            time += rows
        elif units == 1:
            # One thread has all rows.
            time += costs.workers * rows
        else:
            # Each thread takes some units.
            time = (time + rows) * -(-units // costs.workers) * costs.workers / units
        if problem.normalised and problem.itemsize == 4 and not problem.of_bytes:
            time *= costs.smooth
        return time * max(1, leads.paired) * leads.templates
