"""Coefficients in windows with weights on CUDA: one launch merges all elements along an axis.

The steps are those of the definition, which cuts large inputs into slabs; another launch an axis
spreads what a gradient gives to windows over their elements.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition import weighted_lncc as definition
from ..._definition.weighted_lncc import Windows
from ..._definition.windows import Summary
from ..._plan.taps import per_axis
from ..values import bits

_BLOCK = 256
_AT_ONCE = 8


@triton.jit(do_not_specialize=["count", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7"])
def taps_kernel(out, count, t0, t1, t2, t3, t4, t5, t6, t7):
    """Up to eight numbers of float64, which come as integers: a copy would make the host wait."""
    lane = tl.arange(0, 8)
    value = lane.to(tl.int64) * 0
    for i in tl.static_range(8):
        value = tl.where(lane == i, (t0, t1, t2, t3, t4, t5, t6, t7)[i], value)
    tl.store(out + lane, value.to(tl.float64, bitcast=True), mask=lane < count)


def _on_device(taps: Sequence[float], like: Tensor) -> Tensor:
    out = like.new_empty(len(taps), dtype=torch.float64)
    for first in range(0, len(taps), _AT_ONCE):
        part = [bits(t) for t in taps[first : first + _AT_ONCE]]
        taps_kernel[(1,)](out[first:], len(part), *part, *[0] * (_AT_ONCE - len(part)))
    return out


@triton.jit
def _shift(mean, low, level, at, pitch, taps, weight, count):
    """The sum of what weighted elements exceed a level by."""
    total = level * 0.0
    for j in range(count):
        share = tl.load(taps + j) * tl.load(weight + at + j * pitch)
        excess = (tl.load(mean + at + j * pitch) - level) + tl.load(low + at + j * pitch)
        total += share * excess
    return total


@triton.jit(do_not_specialize=["n", "m", "inner", "lanes", "count", "step"])
def merge_kernel(
    weight, a, b, low_a, low_b, square_a, square_b, product, taps, out, n, m, inner, lanes, count,
    step, BLOCK: tl.constexpr,
):  # fmt: skip
    """Summaries (outer, n, inner) of all elements of windows along an axis: (8, outer, m, inner).

    Weight, means, what rounding took from them, variances and covariance. As in the definition the
    means are taken about that of an element with weight, the middle one if it has any.
    """
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = number < lanes
    number = tl.minimum(number, lanes - 1)
    window = number // inner
    at = (window // m * n + window % m * step) * inner + number % inner
    pitch = inner.to(tl.int64)
    middle = at + (count // 2) * pitch
    level_a, level_b = tl.load(a + middle), tl.load(b + middle)
    has = tl.load(weight + middle) > 0.0
    total = level_a * 0.0
    for j in range(count):
        own = tl.load(weight + at + j * pitch)
        total += tl.load(taps + j) * own
        first = (has == 0) & (own > 0.0)
        level_a = tl.where(first, tl.load(a + at + j * pitch), level_a)
        level_b = tl.where(first, tl.load(b + at + j * pitch), level_b)
        has = has | first
    one = 1 / tl.where(total > 0.0, total, 1.0)
    shift_a = _shift(a, low_a, level_a, at, pitch, taps, weight, count) * one
    shift_b = _shift(b, low_b, level_b, at, pitch, taps, weight, count) * one
    mean_a, mean_b = level_a + shift_a, level_b + shift_b
    rest_a, rest_b = (level_a - mean_a) + shift_a, (level_b - mean_b) + shift_b
    var_a, var_b, covariance = total * 0.0, total * 0.0, total * 0.0
    for j in range(count):
        here = at + j * pitch
        share = tl.load(taps + j) * tl.load(weight + here)
        da = (tl.load(a + here) - mean_a) + (tl.load(low_a + here) - rest_a)
        db = (tl.load(b + here) - mean_b) + (tl.load(low_b + here) - rest_b)
        var_a += share * (tl.load(square_a + here) + da * da)
        var_b += share * (tl.load(square_b + here) + db * db)
        covariance += share * (tl.load(product + here) + da * db)
    to = out + number
    tl.store(to, total, mask=keep)
    tl.store(to + lanes, mean_a, mask=keep)
    tl.store(to + 2 * lanes, mean_b, mask=keep)
    tl.store(to + 3 * lanes, rest_a, mask=keep)
    tl.store(to + 4 * lanes, rest_b, mask=keep)
    tl.store(to + 5 * lanes, var_a * one, mask=keep)
    tl.store(to + 6 * lanes, var_b * one, mask=keep)
    tl.store(to + 7 * lanes, covariance * one, mask=keep)


def merge_along(parts: Summary, axis: int, taps: Sequence[float], step: int) -> Summary:
    """Summaries of windows along an axis."""
    if list(taps) == [1.0] and step == 1:
        return parts
    parts = tuple(x.contiguous() for x in parts)
    shape, k = list(parts[0].shape), len(taps)
    n, inner = shape[axis], parts[0].stride(axis)
    shape[axis] = (n - k) // step + 1
    out = parts[0].new_empty((8, *shape))
    lanes = out[0].numel()
    if lanes > 0:
        merge_kernel[(-(-lanes // _BLOCK),)](
            *parts, _on_device(taps, out), out, n, shape[axis], inner, lanes, k, step, BLOCK=_BLOCK
        )
    return out.unbind()


@triton.jit(do_not_specialize=["n", "m", "inner", "lanes", "count", "step", "before"])
def spread_kernel(source, taps, out, n, m, inner, lanes, count, step, before, BLOCK: tl.constexpr):
    """Weighted sums over windows (outer, m, inner) that contain an element (outer, n, inner)."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = number < lanes
    number = tl.minimum(number, lanes - 1)
    element = number // inner % n
    at = source + number // inner // n * m * inner + number % inner
    total = tl.zeros([BLOCK], tl.float64)
    for j in range(count):
        first = element + before - j
        u = first // step
        inside = (first >= 0) & (first % step == 0) & (u < m)
        total += tl.load(taps + j) * tl.load(at + u * inner, mask=inside, other=0.0)
    tl.store(out + number, total, mask=keep)


def spread(one: Tensor, size: Sequence[int], windows: Windows) -> Tensor:
    """Each element's weighted sum over the windows that contain it, (*lead, 1, *size)."""
    ndim = len(size)
    axes = per_axis(windows.taps, windows.sizes)
    for i, (taps, (before, _)) in enumerate(zip(axes, windows.pads, strict=True)):
        one = one.contiguous()
        shape, axis = list(one.shape), i - ndim
        m, inner = shape[axis], one.stride(axis)
        shape[axis] = size[i]
        out = one.new_empty(shape)
        if out.numel() > 0:
            spread_kernel[(-(-out.numel() // _BLOCK),)](
                one, _on_device(taps, one), out, size[i], m, inner, out.numel(), len(taps),
                windows.stride[i], before, BLOCK=_BLOCK,
            )  # fmt: skip
        one = out
    return one.unsqueeze(-ndim - 1)


_STEPS = definition.Steps(merge_along, spread)


def weighted_lncc(*args: Any) -> Tensor:
    """Pearson's coefficient with weights in each window."""
    return definition.weighted_lncc(*args, steps=_STEPS)


def weighted_lncc_grads(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `weighted_lncc`; one that is not needed is empty."""
    return definition.weighted_lncc_grads(*args, steps=_STEPS)
