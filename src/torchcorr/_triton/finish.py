"""The last step of a score on a GPU, beside the moments of its window: nothing of them is stored.

A numerator that rounding may have spoilt beside this very window (math.md, noise) is computed again
from its definition, in float64 and about an element of the window: N multiply-adds, in the blocks
that hold such a window and by the program that would have written it.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def converted(value, to):
    """Rounded once to float32, then to the type of the map."""
    return value if to == tl.float64 else value.to(tl.float32).to(to)


@triton.jit
def exact_numerators(
    source, pitch, taps, z, y, x, wanted, channels, window, ZERO_MEAN: tl.constexpr
):
    """Sums of products of windows that begin at (z, y, x) of a lead with one template."""
    pitch_c, pitch_z, pitch_y = pitch
    begin = z.to(tl.int64) * pitch_z + y.to(tl.int64) * pitch_y + x
    level = tl.zeros(wanted.shape, tl.float64)
    if ZERO_MEAN:
        level = tl.load(source + begin, mask=wanted, other=0).to(tl.float64)
    total = tl.zeros(wanted.shape, tl.float64)
    for line in range(channels * window[0] * window[1]):
        dy, plane = line % window[1], line // window[1]
        at = (plane // window[0]).to(tl.int64) * pitch_c + (plane % window[0]) * pitch_z
        at += dy * pitch_y
        for dx in range(window[2]):
            value = tl.load(source + begin + at + dx, mask=wanted, other=0).to(tl.float64)
            total += (value - level) * tl.load(taps + line * window[2] + dx)
    return total


@triton.jit
def emit_scores(
    mean, var, to, step, lead, z, y, x, valid, ZERO_MEAN: tl.constexpr, NDIM: tl.constexpr,
    THINNED: tl.constexpr,
):  # fmt: skip
    """Scores of a block of windows with all templates whose sums are at hand.

    to: the map, sums, stats and noise of tiles; templates; input and its pitches; sizes.
    """
    out, found, stats, noise, taps, source, pitch, pitch_l, out_pitch, numbers, tiles = to
    first, templates, all_templates, inputs, channels, window, elements, eps = numbers
    outputs, grid, length = tiles
    if NDIM == 1:
        # Of lines, rows are leads.
        lead, z, y = y.to(tl.int64), y * 0, y * 0
    keep = valid
    uz, uy, ux = z, y, x
    if THINNED:
        keep = keep & (z % step[0] == 0) & (y % step[1] == 0) & (x % step[2] == 0)
        uz, uy, ux = z // step[0], y // step[1], x // step[2]
    count = elements.to(tl.float64)
    energy = var
    if not ZERO_MEAN:
        energy = var + mean * mean
    flat = energy == 0
    norm = 1 / (count * tl.sqrt(tl.where(flat, 1.0, energy) + eps))
    tile = ((uz // outputs[0]) * grid[1] + uy // outputs[1]) * grid[2] + ux // outputs[2]
    tile = lead * (grid[0] * grid[1] * grid[2]) + tile
    inner = ((uz % outputs[0] * step[0]) * length[1] + uy % outputs[1] * step[1]) * length[2]
    inner += ux % outputs[2] * step[2]
    scale = tl.load(stats + tile * 4 + 1, mask=keep, other=1.0)
    target = lead * out_pitch[0] + tl.cast(uz, tl.int64) * out_pitch[2]
    target += uy.to(tl.int64) * out_pitch[3] + ux
    for k in range(templates):
        at = (tile * templates + k) * (length[0] * length[1] * length[2]) + inner
        value = tl.load(found + at, mask=keep, other=0.0).to(tl.float64) / scale
        lost = tl.load(noise + tile * templates + k, mask=keep, other=0.0)
        doubt = keep & (flat == 0) & (lost * norm > 1.0)
        which = lead // inputs * all_templates + first + k
        if tl.max(tl.max(doubt.to(tl.int32), 1), 0) > 0:
            own = taps + which * elements
            exact = exact_numerators(
                source + lead * pitch_l, pitch, own, z, y, x, doubt, channels, window, ZERO_MEAN
            )
            value = tl.where(doubt, exact, value)
        score = value * norm
        score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
        score = tl.where(flat, 0.0, score)
        to_k = out + target + (first + k).to(tl.int64) * out_pitch[1]
        tl.store(to_k, converted(score, out.dtype.element_ty), mask=keep)
