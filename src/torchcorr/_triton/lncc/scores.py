"""The local coefficient of two inputs, from both to the score in one launch.

Five sums of a window slide side by side (``sliding``): of a and of b about a level, of their
squares, and of products about both levels. Each input is read once from memory, the score written
once: 12 bytes an element in float32. The same march writes what each window gives back to its
elements, for ``lncc_grads``.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..tiles.emit import converted
from ..windows.launch import NUMBERS, plan, shape_of
from ..windows.march import (
    MOMENTS,
    TELLING,
    TELLING_WIDE,
    elements,
    largest,
    level_of,
    marches,
    place,
    place_in,
)
from ..windows.sliding import PRODUCTS, VALUES, alike, column_sums, find
from ..windows.windows import map_shape

# Five sums leave a lane registers for one position.
BLOCKS = {1: 128, 2: 128, 3: 256}

# What a march writes.
COEFFICIENT = tl.constexpr(0)
GRADIENTS = tl.constexpr(1)  # what each window gives to its elements of a
BOTH_GRADIENTS = tl.constexpr(2)

# As `TELLING`, to 1e-9: gradients of inputs that almost agree are small differences of their terms.
TELLING_GRADIENTS = tl.constexpr(64 / 2**53 / 1e-9)


@triton.jit
def sums_by_definition(sources, axes, z, y, x, alive, level_a, level_b):
    """Five sums over each window, element by element: of both about levels, squares, products."""
    first, second, channels, pitch_c = sources
    _, pitch, window, _ = axes
    begin, _ = find(axes, z, y, x, alive, False, False)
    sum_a = tl.zeros(alive.shape, tl.float64)
    sum_b, square_a, square_b, product = sum_a, sum_a, sum_a, sum_a
    for line in range(channels * window[0] * window[1]):
        dy, plane = line % window[1], line // window[1]
        at = tl.cast(plane // window[0], tl.int64) * pitch_c + tl.cast(dy, tl.int64) * pitch[1]
        at += tl.cast(plane % window[0], tl.int64) * pitch[0]
        for dx in range(window[2]):
            a = tl.load(first + begin + at + dx, mask=alive, other=0).to(tl.float64)
            b = tl.load(second + begin + at + dx, mask=alive, other=0).to(tl.float64)
            a, b = tl.where(alive, a - level_a, 0.0), tl.where(alive, b - level_b, 0.0)
            sum_a += a
            sum_b += b
            square_a += a * a
            square_b += b * b
            product += a * b
    return sum_a, square_a, sum_b, square_b, product


@triton.jit
def about_mean(level, total, square, flat, share):
    """Mean and variance from sums about a level, where a window is flat exactly 0."""
    left = square * share - (total * share) * (total * share)
    return level + total * share, tl.where(flat | (left < 0), 0.0, left)


@triton.jit
def by_definition(sources, axes, z, y, x, alive, share):
    """Means, variances and covariance of each window, as `sweep.moments_by_definition`."""
    offset, inside = find(axes, z, y, x, alive, False, False)
    level_a = tl.load(sources[0] + offset, mask=inside, other=0).to(tl.float64)
    level_b = tl.load(sources[1] + offset, mask=inside, other=0).to(tl.float64)
    s, ss, t, tt, st = sums_by_definition(sources, axes, z, y, x, alive, level_a, level_b)
    flat_a, flat_b = ss == 0, tt == 0
    if sources[0].dtype.element_ty == tl.float64:
        level_a, level_b = level_a + s * share, level_b + t * share
        s, ss, t, tt, st = sums_by_definition(sources, axes, z, y, x, alive, level_a, level_b)
    mean_a, var_a = about_mean(level_a, s, ss, flat_a, share)
    mean_b, var_b = about_mean(level_b, t, tt, flat_b, share)
    return mean_a, var_a, mean_b, var_b, (st - s * t * share) * share


@triton.jit
def energies(var_a, var_b, eps):
    """What stands under both roots, 1 where either window is flat; and whether one is."""
    flat = (var_a == 0) | (var_b == 0)
    return tl.where(flat, 1.0, var_a) + eps, tl.where(flat, 1.0, var_b) + eps, flat


@triton.jit
def emit_coefficient(
    var_a, var_b, covariance, to, step, lead, z, y, x, valid, THINNED: tl.constexpr
):
    """Writes scores. Where a window is flat its covariance is 0, and NaN if the other one's is."""
    out, pitch, eps = to
    offset, keep = place_in(pitch, step, lead, z, y, x, valid, THINNED)
    energy_a, energy_b, _ = energies(var_a, var_b, eps)
    score = covariance / (tl.sqrt(energy_a) * tl.sqrt(energy_b))
    score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
    tl.store(out + offset, converted(score, out.dtype.element_ty), mask=keep)


