"""Sums and moments of windows, and the transposes that spread gradients back over them.

Float32 and half types slide (``sweep``): one launch, the input is read once from memory and the map
written once, 8 bytes an element for a float32 sum, 20 for moments, 24 for a combination, and the
caches serve the other loads. Float64, whose promise sliding does not keep, goes axis by axis
(``axis_passes``). Windows of few elements, and of types that slide those about as far apart as they
are long, are read from their definition in one launch.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan.shapes import output_size
from ..tiles.emit import converted
from . import axis_passes
from .launch import NUMBERS, TAPS, Plan, plan, shape_of, taps
from .march import (
    MOMENTS,
    SUM,
    by_definition,
    marches,
    place,
    place_in,
    standing_out,
    write_map,
)
from .sliding import PAIR, column_sums


@triton.jit(do_not_specialize=NUMBERS)
def window_kernel(
    source, out, var_out, channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, KIND: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, DIRECT: tl.constexpr, ONE: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Sums of windows, or their mean and variance."""
    # A channel times their pitch may be no int32 though both are; a lead's pitch is no smaller.
    pitch_c, out_pitch_c = pitch_c.to(pitch_l.dtype), out_pitch_c.to(out_l.dtype)
    if ONE:
        channels = 1
    if NDIM < 3:
        depth, wz, sz, nz = 1, 1, 1, 1
    if NDIM < 2:
        wy, sy = 1, 1
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes, positions = (size, pitch, (wz, wy, wx), (sz, sy, sx)), (nz, ny, nx)
    to = (out, var_out, out_channels, out_pitch_c, (out_z, out_y, out_l), 1.0, 0.0)
    blocks = (blocks_z, blocks_y, blocks_x)
    write_map(
        source, axes, positions, channels, pitch_c, to, blocks, steps, KIND, NDIM, SPREAD,
        STRIDED, DIRECT, R, B, J,
    )  # fmt: skip


@triton.jit
def emit_pair(sum1, sum2, to, step, lead, z, y, x, valid, ADDED: tl.constexpr):
    """Writes sum1 + 2 I sum2 at the elements of every channel, added to what is there if asked."""
    input, base, out, channels, pitch_c, pitch = to
    offset, keep = place_in(pitch, step, lead, z, y, x, valid, False)
    for c in range(channels):
        at = c * pitch_c + offset
        here = tl.load(input + at, mask=keep, other=0).to(tl.float64)
        value = sum1 + 2 * here * sum2
        if ADDED:
            value += tl.load(base + at, mask=keep, other=0.0)
        tl.store(out + at, converted(value, out.dtype.element_ty), mask=keep)


