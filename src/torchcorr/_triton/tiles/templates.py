"""Templates as tiles: padded, scaled and reversed in one launch, with their sums.

Element v goes to -v, modulo the length of each axis, so that the transform of a real template is
its conjugate spectrum and needs no further pass. The same launch sums the elements and squares of
stretches of 2048, which their reader adds up (`noise`). Reads a template twice and writes its tile
once.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..values import three
from .cut import PART

_NUMBERS = [
    "parts", "stretches", "templates", "channels", "pair", "template", "window_z", "window_y",
    "window_x", "length_z", "length_y", "length_x",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def prepare_templates_kernel(
    source, out, moments, parts, stretches, templates, channels, pair, template,
    window_z, window_y, window_x, length_z, length_y, length_x,
    ABSOLUTE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A part of a template's tile; and the sum and sum of squares of a stretch of its elements."""
    line, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    source += (line // templates).to(tl.int64) * pair + (line % templates).to(tl.int64) * template
    number = part * PART + tl.arange(0, PART)
    volume = length_z * length_y * length_x
    c, rest = number // volume, number % volume
    z, rest = rest // (length_y * length_x), rest % (length_y * length_x)
    z = (length_z - z) % length_z
    y = (length_y - rest // length_x) % length_y
    x = (length_x - rest % length_x) % length_x
    inside = (c < channels) & (z < window_z) & (y < window_y) & (x < window_x)
    at = ((c * window_z + z) * window_y + y) * window_x + x
    value = tl.load(source + at, mask=inside, other=0).to(tl.float64)
    if ABSOLUTE:
        value = tl.abs(value)
    tl.store(
        out + line.to(tl.int64) * channels * volume + number,
        (value / volume.to(tl.float64)).to(out.dtype.element_ty),
        mask=c < channels,
    )
    if part < stretches:
        elements = channels * window_z * window_y * window_x
        value = tl.load(source + number, mask=number < elements, other=0).to(tl.float64)
        to = moments + (line.to(tl.int64) * stretches + part) * 2
        tl.store(to, tl.sum(value, 0))
        tl.store(to + 1, tl.sum(value * value, 0))


def prepare(template: Tensor, out: Tensor, *, absolute: bool = False) -> Tensor:
    """Fills tiles (pairs * T, C, *length) with templates (pairs, T, C, *window), divided by the
    number of elements of a tile's channel, or with their absolute values.

    Each template must be dense. Returns the sums of its elements and of their squares over
    stretches, (pairs * T, stretches, 2), in float64.
    """
    pairs, templates, channels = template.shape[:3]
    window, length = template.shape[3:], out.shape[2:]
    parts = -(-channels * length.numel() // PART)
    stretches = -(-channels * window.numel() // PART)
    moments = template.new_empty((pairs * templates, stretches, 2), dtype=torch.float64)
    prepare_templates_kernel[(pairs * templates * parts,)](
        template, out, moments, parts, stretches, templates, channels, *template.stride()[:2],
        *three(window, 1), *three(length, 1), ABSOLUTE=absolute, PART=PART,
    )  # fmt: skip
    return moments
