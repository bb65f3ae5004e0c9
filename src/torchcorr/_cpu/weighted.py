"""Weighted scores: those of a mask over the template, and of channels with a mean each, in tiles.

Scores with weights of the input are computed by their definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _contract
from .._contract.weighted import grads_by_kernels
from .._definition import weighted as definition
from .._definition.correlate import all_finite
from .._definition.weighted_moments import weighted_moments
from .._definition.weights import kept, weighted
from .._plan.choose import arrange
from .scores import Scores


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
    ndim = len(stride)
    channels, window = input.shape[-ndim - 1], template.shape[-ndim:]
    one_mask = template_weight is None or template_weight.numel() == math.prod(window)
    if (
        input_weight is not None
        or not one_mask
        or 0 in (input.numel(), template.numel())
        or not all_finite(input, kept(template, template_weight))
    ):
        tensors = (input, template, input_weight, template_weight)
        return definition.weighted_ncc(*tensors, stride, zero_mean, pooled, eps, least, method)
    coefficients, factor = _coefficients(template, template_weight, ndim, zero_mean, pooled)
    own_means = zero_mean and not pooled and channels > 1
    mask = template.new_ones(window) if template_weight is None else template_weight
    call = arrange(
        input.shape,
        template.shape,
        stride,
        method,
        normalised=True,
        dtype=input.dtype,
        device="cpu",
    )
    weights = [factor, float(own_means)]
    mask = mask.to(torch.float64).reshape(window).contiguous()
    return Scores(input, coefficients, call, zero_mean, eps).run(None, mask, weights)


def _coefficients(
    template: Tensor, weight: Tensor | None, ndim: int, zero_mean: bool, pooled: bool
) -> tuple[Tensor, float]:
    """What the input is correlated with, and what norms 1 / sqrt(energy) are multiplied by.

    The mean square is at most 1, and 1 for weights of 0 and 1, so that rounding is estimated as for
    scores without weights.
    """
    x = template.new_zeros((template.shape[-ndim - 1], *template.shape[-ndim:]))
    of = weighted(x, template, None, weight, ndim, zero_mean, pooled)
    axes = tuple(range(-ndim - 1, 0))
    products = of.template_weights() * of.template
    energy = (products * of.template).sum(axes, keepdim=True)
    count = math.prod(template.shape[-ndim - 1 :])
    largest = 1.0 if weight is None else float(weight.max())
    size = torch.where(energy > 0, energy, 1.0).sqrt() * math.sqrt(largest / count)
    wrong = of.wrong_template.unsqueeze(-1)
    return torch.where(wrong, math.nan, products / size), math.sqrt(largest / count)


def register() -> None:
    _contract.weighted_ncc.implement(weighted_ncc, "CPU")
    _contract.weighted_moments.implement(weighted_moments, "CPU")
    _contract.weighted_ncc_grads.implement(grads_by_kernels, "CPU")
