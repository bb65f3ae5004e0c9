"""The local coefficient of two inputs, from both to the score in one launch.

Five sums of a window slide together (``sliding``): of a and of b about a level each, of their
squares, and of the products about both levels. Each input is read once from memory, the score
written once: 12 bytes an element in float32. For ``lncc_grads`` the same march writes what each
window contributes to the gradients of its elements.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..values import converted
from ..windows.launch import NUMBERS, shape_of, window_launch
from ..windows.march import (
    CAREFUL,
    CONTINUED,
    FRESH,
    TRUSTED,
    TRUSTED_WIDE,
    after,
    anything,
    block_at,
    elements,
    is_careful,
    largest,
    level_of,
    marched,
    marches,
    place,
    place_in,
)
from ..windows.records import MOMENTS, Block, Grid, Source
from ..windows.sliding import (
    PRODUCTS,
    VALUES,
    about,
    axes_of,
    column_sums,
    find,
    flat_and_non_finite,
    from_lead,
    zeros,
)
from ..windows.windows import map_shape

# Five sums leave a lane registers for one position.
BLOCKS = {1: 128, 2: 128, 3: 256}

# What a march writes.
COEFFICIENT = tl.constexpr(0)
GRADIENTS = tl.constexpr(1)  # each window's contribution to the gradient of a
BOTH_GRADIENTS = tl.constexpr(2)

# As `TRUSTED`, to 1e-9: gradients of inputs that almost agree are small differences of their terms.
TRUSTED_GRADIENTS = tl.constexpr(64 / 2**53 / 1e-9)


class Moments(NamedTuple):
    """Means, variances and covariance of windows of both inputs."""

    mean_a: Any
    var_a: Any
    mean_b: Any
    var_b: Any
    covariance: Any


class ScoreMap(NamedTuple):
    """Where scores go."""

    out: Any
    pitch: Any
    eps: Any


class GradientMaps(NamedTuple):
    """Where each window's factors and offsets go, and the upstream gradient."""

    grad: Any
    through: Any  # factor of the other input
    factor_a: Any  # factor of the input itself
    factor_b: Any
    offset_a: Any
    offset_b: Any
    pitch: Any
    eps: Any


@triton.jit
def second_of(source):
    """The second of two maps."""
    return Source(
        source.second, source.second, source.channels, source.pitch_c, source.level,
        source.finite_only, source.axes,
    )  # fmt: skip


