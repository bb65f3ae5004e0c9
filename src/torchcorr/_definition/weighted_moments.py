"""Means and variances of windows whose elements have weights (math.md, eq. weighted-moments).

Windows of equal weights are merged from parts, each with the weight that its elements have. Other
weights are those of a template: sums are float64 transforms, and windows whose rounding may show
are computed again from their elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._plan.dtypes import widen
from . import transforms
from .weighted import (
    chosen_windows,
    deviations,
    flat_among,
    lead_of,
    output_of,
    touched,
)
from .weights import NOTHING, Weighted, weighted
from .windows import Summary, in_slabs, summarise

# Rounding that a variance may have relative to itself, and a mean relative to the root mean square,
# for a float32 and a float64 input.
ALLOWED = (2.0**-27, 2e-11)
ALLOWED_OF_MEAN = (2.0**-27, 1e-12)


def weighted_moments(
    input: Tensor,
    input_weight: Tensor | None,
    weight: Tensor | None,
    window: Sequence[int],
    stride: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mean and uncorrected variance of each window over all its channels.

    All are 0 without weight, and the variance exactly 0 if all elements with weight are equal.
    """
    ndim = len(window)
    none = input.new_zeros((input.shape[-ndim - 1], *window))
    of = weighted(input, none, input_weight, weight, ndim, True, True)
    shape = (*lead_of(of), *output_of(of, stride))
    if 0 in shape or 0 in of.input.shape:
        maps: Summary = tuple(of.input.new_zeros(shape) for _ in range(3))
    elif weight is None:
        maps = tuple(x.expand(shape) for x in _merged(of, stride))
    else:
        maps = _summed(of, shape, stride, input.dtype == torch.float64)
    count, mean, energy = maps
    scale = of.scale.squeeze(-ndim - 1)
    live = count > 0
    mean = torch.where(live, mean / scale, 0.0)
    var = torch.where(live, energy / torch.where(live, count, 1.0) / scale.square(), 0.0)
    wrong = touched(of, stride)
    if wrong is not None:
        mean, var = (x.masked_fill(wrong, math.nan) for x in (mean, var))
    return count.contiguous(), mean.contiguous(), var.contiguous()


def _merge(a: Summary, b: Summary, _na: float, _nb: float) -> Summary:
    """Weights, means and sums of squares about them; equal elements keep a sum of exactly 0."""
    count = a[0] + b[0]
    share = b[0] / torch.where(count > 0, count, 1.0)
    d = b[1] - a[1]
    return count, torch.addcmul(a[1], d, share), a[2] + b[2] + d * d * (a[0] * share)


def _merged(of: Weighted, stride: Sequence[int]) -> Summary:
    ndim, axis = of.ndim, -of.ndim - 1
    g = of.input_weight
    if g is None:
        g = of.input.new_ones((1, *of.input.shape[-ndim:]))

    def compute(x: Tensor, weight: Tensor) -> Summary:
        weight = weight.expand(torch.broadcast_shapes(weight.shape, x.shape))
        none = torch.zeros_like(weight)
        whole = (weight, x.expand(weight.shape), none)
        single: Summary = tuple(y.select(axis, 0) for y in whole)
        for c in range(1, weight.shape[axis]):
            single = _merge(single, tuple(y.select(axis, c) for y in whole), 0, 0)
        return summarise(single, of.window, stride, 1, _merge)

    return in_slabs([of.input, g], of.window, stride, compute)


def _summed(of: Weighted, shape: Sequence[int], stride: Sequence[int], is_wide: bool) -> Summary:
    """Weight, mean and sum of squares about it, of sums by transforms or from the elements."""
    (count, mean, energy), doubtful = _by_transforms(of, stride, is_wide)
    doubtful = doubtful.expand(shape)
    found = flat_among(of, doubtful, stride)
    if found is not None:
        flat, value = found
        mean, energy = torch.where(flat, value, mean), torch.where(flat, 0.0, energy)
        doubtful = doubtful & ~flat
    maps = tuple(x.expand(shape).contiguous() for x in (count, mean, energy))
    for place, seen, _, weight in chosen_windows(of, doubtful, stride):
        deviation, level = deviations(seen, weight, of)
        weight = weight.expand_as(seen)
        squares = weight * deviation.square()
        values = (weight.flatten(1).sum(1), level.flatten(), squares.flatten(1).sum(1))
        for x, value in zip(maps, values, strict=True):
            x[place] = value
    return maps


