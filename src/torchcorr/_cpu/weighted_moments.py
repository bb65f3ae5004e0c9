"""Moments of windows whose elements have weights, in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _contract
from .._definition import weighted_moments as definition
from .._definition.correlate import all_finite
from .._definition.weighted import touched
from .._definition.weights import NOTHING, kept, weighted
from .._plan.choose import arrange_masked, blocks
from .._plan.tiling import TileBatch
from . import steps
from .rules import MomentRule
from .threads import without_late_threads

# Elements whose squares and their sums are numbers of float64.
_LARGEST, _SMALLEST = 2.0**400, 2.0**-400


def weighted_moments(
    input: Tensor,
    input_weight: Tensor | None,
    weight: Tensor | None,
    window: Sequence[int],
    stride: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    ndim, core = len(window), len(window) + 1
    if 0 in input.shape or (weight is not None and 0 in weight.shape):
        return definition.weighted_moments(input, input_weight, weight, window, stride)
    of_windows = input.new_ones((1, *window)) if weight is None else weight
    x = input if all_finite(input) else kept(input, input_weight)
    wrong = None
    if not all_finite(x):
        none = input.new_zeros((input.shape[-core], *window))
        wrong = touched(weighted(input, none, input_weight, weight, ndim, True, True), stride)
        x = torch.where(torch.isfinite(x), x, 0.0)
    x, scale = _scaled(x, input_weight, ndim)
    g = input_weight
    if g is not None:
        lead = torch.broadcast_shapes(x.shape[:-core], g.shape[:-core])
        x, g = (y.expand(*lead, *x.shape[-core:]) for y in (x, g))
    call = arrange_masked(x.shape, of_windows.shape, stride, dtype=torch.float64, device="cpu")
    leads = call.problem.leads
    shape = (leads.paired * leads.inputs, leads.templates, *call.tiling.positions)
    maps = [steps.new_map(x, shape, torch.float64) for _ in range(3)]
    x = leads.input(x, core).contiguous()
    there = None if g is None else leads.input(g, core).contiguous()
    weights = leads.template(of_windows.to(torch.float64), core).contiguous()
    is_wide = input.dtype == torch.float64
    rule = MomentRule(NOTHING, definition.ALLOWED[is_wide], definition.ALLOWED_OF_MEAN[is_wide])
    batch = TileBatch(call.tiling, []).numbers
    for block in blocks(call.problem, call.plan):
        steps.weighted_moment_tiles(x, there, weights, batch, block.numbers, rule.numbers, maps)
    count, mean, var = (leads.restored(y, ndim) for y in maps)
    if scale is not None:
        mean, var = mean / scale, var / scale / scale
    if wrong is not None:
        mean, var = (y.masked_fill(wrong, math.nan) for y in (mean, var))
    return count, mean, var


def _scaled(x: Tensor, weight: Tensor | None, ndim: int) -> tuple[Tensor, Tensor | None]:
    """x with each item times a power of two, so that squares of what has weight neither overflow
    nor vanish; and these powers, (*lead, 1, ..., 1), if any is needed."""
    if x.dtype != torch.float64:
        return x, None
    item = tuple(range(-ndim - 1, 0))
    if _are_moderate(torch.linalg.vector_norm(x, math.inf, item)):
        return x, None
    x = kept(x, weight)
    largest = torch.linalg.vector_norm(x, math.inf, item, keepdim=True)
    if _are_moderate(largest):
        return x, None
    exponent = torch.frexp(largest).exponent.clamp(-1000, 1000)
    scale = torch.ldexp(torch.ones_like(largest), -exponent)
    return x * scale, scale.squeeze(-ndim - 1)


def _are_moderate(largest: Tensor) -> bool:
    return bool(((largest == 0) | ((largest >= _SMALLEST) & (largest <= _LARGEST))).all())


def register() -> None:
    _contract.weighted_moments.implement(without_late_threads(weighted_moments), "CPU")
