"""Both gradients of the local coefficient, in two launches.

The first marches as the score does and writes, in float64, what each window contributes to the
gradients of its elements: a factor of the other input, one of the input itself, and an offset. The
second spreads these over the windows' elements. 108 bytes an element of float32 for both
gradients, 72 for one: the maps are float64, since factor times input and offset nearly cancel
where the elements of a window have a large level in common.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..values import converted
from ..windows.launch import NUMBERS, shape_of, window_launch
from ..windows.march import (
    anything,
    block_at,
    by_definition,
    marched,
    marches,
    place,
    place_in,
    trusted_factors,
)
from ..windows.records import Axes, Grid, Source
from ..windows.sliding import MAP, MAPS, PAIR, axes_of, column_sums, zeros
from ..windows.windows import map_shape
from .scores import (
    BLOCKS,
    BOTH_GRADIENTS,
    GRADIENTS,
    GradientMaps,
    common_level,
    write_windows,
)


class Spread(NamedTuple):
    """Sums over the windows that contain an element: of `through`, factors and offsets."""

    through: Any
    factor_a: Any
    factor_b: Any
    offset_a: Any
    offset_b: Any


class Gradients(NamedTuple):
    """Both inputs, their gradients, and what they have in common."""

    a: Any
    b: Any
    for_a: Any
    for_b: Any
    channels: Any
    pitch_c: Any
    pitch: Any


@triton.jit(do_not_specialize=NUMBERS)
def lncc_maps_kernel(
    inputs, grad, maps, eps: tl.float64, channels, pitch_c,
    depth, height, width, pitch_z, pitch_y, pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx,
    out_channels, out_pitch_c, out_z, out_y, out_l, blocks_z, blocks_y, blocks_x, steps,
    BOTH: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """What each window contributes to the gradients of its elements, for a or for both."""
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    if FORM.single_channel:
        channels = 1
    a, b = inputs
    through, factor_a, factor_b, offset_a, offset_b = maps
    source = Source(a, b, channels, pitch_c.to(pitch_l.dtype), 0.0, 0, axes)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    to = GradientMaps(
        grad, through, factor_a, factor_b, offset_a, offset_b, (out_z, out_y, out_l), eps
    )
    write_windows(source, grid, to, BOTH_GRADIENTS if BOTH else GRADIENTS, FORM)


@triton.jit
def pair_of(first, second, axes):
    """Two maps as a source of sums."""
    return Source(first, second, 1, 0, 0.0, 0, axes)


@triton.jit
def spread_by_definition(maps, axes, block, wanted, BOTH: tl.constexpr, FORM: tl.constexpr):
    """Sums of all maps over the windows that contain an element, window by window."""
    z, y, x = block.z, block.y, block.x
    pair = pair_of(maps.through, maps.factor_a, axes)
    through, factor_a = by_definition(pair, z, y, x, wanted, PAIR, FORM)
    pair = pair_of(maps.offset_a, maps.factor_b, axes)
    offset_a, factor_b = by_definition(pair, z, y, x, wanted, PAIR, FORM)
    offset_b = factor_b
    if BOTH:
        pair = pair_of(maps.offset_b, maps.offset_b, axes)
        offset_b, _ = by_definition(pair, z, y, x, wanted, PAIR, FORM)
    return Spread(through, factor_a, factor_b, offset_a, offset_b)


@triton.jit
def product(x, factor):
    """x times a factor; 0 where the factor is 0, whatever x is."""
    return tl.where(factor == 0, 0.0, x * factor)


@triton.jit
def emit_spread(sums, to, positions, axes, block, BOTH: tl.constexpr, NDIM: tl.constexpr):
    """Writes factors times both inputs plus offsets at the elements of every channel."""
    offset, keep = place_in(to.pitch, axes.stride, block, False)
    whole = Axes(positions, to.pitch, axes.window, axes.stride)
    first = block.lead * to.pitch[2]
    common_a = common_level(to.a + first, whole, block.y, NDIM)
    common_b = common_level(to.b + first, whole, block.y, NDIM)
    for c in range(to.channels):
        at = c * to.pitch_c + offset
        a = tl.load(to.a + at, mask=keep, other=0).to(tl.float64) - common_a
        b = tl.load(to.b + at, mask=keep, other=0).to(tl.float64) - common_b
        grad = product(b, sums.through) - product(a, sums.factor_a) + sums.offset_a
        tl.store(to.for_a + at, converted(grad, to.for_a.dtype.element_ty), mask=keep)
        if BOTH:
            grad = product(a, sums.through) - product(b, sums.factor_b) + sums.offset_b
            tl.store(to.for_b + at, converted(grad, to.for_b.dtype.element_ty), mask=keep)


@triton.jit
def running_total(sums, live):
    """Sums along rows; exactly 0 where no window contributes."""
    return tl.where(live, tl.cumsum(sums, 1), 0.0)


@triton.jit
def spread_march(maps, axes, grid, to, BOTH: tl.constexpr, FORM: tl.constexpr):
    """One program: sums that slide, as `windows.spread_pair`, and a count of windows that give."""
    lead, z0, y0, x0 = place(grid, FORM)
    maps = moved(maps, lead * axes.pitch[2])
    carried = zeros(FORM.rows if FORM.ndim == 3 else 1, FORM.columns)
    carried_a, carried_b = carried, carried
    most = tl.zeros((FORM.rows if FORM.ndim == 1 else 1, 1), tl.float64)
    most_a, most_b = most, most
    t, fresh = 0, 1
    limit = marches(grid, z0, y0, FORM)
    while t < limit:
        z, y = marched(grid, z0, y0, t, FORM)
        block = block_at(grid, lead, z, y, x0, FORM)
        valid, corner = block.valid, (z, y, x0)
        pair = pair_of(maps.through, maps.factor_a, axes)
        sums, carried = column_sums(pair, axes.window, carried, fresh, corner, PAIR, FORM)
        live = tl.cumsum(sums[2], 1) != 0
        through, factor_a = running_total(sums[0], live), running_total(sums[1], live)
        if BOTH:
            pair = pair_of(maps.offset_a, maps.factor_b, axes)
            sums, carried_a = column_sums(pair, axes.window, carried_a, fresh, corner, MAPS, FORM)
            offset_a, factor_b = running_total(sums[0], live), running_total(sums[1], live)
            pair = pair_of(maps.offset_b, maps.offset_b, axes)
            sums, carried_b = column_sums(pair, axes.window, carried_b, fresh, corner, MAP, FORM)
            offset_b = running_total(sums[0], live)
        else:
            pair = pair_of(maps.offset_a, maps.offset_a, axes)
            sums, carried_a = column_sums(pair, axes.window, carried_a, fresh, corner, MAP, FORM)
            offset_a = running_total(sums[0], live)
            factor_b, offset_b = through * 0, through * 0
        if fresh != 0:
            most, most_a, most_b = most * 0, most_a * 0, most_b * 0
        trusted, most = trusted_factors(through, most, valid, FORM.ndim)
        also, most_a = trusted_factors(factor_a, most_a, valid, FORM.ndim)
        trusted = trusted & also
        if BOTH:
            also, most_b = trusted_factors(factor_b, most_b, valid, FORM.ndim)
            trusted = trusted & also
        size = tl.abs(through) + tl.abs(factor_a) + tl.abs(factor_b)
        size = size + tl.abs(offset_a) + tl.abs(offset_b)
        finite = size < float("inf")
        fresh = anything(valid & ~finite).to(tl.int32)
        doubtful = valid & live & ~(trusted & finite)
        if anything(doubtful):
            # What is not finite belongs to its windows alone.
            exact = spread_by_definition(maps, axes, block, doubtful, BOTH, FORM)
            through = tl.where(doubtful, exact.through, through)
            factor_a = tl.where(doubtful, exact.factor_a, factor_a)
            factor_b = tl.where(doubtful, exact.factor_b, factor_b)
            offset_a = tl.where(doubtful, exact.offset_a, offset_a)
            offset_b = tl.where(doubtful, exact.offset_b, offset_b)
        result = Spread(through, factor_a, factor_b, offset_a, offset_b)
        emit_spread(result, to, grid.positions, axes, block, BOTH, FORM.ndim)
        t += 1


@triton.jit
def moved(maps, offset):
    """The same maps from another lead on."""
    return Spread(
        maps.through + offset, maps.factor_a + offset, maps.factor_b + offset,
        maps.offset_a + offset, maps.offset_b + offset,
    )  # fmt: skip


@triton.jit(do_not_specialize=NUMBERS)
def lncc_spread_kernel(
    maps, inputs, grads, channels, pitch_c, depth,
    height, width, pitch_z, pitch_y, pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels,
    out_pitch_c, out_z, out_y, out_l, blocks_z, blocks_y, blocks_x, steps, BOTH: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """b spread(through) - a spread(factor_a) + spread(offset_a), and the same for b."""
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    through, factor_a, factor_b, offset_a, offset_b = maps
    spread = Spread(through, factor_a, factor_b, offset_a, offset_b)
    a, b = inputs
    for_a, for_b = grads
    pitch_c = out_pitch_c.to(out_l.dtype)
    to = Gradients(a, b, for_a, for_b, out_channels, pitch_c, (out_z, out_y, out_l))
    if FORM.direct:
        lead, z, y, x = place(grid, FORM)
        block = block_at(grid, lead, z, y, x, FORM)
        spread = moved(spread, lead * axes.pitch[2])
        sums = spread_by_definition(spread, axes, block, block.valid, BOTH, FORM)
        emit_spread(sums, to, grid.positions, axes, block, BOTH, FORM.ndim)
    else:
        spread_march(spread, axes, grid, to, BOTH, FORM)


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
    through, factor_a, offset_a = (a.new_empty(shape, dtype=torch.float64) for _ in range(3))
    factor_b, offset_b = (torch.empty_like(through) if both else through for _ in range(2))
    maps = (through, factor_a, factor_b, offset_a, offset_b)
    ndim = len(window)
    place, block = (*shape_of(a, ndim), window, stride), BLOCKS[ndim]
    launch = window_launch(*place, block=block)
    lncc_maps_kernel[(launch.programs,)](
        (a, b), grad.contiguous(), maps, float(eps), *launch.numbers, BOTH=int(both),
        **launch.options,
    )  # fmt: skip
    launch = window_launch(*place, spread=True, block=block)
    lncc_spread_kernel[(launch.programs,)](
        maps, (a, b), (for_a, for_b), *launch.numbers, BOTH=int(both), **launch.options
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
