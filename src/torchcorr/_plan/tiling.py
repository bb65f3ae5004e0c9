"""How tiles cover the positions of an input, and what is known of them once they are cut.

csrc/common/tiling.h, csrc/common/window_state.h and csrc/tiles/steps.h define the records a second
time, in C++; `numbers` and `tensors` are the forms in which they cross the dispatcher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from .shapes import Ints, fast_length, output_size

# The tile that fills up a pair of tiles.
EMPTY = -1


def tile_length(n: int, ndim: int, powers: bool = False) -> int:
    """Smallest length of at least n whose transforms are quick relative to those near it.

    Many factors of two and one small odd factor. In a CPU's cache a power of two from 256 on puts
    the rows of a tile on the same lines, so unless `powers` is set only single rows have one.
    """
    if n <= 64:
        return 8 * -(-n // 8) if n > 24 else 2 * fast_length(-(-n // 2))
    best = 1 << (n - 1).bit_length() if powers or ndim == 1 or n <= 128 else 0
    for odd in (3, 5, 7, 9, 15, 25):
        length = 16 * odd
        while length < n:
            length *= 2
        best = min(best, length) if best else length
    return best


def fine_length(n: int, ndim: int) -> int:
    """Smallest length of at least n whose transforms are quick where all lines along an axis are
    transformed one by one, and every element costs memory. Long lines are arrays of rows, whose
    lengths and number must be quick: a power of two, or three or five times one."""
    if ndim > 1:
        return 8 * fast_length(-(-n // 8))
    return min(odd << (-(-n // odd) - 1).bit_length() for odd in (1, 3, 5))


@dataclass(frozen=True)
class Tiling:
    """How tiles cover the valid positions of an input: sizes an axis, arithmetic only.

    Tile t of an axis covers the windows of positions [t * outputs, (t + 1) * outputs): `extent`
    elements from t * outputs * stride - pad on, in an array of `length` elements. A window may be
    divided into `parts`, each of which meets `length` elements of a tile of more. Of the
    sums of a tile, transforms give every `folds`th.
    """

    size: Ints
    window: Ints
    stride: Ints
    positions: Ints
    grid: Ints
    outputs: Ints
    pad: Ints
    extent: Ints
    length: Ints
    parts: Ints
    folds: Ints

    @classmethod
    def cut(
        cls,
        size: Sequence[int],
        window: Sequence[int],
        stride: Sequence[int],
        grid: Sequence[int],
        *,
        pad: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        parts: Sequence[int] | None = None,
        folds: Sequence[int] | None = None,
        fast: bool = True,
        powers: bool = False,
        fine: bool = False,
    ) -> Tiling:
        """Divides the positions evenly into at most `grid` tiles an axis, whose transforms are as
        long as `tile_length`, or as `fine_length` says."""
        total = tuple(positions) if positions else output_size(size, window, stride)
        outputs = tuple(-(-n // q) for n, q in zip(total, grid, strict=True))
        needed = tuple(-(-n // m) for n, m in zip(total, outputs, strict=True))
        extent = tuple((m - 1) * s + k for m, s, k in zip(outputs, stride, window, strict=True))
        divided = tuple(parts) if parts else (1,) * len(total)
        folded = tuple(folds) if folds else (1,) * len(total)
        length = extent
        if fast:
            # What one part of the window meets.
            met = tuple(n - k + -(-k // p) for n, k, p in zip(extent, window, divided, strict=True))
            length = tuple(
                fine_length(n, len(total))
                if fine
                else f * tile_length(-(-n // f), len(total), powers)
                for n, f in zip(met, folded, strict=True)
            )
        return cls(
            size=tuple(size),
            window=tuple(window),
            stride=tuple(stride),
            positions=total,
            grid=needed,
            outputs=outputs,
            pad=tuple(pad) if pad else (0,) * len(total),
            extent=extent,
            length=length,
            parts=divided,
            folds=folded,
        )

    @property
    def tiles(self) -> int:
        """Tiles of one item."""
        return math.prod(self.grid)

    def slices(self, tile: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The elements of the input that a tile's windows cover, and its positions."""
        seen, to = [], []
        for axis in reversed(range(len(self.grid))):
            index, tile = tile % self.grid[axis], tile // self.grid[axis]
            first = index * self.outputs[axis]
            last = min(first + self.outputs[axis], self.positions[axis])
            to.append(slice(first, last))
            step, k = self.stride[axis], self.window[axis]
            seen.append(slice(first * step, (last - 1) * step + k))
        return tuple(seen[::-1]), tuple(to[::-1])

    @cached_property
    def numbers(self) -> list[int]:
        """Grid, step, pad, extent, length, window, stride, parts and folds, one after another.

        `Tiling` of csrc/common/tiling.h is read from them.
        """
        step = [m * s for m, s in zip(self.outputs, self.stride, strict=True)]
        around = (self.grid, step, self.pad, self.extent, self.length)
        sizes = (*around, self.window, self.stride, self.parts, self.folds)
        return [n for size in sizes for n in size]

    @cached_property
    def batch_numbers(self) -> list[int]:
        """Those of a batch that names no tiles, as a step takes it that chooses its own."""
        return TileBatch(self, []).numbers


