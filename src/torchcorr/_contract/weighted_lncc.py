"""The local coefficient of two inputs in windows with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from .._definition import weighted_lncc as definition
from .._plan.shapes import windows_at
from .lncc import gradients as gradients_of_boxes
from .registry import Dims, batched, differentiated_again, register, tangent_by_gradients

_PLACE = "float[] taps, int[] window, int[] stride, str border, float eps"


def _fake(
    a: Tensor,
    _b: Tensor,
    _weight: Tensor | None,
    _taps: Sequence[float],
    window: Sequence[int],
    stride: Sequence[int],
    border: str,
    *_: Any,
) -> Tensor:
    ndim = len(window)
    count = windows_at(border, a.shape[-ndim:], window, stride)
    return a.new_empty((*a.shape[: -ndim - 1], *count))


def _fake_grads(
    _grad: Tensor, a: Tensor, b: Tensor, weight: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    tensors = (a, b, a if weight is None else weight)
    return tuple(
        x.new_empty(x.shape if need else (0,)) for x, need in zip(tensors, args[-1], strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.save_for_forward(*inputs[:3])
    ctx.place = inputs[3:]


def _plain_gradients(
    grad: Tensor, inputs: Sequence[Any], windows: definition.Windows, eps: float, needed: Any
) -> list[Tensor | None]:
    """Those of boxes in zeros, over the operators of boxes."""
    a, b = (pad(x, windows.reach) for x in inputs[:2])
    grads = gradients_of_boxes(grad, a, b, windows.sizes, windows.stride, eps, needed[:2])
    return [None if g is None else windows.inner(g) for g in grads]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Once more differentiated, the gradients are differentiated as they are defined."""
    needed = tuple(ctx.needs_input_grad[:3])
    if differentiated_again():
        *place, eps = ctx.place
        windows = definition.Windows(*place)
        if windows.is_plain(ctx.saved_tensors[2]):
            return (*_plain_gradients(grad, ctx.saved_tensors, windows, eps, needed), *[None] * 6)
        grads = definition.gradients(grad, tuple(ctx.saved_tensors), windows, eps, needed)
    else:
        found = weighted_lncc_grads(grad, *ctx.saved_tensors, *ctx.place, list(needed))
        grads = [g if need else None for g, need in zip(found, needed, strict=True)]
    return (*grads, None, None, None, None, None)


def _tangent(operator: Any, ctx: Any, primals: Sequence[Any], *tangents: Any) -> Tensor:
    *place, eps = ctx.place
    a, b, weight = primals

    def found(grads: Sequence[Tensor], wanted: tuple[bool, bool, bool]) -> Any:
        windows = definition.Windows(*place)
        return definition.gradients(grads[0], (a, b, weight), windows, eps, wanted)

    out = operator(a, b, weight, *ctx.place)
    return tangent_by_gradients(found, [out], tangents[:3])[0]


def _batch(info: Any, dims: Dims, *args: Any) -> Any:
    return weighted_lncc(*batched(info.batch_size, dims, args)), 0


weighted_lncc = register(
    "weighted_lncc",
    f"(Tensor a, Tensor b, Tensor? weight, {_PLACE}) -> Tensor",
    definition.weighted_lncc,
    _fake,
    setup=_save,
    backward=_backward,
    batch=_batch,
    tangent=_tangent,
)
weighted_lncc_grads = register(
    "weighted_lncc_grads",
    f"(Tensor grad, Tensor a, Tensor b, Tensor? weight, {_PLACE}, bool[] needed)"
    " -> (Tensor, Tensor, Tensor)",
    definition.weighted_lncc_grads,
    _fake_grads,
)
