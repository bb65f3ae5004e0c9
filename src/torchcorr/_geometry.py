"""Sizes, pads, tiles and lead axes: arithmetic on shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

Ints = tuple[int, ...]


def output_size(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Ints:
    """Number of valid positions along each window axis."""
    return tuple((n - k) // s + 1 for n, k, s in zip(size, window, stride, strict=True))


def dilated_size(output: Sequence[int], stride: Sequence[int]) -> Ints:
    """Extent of an output once stride - 1 zeros stand between its values."""
    return tuple((n - 1) * s + 1 for n, s in zip(output, stride, strict=True))


def padding(mode: str, window: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Elements to add before and after each window axis so that `valid` becomes `mode`.

    `full` adds a window less one on both sides. `same` is SciPy's: the centred part of `full`.
    """
    if mode == "valid":
        return tuple((0, 0) for _ in window)
    if mode == "same":
        return tuple((k // 2, (k - 1) // 2) for k in window)
    return tuple((k - 1, k - 1) for k in window)


def offsets(window: Sequence[int]) -> Iterator[Ints]:
    """Every position inside a window, in raster order."""
    return itertools.product(*(range(k) for k in window))


def positions(
    offset: Sequence[int], output: Sequence[int], stride: Sequence[int]
) -> tuple[slice, ...]:
    """The input elements that lie at `offset` of each window, as one slice an axis."""
    return tuple(
        slice(v, v + (n - 1) * s + 1, s) for v, n, s in zip(offset, output, stride, strict=True)
    )


def fast_length(n: int) -> int:
    """Smallest length of at least n without a prime factor above 7, which FFTs handle well."""
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def tile_length(n: int, ndim: int, powers: bool = False) -> int:
    """Smallest length of at least n whose transforms are quick beside those of its neighbours.

    Many factors of two and one small odd factor. In a CPU's cache a power of two from 256 on puts
    the rows of a tile on the same lines, so unless `powers` are wanted it is left to single rows.
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


@dataclass(frozen=True)
class Tiling:
    """How tiles cover the valid positions of an input: sizes an axis, arithmetic only.

    Tile t of an axis holds the windows of positions [t * outputs, (t + 1) * outputs): `extent`
    elements from t * outputs * stride - pad on, in an array of `length` elements.
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
        fast: bool = True,
        powers: bool = False,
    ) -> Tiling:
        """Divides the positions evenly into at most `grid` tiles an axis."""
        total = tuple(positions) if positions else output_size(size, window, stride)
        outputs = tuple(-(-n // q) for n, q in zip(total, grid, strict=True))
        needed = tuple(-(-n // m) for n, m in zip(total, outputs, strict=True))
        extent = tuple((m - 1) * s + k for m, s, k in zip(outputs, stride, window, strict=True))
        length = tuple(tile_length(n, len(total), powers) for n in extent) if fast else extent
        return cls(
            tuple(size),
            tuple(window),
            tuple(stride),
            total,
            needed,
            outputs,
            tuple(pad) if pad else (0,) * len(total),
            extent,
            length,
        )

    @property
    def tiles(self) -> int:
        """Tiles of one item."""
        return math.prod(self.grid)

    def slices(self, tile: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The elements of the input that a tile's windows hold, and its positions."""
        seen, to = [], []
        for axis in reversed(range(len(self.grid))):
            index, tile = tile % self.grid[axis], tile // self.grid[axis]
            first = index * self.outputs[axis]
            last = min(first + self.outputs[axis], self.positions[axis])
            to.append(slice(first, last))
            step, k = self.stride[axis], self.window[axis]
            seen.append(slice(first * step, (last - 1) * step + k))
        return tuple(seen[::-1]), tuple(to[::-1])

    @property
    def numbers(self) -> list[int]:
        """What the tile operators take: grid, step, pad, extent and length, one after another."""
        step = [m * s for m, s in zip(self.outputs, self.stride, strict=True)]
        return [*self.grid, *step, *self.pad, *self.extent, *self.length]


@dataclass(frozen=True)
class Leads:
    """Leading axes that broadcast, sorted: paired ones, those of the input, those of the template.

    An input becomes (paired * inputs, C, *size), a template (paired, templates, C, *window), a
    score map (paired * inputs, templates, *positions); nothing is expanded.
    """

    lead: Ints
    order: Ints
    kinds: Ints  # of each axis: 0 paired, 1 of the input, 2 of the template
    paired: int
    inputs: int
    templates: int

    @classmethod
    def of(cls, input_lead: Sequence[int], template_lead: Sequence[int]) -> Leads:
        rank = max(len(input_lead), len(template_lead))
        a = (1,) * (rank - len(input_lead)) + tuple(input_lead)
        b = (1,) * (rank - len(template_lead)) + tuple(template_lead)
        lead = tuple(m if n == 1 else n for n, m in zip(a, b, strict=True))
        paired = [i for i in range(rank) if a[i] != 1 and b[i] != 1]
        templates = [i for i in range(rank) if a[i] == 1 and b[i] != 1]
        inputs = [i for i in range(rank) if i not in paired and i not in templates]
        sizes = [math.prod(lead[i] for i in axes) for axes in (paired, inputs, templates)]
        kinds = tuple(0 if i in paired else 1 if i in inputs else 2 for i in range(rank))
        return cls(lead, (*paired, *inputs, *templates), kinds, *sizes)

    def _sorted(self, x: Tensor, core: int) -> Tensor:
        if len(self.order) > 1:
            missing = len(self.order) + core - x.dim()
            x = x.reshape((1,) * missing + tuple(x.shape))
            x = x.permute(*self.order, *range(len(self.order), len(self.order) + core))
        return x

    def input(self, x: Tensor, core: int) -> Tensor:
        """(*input lead, *core) as (paired * inputs, *core)."""
        if x.dim() == core:
            return x.unsqueeze(0)
        tail = x.shape[x.dim() - core :]
        return self._sorted(x, core).reshape(self.paired * self.inputs, *tail)

    def template(self, x: Tensor, core: int) -> Tensor:
        """(*template lead, *core) as (paired, templates, *core)."""
        if x.dim() == core:
            return x[None, None]
        tail = x.shape[x.dim() - core :]
        return self._sorted(x, core).reshape(self.paired, self.templates, *tail)

    def output(self, x: Tensor, core: int) -> Tensor:
        """(*lead, *core) as (paired * inputs, templates, *core)."""
        tail = x.shape[x.dim() - core :]
        return self._sorted(x, core).reshape(self.paired * self.inputs, self.templates, *tail)

    def restored(self, x: Tensor, core: int) -> Tensor:
        """(paired * inputs, templates, *core) as (*lead, *core)."""
        if not self.lead:
            return x[0, 0]
        tail = x.shape[x.dim() - core :]
        return self._unsorted(x.reshape(*(self.lead[i] for i in self.order), *tail), core)

    def _unsorted(self, x: Tensor, core: int) -> Tensor:
        rank = len(self.order)
        if list(self.order) == sorted(self.order):
            return x
        back = sorted(range(rank), key=self.order.__getitem__)
        return x.permute(*back, *range(rank, rank + core)).contiguous()

    def input_restored(self, x: Tensor, shape: Ints, core: int) -> Tensor:
        """(paired * inputs, *core) in the shape of the input it belongs to."""
        sizes = [1 if self.kinds[i] == 2 else self.lead[i] for i in self.order]
        return self._unsorted(x.reshape(*sizes, *x.shape[1:]), core).reshape(shape)

    def template_restored(self, x: Tensor, shape: Ints, core: int) -> Tensor:
        """(paired, templates, *core) in the shape of the template it belongs to."""
        sizes = [1 if self.kinds[i] == 1 else self.lead[i] for i in self.order]
        return self._unsorted(x.reshape(*sizes, *x.shape[2:]), core).reshape(shape)
