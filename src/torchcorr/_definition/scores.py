"""Normalised scores, the templates they take, and their gradients written over operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.dtypes import widen
from .._plan.shapes import offsets, positions
from . import bytes, transforms
from .correlate import (
    all_finite,
    by_transforms,
    correlate_input_grad,
    correlate_template_grad,
    recompute_exactly,
    template_axes,
)
from .windows import centre, finite_values, rough_moments, window_combine, window_moments


def _energy(mean: Tensor, var: Tensor, zero_mean: bool) -> Tensor:
    """The quantity under the root of a normalised score, without eps."""
    return var if zero_mean else var + mean * mean


def standardise(template: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """The template in float64, scaled to a mean square of 1, centred if asked; a flat one is 0."""
    axes = tuple(range(-ndim - 1, 0))
    wide = widen(template)
    flat = torch.zeros_like(wide[(..., *(slice(0, 1),) * (ndim + 1))], dtype=torch.bool)
    if zero_mean:
        flat = wide.amax(axes, keepdim=True) == wide.amin(axes, keepdim=True)
        # Twice: the first mean is rounded in units of the offset, the second of the contrast.
        wide = wide - wide.mean(axes, keepdim=True)
        wide = wide - wide.mean(axes, keepdim=True)
    # Dividing by the peak first keeps squares in range; the result does not depend on it.
    peak = wide.detach().abs().amax(axes, keepdim=True)
    flat = flat | (peak == 0)
    wide = torch.where(flat, 1.0, wide / torch.where(flat, 1.0, peak))
    scaled = wide * wide.square().mean(axes, keepdim=True).rsqrt()
    return torch.where(flat, 0.0, scaled)


def through_standardise(
    standardise: Callable[[Tensor, int, bool], Tensor],
    template: Tensor,
    grad: Tensor,
    ndim: int,
    zero_mean: bool,
) -> Tensor:
    """The derivative of `standardise`, a symmetric matrix and so its own transpose, in float64."""
    axes = tuple(range(-ndim - 1, 0))
    standard = standardise(template, ndim, zero_mean)
    wide = widen(template)
    if zero_mean:
        grad = grad - grad.mean(axes, keepdim=True)
        wide = wide - wide.mean(axes, keepdim=True)
    # The mean product of a deviation and its standardised self is the deviation's size.
    size = (wide * standard).mean(axes, keepdim=True)
    flat = (standard == 0).all(-1, keepdim=True)
    for axis in axes[:-1]:
        flat = flat.all(axis, keepdim=True)
    through = grad - standard * (grad * standard).mean(axes, keepdim=True)
    return torch.where(flat, 0.0, through / torch.where(flat, 1.0, size))


def standardise_grad(template: Tensor, grad: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """A gradient behind `standardise`, in the type of the template."""
    return through_standardise(standardise, template, grad, ndim, zero_mean).to(template.dtype)


def ncc(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    spectra: Tensor | None = None,
    whole: Tensor | None = None,
) -> Tensor:
    """Score of a standardised template at each window (math.md, eq. zncc).

    `whole` is the template before that; for inputs of 8-bit integers both are the same.
    """
    if whole is not None and not input.is_floating_point():
        return bytes.ncc(input, whole, stride, zero_mean, eps, method)
    ndim = len(stride)
    window = template.shape[-ndim:]
    if input.dtype == torch.float64:
        mean, var = window_moments(input, window, stride)
    else:
        mean, var = rough_moments(input, window, stride, centre(input, ndim))
    energy = _energy(mean, var, zero_mean)
    flat = energy == 0
    count = math.prod(template.shape[-ndim - 1 :])
    norm = torch.where(flat, 1.0, energy).add_(eps).rsqrt_().div_(count)
    level = mean if zero_mean else torch.zeros_like(mean)
    sizes = template.shape[-ndim - 1 :]
    if by_transforms(method, sizes, input, template) and all_finite(template):
        total = _numerators_by_transforms(input, template, stride, level, norm)
    else:
        total = _numerators(input, template, stride, level)
    return total.mul_(norm).clamp_(-1, 1).to(input.dtype).masked_fill_(flat, 0)


def _numerators(input: Tensor, template: Tensor, stride: Sequence[int], level: Tensor) -> Tensor:
    """sum_v (I(u s + v) - level(u)) T(v), summed over channels."""
    ndim = len(stride)
    output = level.shape[level.dim() - ndim :]
    wide, weights = widen(input), widen(template)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total = wide.new_zeros((*lead, *output))
    level = level.unsqueeze(-ndim - 1)
    for v in offsets(template.shape[-ndim:]):
        seen = wide[(..., *positions(v, output, stride))] - level
        total += (seen * template_axes(weights[(..., *v)], ndim)).sum(-ndim - 1)
    return total


def _numerators_by_transforms(
    input: Tensor, template: Tensor, stride: Sequence[int], level: Tensor, norm: Tensor
) -> Tensor:
    """The same by float64 transforms; values that rounding may have spoilt are recomputed."""
    ndim, raw, weights = len(stride), widen(input), widen(template)
    wide, affected = finite_values(raw, template.shape[-ndim:], stride)
    numerators, noise = transforms.correlate_with_noise(wide, weights, stride)
    narrow = input.dtype != torch.float64
    allowed = rounding.ALLOWED_SCORE_ERROR[torch.float32 if narrow else torch.float64]
    doubtful = ~(norm <= allowed / noise)
    if affected is not None:
        doubtful = doubtful | affected
    total = weights.sum(tuple(range(-ndim - 1, 0)))[(..., *(None,) * ndim)]
    numerators.addcmul_(level, total, value=-1)
    return recompute_exactly(numerators, doubtful, raw, weights, stride, level)


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
    energy = _energy(mean, var, zero_mean)
    live = energy != 0
    energy = torch.where(live, energy, torch.ones_like(energy)) + eps
    wide = widen(grad)
    zero = wide.new_zeros(())
    numerator_grad = torch.where(live, wide / (count * torch.sqrt(energy)), zero)
    share = torch.where(live, wide * score / (count * energy), zero).sum_to_size(mean.shape)
    grad_s1 = share * mean if zero_mean else torch.zeros_like(share)
    return numerator_grad.to(grad.dtype), grad_s1, -share / 2


class ScoreOperators(NamedTuple):
    """The operators in the gradient of a score: registered ones, or their definitions."""

    ncc: Callable[..., Tensor]
    window_moments: Callable[..., tuple[Tensor, Tensor]]
    window_combine: Callable[..., Tensor]
    correlate_input_grad: Callable[..., Tensor]
    correlate_template_grad: Callable[..., Tensor]


class ScoreGradCall(NamedTuple):
    """A score that is differentiated, and which of its gradients are needed."""

    grad: Tensor
    input: Tensor
    template: Tensor
    score: Tensor
    stride: Sequence[int]
    zero_mean: bool
    eps: float
    method: str
    need_input: bool
    need_template: bool


def score_gradients(of: ScoreOperators, call: ScoreGradCall) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients of `ncc` (math.md, eq. zncc-input and zncc-template), None if not needed.

    In float64: the terms nearly cancel where a window resembles the template.
    """
    input, template, score, stride = call.input, call.template, call.score, call.stride
    zero_mean, method = call.zero_mean, call.method
    ndim = len(stride)
    window, axes = tuple(template.shape[-ndim:]), tuple(range(-ndim, 0))
    mean, var = of.window_moments(input, window, stride)
    count = math.prod(template.shape[-ndim - 1 :])
    wide, weights = widen(input), widen(template)
    if wide.dtype != input.dtype:
        score = of.ncc(wide, weights, stride, zero_mean, call.eps, method)
    numerator_grad, grad_s1, grad_s2 = ncc_prepare_grads(
        widen(call.grad), widen(score), mean, var, count, zero_mean, call.eps
    )
    for_input: Tensor | None = None
    for_template: Tensor | None = None
    if call.need_input:
        level = weights.mean((-ndim - 1, *axes), keepdim=True) if zero_mean else 0.0
        shape = tuple(input.shape)
        through_score = of.correlate_input_grad(
            numerator_grad, weights - level, shape, stride, method
        )
        through_window = of.window_combine(grad_s1, grad_s2, wide, window, stride)
        for_input = (through_score + through_window).to(input.dtype)
    if call.need_template:
        shape = tuple(template.shape)
        base = centre(input, ndim) if zero_mean else wide.new_zeros((1,) * (ndim + 1))
        total = of.correlate_template_grad(numerator_grad, wide - base, shape, stride, method)
        if zero_mean:
            offset = (numerator_grad * (mean - base.squeeze(-ndim - 1))).sum(axes)
            offset = offset[(..., None, *(None,) * ndim)]
            total = total - offset.sum_to_size((*shape[: -ndim - 1], *(1,) * (ndim + 1)))
        for_template = total.to(template.dtype)
    return for_input, for_template


def composed_grads(of: ScoreOperators, call: ScoreGradCall) -> tuple[Tensor, Tensor]:
    """Both gradients of `ncc`; one that is not needed is empty."""
    for_input, for_template = score_gradients(of, call)
    return (
        for_input if for_input is not None else call.input.new_empty(0),
        for_template if for_template is not None else call.template.new_empty(0),
    )


_DEFINITIONS = ScoreOperators(
    ncc, window_moments, window_combine, correlate_input_grad, correlate_template_grad
)


def ncc_grads(
    grad: Tensor,
    input: Tensor,
    template: Tensor,
    score: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    need_input: bool,
    need_template: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients of `ncc`; one that is not needed is empty."""
    args = (grad, input, template, score, stride, zero_mean, eps, method, need_input, need_template)
    return composed_grads(_DEFINITIONS, ScoreGradCall(*args))
