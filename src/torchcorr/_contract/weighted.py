"""Normalised scores of windows whose elements have weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definition import weighted as definition
from .._definition import weighted_grads as gradients
from .._plan.shapes import output_size
from .correlate import correlate, correlate_input_grad, correlate_template_grad
from .registry import Dims, differentiated_again, front, rank, register, tangent_by_gradients

_TENSORS = 4  # input, template and their weights


def _fake(*args: Any) -> Tensor:
    tensors, stride = args[:_TENSORS], args[_TENSORS]
    ndim = len(stride)
    input, template = tensors[:2]
    leads = (x.shape[: -ndim - 1] for x in tensors if x is not None)
    output = output_size(input.shape[-ndim:], template.shape[-ndim:], stride)
    return input.new_empty((*torch.broadcast_shapes(*leads), *output))


def _fake_grads(grad: Tensor, _score: Tensor, *args: Any) -> tuple[Tensor, ...]:
    tensors, needed = args[:_TENSORS], args[-1]
    return tuple(
        grad.new_empty((0,)) if x is None or not wanted else x.new_empty(x.shape)
        for x, wanted in zip(tensors, needed, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:_TENSORS])
    ctx.save_for_forward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    score, *tensors = ctx.saved_tensors
    wanted = tuple(ctx.needs_input_grad[:_TENSORS])
    args = (grad, score, *tensors, *ctx.options, wanted)
    if differentiated_again():
        call = gradients.WeightedGradCall(*args)
        grads = gradients.weighted_gradients(_OPERATORS, call, composed=True)
    else:
        grads = weighted_ncc_grads(*args)
    chosen = (g if want else None for g, want in zip(grads, wanted, strict=True))
    return (*chosen, *(None,) * len(ctx.options))


def _tangent(operator: Any, ctx: Any, primals: Sequence[Any], *tangents: Any) -> Tensor:
    score = operator(*primals, *ctx.options)

    def found(grads: Sequence[Tensor], wanted: Sequence[bool]) -> Any:
        args = (grads[0], score, *primals, *ctx.options, wanted)
        call = gradients.WeightedGradCall(*args)
        return gradients.weighted_gradients(_OPERATORS, call, composed=True)

    return tangent_by_gradients(found, [score], tangents[:_TENSORS])[0]


def _batch(info: Any, dims: Dims, *args: Any) -> Any:
    tensors, options = args[:_TENSORS], args[_TENSORS:]
    core = len(options[0]) + 1
    given = [(x, d) for x, d in zip(tensors, dims[:_TENSORS], strict=True) if x is not None]
    lead = max(rank(x, d) for x, d in given) - core
    moved = (
        None if x is None else front(x, d, core, lead)
        for x, d in zip(tensors, dims[:_TENSORS], strict=True)
    )
    return weighted_ncc(*moved, *options), 0


weighted_ncc = register(
    "weighted_ncc",
    "(Tensor input, Tensor template, Tensor? input_weight, Tensor? template_weight, int[] stride,"
    " bool zero_mean, bool pooled, float eps, float least, str method) -> Tensor",
    definition.weighted_ncc,
    _fake,
    setup=_save,
    backward=_backward,
    batch=_batch,
    tangent=_tangent,
)
weighted_ncc_grads = register(
    "weighted_ncc_grads",
    "(Tensor grad, Tensor score, Tensor input, Tensor template, Tensor? input_weight,"
    " Tensor? template_weight, int[] stride, bool zero_mean, bool pooled, float eps, float least,"
    " str method, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)",
    gradients.weighted_ncc_grads,
    _fake_grads,
)
_SUMS = (correlate, correlate_input_grad, correlate_template_grad)
_OPERATORS = gradients.SumOperators(*_SUMS)
# For engines: made of what they have registered.
SUMS_BY_KERNELS = gradients.SumOperators(*(x.kernel for x in _SUMS))
grads_by_kernels = gradients.grads_by(SUMS_BY_KERNELS)
