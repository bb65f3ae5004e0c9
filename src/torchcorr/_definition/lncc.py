"""The coefficient of two inputs in each window, and its gradients written over operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._plan.dtypes import widen
from .windows import Summary, in_slabs, of_channels, summarise, window_spread


def lncc(a: Tensor, b: Tensor, window: Sequence[int], stride: Sequence[int], eps: float) -> Tensor:
    """Pearson's coefficient of two inputs in each window (math.md, eq. lncc)."""
    (_, var_a), (_, var_b), covariance = pair_moments(a, b, window, stride)
    return scores(var_a, var_b, covariance, eps).to(a.dtype)


def scores(var_a: Tensor, var_b: Tensor, covariance: Tensor, eps: float) -> Tensor:
    """The coefficient of each window from its moments."""
    energy_a, energy_b, _ = energies(var_a, var_b, eps)
    # The covariance of a flat window is 0, or NaN if the other window contains one.
    return (covariance / (energy_a.sqrt() * energy_b.sqrt())).clamp(-1, 1)


def _merge_pairs(a: Summary, b: Summary, na: float, nb: float) -> Summary:
    """Both means, what rounding took from them, both sums of squares and that of products."""
    share, factor = nb / (na + nb), na * nb / (na + nb)
    merged, d = [], []
    for i in (0, 1):
        low = b[2 + i] - a[2 + i]
        d.append((b[i] - a[i]) + low)
        mean = torch.add(a[i], d[i], alpha=share)
        merged.append((mean, a[2 + i] + ((a[i] - mean) + d[i] * share)))
    (mean_a, low_a), (mean_b, low_b) = merged
    return (
        mean_a,
        mean_b,
        low_a,
        low_b,
        (a[4] + b[4]).addcmul_(d[0], d[0], value=factor),
        (a[5] + b[5]).addcmul_(d[1], d[1], value=factor),
        (a[6] + b[6]).addcmul_(d[0], d[1], value=factor),
    )


def pair_moments(
    a: Tensor, b: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Mean and variance of either input in each window, and their covariance."""
    ndim, channels = len(window), a.shape[-len(window) - 1]

    def compute(x: Tensor, y: Tensor) -> Summary:
        (mean_x, dx), (mean_y, dy) = (of_channels(widen(part), ndim) for part in (x, y))
        none = torch.zeros_like(mean_x)
        squares = ((dx * dx), (dy * dy), (dx * dy))
        single = (mean_x, mean_y, none, none, *(q.sum(-ndim - 1) for q in squares))
        return summarise(single, window, stride, channels, _merge_pairs)

    mean_a, mean_b, low_a, low_b, *squares = in_slabs([a, b], window, stride, compute)
    var_a, var_b, covariance = (q / (channels * math.prod(window)) for q in squares)
    return (mean_a + low_a, var_a), (mean_b + low_b, var_b), covariance


def energies(var_a: Tensor, var_b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Both variances plus eps, with 1 for the variances if either window is flat; and if one is."""
    flat = (var_a == 0) | (var_b == 0)
    one = torch.ones_like(var_a)
    return torch.where(flat, one, var_a) + eps, torch.where(flat, one, var_b) + eps, flat


def lncc_window_grads(
    grad: Tensor,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    covariance: Tensor,
    count: int | Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The maps that both gradients are made of, from the moments of each window (math.md, LNCC).

    The factor of the other input, those of a and of b, and the offsets for a and for b; all are 0
    where a window is flat.
    """
    (mean_a, var_a), (mean_b, var_b) = a, b
    energy_a, energy_b, flat = energies(var_a, var_b, eps)
    root = energy_a.sqrt() * energy_b.sqrt()
    share = torch.where(flat, torch.zeros_like(root), widen(grad) / count)
    other, scored = share / root, share * (covariance / root)
    factor_a, factor_b = scored / energy_a, scored / energy_b
    offset_a = factor_a * mean_a - other * mean_b
    offset_b = factor_b * mean_b - other * mean_a
    return other, factor_a, factor_b, offset_a, offset_b


def lncc_into(
    x: Tensor, y: Tensor, maps: Sequence[Tensor], spread: Callable[[Tensor], Tensor]
) -> Tensor:
    """The gradient of x, from the factor of y, that of x and the offset of each window."""
    factor_y, factor_x, offset = (spread(one) for one in maps)
    return (widen(y) * factor_y - widen(x) * factor_x + offset).to(x.dtype)


class PairOperators(NamedTuple):
    """The operators in the gradient of `lncc`: registered ones, or their definitions."""

    pair_moments: Callable[..., tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]]
    window_spread: Callable[..., Tensor]


def lncc_gradients(
    of: PairOperators,
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    *,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients of `lncc` (math.md, eq. lncc-gradient); None if not needed."""
    of_a, of_b, covariance = of.pair_moments(a, b, window, stride)
    count = a.shape[-len(window) - 1] * math.prod(window)
    maps = lncc_window_grads(grad, of_a, of_b, covariance, count, eps)
    other, factor_a, factor_b, offset_a, offset_b = maps

    def spread(one: Tensor) -> Tensor:
        return of.window_spread(one, window, tuple(a.shape), stride)

    return (
        lncc_into(a, b, (other, factor_a, offset_a), spread) if need_a else None,
        lncc_into(b, a, (other, factor_b, offset_b), spread) if need_b else None,
    )


_DEFINITIONS = PairOperators(pair_moments, window_spread)


def lncc_grads(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients of `lncc`; one that is not needed is empty."""
    args = (grad, a, b, window, stride, eps)
    for_a, for_b = lncc_gradients(_DEFINITIONS, *args, need_a=need_a, need_b=need_b)
    return (
        for_a if for_a is not None else a.new_empty(0),
        for_b if for_b is not None else b.new_empty(0),
    )