@triton.jit
def spread_pair(
    data, axes, positions, to, blocks, steps, ADDED: tl.constexpr, NDIM: tl.constexpr,
    STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """One program: sums of two gradients that slide, and a count, so that zeros sum to 0."""
    lead, z0, y0, x0 = place(blocks, steps, NDIM, R, B)
    data = moved(data, lead * axes[1][2])
    held1 = tl.zeros((R if NDIM == 3 else 1, B), tl.float64)
    held2 = held1
    held3 = held1.to(tl.int32)
    most = tl.zeros((R if NDIM == 1 else 1, 1), tl.float64)
    t, begin = 0, 1
    limit = marches(y0, z0, positions, steps, NDIM, R)
    while t < limit:
        z = z0 + t if NDIM == 3 else z0
        top = y0 + t * R if NDIM == 2 else y0
        y = y0 if NDIM == 1 else top + tl.arange(0, R)[:, None]
        x = x0 + tl.arange(0, B)[None, :]
        sum1, sum2, sum3, held1, held2, held3 = column_sums(
            data, axes, axes[2], held1, held2, held3, begin, z, top, x0, PAIR, NDIM, True,
            STRIDED, R, B, J,
        )  # fmt: skip
        live = tl.cumsum(sum3, 1) != 0
        sum1 = tl.where(live, tl.cumsum(sum1, 1), 0.0)
        sum2 = tl.where(live, tl.cumsum(sum2, 1), 0.0)
        valid = (y < positions[1]) & (x < positions[2])
        if begin != 0:
            most = most * 0
        told, most = standing_out(sum2, most, valid, NDIM)
        finite = (tl.abs(sum1) < float("inf")) & (tl.abs(sum2) < float("inf"))
        begin = tl.max(tl.max((valid & ~finite).to(tl.int32), 1), 0)
        again = valid & live & ~(told & finite)
        if tl.max(tl.max(again.to(tl.int32), 1), 0) > 0:
            # What is not finite belongs to its own windows alone.
            own1, own2 = by_definition(data, axes, z, y, x, again, 0.0, PAIR, True, STRIDED)
            sum1, sum2 = tl.where(again, own1, sum1), tl.where(again, own2, sum2)
        emit_pair(sum1, sum2, to, axes[3], lead, z, y, x, valid, ADDED)
        t += 1


@triton.jit
def moved(data, offset):
    """The same maps from another lead on."""
    first, second, channels, pitch_c, level, clean = data
    return first + offset, second + offset, channels, pitch_c, level, clean


@triton.jit(do_not_specialize=NUMBERS)
def local_std_combine_grads_kernel(
    first, second, input, base, out, channels, pitch_c, depth, height, width, pitch_z, pitch_y,
    pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, ADDED: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, DIRECT: tl.constexpr, ONE: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """spread(first) + 2 I spread(second), and base."""
    out_pitch_c = out_pitch_c.to(out_l.dtype)
    if NDIM < 3:
        depth, wz, sz, nz = 1, 1, 1, 1
    if NDIM < 2:
        wy, sy = 1, 1
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes, positions = (size, pitch, (wz, wy, wx), (sz, sy, sx)), (nz, ny, nx)
    to = (input, base, out, out_channels, out_pitch_c, (out_z, out_y, out_l))
    blocks = (blocks_z, blocks_y, blocks_x)
    data = (first, second, 1, pitch_c, 0.0, 0)
    if DIRECT:
        lead, z, y, x = place(blocks, 1, NDIM, R, B)
        if NDIM != 1:
            y = y + tl.arange(0, R)[:, None]
        x = x + tl.arange(0, B)[None, :]
        valid = (y < ny) & (x < nx)
        data = moved(data, lead * pitch_l)
        sum1, sum2 = by_definition(data, axes, z, y, x, valid, 0.0, PAIR, SPREAD, STRIDED)
        emit_pair(sum1, sum2, to, axes[3], lead, z, y, x, valid, ADDED)
    else:
        spread_pair(data, axes, positions, to, blocks, steps, ADDED, NDIM, STRIDED, R, B, J)


def window_sum(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sum of each window over all its channels."""
    out = input.new_empty(map_shape(input, window, stride))
    if out.numel() > 0 and axis_by_axis(input, window, stride):
        axis_passes.write_sums(input, window, stride, out)
    elif out.numel() > 0:
        cut = plan_of(input, window, stride)
        window_kernel[(cut.grid,)](
            input.contiguous(), out, out, *cut.numbers, KIND=SUM, **cut.options
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
        cut = plan_of(input, window, stride)
        window_kernel[(cut.grid,)](
            input.contiguous(), mean, var, *cut.numbers, KIND=MOMENTS, **cut.options
        )
    return mean, var


def window_spread(
    grad: Tensor, window: Sequence[int], input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `window_sum`: each element gets the sum over the windows that hold it."""
    out = grad.new_empty(tuple(input_shape))
    if out.numel() > 0 and axis_by_axis(out, window, stride, spread=True):
        axis_passes.write_spread((grad,), out, window, stride, out)
    elif out.numel() > 0:
        cut = plan_of(out, window, stride, spread=True)
        window_kernel[(cut.grid,)](
            grad.contiguous(), out, out, *cut.numbers, KIND=SUM, **cut.options
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
    """The same added to a dense tensor of the input's shape, in float64, and rounded once."""
    out = torch.empty_like(input, memory_format=torch.contiguous_format)
    if out.numel() > 0 and axis_by_axis(out, window, stride, spread=True):
        maps = (grad_s1, grad_s2)
        axis_passes.write_spread(maps, input.contiguous(), window, stride, out)
        if base is not None:
            out += base
    elif out.numel() > 0:
        cut = plan_of(out, window, stride, spread=True)
        local_std_combine_grads_kernel[(cut.grid,)](
            grad_s1.contiguous(),
            grad_s2.contiguous(),
            input.contiguous(),
            out if base is None else base,
            out,
            *cut.numbers,
            ADDED=base is not None,
            **cut.options,
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
    many = taps(channels, window, stride, spread=spread) > TAPS
    return input.dtype == torch.float64 and many


def plan_of(
    input: Tensor, window: Sequence[int], stride: Sequence[int], *, spread: bool = False
) -> Plan:
    """The launch for an input, or for the input that a spread writes."""
    return plan(*shape_of(input, len(window)), window, stride, spread=spread)
