"""The last step of scores and of their gradients: what a block of windows writes.

The moments of the windows come from the march that calls it and are not stored.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..values import converted
from ..windows.records import NOWHERE, NUMERATORS, SCORE_MAP, Block
from .normalise import elements, normalised, norms, place_in_tile, scales
from .records import Placed


@triton.jit
def of_lead(block, NDIM: tl.constexpr):
    """The block as rows of one image or volume; of lines, rows are leads."""
    if NDIM == 1:
        block = Block(block.y.to(tl.int64), block.y * 0, block.y * 0, block.x, block.valid)
    return block


@triton.jit
def placed_in(to, step, block, FORM: tl.constexpr):
    """The places of a block of windows in tiles and in the map."""
    outputs, grid, length = to.tiles.outputs, to.tiles.grid, to.tiles.length
    pitch, keep = to.out_pitch, block.valid
    z, y, x = block.z, block.y, block.x
    if FORM.thinned:
        keep = keep & (z % step[0] == 0) & (y % step[1] == 0) & (x % step[2] == 0)
        z, y, x = z // step[0], y // step[1], x // step[2]
    tile, inner = x // outputs[2], x % outputs[2] * step[2]
    target = tl.cast(x, tl.int64)
    if FORM.ndim != 1:
        tile += ((z // outputs[0]) * grid[1] + y // outputs[1]) * grid[2]
        inner += ((z % outputs[0] * step[0]) * length[1] + y % outputs[1] * step[1]) * length[2]
        target += tl.cast(z, tl.int64) * pitch[2] + y.to(tl.int64) * pitch[3]
    tile = block.lead * (grid[0] * grid[1] * grid[2]) + tile
    return Placed(keep, tile, inner, target)


@triton.jit
def emit_scores(mean, var, to, step, block, RESULT: tl.constexpr, FORM: tl.constexpr):
    """Scores of a block of windows with all templates at hand (`to` is a ScoreTarget)."""
    block = of_lead(block, FORM.ndim)
    placed = placed_in(to, step, block, FORM)
    norm = norms(mean, var, to, RESULT.zero_mean)
    scale = scales(to, placed)
    target = placed.target + block.lead * to.out_pitch[0]
    for k in range(to.chunk.templates):
        score = normalised(to, k, placed, scale, norm, block, RESULT.zero_mean)
        at = to.out + target + (to.chunk.first + k).to(tl.int64) * to.out_pitch[1]
        tl.store(at, converted(score, to.out.dtype.element_ty), mask=placed.keep)


@triton.jit
def emit_upstream(mean, var, to, step, block, RESULT: tl.constexpr, FORM: tl.constexpr):
    """Shares of a block of upstream gradients, for the numerators and for S1 and S2 of windows.

    The numerators' share goes to its places in the tiles, in their units. One that is not finite
    is 0 there, so that the transform keeps the others: it is NaN in S1 and S2, which affect only
    the elements of its window, and marked in `non_finite`, for its template.
    """
    scores = to.scores
    chunk, pitch = scores.chunk, scores.out_pitch
    block = of_lead(block, FORM.ndim)
    placed = placed_in(scores, step, block, FORM)
    keep, target = placed.keep, placed.target
    norm = norms(mean, var, scores, RESULT.zero_mean)
    scale = scales(scores, placed)
    share = tl.zeros(keep.shape, tl.float64)
    for k in range(chunk.templates):
        from_k = target + block.lead * pitch[0] + (chunk.first + k).to(tl.int64) * pitch[1]
        score = norm * 0
        if RESULT.scores == NUMERATORS:
            score = normalised(scores, k, placed, scale, norm, block, RESULT.zero_mean)
        elif RESULT.scores == SCORE_MAP:
            score = tl.load(to.score_map + from_k, mask=keep, other=0).to(tl.float64)
        upstream = tl.load(to.grad + from_k, mask=keep, other=0).to(tl.float64)
        part = tl.where(norm == 0, 0.0, upstream * norm)
        finite = tl.abs(part) < float("inf")
        share += tl.where(finite, part * score, float("nan"))
        at = scores.out + place_in_tile(scores, k, placed)
        tl.store(at, tl.where(finite, part / scale, 0.0), mask=keep)
        which = tl.cast(block.lead, tl.int32) * chunk.all_templates + chunk.first + k
        mark = to.non_finite + which + tl.zeros(keep.shape, tl.int32)
        tl.store(mark, finite == 0, mask=keep & (finite == 0))
    if RESULT.scores != NOWHERE:
        share *= norm * elements(scores).to(tl.float64)
        at = target + block.lead * to.map_pitch
        earlier = keep & (chunk.first > 0)
        s2 = tl.load(to.grad_s2 + at, mask=earlier, other=0.0) - share / 2
        tl.store(to.grad_s2 + at, s2, mask=keep)
        if RESULT.zero_mean:
            share *= mean
        else:
            share *= 0
        s1 = tl.load(to.grad_s1 + at, mask=earlier, other=0.0) + share
        tl.store(to.grad_s1 + at, s1, mask=keep)
