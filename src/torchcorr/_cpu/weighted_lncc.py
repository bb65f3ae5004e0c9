"""Coefficients in windows with weights: the sizes and weights of a call, handed to C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _contract
from .._definition.weighted_lncc import Windows
from .._plan.shapes import border_pads, windows_at
from .threads import without_late_threads

_lncc = torch.ops.torchcorr_cpu.weighted_lncc.default
_in_zeros = torch.ops.torchcorr_cpu.lncc_in_zeros.default
_in_zeros_grads = torch.ops.torchcorr_cpu.lncc_in_zeros_grads.default
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
    place = _place(a, taps, window, stride, border)
    if Windows(taps, window, stride, border).is_plain(weight):
        return _in_zeros(a, b, *place[1:-1], eps)
    return _lncc(a, b, weight, *place, eps)


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
    place = _place(a, taps, window, stride, border)
    if Windows(taps, window, stride, border).is_plain(weight):
        return (*_in_zeros_grads(grad, a, b, *place[1:-1], eps, *needed[:2]), a.new_empty(0))
    return _grads(grad, a, b, weight, *place, eps, [int(need) for need in needed])


def register() -> None:
    _contract.weighted_lncc.implement(without_late_threads(weighted_lncc), "CPU")
    _contract.weighted_lncc_grads.implement(without_late_threads(weighted_lncc_grads), "CPU")
