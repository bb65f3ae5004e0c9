"""The local deviation, and the gradients of its window sums.

The forward pass is one launch that reads the input once and writes the map, 8 bytes an element in
float32: no moment is stored. Float64 takes the passes of ``axis_passes``, the last of which writes
the map.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition.transforms import bordered
from . import axis_passes
from .launch import NUMBERS
from .march import write_map
from .records import DEVIATION, Grid, Result, Source, Target
from .sliding import axes_of
from .windows import axis_by_axis, launch_for, map_shape

BLOCK = 1024


@triton.jit(do_not_specialize=NUMBERS)
def local_std_forward_kernel(
    source, out, scale: tl.float64, eps: tl.float64, channels, pitch_c, depth, height, width,
    pitch_z, pitch_y, pitch_l, wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c,
    out_z, out_y, out_l, blocks_z, blocks_y, blocks_x, steps, RESULT: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """The root of variance times scale plus eps."""
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    if FORM.single_channel:
        channels = 1
    seen = Source(source, source, channels, pitch_c.to(pitch_l.dtype), 0.0, 0, axes)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    to = Target(out, out, out_channels, out_pitch_c, (out_z, out_y, out_l), scale, eps)
    write_map(seen, grid, to, RESULT, FORM)


@triton.jit
def local_std_prepare_grads_kernel(
    grad, mean, var, s1, s2, n, share: tl.float64, ratio: tl.float64, eps: tl.float64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the sums of elements and of squares; 0 where the variance is 0."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    v = tl.load(var + at, mask=keep, other=0)
    g = tl.load(grad + at, mask=keep, other=0).to(tl.float64)
    m = tl.load(mean + at, mask=keep, other=0)
    live = v != 0
    std = tl.sqrt(tl.where(live, v, 1.0) * ratio + eps)
    grad_s2 = tl.where(live, g * ratio / (2 * std) * share, 0.0)
    tl.store(s2 + at, grad_s2, mask=keep)
    tl.store(s1 + at, -2 * m * grad_s2, mask=keep)


def local_std(
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    correction: float,
    eps: float,
    pads: Sequence[int] = (),
    pad_value: float = 0.0,
) -> Tensor:
    """Deviation of each window: sqrt(var N / (N - correction) + eps); of a bordered input."""
    input = bordered(input, pads, pad_value)
    out = input.new_empty(map_shape(input, window, stride))
    if out.numel() == 0:
        return out
    count = input.shape[-len(window) - 1] * math.prod(window)
    scale, eps = count / (count - correction), float(eps)
    if axis_by_axis(input, window, stride):
        axis_passes.write_deviations(input, window, stride, scale, eps, out)
    else:
        launch = launch_for(input, window, stride)
        local_std_forward_kernel[(launch.programs,)](
            input.contiguous(),
            out,
            scale,
            eps,
            *launch.numbers,
            RESULT=Result.of(DEVIATION),
            **launch.options,
        )
    return out


def local_std_prepare_grads(
    grad: Tensor, mean: Tensor, var: Tensor, count: float, correction: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of a deviation in the window's S1 and S2; exactly 0 where the window is flat.

    40 bytes an element of a float32 gradient, one launch.
    """
    s1 = torch.empty_like(mean, memory_format=torch.contiguous_format)
    s2 = torch.empty_like(s1)
    if s1.numel() > 0:
        local_std_prepare_grads_kernel[(triton.cdiv(s1.numel(), BLOCK),)](
            grad.contiguous(),
            mean.contiguous(),
            var.contiguous(),
            s1,
            s2,
            s1.numel(),
            1 / count,
            count / (count - correction),
            float(eps),
            BLOCK=BLOCK,
        )
    return s1, s2