@triton.jit
def sums_by_definition(source, block, wanted, level_a, level_b):
    """Five sums over each window, element by element: of both about levels, squares, products."""
    axes, window = source.axes, source.axes.window
    begin, _ = find(axes, block.z, block.y, block.x, wanted, False, False)
    sum_a = tl.zeros(wanted.shape, tl.float64)
    sum_b, square_a, square_b, product = sum_a, sum_a, sum_a, sum_a
    for line in range(source.channels * window[0] * window[1]):
        dy, plane = line % window[1], line // window[1]
        at = tl.cast(plane // window[0], tl.int64) * source.pitch_c
        at += tl.cast(dy, tl.int64) * axes.pitch[1]
        at += tl.cast(plane % window[0], tl.int64) * axes.pitch[0]
        for dx in range(window[2]):
            a = tl.load(source.first + begin + at + dx, mask=wanted, other=0).to(tl.float64)
            b = tl.load(source.second + begin + at + dx, mask=wanted, other=0).to(tl.float64)
            a, b = tl.where(wanted, a - level_a, 0.0), tl.where(wanted, b - level_b, 0.0)
            sum_a += a
            sum_b += b
            square_a += a * a
            square_b += b * b
            product += a * b
    return sum_a, square_a, sum_b, square_b, product


@triton.jit
def about_mean(level, total, square, flat, share):
    """Mean and variance from sums about a level; exactly 0 where a window is flat."""
    rest = square * share - (total * share) * (total * share)
    return level + total * share, tl.where(flat | (rest < 0), 0.0, rest)


@triton.jit
def by_definition(source, block, wanted, share):
    """Moments of each window, as `march.moments_by_definition`."""
    offset, inside = find(source.axes, block.z, block.y, block.x, wanted, False, False)
    level_a = tl.load(source.first + offset, mask=inside, other=0).to(tl.float64)
    level_b = tl.load(source.second + offset, mask=inside, other=0).to(tl.float64)
    s, ss, t, tt, st = sums_by_definition(source, block, wanted, level_a, level_b)
    flat_a, flat_b = ss == 0, tt == 0
    if source.first.dtype.element_ty == tl.float64:
        level_a, level_b = level_a + s * share, level_b + t * share
        s, ss, t, tt, st = sums_by_definition(source, block, wanted, level_a, level_b)
    mean_a, var_a = about_mean(level_a, s, ss, flat_a, share)
    mean_b, var_b = about_mean(level_b, t, tt, flat_b, share)
    return Moments(mean_a, var_a, mean_b, var_b, (st - s * t * share) * share)


@triton.jit
def energies(moments, eps):
    """Both variances plus eps, 1 + eps where either window is flat; and whether one is."""
    flat = (moments.var_a == 0) | (moments.var_b == 0)
    energy_a, energy_b = tl.where(flat, 1.0, moments.var_a), tl.where(flat, 1.0, moments.var_b)
    return energy_a + eps, energy_b + eps, flat


@triton.jit
def emit_coefficient(moments, to, step, block, FORM: tl.constexpr):
    """Writes scores. Where a window is flat its covariance is 0, and NaN if the other's is NaN."""
    offset, keep = place_in(to.pitch, step, block, FORM.thinned)
    energy_a, energy_b, _ = energies(moments, to.eps)
    score = moments.covariance / (tl.sqrt(energy_a) * tl.sqrt(energy_b))
    score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
    tl.store(to.out + offset, converted(score, to.out.dtype.element_ty), mask=keep)


@triton.jit
def common_level(source, axes, y, NDIM: tl.constexpr):
    """A level that the elements of a lead may have in common: the smallest of three that lie apart.

    A level far from the elements of a window would cost it more digits than no level at all.
    """
    size = axes.size
    level = float("inf")
    for k in tl.static_range(1, 4):
        row = y if NDIM == 1 else tl.zeros((1, 1), tl.int32) + size[1] // 4 * k
        other = level_of(source, axes, size[0] // 4 * k, row, size[2] // 4 * k, MOMENTS)
        level = tl.where(tl.abs(other) < tl.abs(level), other, level)
    return level


@triton.jit
def emit_gradients(moments, share, to, step, block, BOTH: tl.constexpr, FORM: tl.constexpr):
    """Writes each window's factors and offsets, as `lncc_window_grads`."""
    offset, keep = place_in(to.pitch, step, block, FORM.thinned)
    energy_a, energy_b, flat = energies(moments, to.eps)
    root = tl.sqrt(energy_a) * tl.sqrt(energy_b)
    upstream = tl.load(to.grad + offset, mask=keep, other=0).to(tl.float64)
    upstream = tl.where(flat, 0.0, upstream * share)
    other, scored = upstream / root, upstream * (moments.covariance / root)
    tl.store(to.through + offset, other, mask=keep)
    factor = scored / energy_a
    tl.store(to.factor_a + offset, factor, mask=keep)
    tl.store(to.offset_a + offset, factor * moments.mean_a - other * moments.mean_b, mask=keep)
    if BOTH:
        factor = scored / energy_b
        tl.store(to.factor_b + offset, factor, mask=keep)
        tl.store(to.offset_b + offset, factor * moments.mean_b - other * moments.mean_a, mask=keep)


@triton.jit
def emit(moments, source, share, to, block, KIND: tl.constexpr, FORM: tl.constexpr):
    """Writes a block of results where the map has a place for them."""
    axes = source.axes
    if KIND == COEFFICIENT:
        emit_coefficient(moments, to, axes.stride, block, FORM)
    else:
        # A level that all of a lead has is subtracted, so that less cancels in the sums.
        mean_a = moments.mean_a - common_level(source.first, axes, block.y, FORM.ndim)
        mean_b = moments.mean_b - common_level(source.second, axes, block.y, FORM.ndim)
        moments = Moments(mean_a, moments.var_a, mean_b, moments.var_b, moments.covariance)
        emit_gradients(moments, share, to, axes.stride, block, KIND == BOTH_GRADIENTS, FORM)


@triton.jit
def recompute_exactly(moments, doubtful, source, block, corner, share, FORM: tl.constexpr):
    """Moments of a block some of whose windows are doubtful, as `march.recompute_exactly`."""
    flat_a, non_finite_a = flat_and_non_finite(source, corner, FORM)
    flat_b, non_finite_b = flat_and_non_finite(second_of(source), corner, FORM)
    flat, non_finite = flat_a | flat_b, non_finite_a | non_finite_b
    mean_a, var_a, mean_b = moments.mean_a, moments.var_a, moments.mean_b
    var_b, covariance = moments.var_b, moments.covariance
    doubtful = doubtful & ~flat & ~non_finite
    if anything(doubtful):
        exact = by_definition(source, block, doubtful, share)
        mean_a = tl.where(doubtful, exact.mean_a, mean_a)
        mean_b = tl.where(doubtful, exact.mean_b, mean_b)
        var_a = tl.where(doubtful, exact.var_a, var_a)
        var_b = tl.where(doubtful, exact.var_b, var_b)
        covariance = tl.where(doubtful, exact.covariance, covariance)
    var_a = tl.where(non_finite, float("nan"), tl.where(flat, 0.0, var_a))
    var_b = tl.where(non_finite, float("nan"), var_b)
    covariance = tl.where(non_finite, float("nan"), tl.where(flat, 0.0, covariance))
    return Moments(mean_a, var_a, mean_b, var_b, covariance)


@triton.jit
def centred_squares(total, square, most, valid, share, NDIM: tl.constexpr):
    """Squares about the mean, and the largest squares in the running sums so far."""
    most = tl.maximum(most, largest(tl.where(valid & (square >= 0), square, 0.0), NDIM))
    return square - total * total * share, most


@triton.jit
def march(source, grid, to, KIND: tl.constexpr, FORM: tl.constexpr):
    """One program: blocks of R x B windows, one after another, as `march.window_march`.

    A window is doubtful if one of its variances is. Otherwise its products are accurate too: by
    Cauchy-Schwarz their largest running sum is at most the root of the largest squares of a times
    those of b.
    """
    lead, z0, y0, x0 = place(grid, FORM)
    source = from_lead(source, lead)
    axes = source.axes
    share = 1 / elements(source)
    trusted = share * 0 + (TRUSTED if KIND == COEFFICIENT else TRUSTED_GRADIENTS)
    if source.first.dtype.element_ty == tl.float64:
        trusted = share * 0 + TRUSTED_WIDE
    carried_a = zeros(FORM.rows if FORM.ndim == 3 else 1, FORM.columns)
    carried_b, carried_ab = carried_a, carried_a
    level_a = tl.zeros((FORM.rows if FORM.ndim == 1 else 1, 1), tl.float64)
    level_b, most_a, most_b = level_a, level_a, level_a
    t, state = 0, FRESH
    limit = marches(grid, z0, y0, FORM)
    while t < limit:
        z, y = marched(grid, z0, y0, t, FORM)
        block = block_at(grid, lead, z, y, x0, FORM)
        valid, corner = block.valid, (z, y, x0)
        if state != CONTINUED:
            origin = y if FORM.ndim == 1 else y + tl.zeros((1, 1), tl.int32)
            level_a = level_of(source.first, axes, z, origin, x0, MOMENTS)
            level_b = level_of(source.second, axes, z, origin, x0, MOMENTS)
            most_a, most_b = level_a * 0, level_b * 0
        seen = about(source, level_a, is_careful(state))
        a, carried_a = column_sums(seen, axes.window, carried_a, state, corner, VALUES, FORM)
        seen = about(second_of(source), level_b, is_careful(state))
        b, carried_b = column_sums(seen, axes.window, carried_b, state, corner, VALUES, FORM)
        seen = about(source, (level_a, level_b), is_careful(state))
        ab, carried_ab = column_sums(seen, axes.window, carried_ab, state, corner, PRODUCTS, FORM)
        sum_a, sum_b = tl.cumsum(a[0], 1), tl.cumsum(b[0], 1)
        squares_a, most_a = centred_squares(
            sum_a, tl.cumsum(a[1], 1), most_a, valid, share, FORM.ndim
        )
        squares_b, most_b = centred_squares(
            sum_b, tl.cumsum(b[1], 1), most_b, valid, share, FORM.ndim
        )
        known = (squares_a >= trusted * most_a) & (squares_b >= trusted * most_b)
        doubtful = valid & ~known
        if anything(doubtful) & (state != CAREFUL):
            state = CAREFUL
        else:
            mean_a, var_a = level_a + sum_a * share, tl.maximum(squares_a, 0.0) * share
            mean_b, var_b = level_b + sum_b * share, tl.maximum(squares_b, 0.0) * share
            covariance = (tl.cumsum(ab[0], 1) - sum_a * sum_b * share) * share
            moments = Moments(mean_a, var_a, mean_b, var_b, covariance)
            if state == CAREFUL:
                moments = recompute_exactly(moments, doubtful, source, block, corner, share, FORM)
            emit(moments, source, share, to, block, KIND, FORM)
            t += 1
            state = after(state)


@triton.jit
def direct(source, grid, to, KIND: tl.constexpr, FORM: tl.constexpr):
    """One program: R x B positions that are returned, each window from its definition."""
    lead, z, y, x = place(grid, FORM)
    source = from_lead(source, lead)
    block = block_at(grid, lead, z, y, x, FORM)
    step = source.axes.stride
    if FORM.thinned:
        block = Block(lead, block.z * step[0], block.y * step[1], block.x * step[2], block.valid)
    share = 1 / elements(source)
    moments = by_definition(source, block, block.valid, share)
    emit(moments, source, share, to, block, KIND, FORM)


@triton.jit
def write_windows(source, grid, to, KIND: tl.constexpr, FORM: tl.constexpr):
    """One program, by definition or by sums that slide."""
    if FORM.direct:
        direct(source, grid, to, KIND, FORM)
    else:
        march(source, grid, to, KIND, FORM)


@triton.jit(do_not_specialize=NUMBERS)
def lncc_kernel(
    a, b, out, eps: tl.float64, channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, FORM: tl.constexpr,
):  # fmt: skip
    """Scores of all windows."""
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    if FORM.single_channel:
        channels = 1
    source = Source(a, b, channels, pitch_c.to(pitch_l.dtype), 0.0, 0, axes)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    write_windows(source, grid, ScoreMap(out, (out_z, out_y, out_l), eps), COEFFICIENT, FORM)


def lncc(a: Tensor, b: Tensor, window: Sequence[int], stride: Sequence[int], eps: float) -> Tensor:
    """Pearson's coefficient of two inputs in each window (math.md, LNCC)."""
    out = a.new_empty(map_shape(a, window, stride))
    if out.numel() > 0:
        ndim = len(window)
        launch = window_launch(*shape_of(a, ndim), window, stride, block=BLOCKS[ndim])
        lncc_kernel[(launch.programs,)](
            a.contiguous(), b.contiguous(), out, float(eps), *launch.numbers, **launch.options
        )
    return out
