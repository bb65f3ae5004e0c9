"""Scores of overlaps: transforms of whole recordings, or sums term by term, and one pass over the
lags that merges moments and divides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import _contract
from .._definition.overlap import LOOP, RANGE, faintest, level_of, levelled, products
from .._plan.lags import AxisLags, Lags, lags_between
from . import steps

# Multiply-adds that take as long as one element of a transform does for each of its levels, of long
# lines and of others, and lags that are summed at the same time.
_PRODUCTS = (64, 16)
_LANES = 8
# Bytes of the moments of rows that are in memory at the same time.
_ROOM = 16 << 20
# Elements for each lag from which on moments are those of what overlaps at all lags, merged with
# those of the ends, and dtypes that are read as they are.
_LONG = 4
_READ = (torch.float32, torch.float64)


def overlap_scores(
    x: Tensor, y: Tensor, low: Sequence[int], high: Sequence[int], method: str
) -> Tensor:
    lags, x, y = lags_between(x.shape, y.shape, low, high).cropped(x, y)
    ndim = len(lags.axes)
    if ndim == 1 and (method == "direct" or (method == "auto" and is_quick(lags))):
        scores = _scores_of_long_lines(x, y, lags)
        if scores is not None:
            return scores
    x, y = levelled(x, ndim).contiguous(), levelled(y, ndim).contiguous()
    if method == "fft" or (method == "auto" and not is_quick(lags)):
        # Sums before moments, so that spectra are no longer in memory with them.
        sums = products(x, y, lags)
        scores, unknown = _scores(x, y, lags, sums, faintest(x, y))
        if unknown == 0 or method == "fft" or lags.products > LOOP:
            return scores
    sums = steps.overlap_sums(x, y, *lags.ends)
    return _scores(x, y, lags, sums, 0.0)[0]


def _scores(x: Tensor, y: Tensor, lags: Lags, sums: Tensor, faint: float) -> tuple[Tensor, int]:
    """Scores, and how many are unknown, of some lags of the second axis at a time."""
    if len(lags.axes) == 1:
        return _Parts(x, y, lags).scores(sums, faint)
    first, second, *others = lags.axes
    each = 16 * (len(x) + len(y)) * math.prod(len(axis) for axis in others)
    step = max(1, _ROOM // each)
    if step >= len(second):
        return _Parts(x, y, lags).scores(sums, faint)
    out, total = steps.new_map(x, lags.shape, torch.float64), 0
    for low in range(second.low, second.high + 1, step):
        part = replace(second, low=low, high=min(second.high, low + step - 1))
        place = slice(low - second.low, part.high + 1 - second.low)
        some = replace(lags, axes=(first, part, *others))
        out[:, place], unknown = _Parts(x, y, some).scores(sums[:, place], faint)
        total += unknown
    return out, total


def is_quick(lags: Lags) -> bool:
    """Whether sums term by term take less time than transforms."""
    length = math.prod(axis.length() for axis in lags.axes)
    last = len(lags.axes[-1])
    padded = lags.products // last * (-(-last // _LANES) * _LANES)
    is_line = len(lags.axes) == 1 and is_long(lags.axes[0])
    return padded <= _PRODUCTS[0 if is_line else 1] * length * math.log2(length)


def _scores_of_long_lines(x: Tensor, y: Tensor, lags: Lags) -> Tensor | None:
    """By sums term by term in one pass, if most elements overlap at all lags."""
    (axis,) = lags.axes
    if not is_long(axis) or x.dtype not in _READ:
        return None
    levels = [float(level_of(v, 1)) for v in (x, y)]
    out = steps.new_map(x, lags.shape, torch.float64)
    lines = (x.contiguous(), y.contiguous())
    in_range: bool = steps.score_long_lines(*lines, levels, RANGE, _numbers(axis), out)
    return out if in_range else None


def is_long(lags: AxisLags) -> bool:
    """Whether most elements overlap at all lags."""
    return min(lags.size, lags.moved) >= _LONG * len(lags)


class _Parts:
    """Moments of both recordings, merged along all axes but the first."""

    def __init__(self, x: Tensor, y: Tensor, lags: Lags) -> None:
        self.lags = lags
        self.axis, *inner = lags.axes
        self.elements = _elements(inner, x)
        self.x = _merged(x, inner, False)
        self.y = _merged(y, inner, True)

    def scores(self, sums: Tensor, faint: float) -> tuple[Tensor, int]:
        """Scores, and how many of them are unknown since their overlaps are faint."""
        rows = sums.reshape(len(sums), -1)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        out = steps.new_map(self.elements, self.lags.shape)
        unknown: int = steps.score_overlaps(
            self.x, self.y, self.elements, rows, _numbers(self.axis), faint, out
        )
        return out, unknown


def _numbers(lags: AxisLags) -> list[int]:
    return [lags.size, lags.moved, lags.low, lags.high]


def _elements(inner: Sequence[AxisLags], like: Tensor) -> Tensor:
    """Elements of one row of an overlap at each lag of these axes."""
    return Lags(tuple(inner), ()).counts(like.device).flatten() if inner else like.new_ones(1)


def _merged(x: Tensor, inner: Sequence[AxisLags], is_moving: bool) -> list[Tensor]:
    """Means and energies (size, lanes) of rows, a lane for each lag of the other axes, in the order
    of the lags of the reference; of single elements (size, 1) only the means.
    """
    part, elements = [x], x.new_ones(1)
    for i in reversed(range(len(inner))):
        lags = inner[i].swapped() if is_moving else inner[i]
        part = [values.reshape(-1, lags.size, len(elements)) for values in part]
        shape = (part[0].shape[0], len(lags), part[0].shape[2])
        out = [steps.new_map(x, shape) for _ in range(2)]
        each = elements if len(part) == 2 else None
        steps.overlap_parts(part, each, _numbers(lags), is_moving, out)
        part, elements = out, _elements(inner[i:], x)
    return [values.reshape(len(x), -1) for values in part]


def register() -> None:
    _contract.overlap_scores.implement(overlap_scores, "CPU")