def _by_transforms(of: Weighted, stride: Sequence[int], is_wide: bool) -> tuple[Summary, Tensor]:
    """Weight, mean and energy of windows, and where rounding of their sums may show."""
    x, g = of.centred(), of.input_weight
    seen = x if g is None else g * x
    inputs = {"sum": seen, "square": seen * x}
    if g is not None:
        inputs["count"] = g
    found = transforms.correlate_each(
        {name: of.grouped(a) for name, a in inputs.items()},
        {"m": of.grouped(of.template_weights())},
        {name: (name, "m") for name in inputs},
        stride,
    )
    axis = -of.ndim - 1
    maps = {name: [y.squeeze(axis) for y in pair] for name, pair in found.items()}
    (total, n_total), (square, n_square) = maps["sum"], maps["square"]
    count, n_count = maps.get("count", [of.total(), torch.zeros_like(n_total)])
    covered = count >= NOTHING * of.total()
    divisor = torch.where(covered, count, 1.0)
    mean = total / divisor
    energy, size = square - total * mean, mean.abs()
    wrong = n_square + 2 * size * n_total + size * size * n_count
    mean = mean + of.level.squeeze(axis)
    root = (energy.clamp_min(0) / divisor + mean.square()).sqrt()
    good = (wrong <= ALLOWED[is_wide] * energy) & (energy > 4 * wrong)
    good = good & (n_total + size * n_count <= ALLOWED_OF_MEAN[is_wide] * root * divisor)
    return (torch.where(covered, count, 0.0), mean, energy), ~good & covered


# --- gradients ------------------------------------------------------------------------------------


class MomentOperators(NamedTuple):
    """Sums over windows and their transposes: registered operators."""

    correlate: Callable[..., Tensor]
    correlate_input_grad: Callable[..., Tensor]
    correlate_template_grad: Callable[..., Tensor]
    window_sum: Callable[..., Tensor]
    window_spread: Callable[..., Tensor]


