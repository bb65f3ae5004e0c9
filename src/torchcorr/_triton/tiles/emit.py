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
        at = (plane // window[0]).to(tl.int64) * pitch_c
        at += (plane % window[0]).to(tl.int64) * pitch_z + dy.to(tl.int64) * pitch_y
        for dx in range(window[2]):
            value = tl.load(source + begin + at + dx, mask=wanted, other=0).to(tl.float64)
            total += (value - level) * tl.load(taps + line * window[2] + dx)
    return total


@triton.jit
def _placed(tiles, pitch, step, lead, z, y, x, valid, NDIM: tl.constexpr, THINNED: tl.constexpr):
    """Of a block of windows: which are kept, their tiles, their places in these and in the map."""
    outputs, grid, length = tiles
    keep = valid
    uz, uy, ux = z, y, x
    if THINNED:
        keep = keep & (z % step[0] == 0) & (y % step[1] == 0) & (x % step[2] == 0)
        uz, uy, ux = z // step[0], y // step[1], x // step[2]
    tile, inner = ux // outputs[2], ux % outputs[2] * step[2]
    target = tl.cast(ux, tl.int64)
    if NDIM != 1:
        tile += ((uz // outputs[0]) * grid[1] + uy // outputs[1]) * grid[2]
        inner += ((uz % outputs[0] * step[0]) * length[1] + uy % outputs[1] * step[1]) * length[2]
        target += tl.cast(uz, tl.int64) * pitch[2] + uy.to(tl.int64) * pitch[3]
    tile = lead * (grid[0] * grid[1] * grid[2]) + tile
    return keep, tile, inner, target


@triton.jit
def _norm(mean, var, count, eps, ZERO_MEAN: tl.constexpr):
    """What a sum of products is multiplied by to be a score; 0 where the window is flat."""
    energy = var
    if not ZERO_MEAN:
        energy = var + mean * mean
    flat = energy == 0
    return tl.where(flat, 0.0, 1 / (count * tl.sqrt(tl.where(flat, 1.0, energy) + eps)))


@triton.jit
def _score(to, k, keep, tile, inner, scale, norm, lead, z, y, x, ZERO_MEAN: tl.constexpr):
    """Scores of a block of windows with the k-th template whose sums are at hand."""
    _, found, stats, noise, taps, source, pitch, pitch_l, _, numbers, tiles = to
    first, templates, all_templates, inputs, channels, window, elements, _ = numbers
    length = tiles[2]
    at = (tile * templates + k) * (length[0] * length[1] * length[2]) + inner
    value = tl.load(found + at, mask=keep, other=0.0).to(tl.float64) / scale
    lost = tl.load(noise + (tile * templates + k) * 2, mask=keep, other=0.0)
    doubt = keep & (lost * norm > 1.0)
    if tl.max(tl.max(doubt.to(tl.int32), 1), 0) > 0:
        own = taps + (lead // inputs * all_templates + first + k) * elements
        exact = exact_numerators(
            source + lead * pitch_l, pitch, own, z, y, x, doubt, channels, window, ZERO_MEAN
        )
        value = tl.where(doubt, exact, value)
    score = value * norm
    score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
    return tl.where(norm == 0, 0.0, score)


@triton.jit
def emit_scores(
    mean, var, to, step, lead, z, y, x, valid, ZERO_MEAN: tl.constexpr, NDIM: tl.constexpr,
    THINNED: tl.constexpr,
):  # fmt: skip
    """Scores of a block of windows with all templates whose sums are at hand.

    to: the map, sums, stats and noise of tiles; templates; input and its pitches; sizes.
    """
    out, _, stats, _, _, _, _, _, out_pitch, numbers, tiles = to
    first, templates, _, _, _, _, elements, eps = numbers
    if NDIM == 1:
        # Of lines, rows are leads.
        lead, z, y = y.to(tl.int64), y * 0, y * 0
    keep, tile, inner, target = _placed(tiles, out_pitch, step, lead, z, y, x, valid, NDIM, THINNED)
    norm = _norm(mean, var, elements.to(tl.float64), eps, ZERO_MEAN)
    scale = tl.load(stats + tile * 4 + 1, mask=keep, other=1.0)
    target += lead * out_pitch[0]
    for k in range(templates):
        score = _score(to, k, keep, tile, inner, scale, norm, lead, z, y, x, ZERO_MEAN)
        to_k = out + target + (first + k).to(tl.int64) * out_pitch[1]
        tl.store(to_k, converted(score, out.dtype.element_ty), mask=keep)


@triton.jit
def emit_upstream(
    mean, var, to, step, lead, z, y, x, valid, ZERO_MEAN: tl.constexpr, SHOWN: tl.constexpr,
    NDIM: tl.constexpr, THINNED: tl.constexpr,
):  # fmt: skip
    """A block of upstream gradients, handed on to numerators and to S1 and S2 of their windows.

    The numerators' share goes to its places in the tiles, in their units. One that is not finite
    is 0 there, so that the others keep their transform: it is NaN in S1 and S2, which reach just
    the elements of its window, and in `poison`, for its template. SHOWN says where scores are.
    """
    scores, grad, shown, grad_s1, grad_s2, poison, map_pitch = to
    out, _, stats, _, _, _, _, _, pitch, numbers, tiles = scores
    first, templates, all_templates, _, _, _, elements, eps = numbers
    length = tiles[2]
    if NDIM == 1:
        lead, z, y = y.to(tl.int64), y * 0, y * 0
    keep, tile, inner, target = _placed(tiles, pitch, step, lead, z, y, x, valid, NDIM, THINNED)
    count = elements.to(tl.float64)
    norm = _norm(mean, var, count, eps, ZERO_MEAN)
    scale = tl.load(stats + tile * 4 + 1, mask=keep, other=1.0)
    share = tl.zeros(keep.shape, tl.float64)
    for k in range(templates):
        from_k = target + lead * pitch[0] + (first + k).to(tl.int64) * pitch[1]
        score = norm * 0
        if SHOWN == 1:
            score = _score(scores, k, keep, tile, inner, scale, norm, lead, z, y, x, ZERO_MEAN)
        elif SHOWN == 2:
            score = tl.load(shown + from_k, mask=keep, other=0).to(tl.float64)
        given = tl.load(grad + from_k, mask=keep, other=0).to(tl.float64)
        part = tl.where(norm == 0, 0.0, given * norm)
        finite = tl.abs(part) < float("inf")
        share += tl.where(finite, part * score, float("nan"))
        at = (tile * templates + k) * (length[0] * length[1] * length[2]) + inner
        tl.store(out + at, tl.where(finite, part / scale, 0.0), mask=keep)
        which = tl.cast(lead, tl.int32) * all_templates + first + k
        tl.store(
            poison + which + tl.zeros(keep.shape, tl.int32), float("nan"), mask=keep & (finite == 0)
        )
    if SHOWN > 0:
        share *= norm * count
        at = target + lead * map_pitch
        earlier = keep & (first > 0)
        s2 = tl.load(grad_s2 + at, mask=earlier, other=0.0) - share / 2
        tl.store(grad_s2 + at, s2, mask=keep)
        if ZERO_MEAN:
            share *= mean
        else:
            share *= 0
        s1 = tl.load(grad_s1 + at, mask=earlier, other=0.0) + share
        tl.store(grad_s1 + at, s1, mask=keep)
