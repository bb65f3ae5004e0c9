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


@triton.jit(do_not_specialize=["n"])
def _through_kernel(source, standard, grad, out, n, ZERO_MEAN: tl.constexpr, LANES: tl.constexpr):
    """One gradient: means, products with the standardised template, result."""
    lane = tl.arange(0, LANES)
    start = tl.program_id(0).to(tl.int64) * n
    count = n.to(tl.float64)
    mean, of_grad = count * 0.0, count * 0.0
    if ZERO_MEAN:
        sums, sums_of_grad = tl.zeros([LANES], tl.float64), tl.zeros([LANES], tl.float64)
        for first in range(0, n, LANES):
            at, inside = start + first + lane, first + lane < n
            sums += tl.load(source + at, inside, 0.0).to(tl.float64)
            sums_of_grad += tl.load(grad + at, inside, 0.0)
        mean, of_grad = tl.sum(sums, 0) / count, tl.sum(sums_of_grad, 0) / count
    sizes, along = tl.zeros([LANES], tl.float64), tl.zeros([LANES], tl.float64)
    peaks = tl.zeros([LANES], tl.float64)
    for first in range(0, n, LANES):
        at, inside = start + first + lane, first + lane < n
        unit = tl.load(standard + at, inside, 0.0)
        sizes += (tl.load(source + at, inside, 0.0).to(tl.float64) - mean) * unit
        along += (tl.load(grad + at, inside, 0.0) - of_grad) * unit
        peaks = tl.where(unit != 0.0, 1.0, peaks)
    # The mean product of a deviation and its standardised self is the deviation's size.
    size, share = tl.sum(sizes, 0) / count, tl.sum(along, 0) / count
    flat = tl.max(peaks, 0) == 0.0
    for first in range(0, n, LANES):
        at, inside = start + first + lane, first + lane < n
        left = tl.load(grad + at, inside, 0.0) - of_grad
        left -= tl.load(standard + at, inside, 0.0) * share
        result = tl.where(flat, 0.0, left / tl.where(flat, 1.0, size))
        if out.dtype.element_ty != tl.float64:
            result = result.to(tl.float32)
        tl.store(out + at, result, inside)


def _is_small(template: Tensor, n: int) -> bool:
    return supported(template) and n <= _LARGEST and template.numel() // n <= MOST_LANES


def standardise(template: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """The template in float64, scaled to a mean square of 1, centred if asked; a flat one is 0."""
    n = math.prod(template.shape[-ndim - 1 :])
    if not _is_small(template, n):
        return definition.standardise(template, ndim, zero_mean)
    source = template.contiguous()
    out = torch.empty_like(source, dtype=torch.float64)
    _standardise_kernel[(source.numel() // n,)](
        source, out, n, ZERO_MEAN=zero_mean, LANES=1024 if n > 1024 else 256, num_warps=8
    )
    return out


def standardise_grad(template: Tensor, grad: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """A gradient behind `standardise`, in the type of the template."""
    n = math.prod(template.shape[-ndim - 1 :])
    if not _is_small(template, n):
        return definition.standardise_grad(template, grad, ndim, zero_mean)
    source = template.contiguous()
    tensors = (source, standardise(source, ndim, zero_mean), grad.contiguous())
    out = torch.empty_like(source)
    _through_kernel[(source.numel() // n,)](
        *tensors, out, n, ZERO_MEAN=zero_mean, LANES=1024 if n > 1024 else 256, num_warps=8
    )
    return out