class _Sums(NamedTuple):
    """Sums over windows of equal weights or of others, and their transposes."""

    operators: MomentOperators
    weight: Tensor | None
    channels: int
    window: Sequence[int]
    stride: Sequence[int]

    def _all_channels(self, x: Tensor) -> Tensor:
        axis = x.dim() - len(self.window) - 1
        return x.expand(*x.shape[:axis], self.channels, *x.shape[axis + 1 :])

    def over(self, x: Tensor) -> Tensor:
        x = self._all_channels(x)
        if self.weight is None:
            return self.operators.window_sum(x, self.window, self.stride)
        weight = self._all_channels(self.weight)
        return self.operators.correlate(x, weight, self.stride, "auto")

    def onto_input(self, maps: Tensor, shape: Sequence[int]) -> Tensor:
        """Maps spread over their windows of an input of this shape, all channels apart."""
        ndim = len(self.window)
        lead = tuple(shape[: -ndim - 1])
        whole = (*lead, self.channels, *shape[-ndim:])
        if self.weight is None:
            maps = maps.sum_to_size((*lead, *maps.shape[-ndim:]))
            return self.operators.window_spread(maps, self.window, whole, self.stride)
        weight = self._all_channels(self.weight)
        lead = torch.broadcast_shapes(lead, tuple(weight.shape[: -ndim - 1]))
        maps = maps.sum_to_size((*lead, *maps.shape[-ndim:]))
        how = (self.stride, "auto")
        return self.operators.correlate_input_grad(maps, weight, whole, *how)

    def onto_weight(self, maps: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Maps times what each element of windows meets, summed, all channels apart."""
        ndim = len(self.window)
        x = self._all_channels(x)
        whole = (*shape[: -ndim - 1], self.channels, *shape[-ndim:])
        lead = torch.broadcast_shapes(tuple(whole[: -ndim - 1]), tuple(x.shape[: -ndim - 1]))
        maps = maps.sum_to_size((*lead, *maps.shape[-ndim:]))
        return self.operators.correlate_template_grad(maps, x, whole, self.stride, "auto")


class MomentsGradCall(NamedTuple):
    """Moments whose gradients are wanted: of their inputs, and which of these are needed."""

    input: Tensor
    input_weight: Tensor | None
    weight: Tensor | None
    window: Sequence[int]
    stride: Sequence[int]
    needed: Sequence[bool]  # in the order of the tensors


def moments_gradients(
    operators: MomentOperators,
    call: MomentsGradCall,
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    *,
    composed: bool,
) -> list[Tensor | None]:
    """Gradients for input and weights from those of count, mean and variance (math.md, eq.
    weighted-moments-gradients). `composed` makes all of operators, to be differentiated again.
    """
    ndim = len(call.window)
    g, w = (None if x is None else widen(x) for x in (call.input_weight, call.weight))
    raw = widen(call.input)
    sums = _Sums(operators, w, raw.shape[-ndim - 1], call.window, call.stride)
    finite = torch.isfinite(raw if g is None else torch.where(g > 0, raw, 0.0))
    level = _level(raw.detach(), g, ndim)
    # An element without weight has none in the moments, but one in the gradient of weights.
    x = torch.where(finite, torch.nan_to_num(raw, 0, 0, 0) - level, 0.0)
    if g is None:
        g = x.new_ones((1, *x.shape[-ndim:]))
    count, mean, var = moments
    live, spread = (count > 0) & (mean == mean), var > 0
    if composed:
        count = sums.over(g)
        divisor = torch.where(live, count, 1.0)
        mean = sums.over(g * x) / divisor
        var = sums.over(g * x * x) / divisor - mean.square()
    else:
        divisor = torch.where(live, count, 1.0)
        mean = torch.where(live, mean - level.squeeze(-ndim - 1), 0.0)
        var = torch.where(spread, var, 0.0)
    for_count, for_mean, for_var = (widen(y) for y in grads)
    a = torch.where(live, for_mean / divisor, 0.0)
    b = torch.where(live & spread, for_var / divisor, 0.0)
    u = a - 2 * b * mean
    rest = for_count - a * mean + b * (mean.square() - var)
    found: list[Tensor | None] = [None, None, None]
    shape = torch.broadcast_shapes(x.shape, g.shape)
    if call.needed[0] or call.needed[1]:
        first, second = (sums.onto_input(y, shape) for y in (u, b))
        if call.needed[0]:
            found[0] = (g * (first + 2 * x * second)).sum_to_size(call.input.shape)
        if call.needed[1] and call.input_weight is not None:
            total = x * first + x * x * second + sums.onto_input(rest, shape)
            found[1] = total.sum_to_size(call.input_weight.shape)
    if call.needed[2] and w is not None:
        shape = w.shape
        parts = ((u, g * x), (b, g * x * x), (rest, g))
        of_parts = [sums.onto_weight(y, of, shape) for y, of in parts]
        found[2] = (of_parts[0] + of_parts[1] + of_parts[2]).sum_to_size(shape)
    tensors = (call.input, call.input_weight, call.weight)
    return [
        None if y is None or like is None else y.to(like.dtype)
        for y, like in zip(found, tensors, strict=True)
    ]


def _level(x: Tensor, weight: Tensor | None, ndim: int) -> Tensor:
    """A number of each item's size to subtract, (*lead, 1, 1, ..., 1)."""
    there = torch.isfinite(x) if weight is None else torch.isfinite(x) & (weight > 0)
    axes = tuple(range(-ndim - 1, 0))
    total = torch.where(there, x, 0.0).sum(axes, keepdim=True)
    return total / there.expand(torch.broadcast_shapes(there.shape, x.shape)).sum(
        axes, keepdim=True
    ).clamp_min(1)
