"""Gradients of weighted scores for input, template and both weights, written over operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.dtypes import widen
from . import weighted as definition
from .correlate import correlate, correlate_input_grad, correlate_template_grad
from .weights import NOTHING, Moments, Weighted, weighted

# Energies far above rounding: relative to the largest, and of elements that are at most 1.
_LEAST_CLEAR, _LEAST_SQUARE = 1e-9, 1e-24


class SumOperators(NamedTuple):
    """Plain sums and their transposes, registered operators or their definitions; and moments."""

    correlate: Callable[..., Tensor]
    correlate_input_grad: Callable[..., Tensor]
    correlate_template_grad: Callable[..., Tensor]
    statistics: Callable[..., Moments] = definition.window_statistics


class WeightedGradCall(NamedTuple):
    """A weighted score that is differentiated, and which of its gradients are needed."""

    grad: Tensor
    score: Tensor
    input: Tensor
    template: Tensor
    input_weight: Tensor | None
    template_weight: Tensor | None
    stride: Sequence[int]
    zero_mean: bool
    pooled: bool
    eps: float
    least: float
    method: str
    needed: Sequence[bool]  # in the order of the tensors above

    def prepared(self) -> Weighted:
        tensors = (self.input, self.template, self.input_weight, self.template_weight)
        return weighted(*tensors, len(self.stride), self.zero_mean, self.pooled)


class _Sums(NamedTuple):
    """Sums over windows and their transposes, for channels that share their means or do not."""

    of: Weighted
    call: WeightedGradCall
    operators: SumOperators

    def correlate(self, x: Tensor, w: Tensor) -> Tensor:
        """Maps (*lead, K, *output)."""
        pair = self.of.grouped(x), self.of.grouped(w)
        return self.operators.correlate(*pair, self.call.stride, self.call.method)

    def onto_input(self, maps: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        """Each map times a template, spread over the windows of an input of this shape."""
        like, w = self._grouped_shape(shape), self.of.grouped(w)
        maps = self._summed(maps, like, w.shape)
        how = (self.call.stride, self.call.method)
        return self.of.ungrouped(self.operators.correlate_input_grad(maps, w, like, *how))

    def onto_template(self, maps: Tensor, x: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Each map times its windows, summed for a template of this shape; None is all ones."""
        like, ndim = self._grouped_shape(shape), self.of.ndim
        if x is None:
            total = maps.sum(tuple(range(-ndim, 0)))[(..., *(None,) * (ndim + 1))]
            lead = (*like[: -ndim - 1], *(1,) * (ndim + 1))
            return self.of.ungrouped(total.sum_to_size(lead).expand(like))
        x = self.of.grouped(x)
        maps = self._summed(maps, like, x.shape)
        how = (self.call.stride, self.call.method)
        return self.of.ungrouped(self.operators.correlate_template_grad(maps, x, like, *how))

    def _grouped_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.of.grouped(torch.empty(tuple(shape), device="meta")).shape)

    def _summed(self, maps: Tensor, one: Sequence[int], other: Sequence[int]) -> Tensor:
        """Maps without leading axes that neither of two tensors of these shapes has."""
        core = self.of.ndim + 1
        lead = torch.broadcast_shapes(tuple(one[:-core]), tuple(other[:-core]))
        return maps.sum_to_size((*lead, *maps.shape[-self.of.ndim :]))


def composed_moments(sums: _Sums, x: Tensor, t: Tensor) -> Moments:
    """Moments that can be differentiated: differences of plain sums of both inputs."""
    of = sums.of
    m, g = of.template_weights(), of.input_weight
    if g is None:
        g = x.new_ones((1, *x.shape[-of.ndim :]))
    count = sums.correlate(g, m)
    divisor = torch.where(count > NOTHING, count, 1.0)
    square, product = sums.correlate(g * x * x, m), sums.correlate(g * x, m * t)
    energy = sums.correlate(g, m * t * t)
    total = other = torch.zeros_like(count)
    if of.zero_mean:
        total, other = sums.correlate(g * x, m), sums.correlate(g, m * t)
    return Moments.of_sums(count, divisor, (total, other), (square, energy, product))


def is_clear(energy: Tensor, count: Tensor, ndim: int) -> Tensor:
    """Which windows have an energy that is not the rounding of a sum."""
    largest = energy.detach().abs().amax(tuple(range(-ndim - 1, 0)), keepdim=True)
    return energy.detach() > (_LEAST_CLEAR * largest).maximum(_LEAST_SQUARE * count.detach())


