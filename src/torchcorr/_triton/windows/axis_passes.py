"""Sums, moments and spreads of float64, one axis after another.

A pass sees a tensor as (outer, n, inner) and reads runs of k elements along the middle axis; the
next one merges the results of runs. Nothing is ever subtracted from a sum again, so that an element
affects no window but those that contain it, and the digits of float64 are kept.

One launch for each axis whose window or stride is not 1; channels are such an axis too. From
memory, an element of each pass costs 16 bytes for a sum and 32 for a pair of spreads. A run's
moments are three numbers: the first pass reads 8 bytes and writes 24, others read and write 24,
and the last writes 16, or 8 for a deviation. In 2-D a deviation takes two launches and 64 bytes an
element, and 24 of scratch; in 3-D three, 112 and 48. From the caches, a place loads k elements of a
sum, 2 k for the moments of the first pass and 4 k for those of others: work grows with the sides of
a window, not with its volume. One thread computes a place, so a window as long as its input, which
leaves few places, does not fill a device.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ..._plan.shapes import output_size
from .launch import Launch, shape_of
from .records import DEVIATION, MOMENTS

# The numbers of a pass as kernels take them, in this order.
NUMBERS = ["n", "m", "inner", "window", "step", "rows"]
# What a pass leaves for the next: a mean, its rounding, and the sum of squares about both.
SUMMARY = tl.constexpr(5)

BLOCK = 512
WIDTH = 32  # elements of a row that are read at once, 256 bytes, so that a block has many rows
STRIP = tl.constexpr(16)  # blocks side by side before those below, which share rows with them


@triton.jit
def place(rows, inner, R: tl.constexpr, B: tl.constexpr):
    """Rows and columns of a program; a row is a place along the axis, of any outer index."""
    down = (tl.cast(rows, tl.int64) + R - 1) // R
    across = (tl.cast(inner, tl.int64) + B - 1) // B
    pid = tl.program_id(0).to(tl.int64)
    left = pid // (STRIP * down) * STRIP
    rest, wide = pid - left * down, tl.minimum(across - left, STRIP)
    row = rest // wide * R + tl.arange(0, R)[:, None]
    column = (left + rest % wide) * B + tl.arange(0, B)[None, :]
    return row, column, (row < rows) & (column < inner)


@triton.jit(do_not_specialize=NUMBERS)
def sum_pass_kernel(source, out, n, m, inner, window, step, rows, R: tl.constexpr, B: tl.constexpr):
    """Sums of runs."""
    row, column, valid = place(rows, inner, R, B)
    at = (row // m * n + row % m * step) * inner + column
    total = tl.zeros((R, B), tl.float64)
    for _ in range(window):
        total += tl.load(source + at, mask=valid, other=0)
        at += inner
    tl.store(out + row * inner + column, total, mask=valid)


@triton.jit(do_not_specialize=NUMBERS)
def moments_pass_kernel(
    mean, left, square, out, left_out, square_out, count: tl.float64, scale: tl.float64,
    eps: tl.float64, n, m, inner, window, step, rows, MERGE: tl.constexpr, KIND: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Moments of runs of elements, or (`MERGE`) of runs of summaries of `count` elements each.

    In a flat run every difference is exactly 0, and so are all sums of them. What the rounded mean
    leaves over is passed on: next to a large offset it carries the digits of the contrast.
    """
    row, column, valid = place(rows, inner, R, B)
    first = (row // m * n + row % m * step) * inner + column
    level = tl.load(mean + first, mask=valid, other=0)
    s = tl.zeros((R, B), tl.float64)
    within = tl.zeros((R, B), tl.float64)
    at = first
    for _ in range(window):
        s += tl.load(mean + at, mask=valid, other=0) - level
        if MERGE:
            within += tl.load(square + at, mask=valid, other=0)
        at += inner
    length = window.to(tl.float64)
    centre = level + s / length
    s = tl.zeros((R, B), tl.float64)
    q = tl.zeros((R, B), tl.float64)
    at = first
    for _ in range(window):
        d = tl.load(mean + at, mask=valid, other=0) - centre
        if MERGE:
            d += tl.load(left + at, mask=valid, other=0)
        s += d
        q += d * d
        at += inner
    rest = s / length
    between = q - s * rest
    total = within + count * tl.where(between < 0, 0.0, between)
    to = row * inner + column
    if KIND == SUMMARY:
        tl.store(out + to, centre, mask=valid)
        tl.store(left_out + to, rest, mask=valid)
        tl.store(square_out + to, total, mask=valid)
    else:
        var = total / (count * length)
        if KIND == MOMENTS:
            tl.store(out + to, centre + rest, mask=valid)
            tl.store(square_out + to, var, mask=valid)
        else:
            tl.store(out + to, tl.sqrt(var * scale + eps), mask=valid)


@triton.jit(do_not_specialize=[*NUMBERS, "channels", "lead_rows"])
def spread_pass_kernel(
    first, second, input, out, second_out, channels, lead_rows, n, m, inner, window, step, rows,
    PAIR: tl.constexpr, COMBINE: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sums over the runs that contain an element, written to all channels of its lead.

    With two maps (`PAIR`), both sums, or (`COMBINE`) the first plus 2 I times the second.
    """
    row, column, valid = place(rows, inner, R, B)
    element = row % n
    run = element // step
    at = (row // n * m + run) * inner + column
    sum1 = tl.zeros((R, B), tl.float64)
    sum2 = tl.zeros((R, B), tl.float64)
    for _ in range((window + step - 1) // step):
        contains = valid & (run >= 0) & (run < m) & (element - run * step < window)
        sum1 += tl.load(first + at, mask=contains, other=0)
        if PAIR:
            sum2 += tl.load(second + at, mask=contains, other=0)
        at -= inner
        run -= 1
    # Written as whole rows plus columns, so that the compiler sees that columns are adjacent.
    to = row * inner + row // lead_rows * (channels - 1) * lead_rows * inner + column
    for _ in range(channels):
        if COMBINE:
            value = tl.load(input + to, mask=valid, other=0)
            tl.store(out + to, sum1 + 2 * value * sum2, mask=valid)
        else:
            tl.store(out + to, sum1, mask=valid)
            if PAIR:
                tl.store(second_out + to, sum2, mask=valid)
        to += tl.cast(lead_rows, tl.int64) * inner


@dataclass(frozen=True)
class Pass:
    """Runs of `window` elements, `step` apart, along an axis: (outer, n, inner) has m of them."""

    outer: int
    n: int
    m: int
    inner: int
    window: int
    step: int

    def launch(self, places: int) -> Launch:
        """The launch that writes (outer, places, inner)."""
        rows, columns = self.outer * places, triton.next_power_of_2(self.inner)
        r = min(triton.next_power_of_2(rows), BLOCK // min(columns, WIDTH))
        b = min(columns, BLOCK // r)
        programs = triton.cdiv(rows, r) * triton.cdiv(self.inner, b)
        numbers = (self.n, self.m, self.inner, self.window, self.step, rows)
        return Launch(programs, numbers, {"R": r, "B": b})


def passes(
    leads: int, channels: int, size: Sequence[int], window: Sequence[int], stride: Sequence[int]
) -> list[Pass]:
    """The passes from an input to a map; in reverse order, those of its transpose."""
    sizes, places = [channels, *size], (1, *output_size(size, window, stride))
    windows, steps = (channels, *window), (1, *stride)
    # The axis that shrinks most goes first, which leaves less for the others. Of equals the outer
    # goes first: it reads whole rows, so that a stride across rows scatters only what is left.
    order = sorted(range(len(sizes)), key=lambda axis: places[axis] / sizes[axis])
    result = []
    for axis in order:
        if windows[axis] > 1 or steps[axis] > 1:
            outer, inner = leads * math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
            along = (sizes[axis], places[axis], inner, windows[axis], steps[axis])
            result.append(Pass(outer, *along))
            sizes[axis] = places[axis]
    return result


def write_sums(input: Tensor, window: Sequence[int], stride: Sequence[int], out: Tensor) -> None:
    """Sum of each window over all its channels."""
    source, steps = input.contiguous(), passes(*shape_of(input, len(window)), window, stride)
    for step in steps:
        target = out if step is steps[-1] else out.new_empty(step.outer * step.m * step.inner)
        launch = step.launch(step.m)
        sum_pass_kernel[(launch.programs,)](source, target, *launch.numbers, **launch.options)
        source = target


def write_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int], mean: Tensor, var: Tensor
) -> None:
    """Mean and uncorrected variance of each window."""
    _moments(input, window, stride, (mean, mean, var), MOMENTS, 1.0, 0.0)


def write_deviations(
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    scale: float,
    eps: float,
    out: Tensor,
) -> None:
    """The root of variance times scale plus eps of each window."""
    _moments(input, window, stride, (out, out, out), DEVIATION, scale, eps)


def _moments(
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    out: Sequence[Tensor],
    kind: tl.constexpr,
    scale: float,
    eps: float,
) -> None:
    steps = passes(*shape_of(input, len(window)), window, stride)
    source: Sequence[Tensor] = (input.contiguous(),) * 3
    count = 1
    for step in steps:
        last = step is steps[-1]
        target = out if last else input.new_empty(3, step.outer * step.m * step.inner).unbind()
        launch = step.launch(step.m)
        moments_pass_kernel[(launch.programs,)](
            *source, *target, float(count), scale, eps, *launch.numbers, MERGE=int(count > 1),
            KIND=kind if last else SUMMARY, **launch.options,
        )  # fmt: skip
        source = target
        count *= step.window


def write_spread(
    maps: Sequence[Tensor],
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    out: Tensor,
) -> None:
    """The transpose of sums, to all channels; of two maps spread(first) + 2 I spread(second)."""
    leads, channels, size = shape_of(out, len(window))
    steps = passes(leads, 1, size, window, stride)[::-1]
    pair = len(maps) > 1
    source = [x.contiguous() for x in maps]
    for step in steps:
        last = step is steps[-1]
        rows = step.outer * step.n
        target = [out] if last else [out.new_empty(rows * step.inner) for _ in maps]
        launch = step.launch(step.n)
        spread_pass_kernel[(launch.programs,)](
            source[0], source[-1], input, target[0], target[-1], channels if last else 1,
            rows // leads, *launch.numbers, PAIR=int(pair), COMBINE=int(pair and last),
            **launch.options,
        )  # fmt: skip
        source = target
