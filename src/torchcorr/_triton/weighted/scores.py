"""Scores with weights on CUDA, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..._contract.weighted import SUMS_BY_KERNELS
from ..._definition import weighted as definition
from ..._definition.weighted_grads import grads_by
from ..._definition.weights import Moments, Weighted
from ..._plan import rounding
from ..values import supported
from .direct import by_sums
from .factors import Factors, Limits, pair_of
from .records import SCORES, STATISTICS, Variant
from .tiles import by_transforms


def weighted_ncc(
    input: Tensor,
    template: Tensor,
    input_weight: Tensor | None,
    template_weight: Tensor | None,
    stride: Sequence[int],
    zero_mean: bool,
    pooled: bool,
    eps: float,
    least: float,
    method: str,
) -> Tensor:
    """Score of each window, 0 where its weight is less than `least` of the template's."""
    ndim, channels = len(stride), input.shape[-len(stride) - 1]
    how = (stride, zero_mean, pooled, eps, least, method)
    given = [x for x in (input, template, input_weight, template_weight) if x is not None]
    if not supported(*given):
        return definition.weighted_ncc(input, template, input_weight, template_weight, *how)
    groups = 1 if pooled or not zero_mean else channels
    prepare = partial(Factors.prepared, zero_mean=zero_mean)
    pair = pair_of(input, template, (input_weight, template_weight), stride, groups, prepare)
    leads = pair.leads
    shape = (1, leads.paired * leads.inputs, leads.templates, 1, *pair.positions)
    scores = input.new_empty(shape)
    wide = input.dtype == torch.float64
    form = Variant.of(
        result=SCORES.value, zero_mean=zero_mean, there=input_weight is not None, wide=wide
    )
    allowed = rounding.ALLOWED_SCORE_ERROR[torch.float64 if wide else torch.float32]
    run = by_sums if pair.is_direct(method) else by_transforms
    if not run(pair, scores, form, Limits(eps, definition.share_of(least), allowed)):
        return definition.weighted_ncc(input, template, input_weight, template_weight, *how)
    return leads.restored(scores[0, :, :, 0], ndim)


def _statistics(of: Weighted, stride: Sequence[int], method: str, allowed: float) -> Moments:
    """Moments of all windows, (*lead, K, *output)."""
    ndim = of.ndim
    weights = of.input_weight, of.template_weight
    pair = pair_of(of.input, of.template, weights, stride, of.groups, Factors.of)
    leads = pair.leads
    core = ndim + 1
    level = of.level.expand(*pair.shapes[0][:-core], of.groups, *(1,) * ndim)
    pair = replace(pair, level=leads.input(level, core).flatten(1).contiguous())
    items = leads.paired * leads.inputs
    maps = of.input.new_empty((6, items, leads.templates, of.groups, *pair.positions))
    form = Variant.of(
        result=STATISTICS.value,
        zero_mean=of.zero_mean,
        there=of.input_weight is not None,
        wide=True,
    )
    run = by_sums if pair.is_direct(method) else by_transforms
    if not run(pair, maps, form, Limits(0.0, definition.share_of(0.0), allowed)):
        return definition.window_statistics(of, stride, method, allowed)
    return Moments(*(leads.restored(x, core) for x in maps))


weighted_ncc_grads = grads_by(SUMS_BY_KERNELS._replace(statistics=_statistics))
