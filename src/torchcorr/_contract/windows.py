"""Sums and moments of windows, and the transposes that spread gradients back over them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definition import windows as definition
from .._definition.transforms import bordered
from .._plan.dtypes import wide_dtype, widen
from .registry import (
    Dims,
    batched,
    differentiated_again,
    fake_like_shape,
    fake_map,
    map_shape,
    register,
)


def _fake_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    shape, wide = map_shape(input, window, stride), wide_dtype(input)
    return input.new_empty(shape, dtype=wide), input.new_empty(shape, dtype=wide)


def _fake_local_std(
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    correction: float,
    eps: float,
    pads: Sequence[int] = (),
    pad_value: float = 0.0,
) -> Tensor:
    return fake_map(bordered(input, pads), window, stride)


def _fake_combine(_s1: Tensor, _s2: Tensor, input: Tensor, *_: Any) -> Tensor:
    return input.new_empty(input.shape)


def _fake_prepare(_grad: Tensor, mean: Tensor, _var: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(mean)


# --- derivatives ----------------------------------------------------------------------------------


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.window, ctx.stride = inputs[1], inputs[2]
    ctx.shape = tuple(inputs[0].shape)
    ctx.how = inputs[1:]


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return window_spread(grad, ctx.window, ctx.shape, ctx.stride), None, None


def _save_spread(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.window, ctx.stride = inputs[1], inputs[3]
    ctx.how = inputs[1:]


def _spread_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    return window_sum(seed, ctx.window, ctx.stride), None, None, None


def covariance_with(
    input: Tensor, other: Tensor, mean: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean of another tensor in each window, and its covariance with an input of this `mean`.

    For a tangent of the input: that of its mean, and half that of its variance (math.md, tangents).
    """
    ndim = len(window)
    count = input.shape[-ndim - 1] * math.prod(window)
    base = definition.centre(input, ndim)
    wide = widen(other)
    other_mean = window_sum(wide, window, stride) / count
    product = window_sum((widen(input) - base) * wide, window, stride) / count
    return other_mean, product - (mean - base.squeeze(-ndim - 1)) * other_mean


def _tangent_of_linear(
    operator: Any, ctx: Any, primals: Sequence[Tensor], tangent: Tensor, *_: Any
) -> Tensor:
    result: Tensor = operator(tangent, *ctx.how)
    return result


def _save_input(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.save_for_forward(inputs[0])
    ctx.window, ctx.stride, *ctx.options = inputs[1:]
    ctx.count = inputs[0].shape[-len(ctx.window) - 1] * math.prod(ctx.window)


def _moments_backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Any, ...]:
    (input,) = ctx.saved_tensors
    mean, var = window_moments(input, ctx.window, ctx.stride)
    grad_s2 = torch.where(var == 0, torch.zeros_like(grad_var), grad_var) / ctx.count
    grad_s1 = grad_mean / ctx.count - 2 * mean * grad_s2
    return window_combine(grad_s1, grad_s2, input, ctx.window, ctx.stride), None, None