class TileBatch(NamedTuple):
    """Tiles of one tiling that a step works on, and the first of the templates it works with."""

    tiling: Tiling
    tiles: list[int]
    first_template: int = 0

    @property
    def numbers(self) -> list[int]:
        """Number of axes, first template, numbers of the tiling, tiles."""
        tiling = self.tiling
        return [len(tiling.grid), self.first_template, *tiling.numbers, *self.tiles]


@dataclass(frozen=True)
class Block:
    """Leading indices and templates that are computed at once, how many tiles make a unit, and
    whether these are large, with spectra of templates that are kept for all."""

    pairs: slice
    templates: slice
    tiles_of_unit: int
    large: bool = False
    kept: bool = True

    @cached_property
    def numbers(self) -> list[int]:
        """`Block` of csrc/tiles/pass.h is read from them."""
        pairs, templates = self.pairs, self.templates
        sizes = (pairs.start, pairs.stop, templates.start, templates.stop, self.tiles_of_unit)
        return [*sizes, int(self.large), int(self.kept)]


class TileStats(NamedTuple):
    """What is known of each tile once it is cut out: one row of four float64 numbers a tile.

    A tile contains (element - level) * scale, and 0 for an element that is not finite.
    """

    rows: Tensor  # (tiles, 4)

    @property
    def level(self) -> Tensor:
        return self.rows[:, 0]

    @property
    def scale(self) -> Tensor:
        return self.rows[:, 1]

    @property
    def mean_square(self) -> Tensor:
        """Of the tile's elements."""
        return self.rows[:, 2]

    @property
    def non_finite(self) -> Tensor:
        """How many elements are not finite; an engine may stop counting at 1."""
        return self.rows[:, 3]


class WindowState(IntEnum):
    """What is known of a window; one byte of a map of states."""

    GOOD = 0
    FLAT = 1  # all elements equal: the score is 0
    DOUBTFUL = 2  # so small a deviation that rounding may exceed what is promised
    UNKNOWN = 3  # doubtful, and the norm is not known either
    NON_FINITE = 4  # an element is a NaN or an Inf


class TileMoments(NamedTuple):
    """What is known of tiles and of their windows, each (tiles, *positions)."""

    stats: TileStats
    norms: Tensor  # 1 / (N deviation); 0 where it is flat or unknown, NaN where it is not finite
    states: Tensor  # WindowState
    means: Tensor  # empty unless they are needed

    @property
    def tensors(self) -> list[Tensor]:
        return [self.stats.rows, self.norms, self.states, self.means]
