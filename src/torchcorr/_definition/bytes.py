"""Scores of 8-bit integers from exact sums: one rounding, the same bits everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._plan.shapes import offsets, output_size, positions
from . import transforms
from .correlate import by_transforms, template_axes

# The middle of a byte: transforms are more precise about it.
_MIDDLE = 128


def ncc(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
) -> Tensor:
    """Score of a template at each window, in float32 (math.md, eq. whole)."""
    ndim = len(stride)
    axes = tuple(range(-ndim - 1, 0))
    window = template.shape[-ndim:]
    count = math.prod(template.shape[-ndim - 1 :])
    x, w = input.to(torch.int64), template.to(torch.int64)
    if zero_mean:
        x, w = x - _middle(input), w - _middle(template)
    numerator = _products(x, w, stride, method)
    sums, squares = (
        _window_sums(v, window, stride) for v in (x.sum(-ndim - 1), (x * x).sum(-ndim - 1))
    )
    template_sum, template_squares = (
        template_axes(v.sum(axes, keepdim=True)[(..., *(0,) * (ndim + 1))], ndim)
        for v in (w, w * w)
    )
    softening = eps * count
    if zero_mean:
        numerator = count * numerator - sums * template_sum
        squares = count * squares - sums * sums
        template_squares = count * template_squares - template_sum * template_sum
        softening = softening * count
    score = numerator.to(torch.float64) * _norm(squares, softening) * _norm(template_squares, 0.0)
    return score.clamp_(-1, 1).to(torch.float32)


def _middle(x: Tensor) -> int:
    return 0 if x.dtype == torch.int8 else _MIDDLE


def _norm(energy: Tensor, softening: float) -> Tensor:
    """1 / sqrt(energy + softening); 0 where the energy is."""
    wide = energy.to(torch.float64)
    norm = 1 / torch.sqrt(torch.where(energy > 0, wide, 1.0) + softening)
    return torch.where(energy > 0, norm, 0.0)


def _products(x: Tensor, w: Tensor, stride: Sequence[int], method: str) -> Tensor:
    """sum_v x(u s + v) w(v), summed over channels."""
    ndim = len(stride)
    if by_transforms(method, w.shape[-ndim - 1 :], x, w):
        return (
            transforms.correlate(x.to(torch.float64), w.to(torch.float64), stride)
            .round()
            .to(torch.int64)
        )
    window = w.shape[-ndim:]
    output = output_size(x.shape[-ndim:], window, stride)
    lead = torch.broadcast_shapes(x.shape[: -ndim - 1], w.shape[: -ndim - 1])
    total = x.new_zeros((*lead, *output))
    for v in offsets(window):
        seen = x[(..., *positions(v, output, stride))]
        total += (seen * template_axes(w[(..., *v)], ndim)).sum(-ndim - 1)
    return total


def _window_sums(x: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sums of whole numbers over windows, by differences of running sums, which are exact."""
    ndim = len(window)
    for axis, (k, s) in enumerate(zip(window, stride, strict=True), x.dim() - ndim):
        running = torch.nn.functional.pad(x.cumsum(axis).movedim(axis, -1), (1, 0)).movedim(
            -1, axis
        )
        n = x.shape[axis] - k + 1
        difference = running.narrow(axis, k, n) - running.narrow(axis, 0, n)
        x = difference.movedim(axis, 0)[::s].movedim(0, axis)
    return x