def weighted_gradients(
    operators: SumOperators, call: WeightedGradCall, *, composed: bool
) -> tuple[Tensor | None, ...]:
    """Gradients for input, template and their weights (math.md, eq. weighted-gradients).

    `composed` makes all of operators, so that they can be differentiated again. Windows whose score
    is not a number have no gradient.
    """
    of = call.prepared()
    sums, ndim = _Sums(of, call, operators), of.ndim
    axis = -ndim - 1
    x, t, m, g = of.centred(), of.template, of.template_weights(), of.input_weight
    # An element without weight has none in the score, but one in the gradients of weights.
    raw = torch.nan_to_num(widen(call.input), 0, 0, 0) * of.scale - of.level
    raw_t = torch.nan_to_num(widen(call.template), 0, 0, 0) * of.template_scale - of.template_level
    if composed:
        x, t = x if g is None else torch.where(g > 0, x, raw), torch.where(m > 0, t, raw_t)
        found = composed_moments(sums, x, t)
    else:
        # Scores near 1 leave small differences, in which rounding of float32 would show.
        allowed = rounding.ALLOWED_GRADIENT_ERROR / 1024
        if call.input.dtype == torch.float64:
            allowed = rounding.ALLOWED_SCORE_ERROR[torch.float64]
        found = operators.statistics(of, call.stride, call.method, allowed)
    grad, score = widen(call.grad).unsqueeze(axis), widen(call.score).unsqueeze(axis)
    count = of.over_channels(found.count)
    energy, other = (x.sum(axis, keepdim=True) for x in (found.energy, found.template_energy))
    soft = energy + call.eps * of.scale.square() * count
    live = (energy > 0) & (other > 0) & (score == score)
    if composed:
        # Differences of sums are not exactly 0 in flat windows, but small beside those of others.
        clear = is_clear(energy, count, ndim) & is_clear(other, count, ndim)
        live = live & ((score != 0) | clear)
    live = live & definition.is_covered(of, found.count, call.least).unsqueeze(axis)
    soft, other = torch.where(live, soft, 1.0), torch.where(live, other, 1.0)
    none = torch.zeros_like(soft)
    size = soft.sqrt() * other.sqrt()
    score = found.product.sum(axis, keepdim=True) / size
    a = torch.where(live, grad / size, none)
    b = torch.where(live, grad * score / soft, none)
    c = torch.where(live, grad * score / other, none)
    mean, other_mean = found.mean, found.template_mean
    lead = torch.broadcast_shapes(a.shape, mean.shape, other_mean.shape)

    def full(x: Tensor) -> Tensor:
        sizes = list(torch.broadcast_shapes(x.shape, lead))
        sizes[axis] = of.groups
        return x.expand(sizes)

    u, v = full(b * mean - a * other_mean), full(c * other_mean - a * mean)
    rest = a * mean * other_mean - (b * mean.square() + c * other_mean.square()) / 2
    rest = full(rest - b * call.eps * of.scale.square() / 2)
    a, b, c = full(a), full(b), full(c)
    seen = x if g is None else g * x
    shape = torch.broadcast_shapes(x.shape, x.shape if g is None else g.shape)
    of_template = torch.broadcast_shapes(t.shape, m.shape)
    grads: list[Tensor | None] = [None, None, None, None]
    if call.needed[0] or call.needed[2]:
        first = sums.onto_input(a, m * t, shape) + sums.onto_input(u, m, shape)
        second = sums.onto_input(b, m, shape)
        if call.needed[0]:
            for_input = (first - x * second) * of.scale
            for_input = for_input if g is None else g * for_input
            grads[0] = for_input.sum_to_size(call.input.shape).to(call.input.dtype)
        if call.needed[2] and call.input_weight is not None:
            third = sums.onto_input(v, m * t, shape) + sums.onto_input(rest, m, shape)
            third = third - sums.onto_input(c, m * t * t, shape) / 2
            total = raw * first - raw.square() * second / 2 + third
            grads[2] = total.sum_to_size(call.input_weight.shape).to(call.input_weight.dtype)
    if call.needed[1] or call.needed[3]:
        first = sums.onto_template(a, seen, of_template) + sums.onto_template(v, g, of_template)
        second = sums.onto_template(c, g, of_template)
        if call.needed[1]:
            for_template = m * (first - t * second) * of.template_scale
            grads[1] = for_template.sum_to_size(call.template.shape).to(call.template.dtype)
        if call.needed[3] and call.template_weight is not None:
            third = sums.onto_template(u, seen, of_template)
            third = third - sums.onto_template(b, seen * x, of_template) / 2
            third = third + sums.onto_template(rest, g, of_template)
            total = raw_t * first - raw_t.square() * second / 2 + third
            grads[3] = total.sum_to_size(call.template_weight.shape).to(call.template_weight.dtype)
    return tuple(grads)


def grads_by(operators: SumOperators) -> Callable[..., tuple[Tensor, ...]]:
    """The operator `weighted_ncc_grads` made of these; gradients that are not needed are empty."""

    def weighted_ncc_grads(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        grads = weighted_gradients(operators, WeightedGradCall(grad, *args), composed=False)
        return tuple(grad.new_empty(0) if x is None else x.contiguous() for x in grads)

    return weighted_ncc_grads


weighted_ncc_grads = grads_by(
    SumOperators(correlate, correlate_input_grad, correlate_template_grad)
)
