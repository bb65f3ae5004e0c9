"""Templates in the form that scores multiply with: centred, with a mean square of 1."""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._definition import scores as definition
from .values import MOST_LANES, supported

# Elements of a template that one program standardises; larger ones go to the definition.
_LARGEST = 1 << 16


@triton.jit(do_not_specialize=["n"])
def _standardise_kernel(source, out, n, ZERO_MEAN: tl.constexpr, LANES: tl.constexpr):
    """One template: extremes and mean, mean of the rest, peak, mean square, result."""
    lane = tl.arange(0, LANES)
    source += tl.program_id(0).to(tl.int64) * n
    out += tl.program_id(0).to(tl.int64) * n
    count = n.to(tl.float64)
    low = tl.full([LANES], float("inf"), tl.float64)
    high = tl.full([LANES], float("-inf"), tl.float64)
    sums = tl.zeros([LANES], tl.float64)
    for first in range(0, n, LANES):
        x = tl.load(source + first + lane, first + lane < n, 0.0).to(tl.float64)
        sums += x
        low = tl.minimum(low, tl.where(first + lane < n, x, low))
        high = tl.maximum(high, tl.where(first + lane < n, x, high))
    lowest, highest, total = tl.min(low, 0), tl.max(high, 0), tl.sum(sums, 0)
    non_finite = (total - total) != 0.0
    mean, rest = total * 0.0, total * 0.0
    flat = non_finite
    if ZERO_MEAN:
        # Twice: the first mean is rounded in units of the offset, the second of the contrast.
        mean = total / count
        flat = lowest == highest
        sums = tl.zeros([LANES], tl.float64)
        for first in range(0, n, LANES):
            inside = first + lane < n
            x = tl.load(source + first + lane, inside, 0.0).to(tl.float64) - mean
            sums += tl.where(inside, x, 0.0)
        rest = tl.sum(sums, 0) / count
    peak = tl.maximum(tl.abs(lowest - mean - rest), tl.abs(highest - mean - rest))
    flat = flat | (peak == 0.0)
    unit = tl.where(flat, 1.0, peak)
    squares = tl.zeros([LANES], tl.float64)
    for first in range(0, n, LANES):
        inside = first + lane < n
        x = (tl.load(source + first + lane, inside, 0.0).to(tl.float64) - mean - rest) / unit
        squares += tl.where(inside, x * x, 0.0)
    square = tl.sum(squares, 0) / count
    root = tl.sqrt(tl.where(flat, 1.0, square))
    for first in range(0, n, LANES):
        inside = first + lane < n
        x = (tl.load(source + first + lane, inside, 0.0).to(tl.float64) - mean - rest) / unit
        x = tl.where(non_finite, float("nan"), tl.where(flat, 0.0, x / root))
        tl.store(out + first + lane, x, inside)


def standardise(template: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """The template in float64, scaled to a mean square of 1, centred if asked; a flat one is 0."""
    n = math.prod(template.shape[-ndim - 1 :])
    if not supported(template) or n > _LARGEST or template.numel() // n > MOST_LANES:
        return definition.standardise(template, ndim, zero_mean)
    source = template.contiguous()
    out = torch.empty_like(source, dtype=torch.float64)
    _standardise_kernel[(source.numel() // n,)](
        source, out, n, ZERO_MEAN=zero_mean, LANES=1024 if n > 1024 else 256, num_warps=8
    )
    return out
