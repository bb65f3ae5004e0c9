"""How values reach kernels and leave them."""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="misc"

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._plan.shapes import Ints

MOST_LANES = 2**31 - 2**12
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def three(values: Sequence[int], fill: int) -> Ints:
    """Sizes or strides of one to three axes as those of three."""
    return (fill,) * (3 - len(values)) + tuple(values)


def bits(value: float) -> int:
    """A float64 as an integer argument; a float argument would be a float32."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def wide_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which direct sums are taken."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def supported(*tensors: Tensor) -> bool:
    """Whether the direct kernels take the tensors; the definition computes the others."""
    return all(x.dtype in _TYPES and x.numel() > 0 for x in tensors)


@triton.jit
def converted(value, to):
    """A float64 rounded once to float32, then to the type of the map."""
    return value if to == tl.float64 else value.to(tl.float32).to(to)
