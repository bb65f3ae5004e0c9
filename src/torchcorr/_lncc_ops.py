"""Fake kernels and derivatives of the local coefficient of two inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _reference
from ._ops import count_of, fake_pair, fake_window_map, library, ops, qualified, register_autograd


def _fake_lncc(a: Tensor, _b: Tensor, window: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    return fake_window_map(a, window, stride)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.place = inputs[2:]


def _scale(x: Tensor, ndim: int) -> Tensor:
    """One over the deviation of each item, (*lead, 1, ..., 1); 1 where there is none."""
    spread = x.detach().std(tuple(range(-ndim - 1, 0)), correction=0, keepdim=True)
    return 1 / torch.where(spread > 0, spread, torch.ones_like(spread))


def _composed(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients, made of operators and plain torch that can be differentiated.

    The covariance is a quarter of what the variances of sum and difference differ by, once both
    inputs are brought to one scale: squares of windows, so that nothing far away is cancelled.
    """
    shape, ndim = tuple(a.shape), len(window)
    wide_a, wide_b = _reference.widen(a), _reference.widen(b)
    scale_a, scale_b = _scale(wide_a, ndim), _scale(wide_b, ndim)
    one, other = wide_a * scale_a, wide_b * scale_b
    together = ops.window_moments(one + other, window, stride)[1]
    apart = ops.window_moments(one - other, window, stride)[1]
    covariance = (together - apart) / (4 * scale_a * scale_b).squeeze(-ndim - 1)
    of_a = ops.window_moments(wide_a, window, stride)
    of_b = ops.window_moments(wide_b, window, stride)
    count = count_of(shape, window)
    maps = _reference.lncc_window_grads(grad, of_a, of_b, covariance, count, eps)
    through, own_a, own_b, offset_a, offset_b = maps

    def spread(one: Tensor) -> Tensor:
        return ops.window_spread(one, window, shape, stride)

    into = _reference.lncc_into
    return (
        into(a, b, (through, own_a, offset_a), spread) if need_a else None,
        into(b, a, (through, own_b, offset_b), spread) if need_b else None,
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    wanted = tuple(ctx.needs_input_grad[:2])
    again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    grads = (_composed if again else ops.lncc_grads)(grad, a, b, *ctx.place, *wanted)
    chosen = (g if want else None for g, want in zip(grads, wanted, strict=True))
    return (*chosen, None, None, None)


torch.library.register_fake(qualified("lncc"), _fake_lncc, lib=library)
torch.library.register_fake(qualified("lncc_grads"), fake_pair, lib=library)
register_autograd("lncc", _backward, _save)
