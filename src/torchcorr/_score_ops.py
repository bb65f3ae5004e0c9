"""Fake kernels and derivatives of normalised scores and of the templates they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _reference
from ._ops import (
    METHODS,
    count_of,
    fake_pair,
    fake_score,
    library,
    ops,
    prepared,
    qualified,
    register_autograd,
    transposes,
)


def _fake_ncc_grads(
    grad: Tensor, score: Tensor, mean: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return grad.new_empty(grad.shape), torch.empty_like(mean), torch.empty_like(mean)


def _save_ncc(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.stride, ctx.zero_mean, ctx.eps = inputs[2:5]
    ctx.spare = (None,) * (len(inputs) - 2)


def _fake_standardise(template: Tensor, *_: Any) -> Tensor:
    return template.new_empty(template.shape, dtype=_reference.wide_dtype(template))


def _save_template(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.ndim, ctx.zero_mean = inputs[1:]


def _standardise_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (template,) = ctx.saved_tensors
    axes = tuple(range(-ctx.ndim - 1, 0))
    standard = ops.standardise(template, ctx.ndim, ctx.zero_mean)
    wide = _reference.widen(template)
    if ctx.zero_mean:
        grad = grad - grad.mean(axes, keepdim=True)
        wide = wide - wide.mean(axes, keepdim=True)
    # The mean product of a deviation and its standardised self is the deviation's size.
    size = (wide * standard).mean(axes, keepdim=True)
    flat = (standard == 0).all(-1, keepdim=True)
    for axis in axes[:-1]:
        flat = flat.all(axis, keepdim=True)
    through = grad - standard * (grad * standard).mean(axes, keepdim=True)
    found = torch.where(flat, 0.0, through / torch.where(flat, 1.0, size))
    return found.to(template.dtype), None, None


def ncc_grads(
    method: str,
    grad: Tensor,
    input: Tensor,
    template: Tensor,
    score: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    need_input: bool,
    need_template: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients of a score, made of operators and plain torch that can be differentiated.

    In float64: the terms nearly cancel where a window resembles the template.
    """
    ndim = len(stride)
    input_grad, template_grad = transposes(method)
    window, axes = tuple(template.shape[-ndim:]), tuple(range(-ndim, 0))
    mean, var = ops.window_moments(input, window, stride)
    count = count_of(input.shape, window)
    wide, weights = _reference.widen(input), _reference.widen(template)
    if wide.dtype != input.dtype:
        score = getattr(ops, f"ncc_{method}")(wide, weights, stride, zero_mean, eps)
    prepare = prepared("ncc_prepare_grads")
    numerator_grad, grad_s1, grad_s2 = prepare(
        *map(_reference.widen, (grad, score)), mean, var, count, zero_mean, eps
    )
    found: list[Tensor | None] = [None, None]
    if need_input:
        centred = weights
        if zero_mean:
            centred = weights - weights.mean((-ndim - 1, *axes), keepdim=True)
        through_score = input_grad(numerator_grad, centred, tuple(input.shape), stride)
        through_window = ops.window_combine(grad_s1, grad_s2, wide, window, stride)
        found[0] = (through_score + through_window).to(input.dtype)
    if need_template:
        shape = tuple(template.shape)
        if not zero_mean:
            found[1] = template_grad(numerator_grad, wide, shape, stride).to(template.dtype)
        else:
            centre = _reference.centre(input, ndim)
            level = mean - centre.squeeze(-ndim - 1)
            through_score = template_grad(numerator_grad, wide - centre, shape, stride)
            offset = (numerator_grad * level).sum(axes)[(..., None, *(None,) * ndim)]
            lead_shape = (*shape[: -ndim - 1], *(1,) * (ndim + 1))
            found[1] = (through_score - offset.sum_to_size(lead_shape)).to(template.dtype)
    return found[0], found[1]


def _register_ncc(method: str) -> None:
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, template, score = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:2])
        args = (grad, input, template, score, ctx.stride, ctx.zero_mean, ctx.eps, *wanted)
        again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        if method == "fft" and not again:
            grads = ops.ncc_fft_grads(*args)
        else:
            grads = ncc_grads(method, *args)
        chosen = (g if want else None for g, want in zip(grads, wanted, strict=True))
        return (*chosen, *ctx.spare)

    register_autograd(f"ncc_{method}", backward, _save_ncc)
    torch.library.register_fake(qualified(f"ncc_{method}"), fake_score, lib=library)


for _method in METHODS:
    _register_ncc(_method)
torch.library.register_fake(qualified("standardise"), _fake_standardise, lib=library)
register_autograd("standardise", _standardise_backward, _save_template)
for _name, _shape_rule in (
    ("ncc_prepare_grads", _fake_ncc_grads),
    ("ncc_fft_grads", fake_pair),
):
    torch.library.register_fake(qualified(_name), _shape_rule, lib=library)
