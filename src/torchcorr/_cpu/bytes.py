"""Scores of whole numbers of a byte, from exact sums.

Tensors of 8-bit integers, and float32 tensors that hold nothing else, or such numbers divided by
255, as photographs that were converted do. Sums of products come from integer arithmetic, or from
transforms that are rounded to whole numbers: in float32 where an estimate of their rounding, made
of what they contain, is below a half, otherwise in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.choose import arrange
from .._plan.costs import family
from . import steps
from .rules import ByteRule

# What dividing bytes by 255 in float32 changes in a score, for the input and for the template: half
# the range of the slopes of its rounding (math.md, eq. shares).
_ROUNDED_SHARE = 3.8e-6
# Elements of a window whose sums of squares, times their number, are less than 2^63.
_MOST_ELEMENTS = 1 << 24


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

    `whole` is the template as it was before it was standardised. float32 scores are within what is
    promised, those of integers, and those with a mean for each channel, exact but for one rounding.
    """
    ndim = len(stride)
    count = math.prod(whole.shape[-ndim - 1 :])
    if count == 0 or input.numel() == 0 or count > _MOST_ELEMENTS:
        return None
    small, zero_of_template, scale_of_template = steps.as_bytes(whole)
    if small.numel() == 0:
        return None
    large, zero_of_input, scale = steps.as_bytes(input)
    if large.numel() == 0:
        return None
    allowed = rounding.ALLOWED_SCORE_ERROR[torch.float32]
    allowed -= _ROUNDED_SHARE * ((scale > 1) + (scale_of_template > 1))
    sizes = (input.shape, whole.shape, stride)
    device = family(large.device)
    call = arrange(*sizes, method, normalised=True, dtype=torch.uint8, device=device)
    rule = ByteRule(
        zero_mean,
        eps * scale**2,
        zero_of_input,
        zero_of_template,
        own_means or not input.is_floating_point(),
        rounding.TRANSFORM * rounding.unit(torch.float32),
        allowed,
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
        if coefficients is not None:
            part = coefficients[block.pairs, block.templates]
            spectra = steps.spectra_of_templates(part, call.tiling, False)
        operands = (items, templates, coefficients, spectra)
        steps.score_bytes(*operands, batch, block.numbers, rule.numbers, out)
    return leads.restored(out, ndim)
