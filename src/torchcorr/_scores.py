"""Normalised scores from a numerator by either method, registered for CPU and CUDA.

The numerator is that of a centred input in float64. Where even float64 cannot promise the bound,
because a window is that much fainter than the input, its score is computed again from its
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from . import _reference
from ._ops import METHODS, library, ops

# The score's noise is at most about this times eps64 * deviation(input) / deviation(window).
_NOISE = 8.0
# What promise 2 allows, less a margin for what the other steps of a score cost.
_TOLERANCE = {torch.float32: 5e-6, torch.float64: 5e-11}
# Elements gathered at once when windows are computed again from their definition.
_GATHER = 1 << 22


def _score(
    correlate: Callable[..., Tensor],
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
) -> Tensor:
    ndim = len(stride)
    window = template.shape[-ndim:]
    mean, var = ops.window_moments(input, window, stride)
    wide, weights = _reference.widen(input), _reference.widen(template)
    centre = _reference.centre(input, ndim)
    if not zero_mean:
        centre = torch.zeros_like(centre)
    centred = torch.where(torch.isfinite(wide), wide - centre, 0.0)
    numerator = correlate(centred, weights, stride)
    out = torch.empty_like(numerator, dtype=input.dtype)
    count = template.shape[-ndim - 1] * window.numel()
    template_sum = weights.sum(tuple(range(-ndim - 1, 0)))
    level = centre[(..., *(0,) * (ndim + 1))]
    ops.ncc_finish(numerator, mean, var, template_sum, level, count, zero_mean, eps, out)
    _repair(out, input, template, mean, var, stride, zero_mean, eps)
    return out


def _repair(
    out: Tensor,
    input: Tensor,
    template: Tensor,
    mean: Tensor,
    var: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
) -> None:
    """Computes again, from the definition, the scores that the transform's noise may have
    spoilt.
    """
    ndim = len(stride)
    if out.numel() == 0:
        return
    wide = _reference.widen(input)
    spread = torch.nan_to_num(wide - _reference.centre(input, ndim) if zero_mean else wide, 0, 0, 0)
    power = spread.square().mean(tuple(range(-ndim - 1, 0)))[(..., *(None,) * ndim)]
    energy = var if zero_mean else var + mean.square()
    limit = (_NOISE * torch.finfo(torch.float64).eps / _TOLERANCE[input.dtype]) ** 2
    noisy = (energy > 0) & (energy + eps < power * limit)
    if not noisy.any():
        return
    _rescore(out, noisy, input, template, mean, energy + eps, stride, zero_mean)


def _rescore(
    out: Tensor,
    noisy: Tensor,
    input: Tensor,
    template: Tensor,
    mean: Tensor,
    energy: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
) -> None:
    ndim = len(stride)
    window = template.shape[-ndim:]
    count = template.shape[-ndim - 1] * window.numel()
    seen = _reference.windows(input, window, stride).expand(
        (*out.shape, template.shape[-ndim - 1], *window)
    )
    lead = template.shape[: -ndim - 1]
    weights = template.reshape(*lead, *(1,) * ndim, *template.shape[-ndim - 1 :]).expand(seen.shape)
    mean, energy = mean.expand(out.shape), energy.expand(out.shape)
    for where in noisy.expand(out.shape).nonzero().split(max(1, _GATHER // count)):
        index = where.unbind(1)
        level = mean[index] if zero_mean else torch.zeros_like(mean[index])
        deviations = _reference.widen(seen[index]) - level[(..., *(None,) * (ndim + 1))]
        numerator = (deviations * weights[index]).flatten(1).sum(1)
        score = numerator / (count * energy[index].sqrt())
        out[index] = score.clamp(-1, 1).to(out.dtype)


for _method in METHODS:
    for _key in ("CPU", "CUDA"):
        _numerator = getattr(ops, f"correlate_{_method}")
        library.impl(f"ncc_{_method}", partial(_score, _numerator), _key)