@triton.jit
def common_level(source, axes, y, NDIM: tl.constexpr):
    """What all elements of a lead may have in common: the smallest of three that lie apart.

    A level far beyond what a window holds would cost it more digits than no level at all.
    """
    size = axes[0]
    level = float("inf")
    for k in tl.static_range(1, 4):
        row = y if NDIM == 1 else tl.zeros((1, 1), tl.int32) + size[1] // 4 * k
        here = level_of(source, axes, size[0] // 4 * k, row, size[2] // 4 * k, MOMENTS)
        level = tl.where(tl.abs(here) < tl.abs(level), here, level)
    return level


@triton.jit
def emit_gradients(
    mean_a, var_a, mean_b, var_b, covariance, share, to, step, lead, z, y, x, valid,
    BOTH: tl.constexpr, THINNED: tl.constexpr,
):  # fmt: skip
    """Writes what a window gives its elements: factors and offsets, as `lncc_window_grads`."""
    grad, through, own_a, own_b, offset_a, offset_b, pitch, eps = to
    offset, keep = place_in(pitch, step, lead, z, y, x, valid, THINNED)
    energy_a, energy_b, flat = energies(var_a, var_b, eps)
    root = tl.sqrt(energy_a) * tl.sqrt(energy_b)
    upstream = tl.load(grad + offset, mask=keep, other=0).to(tl.float64)
    upstream = tl.where(flat, 0.0, upstream * share)
    other, scored = upstream / root, upstream * (covariance / root)
    tl.store(through + offset, other, mask=keep)
    factor = scored / energy_a
    tl.store(own_a + offset, factor, mask=keep)
    tl.store(offset_a + offset, factor * mean_a - other * mean_b, mask=keep)
    if BOTH:
        factor = scored / energy_b
        tl.store(own_b + offset, factor, mask=keep)
        tl.store(offset_b + offset, factor * mean_b - other * mean_a, mask=keep)


@triton.jit
def emit(
    mean_a, var_a, mean_b, var_b, covariance, sources, axes, share, to, lead, z, y, x, valid,
    KIND: tl.constexpr, NDIM: tl.constexpr, THINNED: tl.constexpr,
):  # fmt: skip
    """Writes a block of results where the map has a place for them."""
    step = axes[3]
    if KIND == COEFFICIENT:
        emit_coefficient(var_a, var_b, covariance, to, step, lead, z, y, x, valid, THINNED)
    else:
        # An offset that all of a lead has is taken out, so that less cancels in the sums.
        common_a = common_level(sources[0], axes, y, NDIM)
        common_b = common_level(sources[1], axes, y, NDIM)
        emit_gradients(
            mean_a - common_a, var_a, mean_b - common_b, var_b, covariance, share, to, step, lead,
            z, y, x, valid, KIND == BOTH_GRADIENTS, THINNED,
        )  # fmt: skip


@triton.jit
def settle(
    mean_a, var_a, mean_b, var_b, covariance, told, sources, axes, z, y0, x0, y, x, valid, share,
    NDIM: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    J: tl.constexpr,
):  # fmt: skip
    """Results of a block some of whose sums do not tell, as `sweep.settle`."""
    first, second, channels, pitch_c = sources
    data = (first, first, channels, pitch_c, 0.0, 0)
    flat, bad = alike(data, axes, z, y0, x0, NDIM, False, STRIDED, R, B, J)
    data = (second, second, channels, pitch_c, 0.0, 0)
    also_flat, also_bad = alike(data, axes, z, y0, x0, NDIM, False, STRIDED, R, B, J)
    flat, bad = flat | also_flat, bad | also_bad
    lost = valid & ~told & ~flat & ~bad
    if tl.max(tl.max(lost.to(tl.int32), 1), 0) > 0:
        own_mean_a, own_a, own_mean_b, own_b, own = by_definition(
            sources, axes, z, y, x, lost, share
        )
        mean_a, var_a = tl.where(lost, own_mean_a, mean_a), tl.where(lost, own_a, var_a)
        mean_b, var_b = tl.where(lost, own_mean_b, mean_b), tl.where(lost, own_b, var_b)
        covariance = tl.where(lost, own, covariance)
    var_a = tl.where(bad, float("nan"), tl.where(flat, 0.0, var_a))
    var_b = tl.where(bad, float("nan"), var_b)
    covariance = tl.where(bad, float("nan"), tl.where(flat, 0.0, covariance))
    return mean_a, var_a, mean_b, var_b, covariance


@triton.jit
def variance_of(total, square, most, valid, share, NDIM: tl.constexpr):
    """Squares about the mean, and the largest squares that the sums have held."""
    most = tl.maximum(most, largest(tl.where(valid & (square >= 0), square, 0.0), NDIM))
    return square - total * total * share, most


@triton.jit
def march(
    sources, axes, positions, to, blocks, steps, KIND: tl.constexpr, NDIM: tl.constexpr,
    STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """One program: blocks of R x B windows, one after another, as `sweep.sweep`.

    A window tells if both variances do: products are then sure too, since by Cauchy-Schwarz the
    largest sum held of them is at most the root of the largest squares of a times those of b.
    """
    lead, z0, y0, x0 = place(blocks, steps, NDIM, R, B)
    first, second, channels, pitch_c = sources
    first, second = first + lead * axes[1][2], second + lead * axes[1][2]
    sources = (first, second, channels, pitch_c)
    row, lane = tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    share = 1 / elements(channels, axes[2])
    telling = share * 0 + (TELLING if KIND == COEFFICIENT else TELLING_GRADIENTS)
    if first.dtype.element_ty == tl.float64:
        telling = share * 0 + TELLING_WIDE
    held_a = tl.zeros((R if NDIM == 3 else 1, B), tl.float64)
    held_aa, held_b, held_bb, held_ab = held_a, held_a, held_a, held_a
    none, uncounted = held_a, held_a.to(tl.int32)
    level_a = tl.zeros((R if NDIM == 1 else 1, 1), tl.float64)
    level_b, most_a, most_b = level_a, level_a, level_a
    t, begin = 0, 1
    limit = marches(y0, z0, positions, steps, NDIM, R)
    while t < limit:
        z = z0 + t if NDIM == 3 else z0
        top = y0 + t * R if NDIM == 2 else y0
        y = y0 if NDIM == 1 else top + row
        x = x0 + lane
        valid = (y < positions[1]) & (x < positions[2])
        if begin != 0:
            origin = y0 if NDIM == 1 else top + tl.zeros((1, 1), tl.int32)
            level_a = level_of(first, axes, z, origin, x0, MOMENTS)
            level_b = level_of(second, axes, z, origin, x0, MOMENTS)
            most_a, most_b = level_a * 0, level_b * 0
        data = (first, first, channels, pitch_c, level_a, begin // 2)
        a, aa, _, held_a, held_aa, _ = column_sums(
            data, axes, axes[2], held_a, held_aa, uncounted, begin, z, top, x0, VALUES, NDIM,
            False, STRIDED, R, B, J,
        )  # fmt: skip
        data = (second, second, channels, pitch_c, level_b, begin // 2)
        b, bb, _, held_b, held_bb, _ = column_sums(
            data, axes, axes[2], held_b, held_bb, uncounted, begin, z, top, x0, VALUES, NDIM,
            False, STRIDED, R, B, J,
        )  # fmt: skip
        data = (first, second, channels, pitch_c, (level_a, level_b), begin // 2)
        ab, _, _, held_ab, _, _ = column_sums(
            data, axes, axes[2], held_ab, none, uncounted, begin, z, top, x0, PRODUCTS, NDIM,
            False, STRIDED, R, B, J,
        )  # fmt: skip
        a, b = tl.cumsum(a, 1), tl.cumsum(b, 1)
        own_a, most_a = variance_of(a, tl.cumsum(aa, 1), most_a, valid, share, NDIM)
        own_b, most_b = variance_of(b, tl.cumsum(bb, 1), most_b, valid, share, NDIM)
        told = (own_a >= telling * most_a) & (own_b >= telling * most_b)
        unsure = tl.max(tl.max((valid & ~told).to(tl.int32), 1), 0)
        if (unsure > 0) & (begin < 2):
            begin = 2
        else:
            mean_a, var_a = level_a + a * share, tl.maximum(own_a, 0.0) * share
            mean_b, var_b = level_b + b * share, tl.maximum(own_b, 0.0) * share
            covariance = (tl.cumsum(ab, 1) - a * b * share) * share
            if begin == 2:
                mean_a, var_a, mean_b, var_b, covariance = settle(
                    mean_a, var_a, mean_b, var_b, covariance, told, sources, axes, z, top, x0, y,
                    x, valid, share, NDIM, STRIDED, R, B, J,
                )  # fmt: skip
            emit(
                mean_a, var_a, mean_b, var_b, covariance, sources, axes, share, to, lead, z, y, x,
                valid, KIND, NDIM, STRIDED,
            )  # fmt: skip
            t += 1
            begin = begin // 2


@triton.jit
def direct(
    sources, axes, positions, to, blocks, KIND: tl.constexpr, NDIM: tl.constexpr,
    STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """One program: R x B positions that are returned, each window from its definition."""
    lead, z, y, x = place(blocks, 1, NDIM, R, B)
    first, second, channels, pitch_c = sources
    sources = (first + lead * axes[1][2], second + lead * axes[1][2], channels, pitch_c)
    if NDIM != 1:
        y = y + tl.arange(0, R)[:, None]
    x = x + tl.arange(0, B)[None, :]
    valid = (y < positions[1]) & (x < positions[2])
    step = axes[3]
    if STRIDED:
        z, y, x = z * step[0], y * step[1], x * step[2]
    share = 1 / elements(channels, axes[2])
    mean_a, var_a, mean_b, var_b, covariance = by_definition(sources, axes, z, y, x, valid, share)
    emit(
        mean_a, var_a, mean_b, var_b, covariance, sources, axes, share, to, lead, z, y, x, valid,
        KIND, NDIM, STRIDED,
    )  # fmt: skip


@triton.jit
def write_windows(
    sources, axes, positions, to, blocks, steps, KIND: tl.constexpr, NDIM: tl.constexpr,
    STRIDED: tl.constexpr, DIRECT: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    J: tl.constexpr,
):  # fmt: skip
    """One program, by definition or by sums that slide."""
    if DIRECT:
        direct(sources, axes, positions, to, blocks, KIND, NDIM, STRIDED, R, B)
    else:
        march(sources, axes, positions, to, blocks, steps, KIND, NDIM, STRIDED, R, B, J)


@triton.jit(do_not_specialize=NUMBERS)
def lncc_kernel(
    a, b, out, eps: tl.float64, channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, NDIM: tl.constexpr, SPREAD: tl.constexpr,
    STRIDED: tl.constexpr, DIRECT: tl.constexpr, ONE: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Scores of all windows."""
    pitch_c = pitch_c.to(pitch_l.dtype)
    if ONE:
        channels = 1
    if NDIM < 3:
        depth, wz, sz, nz = 1, 1, 1, 1
    if NDIM < 2:
        wy, sy = 1, 1
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes, positions = (size, pitch, (wz, wy, wx), (sz, sy, sx)), (nz, ny, nx)
    to, blocks = (out, (out_z, out_y, out_l), eps), (blocks_z, blocks_y, blocks_x)
    write_windows(
        (a, b, channels, pitch_c), axes, positions, to, blocks, steps, COEFFICIENT, NDIM, STRIDED,
        DIRECT, R, B, J,
    )  # fmt: skip


def lncc(a: Tensor, b: Tensor, window: Sequence[int], stride: Sequence[int], eps: float) -> Tensor:
    """Pearson's coefficient of two inputs in each window (math.md, LNCC)."""
    out = a.new_empty(map_shape(a, window, stride))
    if out.numel() > 0:
        ndim = len(window)
        cut = plan(*shape_of(a, ndim), window, stride, block=BLOCKS[ndim])
        lncc_kernel[(cut.grid,)](
            a.contiguous(), b.contiguous(), out, float(eps), *cut.numbers, **cut.options
        )
    return out
