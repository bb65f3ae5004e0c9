"""Which method computes a correlation: a rule on shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._geometry import fast_length, output_size

# Multiply-adds of the direct loop that cost as much as one element of a transform's stage.
_STAGE_COST = 12.0


def resolve(
    method: str,
    *,
    input_shape: Sequence[int],
    template_shape: Sequence[int],
    lead: Sequence[int],
    stride: Sequence[int],
) -> str:
    """`direct` or `fft`, whichever counts fewer operations; shapes are those of the normal form.

    The direct loop takes one multiply-add for each element of each window. The transforms take
    ``n log2(n)`` steps for every input, template and output, n being the padded size.
    """
    if method != "auto":
        return method
    ndim = len(stride)
    size, window = input_shape[-ndim:], template_shape[-ndim:]
    outputs = math.prod(lead)
    positions = math.prod(output_size(size, window, stride))
    direct = outputs * positions * math.prod(template_shape[-ndim - 1 :])
    padded = math.prod([fast_length(n) for n in size])
    planes = math.prod(input_shape[:-ndim]) + math.prod(template_shape[:-ndim]) + outputs
    transforms = _STAGE_COST * planes * padded * math.log2(max(padded, 2))
    return "direct" if direct <= transforms else "fft"
