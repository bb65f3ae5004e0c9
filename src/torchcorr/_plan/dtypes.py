"""The types in which sums are taken."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# Integers whose scores are exact, and with float32 all types that may hold such numbers.
BYTES = (torch.uint8, torch.int8)
MAYBE_BYTES = (*BYTES, torch.float32)


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64 or complex128, except on a device that has neither."""
    if x.device.type == "mps":
        return x.dtype
    return torch.complex128 if x.is_complex() else torch.float64


def widen(x: Tensor) -> Tensor:
    """x in the type in which sums are taken."""
    wide = wide_dtype(x)
    return x if x.dtype == wide else x.to(wide)
