"""Both gradients of the local coefficient, in two launches.

The first marches as the score does and writes, in float64, what each window gives its elements:
factors of the other input and of their own, and offsets. The second spreads these over the windows'
elements. 108 bytes an element of float32 for both gradients, 72 for one: the maps are float64
since factor times input and offset nearly cancel beside what all of a window have in common.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles.emit import converted
from ..windows.launch import NUMBERS, plan, shape_of
from ..windows.march import by_definition, marches, place, place_in, standing_out
from ..windows.sliding import MAP, MAPS, PAIR, column_sums
from ..windows.windows import map_shape
from .scores import BLOCKS, BOTH_GRADIENTS, GRADIENTS, common_level, write_windows


@triton.jit(do_not_specialize=NUMBERS)
def lncc_maps_kernel(
    a, b, grad, through, own_a, own_b, offset_a, offset_b, eps: tl.float64, channels, pitch_c,
    depth, height, width, pitch_z, pitch_y, pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx,
    out_channels, out_pitch_c, out_z, out_y, out_l, blocks_z, blocks_y, blocks_x, steps,
    BOTH: tl.constexpr, NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr,
    DIRECT: tl.constexpr, ONE: tl.constexpr, R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """What each window gives its elements, for a or for both."""
    pitch_c = pitch_c.to(pitch_l.dtype)
    if ONE:
        channels = 1
    if NDIM < 3:
        depth, wz, sz, nz = 1, 1, 1, 1
    if NDIM < 2:
        wy, sy = 1, 1
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes, positions = (size, pitch, (wz, wy, wx), (sz, sy, sx)), (nz, ny, nx)
    to = (grad, through, own_a, own_b, offset_a, offset_b, (out_z, out_y, out_l), eps)
    write_windows(
        (a, b, channels, pitch_c), axes, positions, to, (blocks_z, blocks_y, blocks_x), steps,
        BOTH_GRADIENTS if BOTH else GRADIENTS, NDIM, STRIDED, DIRECT, R, B, J,
    )  # fmt: skip


@triton.jit
def moved(maps, offset):
    """The same maps from another lead on."""
    through, own_a, own_b, offset_a, offset_b = maps
    return through + offset, own_a + offset, own_b + offset, offset_a + offset, offset_b + offset


@triton.jit
def spread_by_definition(maps, axes, z, y, x, valid, BOTH: tl.constexpr, STRIDED: tl.constexpr):
    """Sums of all maps over the windows that hold an element, window by window."""
    through, own_a, own_b, offset_a, offset_b = maps
    data = (through, own_a, 1, 0, 0.0, 0)
    sum_t, sum_a = by_definition(data, axes, z, y, x, valid, 0.0, PAIR, True, STRIDED)
    data = (offset_a, own_b, 1, 0, 0.0, 0)
    more_a, sum_b = by_definition(data, axes, z, y, x, valid, 0.0, PAIR, True, STRIDED)
    more_b = sum_b
    if BOTH:
        data = (offset_b, offset_b, 1, 0, 0.0, 0)
        more_b, _ = by_definition(data, axes, z, y, x, valid, 0.0, PAIR, True, STRIDED)
    return sum_t, sum_a, sum_b, more_a, more_b


@triton.jit
def product(x, factor):
    """x times a factor; 0 where that is, whatever x is."""
    return tl.where(factor == 0, 0.0, x * factor)


@triton.jit
def emit_spread(
    sum_t, sum_a, sum_b, more_a, more_b, to, positions, axes, lead, z, y, x, valid,
    BOTH: tl.constexpr, NDIM: tl.constexpr,
):  # fmt: skip
    """Writes factors times both inputs plus offsets at the elements of every channel."""
    a, b, for_a, for_b, channels, pitch_c, pitch = to
    offset, keep = place_in(pitch, axes[3], lead, z, y, x, valid, False)
    whole = (positions, pitch, axes[2], axes[3])
    common_a = common_level(a + lead * pitch[2], whole, y, NDIM)
    common_b = common_level(b + lead * pitch[2], whole, y, NDIM)
    for c in range(channels):
        at = c * pitch_c + offset
        here_a = tl.load(a + at, mask=keep, other=0).to(tl.float64) - common_a
        here_b = tl.load(b + at, mask=keep, other=0).to(tl.float64) - common_b
        found = product(here_b, sum_t) - product(here_a, sum_a) + more_a
        tl.store(for_a + at, converted(found, for_a.dtype.element_ty), mask=keep)
        if BOTH:
            found = product(here_a, sum_t) - product(here_b, sum_b) + more_b
            tl.store(for_b + at, converted(found, for_b.dtype.element_ty), mask=keep)


@triton.jit
def spread_maps(
    maps, axes, positions, to, blocks, steps, BOTH: tl.constexpr, NDIM: tl.constexpr,
    STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """One program: sums that slide, as `windows.spread_pair`, and a count of windows that give."""
    lead, z0, y0, x0 = place(blocks, steps, NDIM, R, B)
    maps = moved(maps, lead * axes[1][2])
    through, own_a, own_b, offset_a, offset_b = maps
    held_t = tl.zeros((R if NDIM == 3 else 1, B), tl.float64)
    held_a, held_b, held_more_a, held_more_b = held_t, held_t, held_t, held_t
    none, held_n = held_t, held_t.to(tl.int32)
    uncounted = held_n
    most_t = tl.zeros((R if NDIM == 1 else 1, 1), tl.float64)
    most_a, most_b = most_t, most_t
    t, begin = 0, 1
    limit = marches(y0, z0, positions, steps, NDIM, R)
    while t < limit:
        z = z0 + t if NDIM == 3 else z0
        top = y0 + t * R if NDIM == 2 else y0
        y = y0 if NDIM == 1 else top + tl.arange(0, R)[:, None]
        x = x0 + tl.arange(0, B)[None, :]
        valid = (y < positions[1]) & (x < positions[2])
        data = (through, own_a, 1, 0, 0.0, 0)
        sum_t, sum_a, count, held_t, held_a, held_n = column_sums(
            data, axes, axes[2], held_t, held_a, held_n, begin, z, top, x0, PAIR, NDIM, True,
            STRIDED, R, B, J,
        )  # fmt: skip
        live = tl.cumsum(count, 1) != 0
        sum_t = tl.where(live, tl.cumsum(sum_t, 1), 0.0)
        sum_a = tl.where(live, tl.cumsum(sum_a, 1), 0.0)
        if BOTH:
            data = (offset_a, own_b, 1, 0, 0.0, 0)
            more_a, sum_b, _, held_more_a, held_b, _ = column_sums(
                data, axes, axes[2], held_more_a, held_b, uncounted, begin, z, top, x0, MAPS, NDIM,
                True, STRIDED, R, B, J,
            )  # fmt: skip
            data = (offset_b, offset_b, 1, 0, 0.0, 0)
            more_b, _, _, held_more_b, _, _ = column_sums(
                data, axes, axes[2], held_more_b, none, uncounted, begin, z, top, x0, MAP, NDIM,
                True, STRIDED, R, B, J,
            )  # fmt: skip
            sum_b = tl.where(live, tl.cumsum(sum_b, 1), 0.0)
            more_b = tl.where(live, tl.cumsum(more_b, 1), 0.0)
        else:
            data = (offset_a, offset_a, 1, 0, 0.0, 0)
            more_a, _, _, held_more_a, _, _ = column_sums(
                data, axes, axes[2], held_more_a, none, uncounted, begin, z, top, x0, MAP, NDIM,
                True, STRIDED, R, B, J,
            )  # fmt: skip
            sum_b, more_b = sum_t * 0, sum_t * 0
        more_a = tl.where(live, tl.cumsum(more_a, 1), 0.0)
        if begin != 0:
            most_t, most_a, most_b = most_t * 0, most_a * 0, most_b * 0
        told, most_t = standing_out(sum_t, most_t, valid, NDIM)
        also, most_a = standing_out(sum_a, most_a, valid, NDIM)
        told = told & also
        if BOTH:
            also, most_b = standing_out(sum_b, most_b, valid, NDIM)
            told = told & also
        size = tl.abs(sum_t) + tl.abs(sum_a) + tl.abs(sum_b) + tl.abs(more_a) + tl.abs(more_b)
        finite = size < float("inf")
        begin = tl.max(tl.max((valid & ~finite).to(tl.int32), 1), 0)
        again = valid & live & ~(told & finite)
        if tl.max(tl.max(again.to(tl.int32), 1), 0) > 0:
            # What is not finite belongs to its own windows alone.
            own_t, exact_a, exact_b, own_more_a, own_more_b = spread_by_definition(
                maps, axes, z, y, x, again, BOTH, STRIDED
            )
            sum_t = tl.where(again, own_t, sum_t)
            sum_a, sum_b = tl.where(again, exact_a, sum_a), tl.where(again, exact_b, sum_b)
            more_a = tl.where(again, own_more_a, more_a)
            more_b = tl.where(again, own_more_b, more_b)
        emit_spread(
            sum_t, sum_a, sum_b, more_a, more_b, to, positions, axes, lead, z, y, x, valid, BOTH,
            NDIM,
        )  # fmt: skip
        t += 1


@triton.jit(do_not_specialize=NUMBERS)
def lncc_spread_kernel(
    through, own_a, own_b, offset_a, offset_b, a, b, for_a, for_b, channels, pitch_c, depth,
    height, width, pitch_z, pitch_y, pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels,
    out_pitch_c, out_z, out_y, out_l, blocks_z, blocks_y, blocks_x, steps, BOTH: tl.constexpr,
    NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr, DIRECT: tl.constexpr,
    ONE: tl.constexpr, R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """b spread(through) - a spread(own_a) + spread(offset_a), and the same for b."""
    out_pitch_c = out_pitch_c.to(out_l.dtype)
    if NDIM < 3:
        depth, wz, sz, nz = 1, 1, 1, 1
    if NDIM < 2:
        wy, sy = 1, 1
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes, positions = (size, pitch, (wz, wy, wx), (sz, sy, sx)), (nz, ny, nx)
    to = (a, b, for_a, for_b, out_channels, out_pitch_c, (out_z, out_y, out_l))
    maps, blocks = (through, own_a, own_b, offset_a, offset_b), (blocks_z, blocks_y, blocks_x)
    if DIRECT:
        lead, z, y, x = place(blocks, 1, NDIM, R, B)
        if NDIM != 1:
            y = y + tl.arange(0, R)[:, None]
        x = x + tl.arange(0, B)[None, :]
        valid = (y < ny) & (x < nx)
        maps = moved(maps, lead * pitch_l)
        sum_t, sum_a, sum_b, more_a, more_b = spread_by_definition(
            maps, axes, z, y, x, valid, BOTH, STRIDED
        )
        emit_spread(
            sum_t, sum_a, sum_b, more_a, more_b, to, positions, axes, lead, z, y, x, valid, BOTH,
            NDIM,
        )  # fmt: skip
    else:
        spread_maps(maps, axes, positions, to, blocks, steps, BOTH, NDIM, STRIDED, R, B, J)


def _grads(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    both: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of a, and that of b if both are wanted."""
    for_a = torch.empty_like(a, memory_format=torch.contiguous_format)
    for_b = torch.empty_like(for_a) if both else b.new_empty(0)
    if for_a.numel() == 0:
        return for_a, for_b
    shape, a, b = map_shape(a, window, stride), a.contiguous(), b.contiguous()
    through, own_a, offset_a = (a.new_empty(shape, dtype=torch.float64) for _ in range(3))
    own_b, offset_b = (torch.empty_like(through) if both else through for _ in range(2))
    maps = (through, own_a, own_b, offset_a, offset_b)
    ndim = len(window)
    place, block = (*shape_of(a, ndim), window, stride), BLOCKS[ndim]
    cut = plan(*place, block=block)
    lncc_maps_kernel[(cut.grid,)](
        a, b, grad.contiguous(), *maps, float(eps), *cut.numbers, BOTH=int(both), **cut.options
    )
    cut = plan(*place, spread=True, block=block)
    lncc_spread_kernel[(cut.grid,)](
        *maps, a, b, for_a, for_b, *cut.numbers, BOTH=int(both), **cut.options
    )
    return for_a, for_b


def lncc_grads(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients of `lncc`; one that is not needed is empty (math.md, LNCC)."""
    if need_a:
        return _grads(grad, a, b, window, stride, eps, need_b)
    if need_b:
        for_b, for_a = _grads(grad, b, a, window, stride, eps, False)
        return for_a, for_b
    return a.new_empty(0), b.new_empty(0)
