"""Lags of two recordings, and what of two recordings overlaps at them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from .shapes import fast_length


@dataclass(frozen=True)
class AxisLags:
    """The lags ``low..high`` of an axis along which the reference has ``size`` elements and the
    moving recording ``moved``: element ``i + lag`` of the first lies on element ``i`` of the other.
    """

    size: int
    moved: int
    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low + 1

    def values(self, device: torch.device) -> Tensor:
        return torch.arange(self.low, self.high + 1, device=device)

    def counts(self, device: torch.device) -> Tensor:
        """Overlapping elements at each lag, float64: they rise, stay and fall."""
        most = min(self.size, self.moved)
        counts = torch.full((len(self),), most, dtype=torch.float64, device=device)
        rise = min(len(self), most - self.count(self.low)) if self.low < 0 else 0
        fall = min(len(self), most - self.count(self.high)) if self.high > 0 else 0
        counts[:rise] = torch.arange(rise, device=device) + self.count(self.low)
        counts[len(self) - fall :] = torch.arange(fall, device=device).flip(0) + self.count(
            self.high
        )
        return counts

    def count(self, lag: int) -> int:
        """Overlapping elements at a lag."""
        return max(0, min(self.size, lag + self.moved) - max(lag, 0))

    def most(self) -> int:
        """The largest overlap at any of the lags."""
        return self.count(min(max(0, self.low), self.high))

    def overlap(self, lag: int) -> tuple[slice, slice]:
        """The elements of either recording that overlap at a lag."""
        start, stop = max(lag, 0), min(self.size, lag + self.moved)
        return slice(start, stop), slice(start - lag, stop - lag)

    def swapped(self) -> AxisLags:
        """The same lags with the recordings exchanged."""
        return AxisLags(self.moved, self.size, -self.high, -self.low)

    def within(self, low: int, high: int) -> AxisLags:
        """Those of the axis that lie in ``low..high``, of all that overlap."""
        return replace(self, low=max(low, 1 - self.moved), high=min(high, self.size - 1))

    def cropped(self) -> tuple[AxisLags, slice, slice]:
        """What no lag reaches cut off: the lags of what is left, and what is left of either."""
        first = slice(max(self.low, 0), min(self.size, self.high + self.moved))
        second = slice(max(-self.high, 0), min(self.moved, self.size - self.low))
        shift = second.start - first.start
        sizes = (first.stop - first.start, second.stop - second.start)
        return AxisLags(*sizes, self.low + shift, self.high + shift), first, second

    @property
    def grown(self) -> tuple[int, int]:
        """Up to the first and from the second of these lags on overlaps grow with each lag; between
        them one recording lies within the other.
        """
        until = min(0, self.size - self.moved)
        return until, max(0, self.size - self.moved, until + 1)

    def length(self) -> int:
        """Of a transform whose circle does not fold another lag onto these."""
        return fast_length(max(self.size - self.low, self.moved + self.high))


@dataclass(frozen=True)
class Lags:
    """The lags of all axes, and the one that ties are nearest to."""

    axes: tuple[AxisLags, ...]
    centre: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        return [axis.low for axis in self.axes], [axis.high for axis in self.axes]

    @property
    def products(self) -> int:
        """Products of elements in the sums of all lags."""
        return math.prod(min(a.size, a.moved) for a in self.axes) * math.prod(self.shape)

    def counts(self, device: torch.device) -> Tensor:
        """Overlapping elements at each lag, float64."""
        total, *rest = (axis.counts(device) for axis in self.axes)
        for counts in rest:
            total = total[..., None] * counts
        return total

    def every(self) -> Iterator[tuple[int, ...]]:
        """Each lag, the last axis first."""
        return product(*(range(axis.low, axis.high + 1) for axis in self.axes))

    def overlap(self, lag: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        pairs = [axis.overlap(k) for axis, k in zip(self.axes, lag, strict=True)]
        return tuple(first for first, _ in pairs), tuple(second for _, second in pairs)

    def swapped(self) -> Lags:
        return Lags(tuple(a.swapped() for a in self.axes), tuple(-c for c in self.centre))

    def within(self, whole: Lags) -> tuple[slice, ...]:
        """Their place in a map of lags that contain them."""
        pairs = zip(self.axes, whole.axes, strict=True)
        return tuple(slice(a.low - b.low, a.high + 1 - b.low) for a, b in pairs)

    def around(self, reach: int) -> Lags:
        """As many more lags on either side as overlap."""
        return replace(self, axes=tuple(a.within(a.low - reach, a.high + reach) for a in self.axes))

    def cropped(self, x: Tensor, y: Tensor) -> tuple[Lags, Tensor, Tensor]:
        """What no lag reaches cut off both recordings."""
        parts = [axis.cropped() for axis in self.axes]
        first, second = (tuple(part[i] for part in parts) for i in (1, 2))
        left = replace(self, axes=tuple(axis for axis, _, _ in parts))
        return left, x[(..., *first)], y[(..., *second)]

    def blocks(self, most: int) -> Iterator[Lags]:
        """Parts of at most `most` lags, cut along the longest axes first."""
        left, steps = most, []
        for size in sorted(self.shape):
            steps.append(max(1, min(size, left)))
            left = max(1, left // steps[-1])
        order = sorted(range(len(self.axes)), key=lambda i: self.shape[i])
        step = dict(zip(order, steps, strict=True))
        starts = [range(a.low, a.high + 1, step[i]) for i, a in enumerate(self.axes)]
        for place in product(*starts):
            yield replace(
                self,
                axes=tuple(
                    replace(a, low=low, high=min(a.high, low + step[i] - 1))
                    for i, (a, low) in enumerate(zip(self.axes, place, strict=True))
                ),
            )


def lags_between(
    size: Sequence[int], moved: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> Lags:
    """Those from `low` to `high` along each axis."""
    axes = tuple(AxisLags(*numbers) for numbers in zip(size, moved, low, high, strict=True))
    return Lags(axes, (0,) * len(axes))