def _moments_tangent(
    operator: Any, ctx: Any, primals: Sequence[Tensor], tangent: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    (input,) = primals
    place = (ctx.window, ctx.stride)
    mean, var = window_moments(input, *place)
    of_mean, covariance = covariance_with(input, tangent, mean, *place)
    return of_mean, torch.where(var == 0, 0.0, 2 * covariance)


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.save_for_forward(inputs[1], inputs[2])
    ctx.window, ctx.stride = inputs[3:]


def _combine_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    grad_s2, input = ctx.saved_tensors
    place, wanted = (ctx.window, ctx.stride), ctx.needs_input_grad
    wide_seed = widen(seed)
    for_s1 = window_sum(wide_seed, *place) if wanted[0] else None
    for_s2 = window_sum(2 * wide_seed * input, *place) if wanted[1] else None
    for_input = None
    if wanted[2]:
        spread = window_spread(grad_s2, ctx.window, tuple(input.shape), ctx.stride)
        for_input = (2 * seed * spread).to(input.dtype)
    return for_s1, for_s2, for_input, None, None


def _combine_tangent(
    operator: Any,
    ctx: Any,
    primals: Sequence[Tensor],
    for_s1: Tensor | None,
    for_s2: Tensor | None,
    for_input: Tensor | None,
    *_: Any,
) -> Tensor:
    grad_s2, input = primals
    shape = tuple(input.shape)
    parts = []
    if for_s1 is not None:
        parts.append(window_spread(for_s1, ctx.window, shape, ctx.stride))
    if for_s2 is not None:
        parts.append(2 * widen(input) * window_spread(for_s2, ctx.window, shape, ctx.stride))
    if for_input is not None:
        spread = window_spread(grad_s2, ctx.window, shape, ctx.stride)
        parts.append(2 * widen(for_input) * spread)
    return functools.reduce(torch.add, parts).to(input.dtype)


def _local_std_tangent(
    operator: Any, ctx: Any, primals: Sequence[Tensor], tangent: Tensor, *_: Any
) -> Tensor:
    place = (ctx.window, ctx.stride)
    correction, eps, pads, value = ctx.options
    input = bordered(primals[0], pads, value)
    mean, var = window_moments(input, *place)
    step = bordered(tangent, pads)
    covariance = covariance_with(input, step, mean, *place)[1]
    ratio = ctx.count / (ctx.count - correction)
    live = var != 0
    std = torch.sqrt(torch.where(live, var, 1.0) * ratio + eps)
    return torch.where(live, covariance * ratio / std, 0.0).to(input.dtype)


def _local_std_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    correction, eps, pads, value = ctx.options
    input = bordered(ctx.saved_tensors[0], pads, value)
    mean, var = window_moments(input, ctx.window, ctx.stride)
    # The fused kernel, or plain torch where it will be differentiated.
    prepare: Any = local_std_prepare_grads
    if differentiated_again():
        prepare = definition.local_std_prepare_grads
    grad_s1, grad_s2 = prepare(grad, mean, var, ctx.count, correction, eps)
    combined = window_combine(grad_s1, grad_s2, input, ctx.window, ctx.stride)
    return bordered(combined, [-n for n in pads]), *(None,) * 6


# --- batching -------------------------------------------------------------------------------------


def _batch_sum(info: Any, dims: Dims, *args: Any) -> Any:
    return window_sum(*batched(info.batch_size, dims, args)), 0


def _batch_spread(info: Any, dims: Dims, *args: Any) -> Any:
    grad, window, shape, stride = batched(info.batch_size, dims, args)
    return window_spread(grad, window, (info.batch_size, *shape), stride), 0


def _batch_moments(info: Any, dims: Dims, *args: Any) -> Any:
    return window_moments(*batched(info.batch_size, dims, args)), (0, 0)


def _batch_combine(info: Any, dims: Dims, *args: Any) -> Any:
    return window_combine(*batched(info.batch_size, dims, args)), 0


def _batch_local_std(info: Any, dims: Dims, *args: Any) -> Any:
    return local_std(*batched(info.batch_size, dims, args)), 0


def _batch_prepare(info: Any, dims: Dims, *args: Any) -> Any:
    return local_std_prepare_grads(*batched(info.batch_size, dims, args)), (0, 0)


window_sum = register(
    "window_sum",
    "(Tensor input, int[] window, int[] stride) -> Tensor",
    definition.window_sum,
    fake_map,
    setup=_save_sum,
    backward=_sum_backward,
    batch=_batch_sum,
    tangent=_tangent_of_linear,
)
window_spread = register(
    "window_spread",
    "(Tensor grad, int[] window, int[] input_shape, int[] stride) -> Tensor",
    definition.window_spread,
    fake_like_shape,
    setup=_save_spread,
    backward=_spread_backward,
    batch=_batch_spread,
    tangent=_tangent_of_linear,
)
window_moments = register(
    "window_moments",
    "(Tensor input, int[] window, int[] stride) -> (Tensor, Tensor)",
    definition.window_moments,
    _fake_moments,
    setup=_save_input,
    backward=_moments_backward,
    batch=_batch_moments,
    tangent=_moments_tangent,
)
window_combine = register(
    "window_combine",
    "(Tensor grad_s1, Tensor grad_s2, Tensor input, int[] window, int[] stride) -> Tensor",
    definition.window_combine,
    _fake_combine,
    setup=_save_combine,
    backward=_combine_backward,
    batch=_batch_combine,
    tangent=_combine_tangent,
)
local_std = register(
    "local_std",
    "(Tensor input, int[] window, int[] stride, float correction, float eps, int[] pads=[],"
    " float pad_value=0) -> Tensor",
    definition.local_std,
    _fake_local_std,
    setup=_save_input,
    backward=_local_std_backward,
    batch=_batch_local_std,
    tangent=_local_std_tangent,
)
local_std_prepare_grads = register(
    "local_std_prepare_grads",
    "(Tensor grad, Tensor mean, Tensor var, float count, float correction, float eps)"
    " -> (Tensor, Tensor)",
    definition.local_std_prepare_grads,
    _fake_prepare,
    batch=_batch_prepare,
)
