"""Means and variances of windows with weights on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._definition import weighted_moments as definition
from ..._definition.weights import NOTHING
from ..._plan.dtypes import widen
from ..values import supported
from .direct import by_sums
from .factors import Factors, Limits, pair_of
from .records import MOMENTS, Variant
from .tiles import by_transforms


def weighted_moments(
    input: Tensor,
    input_weight: Tensor | None,
    weight: Tensor | None,
    window: Sequence[int],
    stride: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mean and uncorrected variance of each window over all its channels."""
    ndim, channels = len(window), input.shape[-len(window) - 1]
    given = [x for x in (input, input_weight, weight) if x is not None]
    if not supported(*given):
        return definition.weighted_moments(input, input_weight, weight, window, stride)
    none = input.new_zeros((channels, *window), dtype=torch.float64)
    weights = input_weight, None if weight is None else widen(weight)
    pair = pair_of(input, none, weights, stride, 1, Factors.of)
    leads, wide = pair.leads, input.dtype == torch.float64
    shape = (3, leads.paired * leads.inputs, leads.templates, 1, *pair.positions)
    maps = input.new_empty(shape, dtype=torch.float64)
    form = Variant.of(
        result=MOMENTS.value, zero_mean=True, there=input_weight is not None, wide=wide
    )
    # Sums of equal weights are exact, so the least of them counts.
    least = 0.0 if weight is None else NOTHING
    allowed, of_mean = definition.ALLOWED[wide], definition.ALLOWED_OF_MEAN[wide]
    limits = Limits(eps=0.0, least=least, allowed=allowed, allowed_of_mean=of_mean)
    run = by_sums if pair.is_direct("auto") else by_transforms
    if not run(pair, maps, form, limits):
        return definition.weighted_moments(input, input_weight, weight, window, stride)
    count, mean, var = (leads.restored(x[:, :, 0], ndim) for x in maps)
    return count, mean, var
