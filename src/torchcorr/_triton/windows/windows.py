"""Sums and moments of windows, and the transposes that spread gradients back over them.

Float32 and half types slide (``march``): one launch, the input is read once from memory and the map
written once, 8 bytes an element for a float32 sum, 20 for moments, 24 for a combination, and the
caches serve the other loads. Float64, whose bounds sliding sums do not meet, goes axis by axis
(``axis_passes``). Small windows are read from their definition in one launch, and so, except in
float64, are windows that are about as far apart as they are long.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan.shapes import output_size
from ..values import converted
from . import axis_passes
from .launch import DIRECT_ELEMENTS, NUMBERS, Launch, shape_of, terms, window_launch
from .march import (
    anything,
    block_at,
    by_definition,
    marched,
    marches,
    place,
    place_in,
    trusted_factors,
    write_map,
)
from .records import MOMENTS, SUM, Grid, Result, Source, Target
from .sliding import PAIR, axes_of, column_sums, from_lead, zeros


@triton.jit(do_not_specialize=NUMBERS)
def window_kernel(
    source, out, var_out, channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, RESULT: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Sums of windows, or their mean and variance."""
    # A channel times their pitch may exceed int32 though both fit; a lead's pitch is no smaller.
    pitch_c, out_pitch_c = pitch_c.to(pitch_l.dtype), out_pitch_c.to(out_l.dtype)
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    if FORM.single_channel:
        channels = 1
    seen = Source(source, source, channels, pitch_c, 0.0, 0, axes)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    to = Target(out, var_out, out_channels, out_pitch_c, (out_z, out_y, out_l), 1.0, 0.0)
    write_map(seen, grid, to, RESULT, FORM)


class Combined(NamedTuple):
    """Where a combination of two spread maps goes, and what it is made with."""

    input: Any
    base: Any
    out: Any
    channels: Any
    pitch_c: Any
    pitch: Any


@triton.jit
def emit_pair(sum1, sum2, to, step, block, ADDED: tl.constexpr):
    """Writes sum1 + 2 I sum2 at the elements of every channel, added to the base if asked."""
    offset, keep = place_in(to.pitch, step, block, False)
    for c in range(to.channels):
        at = c * to.pitch_c + offset
        element = tl.load(to.input + at, mask=keep, other=0).to(tl.float64)
        value = sum1 + 2 * element * sum2
        if ADDED:
            value += tl.load(to.base + at, mask=keep, other=0.0)
        tl.store(to.out + at, converted(value, to.out.dtype.element_ty), mask=keep)


@triton.jit
def spread_pair(source, grid, to, ADDED: tl.constexpr, FORM: tl.constexpr):
    """One program: sums of two gradients that slide, and a count, so that zeros sum to 0."""
    lead, z0, y0, x0 = place(grid, FORM)
    source = from_lead(source, lead)
    axes = source.axes
    carried = zeros(FORM.rows if FORM.ndim == 3 else 1, FORM.columns)
    most = tl.zeros((FORM.rows if FORM.ndim == 1 else 1, 1), tl.float64)
    t, fresh = 0, 1
    limit = marches(grid, z0, y0, FORM)
    while t < limit:
        z, y = marched(grid, z0, y0, t, FORM)
        sums, carried = column_sums(source, axes.window, carried, fresh, (z, y, x0), PAIR, FORM)
        live = tl.cumsum(sums[2], 1) != 0
        sum1 = tl.where(live, tl.cumsum(sums[0], 1), 0.0)
        sum2 = tl.where(live, tl.cumsum(sums[1], 1), 0.0)
        block = block_at(grid, lead, z, y, x0, FORM)
        valid = block.valid
        if fresh != 0:
            most = most * 0
        trusted, most = trusted_factors(sum2, most, valid, FORM.ndim)
        finite = (tl.abs(sum1) < float("inf")) & (tl.abs(sum2) < float("inf"))
        fresh = anything(valid & ~finite).to(tl.int32)
        doubtful = valid & live & ~(trusted & finite)
        if anything(doubtful):
            # What is not finite belongs to its windows alone.
            exact1, exact2 = by_definition(source, z, block.y, block.x, doubtful, PAIR, FORM)
            sum1 = tl.where(doubtful, exact1, sum1)
            sum2 = tl.where(doubtful, exact2, sum2)
        emit_pair(sum1, sum2, to, axes.stride, block, ADDED)
        t += 1


