"""The types in which sums are taken."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64 or complex128, except on a device that has neither."""
    if x.device.type == "mps":
        return x.dtype
    return torch.complex128 if x.is_complex() else torch.float64


def widen(x: Tensor) -> Tensor:
    """x in the type in which sums are taken."""
    return x.to(wide_dtype(x))
