"""Normalised scores and the standardised templates they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definition import scores as definition
from .._definition.windows import centre
from .._plan.dtypes import wide_dtype, widen
from .correlate import correlate, correlate_input_grad, correlate_template_grad
from .registry import (
    Dims,
    batched,
    differentiated_again,
    fake_pair,
    fake_score,
    front,
    rank,
    register,
)
from .windows import covariance_with, window_combine, window_moments


def _fake_standardise(template: Tensor, *_: Any) -> Tensor:
    return template.new_empty(template.shape, dtype=wide_dtype(template))


def _save_template(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.save_for_forward(inputs[0])
    ctx.ndim, ctx.zero_mean = inputs[1:]


def _standardise_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    args = (*ctx.saved_tensors, grad, ctx.ndim, ctx.zero_mean)
    if differentiated_again():
        result = definition.through_standardise(standardise, *args).to(args[0].dtype)
    else:
        result = standardise_grad(*args)
    return result, None, None


def _standardise_tangent(
    operator: Any, ctx: Any, primals: Sequence[Tensor], tangent: Tensor, *_: Any
) -> Tensor:
    args = (primals[0], widen(tangent), ctx.ndim, ctx.zero_mean)
    return definition.through_standardise(standardise, *args)


def _batch_standardise(info: Any, dims: Dims, *args: Any) -> Any:
    return standardise(*batched(info.batch_size, dims, args)), 0


def _save_score(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.save_for_forward(inputs[0], inputs[1])
    ctx.options = inputs[2:6]


def _ncc_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    wanted = tuple(ctx.needs_input_grad[:2])
    args = (grad, *ctx.saved_tensors, *ctx.options, *wanted)
    if differentiated_again():
        grads = definition.score_gradients(_OPERATORS, definition.ScoreGradCall(*args))
    else:
        grads = ncc_grads(*args)
    chosen = (g if want else None for g, want in zip(grads, wanted, strict=True))
    return (*chosen, *(None,) * 6)


def _ncc_tangent(
    operator: Any,
    ctx: Any,
    primals: Sequence[Tensor],
    for_input: Tensor | None,
    for_template: Tensor | None,
    *_: Any,
) -> Tensor:
    """The tangent of a score (math.md, eq. tangents): 0 where a window is flat."""
    narrow, template = primals
    stride, zero_mean, eps, method = ctx.options
    input, weights = widen(narrow), widen(template)
    ndim = len(stride)
    window, axes = tuple(weights.shape[-ndim:]), tuple(range(-ndim - 1, 0))
    mean, var = window_moments(input, window, stride)
    energy = var if zero_mean else var + mean * mean
    live = energy != 0
    energy = torch.where(live, energy, 1.0) + eps
    scale = 1 / (math.prod(weights.shape[-ndim - 1 :]) * energy.sqrt())
    parts = []
    if for_input is not None:
        step, level = widen(for_input), weights.mean(axes, keepdim=True) if zero_mean else 0.0
        of_numerator = correlate(step, weights - level, stride, method)
        of_mean, half = covariance_with(input, step, mean, window, stride)
        half = half if zero_mean else half + mean * of_mean
        score = operator(input, weights, stride, zero_mean, eps, method)
        parts.append(of_numerator * scale - score * (half / energy))
    if for_template is not None:
        step = widen(for_template)
        base = centre(input, ndim) if zero_mean else input.new_zeros((1,) * (ndim + 1))
        of_numerator = correlate(input - base, step, stride, method)
        if zero_mean:
            total = step.sum(axes)[(..., *(None,) * ndim)]
            of_numerator = of_numerator - (mean - base.squeeze(-ndim - 1)) * total
        parts.append(of_numerator * scale)
    return torch.where(live, sum(parts), 0.0).to(narrow.dtype)


def _fake_ncc(input: Tensor, *args: Any) -> Tensor:
    """Integers are scored in float32."""
    score = fake_score(input, *args)
    return score if input.is_floating_point() else score.float()


def _batch_ncc(
    info: Any, dims: Dims, input: Tensor, template: Tensor, stride: Sequence[int], *args: Any
) -> Any:
    core = len(stride) + 1
    lead = max(rank(input, dims[0]), rank(template, dims[1])) - core
    both = (front(input, dims[0], core, lead), front(template, dims[1], core, lead))
    *rest, whole = args
    if whole is not None:
        whole = front(whole, dims[-1], core, lead)
    return ncc(*both, stride, *rest, whole), 0


standardise = register(
    "standardise",
    "(Tensor template, int ndim, bool zero_mean) -> Tensor",
    definition.standardise,
    _fake_standardise,
    setup=_save_template,
    backward=_standardise_backward,
    batch=_batch_standardise,
    tangent=_standardise_tangent,
)
standardise_grad = register(
    "standardise_grad",
    "(Tensor template, Tensor grad, int ndim, bool zero_mean) -> Tensor",
    definition.standardise_grad,
    lambda template, *_: template.new_empty(template.shape),
)
ncc = register(
    "ncc",
    "(Tensor input, Tensor template, int[] stride, bool zero_mean, float eps, str method,"
    " Tensor? spectra=None, Tensor? whole=None) -> Tensor",
    definition.ncc,
    _fake_ncc,
    setup=_save_score,
    backward=_ncc_backward,
    batch=_batch_ncc,
    tangent=_ncc_tangent,
)
ncc_grads = register(
    "ncc_grads",
    "(Tensor grad, Tensor input, Tensor template, Tensor score, int[] stride, bool zero_mean,"
    " float eps, str method, bool need_input, bool need_template) -> (Tensor, Tensor)",
    definition.ncc_grads,
    fake_pair,
)
_OPERATORS = definition.ScoreOperators(
    ncc, window_moments, window_combine, correlate_input_grad, correlate_template_grad
)
