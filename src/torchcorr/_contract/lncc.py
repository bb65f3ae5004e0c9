"""The local coefficient of two inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definition import lncc as definition
from .._plan.dtypes import widen
from .registry import Dims, batched, differentiated_again, fake_map, fake_pair, register
from .windows import covariance_with, window_moments, window_spread


def _fake_lncc(
    a: Tensor, _b: Tensor, window: Sequence[int], stride: Sequence[int], *_: Any
) -> Tensor:
    return fake_map(a, window, stride)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.save_for_forward(inputs[0], inputs[1])
    ctx.place = inputs[2:]


def _scale(x: Tensor, ndim: int) -> Tensor:
    """One over the deviation of each item, (*lead, 1, ..., 1); 1 where there is none."""
    spread = x.detach().std(tuple(range(-ndim - 1, 0)), correction=0, keepdim=True)
    return 1 / torch.where(spread > 0, spread, torch.ones_like(spread))


def _pair_moments(a: Tensor, b: Tensor, window: Sequence[int], stride: Sequence[int]) -> Any:
    """Mean and variance of either input in each window, and their covariance, of operators.

    The covariance is a quarter of the difference between the variances of sum and difference, once
    both inputs have one scale: these are squares of windows, so that nothing far away is cancelled.
    """
    ndim = len(window)
    wide_a, wide_b = widen(a), widen(b)
    scale_a, scale_b = _scale(wide_a, ndim), _scale(wide_b, ndim)
    one, other = wide_a * scale_a, wide_b * scale_b
    of_sum = window_moments(one + other, window, stride)[1]
    of_difference = window_moments(one - other, window, stride)[1]
    covariance = (of_sum - of_difference) / (4 * scale_a * scale_b).squeeze(-ndim - 1)
    of_a = window_moments(wide_a, window, stride)
    of_b = window_moments(wide_b, window, stride)
    return of_a, of_b, covariance


def gradients(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients over registered operators, which can be differentiated again."""
    need_a, need_b = wanted
    args = (grad, a, b, window, stride, eps)
    return definition.lncc_gradients(_OPERATORS, *args, need_a=need_a, need_b=need_b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    wanted = tuple(ctx.needs_input_grad[:2])
    window, stride, eps = ctx.place
    if differentiated_again():
        grads = gradients(grad, a, b, window, stride, eps, wanted)
    else:
        grads = lncc_grads(grad, a, b, window, stride, eps, *wanted)
    chosen = (g if want else None for g, want in zip(grads, wanted, strict=True))
    return (*chosen, None, None, None)


def _tangent(
    operator: Any,
    ctx: Any,
    primals: Sequence[Tensor],
    for_a: Tensor | None,
    for_b: Tensor | None,
    *_: Any,
) -> Tensor:
    """math.md, eq. lncc-tangent."""
    a, b = primals
    window, stride, eps = ctx.place
    (mean_a, var_a), (mean_b, var_b), covariance = _pair_moments(a, b, window, stride)
    energy_a, energy_b, flat = definition.energies(var_a, var_b, eps)
    root = energy_a.sqrt() * energy_b.sqrt()
    parts = []
    of_a, of_b = (a, mean_a), (b, mean_b)
    for step, own, other, energy in ((for_a, of_a, of_b, energy_a), (for_b, of_b, of_a, energy_b)):
        if step is not None:
            with_own, with_other = (
                covariance_with(x, step, mean, window, stride)[1] for x, mean in (own, other)
            )
            parts.append((with_other - covariance * (with_own / energy)) / root)
    return torch.where(flat, 0.0, sum(parts)).to(a.dtype)


def _batch(info: Any, dims: Dims, *args: Any) -> Any:
    return lncc(*batched(info.batch_size, dims, args)), 0


lncc = register(
    "lncc",
    "(Tensor a, Tensor b, int[] window, int[] stride, float eps) -> Tensor",
    definition.lncc,
    _fake_lncc,
    setup=_save,
    backward=_backward,
    batch=_batch,
    tangent=_tangent,
)
lncc_grads = register(
    "lncc_grads",
    "(Tensor grad, Tensor a, Tensor b, int[] window, int[] stride, float eps, bool need_a,"
    " bool need_b) -> (Tensor, Tensor)",
    definition.lncc_grads,
    fake_pair,
)
_OPERATORS = definition.PairOperators(_pair_moments, window_spread)
