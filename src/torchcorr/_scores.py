"""Normalised scores from a numerator by either method, registered for CPU and CUDA.

The numerator is that of a centred input, in the input's own precision where its noise stays below
the promised bound at every window, or at all but a few; otherwise in float64. The few windows that
are too faint even so are computed again from their definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from . import _reference
from ._ops import library, ops
from ._overlap_save import finite_correlate

# The score's noise is at most about this times eps * deviation(input) / deviation(window).
_NOISE = 8.0
# What promise 2 allows, less a margin for what the other steps of a score cost.
_TOLERANCE = {torch.float32: 5e-6, torch.float64: 5e-11}
# Variances of an input that float32 transforms carry without overflow or underflow.
_POWER_OF_FLOAT32 = (1e-50, 1e50)
# Elements gathered at once when windows are computed again from their definition.
_GATHER = 1 << 22
# Elements of windows computed again that cost about as much as a transform in float64.
_FEW = 1 << 20


def _score(
    correlate: Callable[..., Tensor],
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    precise: bool = False,
) -> Tensor:
    if input.numel() == 0 or template.numel() == 0:
        return _reference.ncc(input, template, stride, zero_mean, eps)
    ndim = len(stride)
    window = template.shape[-ndim:]
    count = template.shape[-ndim - 1] * window.numel()
    mean, var = ops.window_moments(input, window, stride)
    energy = var if zero_mean else var + mean.square()
    centre = _reference.centre(input, ndim).to(input.dtype)
    if not zero_mean:
        centre = torch.zeros_like(centre)
    dtypes = (torch.float64,) if precise else (input.dtype, torch.float64)
    centred, noisy = _prepared(input, centre, energy, eps, ndim, count, dtypes)
    weights = template.to(centred.dtype)
    numerator = correlate(centred, weights, stride)
    out = input.new_empty(numerator.shape)
    template_sum = _reference.widen(weights).sum(tuple(range(-ndim - 1, 0)))
    level = _reference.widen(centre[(..., *(0,) * (ndim + 1))])
    ops.ncc_finish(numerator, mean, var, template_sum, level, count, zero_mean, eps, out)
    if noisy.any():
        _rescore(out, noisy, input, template, mean, energy + eps, stride, zero_mean)
    return out


def _prepared(
    input: Tensor,
    centre: Tensor,
    energy: Tensor,
    eps: float,
    ndim: int,
    count: int,
    dtypes: Sequence[torch.dtype],
) -> tuple[Tensor, Tensor]:
    """The centred input in the precision it needs, and the windows that still need more."""
    axes = tuple(range(-ndim - 1, 0))
    live = energy > 0
    for working in dtypes:
        centred = input.to(working) - centre.to(working)
        power = torch.linalg.vector_norm(centred, dim=axes, dtype=torch.float64).square()
        if not torch.isfinite(power).all():
            centred = torch.nan_to_num(centred, 0, 0, 0)
            power = torch.linalg.vector_norm(centred, dim=axes, dtype=torch.float64).square()
        power = power / input.shape[-ndim - 1 :].numel()
        limit = (_NOISE * torch.finfo(working).eps / _TOLERANCE[input.dtype]) ** 2
        noisy = live & (energy < (power * limit)[(..., *(None,) * ndim)] - eps)
        if working == torch.float64:
            break
        smallest, largest = _POWER_OF_FLOAT32
        fits = bool(((power == 0) | ((power > smallest) & (power < largest))).all())
        if fits and int(noisy.sum()) * count <= _FEW:
            break
    return centred, noisy


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


for _key in ("CPU", "CUDA"):
    library.impl("ncc_direct", partial(_score, ops.correlate_direct), _key)
    library.impl("ncc_fft", partial(_score, finite_correlate), _key)
