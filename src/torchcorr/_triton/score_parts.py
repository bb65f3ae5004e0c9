"""What stands before and behind a normalised score on CUDA: its templates and its upstream."""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _reference
from .direct import MOST_LANES, supported
from .direct_scores import bits

# Elements of a template that one program standardises; larger ones are worth many launches.
_LARGEST = 1 << 16
_LANES = 256


@triton.jit(do_not_specialize=["n"])
def _standardise_kernel(source, out, n, ZERO_MEAN: tl.constexpr, LANES: tl.constexpr):
    """One template: extremes and mean, mean of what is left, peak, mean square, result."""
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
    strange = (total - total) != 0.0
    mean, left = total * 0.0, total * 0.0
    flat = strange
    if ZERO_MEAN:
        # Twice: the first mean is rounded in units of the offset, the second of the contrast.
        mean = total / count
        flat = lowest == highest
        sums = tl.zeros([LANES], tl.float64)
        for first in range(0, n, LANES):
            inside = first + lane < n
            x = tl.load(source + first + lane, inside, 0.0).to(tl.float64) - mean
            sums += tl.where(inside, x, 0.0)
        left = tl.sum(sums, 0) / count
    peak = tl.maximum(tl.abs(lowest - mean - left), tl.abs(highest - mean - left))
    flat = flat | (peak == 0.0)
    unit = tl.where(flat, 1.0, peak)
    squares = tl.zeros([LANES], tl.float64)
    for first in range(0, n, LANES):
        inside = first + lane < n
        x = (tl.load(source + first + lane, inside, 0.0).to(tl.float64) - mean - left) / unit
        squares += tl.where(inside, x * x, 0.0)
    square = tl.sum(squares, 0) / count
    root = tl.sqrt(tl.where(flat, 1.0, square))
    for first in range(0, n, LANES):
        inside = first + lane < n
        x = (tl.load(source + first + lane, inside, 0.0).to(tl.float64) - mean - left) / unit
        x = tl.where(strange, float("nan"), tl.where(flat, 0.0, x / root))
        tl.store(out + first + lane, x, inside)


def standardise(template: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """The template in float64, scaled to a mean square of 1, centred if asked; a flat one is 0."""
    n = math.prod(template.shape[-ndim - 1 :])
    if not supported(template) or n > _LARGEST or template.numel() // n > MOST_LANES:
        return _reference.standardise(template, ndim, zero_mean)
    source = template.contiguous()
    out = torch.empty_like(source, dtype=torch.float64)
    _standardise_kernel[(source.numel() // n,)](
        source, out, n, ZERO_MEAN=zero_mean, LANES=1024 if n > 1024 else 256, num_warps=8
    )
    return out


@triton.jit(do_not_specialize=["maps", "size", "templates", "count_bits", "eps_bits"])
def _prepare_kernel(
    grad, score, mean, var, numerator, grad_s1, grad_s2,
    maps, size, templates, count_bits, eps_bits, ZERO_MEAN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A block of windows: grad and score are (map, template, size), the moments (map, size)."""
    size = size.to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = at < maps * size
    count = count_bits.to(tl.int64).to(tl.float64, bitcast=True)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    level = tl.load(mean + at, inside, 0.0).to(tl.float64)
    energy = tl.load(var + at, inside, 0.0).to(tl.float64)
    if not ZERO_MEAN:
        energy += level * level
    live = energy != 0.0
    energy = tl.where(live, energy, 1.0) + eps
    norm, square = count * tl.sqrt(energy), count * energy
    first = at // size * templates * size + at % size
    share = tl.zeros([LANES], tl.float64)
    for template in range(templates):
        here = first + template * size
        given = tl.load(grad + here, inside, 0.0).to(tl.float64)
        shown = tl.load(score + here, inside, 0.0).to(tl.float64)
        given_on = tl.where(live, given / norm, 0.0)
        if numerator.dtype.element_ty != tl.float64:
            given_on = given_on.to(tl.float32)
        tl.store(numerator + here, given_on, inside)
        share += tl.where(live, given * shown / square, 0.0)
    tl.store(grad_s1 + at, share * level if ZERO_MEAN else tl.zeros([LANES], tl.float64), inside)
    tl.store(grad_s2 + at, share * -0.5, inside)


def _summed(full: tuple[int, ...], kept: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(maps, templates, size) if the axes that `kept` lacks lie together, in one block."""
    kept = (1,) * (len(full) - len(kept)) + kept
    lacking = [i for i, (n, m) in enumerate(zip(full, kept, strict=True)) if n != m]
    first, last = (lacking[0], lacking[-1] + 1) if lacking else (0, 0)
    if any(kept[i] != 1 for i in range(first, last)):
        return None
    return math.prod(full[:first]), math.prod(full[first:last]), math.prod(full[last:])


def ncc_prepare_grads(
    grad: Tensor,
    score: Tensor,
    mean: Tensor,
    var: Tensor,
    count: float,
    zero_mean: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a score for its numerator and for the window's S1 and S2."""
    cut = _summed(tuple(grad.shape), tuple(mean.shape))
    same = grad.shape == score.shape and mean.shape == var.shape
    if cut is None or not same or not supported(grad, score, mean, var):
        return _reference.ncc_prepare_grads(grad, score, mean, var, count, zero_mean, eps)
    maps, templates, size = cut
    grad, score, mean, var = (x.contiguous() for x in (grad, score, mean, var))
    numerator = torch.empty_like(grad)
    grad_s1 = torch.empty_like(mean, dtype=torch.float64)
    grad_s2 = torch.empty_like(grad_s1)
    _prepare_kernel[(-(-maps * size // _LANES),)](
        grad, score, mean, var, numerator, grad_s1, grad_s2,
        maps, size, templates, bits(count), bits(eps), ZERO_MEAN=zero_mean, LANES=_LANES,
        num_warps=4,
    )  # fmt: skip
    return numerator, grad_s1, grad_s2
