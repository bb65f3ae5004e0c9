"""The median of rows and the median absolute deviation from it."""

from __future__ import annotations

from torch import Tensor


def medians(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of (rows, n): the lower of two middle elements, and that of ``|x - median|``."""
    middle = x.median(1).values
    return middle, (x - middle[:, None]).abs_().median(1).values
