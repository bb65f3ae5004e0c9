"""Correlation and its two transposes: a bilinear form, each the gradient of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._definition import correlate as definition
from .._definition.transforms import bordered
from .registry import (
    Dims,
    fake_like_shape,
    fake_score,
    front,
    rank,
    register,
    tangent_of_form,
)


def _fake_correlate(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None = None,
    pads: Sequence[int] = (),
) -> Tensor:
    return fake_score(bordered(input, pads), template, stride)


def _save_form(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.save_for_forward(inputs[0], inputs[1])
    ctx.stride, ctx.method = inputs[2], inputs[3]
    ctx.pads = inputs[5] if len(inputs) > 5 else ()
    ctx.how = (ctx.stride, ctx.method, None, ctx.pads)


def _correlate_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    narrow, template = ctx.saved_tensors
    input, how, wanted = bordered(narrow, ctx.pads), (ctx.stride, ctx.method), ctx.needs_input_grad
    for_input = for_template = None
    if wanted[0]:
        whole = correlate_input_grad(grad, template, tuple(input.shape), *how)
        for_input = bordered(whole, [-n for n in ctx.pads])
    if wanted[1]:
        for_template = correlate_template_grad(grad, input, tuple(template.shape), *how)
    return for_input, for_template, *(None,) * 4


def _save_transpose(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.save_for_forward(inputs[0], inputs[1])
    ctx.how = inputs[2:5]
    ctx.shape = tuple(inputs[1].shape)
    ctx.stride, ctx.method = inputs[3], inputs[4]


def _input_grad_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    grad, template = ctx.saved_tensors
    how = (ctx.stride, ctx.method)
    wanted = ctx.needs_input_grad
    return (
        correlate(seed, template, *how) if wanted[0] else None,
        correlate_template_grad(grad, seed, ctx.shape, *how) if wanted[1] else None,
        None,
        None,
        None,
    )


def _template_grad_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    grad, input = ctx.saved_tensors
    how = (ctx.stride, ctx.method)
    wanted = ctx.needs_input_grad
    return (
        correlate(input, seed, *how) if wanted[0] else None,
        correlate_input_grad(grad, seed, ctx.shape, *how) if wanted[1] else None,
        None,
        None,
        None,
    )


def _batch_form(
    info: Any, dims: Dims, input: Tensor, template: Tensor, stride: Sequence[int], *args: Any
) -> Any:
    core = len(stride) + 1
    lead = max(rank(input, dims[0]), rank(template, dims[1])) - core
    both = (front(input, dims[0], core, lead), front(template, dims[1], core, lead))
    return correlate(*both, stride, *args), 0


def batch_pair(
    size: int, dims: Dims, grad: Tensor, other: Tensor, shape: Sequence[int], ndim: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """A gradient and the other factor with their batch axis in front; the shape of the result."""
    lead = max(rank(grad, dims[0]) - ndim, rank(other, dims[1]) - ndim - 1)
    grad = front(grad, dims[0], ndim, lead, size)
    other = front(other, dims[1], ndim + 1, lead)
    return grad, other, (size, *(1,) * (lead - len(shape) + ndim + 1), *shape)


def _batch_input_grad(
    info: Any,
    dims: Dims,
    grad: Tensor,
    template: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    method: str,
) -> Any:
    pair = batch_pair(info.batch_size, dims, grad, template, shape, len(stride))
    result = correlate_input_grad(*pair, stride, method)
    return result.reshape(info.batch_size, *shape), 0


def _batch_template_grad(
    info: Any,
    dims: Dims,
    grad: Tensor,
    input: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    method: str,
) -> Any:
    pair = batch_pair(info.batch_size, dims, grad, input, shape, len(stride))
    result = correlate_template_grad(*pair, stride, method)
    return result.reshape(info.batch_size, *shape), 0


correlate = register(
    "correlate",
    "(Tensor input, Tensor template, int[] stride, str method, Tensor? spectra=None,"
    " int[] pads=[]) -> Tensor",
    definition.correlate,
    _fake_correlate,
    setup=_save_form,
    backward=_correlate_backward,
    batch=_batch_form,
    tangent=tangent_of_form,
)
correlate_input_grad = register(
    "correlate_input_grad",
    "(Tensor grad, Tensor template, int[] input_shape, int[] stride, str method) -> Tensor",
    definition.correlate_input_grad,
    fake_like_shape,
    setup=_save_transpose,
    backward=_input_grad_backward,
    batch=_batch_input_grad,
    tangent=tangent_of_form,
)
correlate_template_grad = register(
    "correlate_template_grad",
    "(Tensor grad, Tensor input, int[] template_shape, int[] stride, str method) -> Tensor",
    definition.correlate_template_grad,
    fake_like_shape,
    setup=_save_transpose,
    backward=_template_grad_backward,
    batch=_batch_template_grad,
    tangent=tangent_of_form,
)
