"""Means and variances of windows whose elements have weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definition import weighted_moments as definition
from .._plan.dtypes import wide_dtype
from .._plan.shapes import output_size
from .correlate import correlate, correlate_input_grad, correlate_template_grad
from .registry import Dims, differentiated_again, front, rank, register, tangent_by_gradients
from .windows import window_spread, window_sum

_TENSORS = 3  # input, its weights and those of windows


def _fake(*args: Any) -> tuple[Tensor, ...]:
    tensors, (window, stride) = args[:_TENSORS], args[_TENSORS:]
    ndim, input = len(window), tensors[0]
    leads = (x.shape[: -ndim - 1] for x in tensors if x is not None)
    output = output_size(input.shape[-ndim:], window, stride)
    shape = (*torch.broadcast_shapes(*leads), *output)
    return tuple(input.new_empty(shape, dtype=wide_dtype(input)) for _ in range(3))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.save_for_forward(*inputs[:_TENSORS])
    ctx.place = inputs[_TENSORS:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    needed = tuple(ctx.needs_input_grad[:_TENSORS])
    input, *weights = saved[:_TENSORS]
    window, stride = ctx.place
    call = definition.MomentsGradCall(input, weights[0], weights[1], window, stride, needed)
    found = definition.moments_gradients(
        _OPERATORS, call, grads, saved[_TENSORS:], composed=differentiated_again()
    )
    return (*found, None, None)


def _tangent(operator: Any, ctx: Any, primals: Sequence[Any], *tangents: Any) -> tuple[Tensor, ...]:
    input, *weights = primals
    window, stride = ctx.place
    moments = operator(*primals, window, stride)

    def found(grads: Sequence[Tensor], wanted: Sequence[bool]) -> Any:
        call = definition.MomentsGradCall(input, weights[0], weights[1], window, stride, wanted)
        return definition.moments_gradients(_OPERATORS, call, grads, moments, composed=True)

    return tangent_by_gradients(found, moments, tangents[:_TENSORS])


def _batch(info: Any, dims: Dims, *args: Any) -> Any:
    tensors, (window, stride) = args[:_TENSORS], args[_TENSORS:]
    core = len(window) + 1
    given = [(x, d) for x, d in zip(tensors, dims[:_TENSORS], strict=True) if x is not None]
    lead = max(rank(x, d) for x, d in given) - core
    moved = (
        None if x is None else front(x, d, core, lead)
        for x, d in zip(tensors, dims[:_TENSORS], strict=True)
    )
    return weighted_moments(*moved, window, stride), (0, 0, 0)


weighted_moments = register(
    "weighted_moments",
    "(Tensor input, Tensor? input_weight, Tensor? weight, int[] window, int[] stride)"
    " -> (Tensor, Tensor, Tensor)",
    definition.weighted_moments,
    _fake,
    setup=_save,
    backward=_backward,
    batch=_batch,
    tangent=_tangent,
)
_OPERATORS = definition.MomentOperators(
    correlate, correlate_input_grad, correlate_template_grad, window_sum, window_spread
)
