"""The lags that the arguments of a function ask for."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _checks
from .._plan.lags import AxisLags, Lags

__all__ = ["lags_of"]


def lags_of(
    lags: Sequence[object] | None,
    max_shift: int | Sequence[int] | None,
    centre: int | Sequence[int],
    sizes: tuple[Sequence[int], Sequence[int]],
) -> Lags:
    """The lags that the arguments of a function ask for."""
    ndim = len(sizes[0])
    middle = _checks.whole_per_axis(centre, ndim, "centre")
    if lags is not None and max_shift is not None:
        raise ValueError("lags and max_shift exclude one another: give one of them")
    ranges: Sequence[tuple[int | None, int | None]] = ((None, None),) * ndim
    if max_shift is not None:
        reach = _checks.per_axis(max_shift, ndim, "max_shift", least=0)
        ranges = [(c - r, c + r) for c, r in zip(middle, reach, strict=True)]
    elif lags is not None:
        ranges = _checks.lag_ranges(lags, ndim)
    axes = []
    for (low, high), size, moved in zip(ranges, *sizes, strict=True):
        whole = AxisLags(size, moved, 1 - moved, size - 1)
        axis = whole.within(
            low if low is not None else whole.low, high if high is not None else whole.high
        )
        if axis.low > axis.high:
            raise ValueError(
                f"lags must contain one at which recordings of {size} and {moved} elements "
                f"overlap: got {(low, high)}"
            )
        axes.append(axis)
    return Lags(tuple(axes), middle)
