"""Weighted scores on a GPU: their definition in plain torch, gradients by this engine's sums."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _contract
from .._definition import weighted as definition
from .._definition import weighted_grads as gradients

weighted_ncc = definition.weighted_ncc


def weighted_ncc_grads(
    grad: Tensor,
    score: Tensor,
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
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (grad, score, input, template, input_weight, template_weight)
    how = (stride, zero_mean, pooled, eps, least, method)
    one, two, three, four = needed
    call = gradients.WeightedGradCall(*tensors, *how, (one, two, three, four))
    operators = gradients.SumOperators(
        _contract.correlate.kernel,
        _contract.correlate_input_grad.kernel,
        _contract.correlate_template_grad.kernel,
    )
    of_input, of_template, of_weight, of_mask = gradients.composed_grads(operators, call)
    return of_input, of_template, of_weight, of_mask
