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


@triton.jit
def scale_of_span(span):
    """A power of two that brings a span of any size to where its square is in range."""
    if span.dtype == tl.float64:
        scale = tl.where(span < 1e-280, 2.0**900, tl.where(span > 1e120, 2.0**-800, 1.0))
        return tl.where((span < 1e-120) & (span >= 1e-280), 2.0**450, scale)
    else:
        scale = tl.where(span < 1e-30, 2.0**120, tl.where(span > 1e12, 2.0**-80, 1.0))
        return tl.where((span < 1e-12) & (span >= 1e-30), 2.0**60, scale)
