"""What rounding leaves in the numerators of a tile (math.md, noise).

Reads them once, in one launch for tiles of up to 65536 numerators; of larger ones, parts are
summed first.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..._plan.tiling import TileStats
from .cut import PART, parts_of, total_of
from .records import LEVEL, MEAN_SQUARE, SCALE, STATS

# Numerators of a tile that one program reads; of more, the content of parts is computed first.
_WHOLE = 1 << 16
_LANES = 8192


@triton.jit(do_not_specialize=["volume", "parts"])
def tile_content_kernel(numerators, content, volume, parts, PART: tl.constexpr):
    """Of a part of a tile's numerators: the sum of their squares, and the largest size."""
    line, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    number = part * PART + tl.arange(0, PART)
    at = numerators + line.to(tl.int64) * volume + number
    y = tl.load(at, mask=number < volume, other=0.0).to(tl.float64)
    to = content + tl.program_id(0).to(tl.int64) * 2
    tl.store(to, tl.sum(y * y, 0))
    tl.store(to + 1, tl.max(tl.abs(y), 0))


@triton.jit(do_not_specialize=["volume", "parts", "stretches", "templates", "tiles"])
def tile_noise_kernel(
    numerators, content, stats, moments, noise_out, noise, volume, parts, stretches, templates,
    tiles, WHOLE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The noise of a tile's numerators, in the input's units, and what the tile's level adds to
    each of them. WHOLE: from the numerators themselves, not from the content of parts.
    """
    line = tl.program_id(0)
    lane = tl.arange(0, LANES)
    squares = tl.zeros([LANES], tl.float64)
    peaks = tl.zeros([LANES], tl.float64)
    if WHOLE:
        source = numerators + line.to(tl.int64) * volume
        for first in range(0, volume, LANES):
            y = tl.load(source + first + lane, mask=first + lane < volume, other=0.0)
            y = y.to(tl.float64)
            squares += y * y
            peaks = tl.maximum(peaks, tl.abs(y))
    else:
        source = content + line.to(tl.int64) * parts * 2
        for first in range(0, parts, LANES):
            inside = first + lane < parts
            squares += tl.load(source + (first + lane) * 2, mask=inside, other=0.0)
            peak = tl.load(source + (first + lane) * 2 + 1, mask=inside, other=0.0)
            peaks = tl.maximum(peaks, peak)
    template = line // templates // tiles * templates + line % templates
    sums = moments + template * stretches * 2
    elements = total_of(sums + 1, stretches, 2, 32)
    at = stats + line // templates * STATS
    level, scale, power = tl.load(at + LEVEL), tl.load(at + SCALE), tl.load(at + MEAN_SQUARE)
    spread = tl.sqrt(power * elements + tl.sum(squares, 0) / volume.to(tl.float64))
    tl.store(noise_out + line * 2, noise * (spread + tl.max(peaks, 0) / 2) / scale)
    tl.store(noise_out + line * 2 + 1, level * total_of(sums, stretches, 2, 32))


def noise_of(numerators: Tensor, stats: TileStats, moments: Tensor, noise: float) -> Tensor:
    """The noise of numerators (tiles, templates, *length), and what the level of their tile adds
    to each: (tiles, templates, 2), in float64.

    `moments` are those of the templates (`templates.prepare`); `noise` is the rounding of a
    transform relative to what it transforms.
    """
    (tiles, templates), volume = numerators.shape[:2], numerators.shape[2:].numel()
    lines = tiles * templates
    parts, lanes = parts_of(volume)
    out = stats.rows.new_empty((tiles, templates, 2))
    content, whole = out, volume <= _WHOLE
    if whole:
        lanes = min(_LANES, max(256, triton.next_power_of_2(volume)))
    else:
        content = out.new_empty((lines * parts, 2))
        tile_content_kernel[(lines * parts,)](numerators, content, volume, parts, PART=PART)
    tile_noise_kernel[(lines,)](
        numerators, content, stats.rows, moments, out, noise, volume, parts, moments.shape[1],
        templates, lines // moments.shape[0], WHOLE=whole, LANES=lanes,
        num_warps=max(4, lanes // 512),
    )  # fmt: skip
    return out