@triton.jit(do_not_specialize=NUMBERS)
def local_std_combine_grads_kernel(
    first, second, input, base, out, channels, pitch_c, depth, height, width, pitch_z, pitch_y,
    pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, ADDED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """spread(first) + 2 I spread(second), and base."""
    out_pitch_c = out_pitch_c.to(out_l.dtype)
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    source = Source(first, second, 1, pitch_c, 0.0, 0, axes)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    to = Combined(input, base, out, out_channels, out_pitch_c, (out_z, out_y, out_l))
    if FORM.direct:
        lead, z, y, x = place(grid, FORM)
        source = from_lead(source, lead)
        block = block_at(grid, lead, z, y, x, FORM)
        sum1, sum2 = by_definition(source, z, block.y, block.x, block.valid, PAIR, FORM)
        emit_pair(sum1, sum2, to, axes.stride, block, ADDED)
    else:
        spread_pair(source, grid, to, ADDED, FORM)


def window_sum(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sum of each window over all its channels."""
    out = input.new_empty(map_shape(input, window, stride))
    if out.numel() > 0 and axis_by_axis(input, window, stride):
        axis_passes.write_sums(input, window, stride, out)
    elif out.numel() > 0:
        launch = launch_for(input, window, stride)
        window_kernel[(launch.programs,)](
            input.contiguous(), out, out, *launch.numbers, RESULT=Result.of(SUM), **launch.options
        )
    return out


def window_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and uncorrected variance of each window, in float64."""
    mean = input.new_empty(map_shape(input, window, stride), dtype=torch.float64)
    var = torch.empty_like(mean)
    if mean.numel() > 0 and axis_by_axis(input, window, stride):
        axis_passes.write_moments(input, window, stride, mean, var)
    elif mean.numel() > 0:
        launch = launch_for(input, window, stride)
        window_kernel[(launch.programs,)](
            input.contiguous(),
            mean,
            var,
            *launch.numbers,
            RESULT=Result.of(MOMENTS),
            **launch.options,
        )
    return mean, var


def window_spread(
    grad: Tensor, window: Sequence[int], input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `window_sum`: each element gets the sum over the windows that contain it."""
    out = grad.new_empty(tuple(input_shape))
    if out.numel() > 0 and axis_by_axis(out, window, stride, spread=True):
        axis_passes.write_spread((grad,), out, window, stride, out)
    elif out.numel() > 0:
        launch = launch_for(out, window, stride, spread=True)
        window_kernel[(launch.programs,)](
            grad.contiguous(), out, out, *launch.numbers, RESULT=Result.of(SUM), **launch.options
        )
    return out


def window_combine(
    grad_s1: Tensor, grad_s2: Tensor, input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """spread(grad_s1) + 2 I spread(grad_s2), within rounding of the largest term around."""
    return window_combine_onto(None, grad_s1, grad_s2, input, window, stride)


def window_combine_onto(
    base: Tensor | None,
    grad_s1: Tensor,
    grad_s2: Tensor,
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """`window_combine` plus a dense float64 tensor of the input's shape, rounded once."""
    out = torch.empty_like(input, memory_format=torch.contiguous_format)
    if out.numel() > 0 and axis_by_axis(out, window, stride, spread=True):
        maps = (grad_s1, grad_s2)
        axis_passes.write_spread(maps, input.contiguous(), window, stride, out)
        if base is not None:
            out += base
    elif out.numel() > 0:
        launch = launch_for(out, window, stride, spread=True)
        local_std_combine_grads_kernel[(launch.programs,)](
            grad_s1.contiguous(),
            grad_s2.contiguous(),
            input.contiguous(),
            out if base is None else base,
            out,
            *launch.numbers,
            ADDED=base is not None,
            **launch.options,
        )
    return out


def map_shape(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Shape of a map with one number for each window."""
    ndim = len(window)
    return (*input.shape[: -ndim - 1], *output_size(input.shape[-ndim:], window, stride))


def axis_by_axis(
    input: Tensor, window: Sequence[int], stride: Sequence[int], *, spread: bool = False
) -> bool:
    """Whether passes along the axes compute this, for an input or one that a spread writes."""
    channels = input.shape[-len(window) - 1]
    large = terms(channels, window, stride, spread=spread) > DIRECT_ELEMENTS
    return input.dtype == torch.float64 and large


def launch_for(
    input: Tensor, window: Sequence[int], stride: Sequence[int], *, spread: bool = False
) -> Launch:
    """The launch for an input, or for the input that a spread writes."""
    return window_launch(*shape_of(input, len(window)), window, stride, spread=spread)
