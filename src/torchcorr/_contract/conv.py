"""Convolution layers and their two transposes: a bilinear form, each the gradient of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._definition import conv as definition
from .._plan.lattice import positions_of
from .registry import Dims, Shape, fake_like_shape, register, tangent_of_form


def _fake_conv(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *_: Any,
) -> Tensor:
    ndim = len(stride)
    window = weight.shape[-ndim:]
    positions = positions_of(input.shape[-ndim:], window, stride, padding, dilation)
    return input.new_empty((input.shape[0], weight.shape[0], *positions))


# --- derivatives: each form is linear in both tensors ---------------------------------------------


def _save_form(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.save_for_forward(inputs[0], inputs[1])
    ctx.shapes = (tuple(inputs[0].shape), tuple(inputs[1].shape))
    ctx.how = inputs[2:]


def _save_prepared_form(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Spectra, if any are given, are those of the weight in this form: of no use to others."""
    form = inputs if isinstance(inputs[-1], str) else inputs[:-1]
    _save_form(ctx, form, output)
    ctx.without_gradient = (None,) * (len(inputs) - 2)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    shape, window = ctx.shapes
    wanted = ctx.needs_input_grad
    return (
        conv_input_grad(grad, weight, shape, *ctx.how) if wanted[0] else None,
        conv_weight_grad(grad, input, window, *ctx.how) if wanted[1] else None,
        *ctx.without_gradient,
    )


def _input_grad_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    grad, weight = ctx.saved_tensors
    _, *how = ctx.how
    wanted = ctx.needs_input_grad
    return (
        conv(seed, weight, *how) if wanted[0] else None,
        conv_weight_grad(grad, seed, ctx.shapes[1], *how) if wanted[1] else None,
        *ctx.without_gradient,
    )


def _weight_grad_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    grad, input = ctx.saved_tensors
    _, *how = ctx.how
    wanted = ctx.needs_input_grad
    return (
        conv(input, seed, *how) if wanted[0] else None,
        conv_input_grad(grad, seed, ctx.shapes[1], *how) if wanted[1] else None,
        *(None for _ in ctx.how),
    )


# --- batching: more items, more outputs, or more groups ------------------------------------------


def _into(x: Tensor, dim: int | None, axis: int, size: int) -> Tensor:
    """x with its batch axis, made if it has none, in front of `axis` and merged with it."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.movedim(0, axis).flatten(axis, axis + 1)


def _split(x: Tensor, axis: int, size: int) -> Tensor:
    return x.unflatten(axis, (size, x.shape[axis] // size))


def _batch_conv(info: Any, dims: Dims, input: Tensor, weight: Tensor, *how: Any) -> Any:
    size, groups, how = info.batch_size, how[3], how[:5]
    if dims[1] is None:
        return _split(conv(_into(input, dims[0], 0, size), weight, *how), 0, size), 0
    weight = _into(weight, dims[1], 0, size)
    if dims[0] is None and groups == 1:
        return _split(conv(input, weight, *how), 1, size), 1
    how = (*how[:3], size * groups, *how[4:])
    return _split(conv(_into(input, dims[0], 1, size), weight, *how), 1, size), 1


def _batch_input_grad(
    info: Any, dims: Dims, grad: Tensor, weight: Tensor, shape: Shape, *how: Any
) -> Any:
    size, groups, how = info.batch_size, how[3], how[:5]
    items, channels, *rest = shape
    if dims[1] is None:
        grad, shape = _into(grad, dims[0], 0, size), (size * items, channels, *rest)
        return _split(conv_input_grad(grad, weight, shape, *how), 0, size), 0
    grad, weight = _into(grad, dims[0], 1, size), _into(weight, dims[1], 0, size)
    how = (*how[:3], size * groups, *how[4:])
    out = conv_input_grad(grad, weight, (items, size * channels, *rest), *how)
    return _split(out, 1, size), 1


def _batch_weight_grad(
    info: Any, dims: Dims, grad: Tensor, input: Tensor, shape: Shape, *how: Any
) -> Any:
    size, groups = info.batch_size, how[3]
    grad, input = _into(grad, dims[0], 1, size), _into(input, dims[1], 1, size)
    how = (*how[:3], size * groups, *how[4:])
    out = conv_weight_grad(grad, input, (size * shape[0], *shape[1:]), *how)
    return _split(out, 0, size), 0


_HOW = "int[] stride, int[] padding, int[] dilation, int groups, str method"

conv = register(
    "conv",
    f"(Tensor input, Tensor weight, {_HOW}, Tensor? spectra=None) -> Tensor",
    definition.conv,
    _fake_conv,
    setup=_save_prepared_form,
    backward=_conv_backward,
    batch=_batch_conv,
    tangent=tangent_of_form,
)
conv_input_grad = register(
    "conv_input_grad",
    f"(Tensor grad, Tensor weight, SymInt[] input_shape, {_HOW}, Tensor? spectra=None) -> Tensor",
    definition.conv_input_grad,
    fake_like_shape,
    setup=_save_prepared_form,
    backward=_input_grad_backward,
    batch=_batch_input_grad,
    tangent=tangent_of_form,
)
conv_weight_grad = register(
    "conv_weight_grad",
    f"(Tensor grad, Tensor input, SymInt[] weight_shape, {_HOW}) -> Tensor",
    definition.conv_weight_grad,
    fake_like_shape,
    setup=_save_form,
    backward=_weight_grad_backward,
    batch=_batch_weight_grad,
    tangent=tangent_of_form,
)
