"""Sums of many elements that are the same bits for each number of threads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

# Elements from which on PyTorch divides one sum among threads, and rounds differently for each
# number of them; many sums of rows are not divided.
_DIVIDED = 1 << 15
_ROW = 1 << 12


def sum_over(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The sum over some axes, which stay with a length of 1."""
    reduced = math.prod(x.shape[axis] for axis in axes)
    if x.numel() < _DIVIDED or reduced < x.numel() or x.device.type != "cpu":
        return x.sum(tuple(axes), keepdim=True)
    flat = x.reshape(-1)
    whole = reduced // _ROW * _ROW
    rows = flat[:whole].unflatten(0, (-1, _ROW)).sum(1)
    total = sum_over(rows, (0,)) + flat[whole:].sum()
    return total.reshape((1,) * x.dim())


def mean_over(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The mean over some axes, which stay with a length of 1."""
    return sum_over(x, axes) / math.prod(x.shape[axis] for axis in axes)
