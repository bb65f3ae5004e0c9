"""From numerators to scores, in the kernel that has just summed the moments of their windows.

A numerator whose rounding may exceed what is promised for its window (math.md, noise) is doubtful
and recomputed from its definition, in float64 and about an element of the window: N multiply-adds,
by the program that writes the score, in blocks that contain such a window.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .records import SCALE, STATS


@triton.jit
def elements(to):
    """The number of elements of a window."""
    return to.channels * to.window[0] * to.window[1] * to.window[2]


@triton.jit
def exact_numerators(to, k, block, doubtful, ZERO_MEAN: tl.constexpr):
    """Sums of products of the doubtful windows of a block with the k-th template at hand."""
    chunk, window = to.chunk, to.window
    pitch_c, pitch_z, pitch_y, pitch_l = to.pitch
    template = block.lead // chunk.inputs * chunk.all_templates + chunk.first + k
    coefficients = to.coefficients + template * elements(to)
    begin = block.z.to(tl.int64) * pitch_z + block.y.to(tl.int64) * pitch_y + block.x
    source = to.input + block.lead * pitch_l + begin
    level = tl.zeros(doubtful.shape, tl.float64)
    if ZERO_MEAN:
        level = tl.load(source, mask=doubtful, other=0).to(tl.float64)
    total = tl.zeros(doubtful.shape, tl.float64)
    for line in range(to.channels * window[0] * window[1]):
        dy, plane = line % window[1], line // window[1]
        at = (plane // window[0]).to(tl.int64) * pitch_c
        at += (plane % window[0]).to(tl.int64) * pitch_z + dy.to(tl.int64) * pitch_y
        for dx in range(window[2]):
            value = tl.load(source + at + dx, mask=doubtful, other=0).to(tl.float64)
            total += (value - level) * tl.load(coefficients + line * window[2] + dx)
    return total


@triton.jit
def norms(mean, var, to, ZERO_MEAN: tl.constexpr):
    """The factor that makes a numerator a score, 1 / (N deviation); 0 where the window is flat."""
    energy = var
    if not ZERO_MEAN:
        energy = var + mean * mean
    flat = energy == 0
    count = elements(to).to(tl.float64)
    return tl.where(flat, 0.0, 1 / (count * tl.sqrt(tl.where(flat, 1.0, energy) + to.eps)))


@triton.jit
def scales(to, placed):
    """The scales of the windows' tiles."""
    return tl.load(to.stats + placed.tile * STATS + SCALE, mask=placed.keep, other=1.0)


@triton.jit
def place_in_tile(to, k, placed):
    """Offsets of windows in the tiles of the k-th template at hand."""
    length = to.tiles.length
    tile = placed.tile * to.chunk.templates + k
    return tile * (length[0] * length[1] * length[2]) + placed.inner


@triton.jit
def normalised(to, k, placed, scale, norm, block, ZERO_MEAN: tl.constexpr):
    """Scores of a block of windows with the k-th template at hand."""
    keep = placed.keep
    at = to.numerators + place_in_tile(to, k, placed)
    value = tl.load(at, mask=keep, other=0.0).to(tl.float64) / scale
    noise = to.noise + (placed.tile * to.chunk.templates + k) * 2
    doubtful = keep & (tl.load(noise, mask=keep, other=0.0) * norm > 1.0)
    if tl.max(tl.max(doubtful.to(tl.int32), 1), 0) > 0:
        value = tl.where(doubtful, exact_numerators(to, k, block, doubtful, ZERO_MEAN), value)
    score = value * norm
    score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
    return tl.where(norm == 0, 0.0, score)
