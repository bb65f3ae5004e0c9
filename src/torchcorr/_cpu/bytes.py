"""Scores of whole numbers of a byte, from exact sums.

Tensors of 8-bit integers, and where it pays float32 tensors that hold nothing else, or such numbers
divided by 255, as photographs that were converted do. Rounding these quotients to float32 changes a
score by less than 3.8e-6 for each of two tensors (math.md, eq. shares). Sums of products come from
integer arithmetic, or from transforms that are rounded to whole numbers: in float32 where an
estimate of their rounding, made of what they contain, is below a half, otherwise in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.choose import Arrangement, arrange
from . import steps
from .rules import ByteRule

# Time by transforms of photographs relative to what is planned, from which on integers are expected
# to pay: some smooth ones take several times as long, integers always the same.
_SMOOTH = 1.3
# Elements of a window whose sums of squares, times their number, are less than 2^63.
_MOST_ELEMENTS = 1 << 24


def _arranged(
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    method: str,
    must: bool,
) -> Arrangement | None:
    """How exact sums are computed; None if they need not be, and are not likely to pay."""
    planned = partial(arrange, input, template, stride, normalised=True, device="cpu")
    if must:
        return planned(method, dtype=torch.uint8)
    if method == "fft":
        return None
    call = planned("direct", dtype=torch.uint8)
    if call.plan.method != "direct":
        return None
    real = planned(method, dtype=torch.float32)
    return call if call.plan.cost < _SMOOTH * real.plan.cost else None


def ncc(
    input: Tensor,
    whole: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    kernel: int = 0,
    own_means: bool = False,
) -> Tensor | None:
    """Scores in float32, or None if the elements are not whole numbers of a byte.

    `whole` is the template as it was before it was standardised. Also None for a float32 tensor
    where sums of real numbers are likely to take less time.
    """
    ndim = len(stride)
    count = math.prod(whole.shape[-ndim - 1 :])
    if count == 0 or input.numel() == 0 or count > _MOST_ELEMENTS:
        return None
    small, zero_of_template, scale_of_template = steps.as_bytes(whole)
    if small.numel() == 0:
        return None
    sizes = (input.shape, whole.shape, stride)
    must = own_means or not input.is_floating_point()
    call = _arranged(*sizes, method, must)
    if call is None:
        return None
    large, zero_of_input, scale = steps.as_bytes(input)
    if large.numel() == 0:
        return None
    rule = ByteRule(
        zero_mean,
        eps * scale**2,
        zero_of_input,
        zero_of_template,
        rounding.TRANSFORM * rounding.unit(torch.float32),
        kernel,
        own_means,
    )
    leads = call.problem.leads
    items = steps.readable(leads.input_in_place(large, ndim + 1))
    templates = leads.template(small, ndim + 1).contiguous()
    shape = (leads.paired * leads.inputs, leads.templates, *call.tiling.positions)
    out = steps.new_map(items, shape, torch.float32)
    batch = call.tiling.batch_numbers
    coefficients = None
    if call.plan.method == "fft":
        wide = templates.to(torch.float64)
        coefficients = wide - wide.mean(tuple(range(2, wide.dim())), keepdim=True).round()
    for block in call.blocks:
        spectra = None
        if coefficients is not None and not call.plan.large:
            part = coefficients[block.pairs, block.templates]
            spectra = steps.spectra_of_templates(part, call.tiling, False)
        operands = (items, templates, coefficients, spectra)
        steps.score_bytes(*operands, batch, block.numbers, rule.numbers, out)
    return leads.restored(out, ndim)
