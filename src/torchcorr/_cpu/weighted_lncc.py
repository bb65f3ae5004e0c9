"""Coefficients in windows with weights: the sizes and weights of a call, handed to C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _contract
from .._definition.weighted_lncc import levels
from .._plan.shapes import border_pads, windows_at

_lncc = torch.ops.torchcorr_cpu.weighted_lncc.default
_grads = torch.ops.torchcorr_cpu.weighted_lncc_grads.default


def _place(
    a: Tensor, taps: Sequence[float], window: Sequence[int], stride: Sequence[int], border: str
) -> tuple[Any, ...]:
    """Weights, sizes, strides, elements before windows, their numbers, and what is outside."""
    before = [first for first, _ in border_pads(border, window)]
    count = windows_at(border, a.shape[-len(window) :], window, stride)
    weights = torch.tensor(taps, dtype=torch.float64, device=a.device)
    return weights, window, stride, before, count, border == "renormalize"


def weighted_lncc(
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    taps: Sequence[float],
    window: Sequence[int],
    stride: Sequence[int],
    border: str,
    eps: float,
) -> Tensor:
    return _lncc(a, b, weight, *_place(a, taps, window, stride, border), eps)


def _centred(x: Tensor, weight: Tensor, reach: Sequence[int], ndim: int) -> Tensor:
    """x in float64 between zeros, minus a level of what has weight."""
    level = levels(torch.where(weight > 0, x, 0.0), ndim)
    wide = pad(x, reach).double() if any(reach) else x.to(torch.float64, copy=True)
    return wide.sub_(level)


def weighted_lncc_grads(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    taps: Sequence[float],
    window: Sequence[int],
    stride: Sequence[int],
    border: str,
    eps: float,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    wanted = [int(need) for need in needed]
    if weight is None or not needed[2]:
        place = _place(a, taps, window, stride, border)
        return _grads(grad, a, b, weight, *place, eps, wanted)
    # The gradient of weights has squares of elements, which cancel about a level of their own; what
    # surrounds the inputs is then no zero.
    ndim, zeros = len(window), border == "zeros"
    pads = border_pads(border, window) if zeros else [(0, 0)] * ndim
    reach = [n for pair in reversed(pads) for n in pair]
    x, y = (_centred(one, weight, reach, ndim) for one in (a, b))
    place = _place(x, taps, window, stride, "valid" if zeros else border)
    wide = pad(weight.double(), reach, value=1.0)
    found = list(_grads(grad.double(), x, y, wide, *place, eps, wanted))
    del x, y, wide  # room for what follows
    size = a.shape[-ndim:]
    inner = (..., *(slice(k, k + n) for (k, _), n in zip(pads, size, strict=True)))
    for i, need in enumerate(needed):
        found[i] = found[i][inner].to(a.dtype).contiguous() if need else a.new_empty(0)
    return tuple(found)


def register() -> None:
    _contract.weighted_lncc.implement(weighted_lncc, "CPU")
    _contract.weighted_lncc_grads.implement(weighted_lncc_grads, "CPU")
