"""Device code that sums over windows: one element enters, one leaves, in float64.

A program has R rows and B columns of window positions. Two rules give the sums of all its windows:

* along a row, lane x > 0 has what enters window x less what leaves it, lane 0 the sum of window
  0: the running total is the sum of each window's elements of that row.
* down the rows the same applies: the row that enters less the one that leaves, added to the row
  before. Both rules are linear, so all differences are taken first, and one scan down and one scan
  along end in the window sums.

An element is loaded four times (twice where lines slide), once by each of the positions whose
sums it enters or leaves; only the first load comes from memory, the others from caches. Lane 0
loads a whole row of its window, w/B more, and the first row of a march h rows. Lanes exchange
values only in the two scans.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .records import Axes, Source

# What is summed over a window: two numbers in float64, and for PAIR a count; from MAP on only one.
VALUES = tl.constexpr(0)  # the element less a level, and its square
FLAGS = tl.constexpr(1)  # 1 where neighbours or channels differ, 1 where one is not finite
PAIR = tl.constexpr(2)  # the elements of two maps; how many of them are not 0
MAPS = tl.constexpr(3)  # the elements of two maps, not counted
MAP = tl.constexpr(4)  # the elements of one
PRODUCTS = tl.constexpr(5)  # the product of two maps' elements, each less a level


@triton.jit
def axes_of(size, pitch, window, stride, FORM: tl.constexpr):
    """Axes with constants in place of those that lines and images lack."""
    if FORM.ndim < 3:
        size, window, stride = (
            (1, size[1], size[2]), (1, window[1], window[2]), (1, stride[1], stride[2])
        )  # fmt: skip
    if FORM.ndim < 2:
        window, stride = (1, 1, window[2]), (1, 1, stride[2])
    return Axes(size, pitch, window, stride)


@triton.jit
def from_lead(source, lead):
    """The same maps from one of their leads on."""
    offset = lead * source.axes.pitch[2]
    return Source(
        source.first + offset, source.second + offset, source.channels, source.pitch_c,
        source.level, source.finite_only, source.axes,
    )  # fmt: skip


@triton.jit
def about(source, level, finite_only):
    """The same maps with another level."""
    return Source(
        source.first, source.second, source.channels, source.pitch_c, level, finite_only,
        source.axes,
    )  # fmt: skip


@triton.jit
def locate(position, size, window, step, SPREAD: tl.constexpr, STRIDED: tl.constexpr):
    """Index of a position along an axis, and whether an element is there.

    A map that is spread is dilated by the stride and preceded by window - 1 zeros.
    """
    if SPREAD:
        index = position - (window - 1)
        inside = index >= 0
        if STRIDED:
            inside = inside & (index % step == 0)
            index = index // step
        inside = inside & (index < size)
    else:
        index = position
        inside = (position >= 0) & (position < size)
    return index, inside


@triton.jit
def find(axes, z, y, x, alive, SPREAD: tl.constexpr, STRIDED: tl.constexpr):
    """Offsets of elements, and which of them exist."""
    size, pitch, window, step = axes.size, axes.pitch, axes.window, axes.stride
    iz, in_z = locate(z, size[0], window[0], step[0], SPREAD, STRIDED)
    iy, in_y = locate(y, size[1], window[1], step[1], SPREAD, STRIDED)
    ix, in_x = locate(x, size[2], window[2], step[2], SPREAD, STRIDED)
    row = tl.cast(iz, tl.int64) * pitch[0] + iy.to(tl.int64) * pitch[1]
    return row + ix, alive & in_z & in_y & in_x


@triton.jit
def values_at(source, offset, inside):
    """Sums over channels of the elements and of their squares about a level."""
    total = tl.zeros(inside.shape, tl.float64)
    square = tl.zeros(inside.shape, tl.float64)
    for c in range(source.channels):
        at = source.first + c * source.pitch_c + offset
        x = tl.load(at, mask=inside, other=0).to(tl.float64)
        counts = inside & ((source.finite_only == 0) | (tl.abs(x) < float("inf")))
        d = tl.where(counts, x - source.level, 0.0)
        total += d
        square += d * d
    return total, square


@triton.jit
def products_at(source, offset, inside):
    """Sums over channels of products of two inputs' elements, each about its level."""
    total = tl.zeros(inside.shape, tl.float64)
    for c in range(source.channels):
        at = c * source.pitch_c + offset
        x = tl.load(source.first + at, mask=inside, other=0).to(tl.float64)
        y = tl.load(source.second + at, mask=inside, other=0).to(tl.float64)
        finite = (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
        counts = inside & ((source.finite_only == 0) | finite)
        total += tl.where(counts, (x - source.level[0]) * (y - source.level[1]), 0.0)
    return total


@triton.jit
def flags_at(source, z, y, x, alive, FORM: tl.constexpr):
    """Whether an element differs from its following neighbours or between channels; whether one
    of them is not finite.

    A window is flat if no element except those of its last plane, row and column is so marked.
    """
    axes, window = source.axes, source.axes.window
    offset, inside = find(axes, z, y, x, alive, FORM.spread, FORM.strided)
    value = tl.load(source.first + offset, mask=inside, other=0)
    differs = alive & (value != value)
    non_finite = differs
    # A bound that the compiler does not know: unrolled, this would take all registers.
    for k in range(tl.minimum(window[2], 1) * 2**FORM.ndim):
        dz = (k // 4) * tl.minimum(window[0] - 1, 1)
        dy = (k // 2 % 2) * tl.minimum(window[1] - 1, 1)
        dx = (k % 2) * tl.minimum(window[2] - 1, 1)
        offset, inside = find(axes, z + dz, y + dy, x + dx, alive, FORM.spread, FORM.strided)
        for c in range(source.channels):
            at = source.first + c * source.pitch_c + offset
            neighbour = tl.load(at, mask=inside, other=0)
            differs = differs | (alive & (neighbour != value))
            non_finite = non_finite | (inside & ~(tl.abs(neighbour) < float("inf")))
    return differs.to(tl.float64), non_finite.to(tl.float64)


@triton.jit
def summands(source, z, y, x, alive, WHAT: tl.constexpr, FORM: tl.constexpr):
    """The numbers of each element that are summed over windows; 0 where there is none."""
    count = tl.zeros(alive.shape, tl.int32)
    if WHAT == FLAGS:
        a, b = flags_at(source, z, y, x, alive, FORM)
    else:
        offset, inside = find(source.axes, z, y, x, alive, FORM.spread, FORM.strided)
        if WHAT == VALUES:
            a, b = values_at(source, offset, inside)
        elif WHAT == PRODUCTS:
            a = products_at(source, offset, inside)
            b = tl.zeros(alive.shape, tl.float64)
        else:
            a = tl.load(source.first + offset, mask=inside, other=0).to(tl.float64)
            b = tl.zeros(alive.shape, tl.float64)
            if WHAT != MAP:
                b = tl.load(source.second + offset, mask=inside, other=0).to(tl.float64)
            if WHAT == PAIR:
                count = ((a != 0) | (b != 0)).to(tl.int32)
    return a, b, count


@triton.jit
def plus(sums, more):
    """Sums and a count, added one by one."""
    return sums[0] + more[0], sums[1] + more[1], sums[2] + more[2]


@triton.jit
def minus(sums, more):
    """Sums and a count, subtracted one by one."""
    return sums[0] - more[0], sums[1] - more[1], sums[2] - more[2]


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Two sums and a count."""
    none = tl.zeros((ROWS, COLUMNS), tl.float64)
    return none, none, tl.zeros((ROWS, COLUMNS), tl.int32)


@triton.jit
def differences(
    source, rows, columns, alive, WHAT: tl.constexpr, FORM: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """What enters at one row and column less what leaves at another (if ROWS, and if COLUMNS).

    rows: the plane, the row that enters and the one that leaves; columns: the same two.
    """
    z, y, y_out = rows
    x, x_out = columns
    sums = summands(source, z, y, x, alive, WHAT, FORM)
    if COLUMNS:
        sums = minus(sums, summands(source, z, y, x_out, alive, WHAT, FORM))
    if ROWS:
        sums = minus(sums, summands(source, z, y_out, x, alive, WHAT, FORM))
        if COLUMNS:
            sums = plus(sums, summands(source, z, y_out, x_out, alive, WHAT, FORM))
    return sums


@triton.jit
def across(
    source, box, rows, x0, alive, WHAT: tl.constexpr, FORM: tl.constexpr, ROWS: tl.constexpr
):
    """Rows whose running totals are the sums over box[2] elements; `alive` is (R, 1)."""
    lane = tl.arange(0, FORM.columns)[None, :]
    columns = (x0 + lane + (box[2] - 1), x0 + lane - 1)
    a, b, c = differences(source, rows, columns, alive & (lane > 0), WHAT, FORM, ROWS, True)
    column = tl.arange(0, FORM.chunk)[None, :]
    first = zeros(FORM.rows, FORM.chunk)
    for j in range(0, box[2], FORM.chunk):
        at = (x0 + j + column, 0)
        inside = alive & (j + column < box[2])
        first = plus(first, differences(source, rows, at, inside, WHAT, FORM, ROWS, False))
    a += tl.where(lane == 0, tl.sum(first[0], 1)[:, None], 0.0)
    if WHAT < MAP:
        b += tl.where(lane == 0, tl.sum(first[1], 1)[:, None], 0.0)
    if WHAT == PAIR:
        c += tl.where(lane == 0, tl.sum(first[2], 1)[:, None], 0)
    return a, b, c


@triton.jit
def first_row(source, box, z, y0, x0, WHAT: tl.constexpr, FORM: tl.constexpr):
    """The first row of windows: rows of `across`, summed over box[1]."""
    sums = zeros(FORM.rows, FORM.columns)
    row = tl.arange(0, FORM.rows)[:, None]
    for i in range(0, box[1], FORM.rows):
        rows = (z, y0 + i + row, 0)
        sums = plus(sums, across(source, box, rows, x0, i + row < box[1], WHAT, FORM, False))
    return down(sums, WHAT)


@triton.jit
def down(sums, WHAT: tl.constexpr):
    """Sums down the rows of a block, as a row."""
    row1 = tl.sum(sums[0], 0)[None, :]
    row2 = tl.sum(sums[1], 0)[None, :] if WHAT < MAP else tl.zeros_like(row1)
    row3 = tl.sum(sums[2], 0)[None, :] if WHAT == PAIR else tl.zeros_like(row1).to(tl.int32)
    return row1, row2, row3


@triton.jit
def row_steps(source, box, z, y0, x0, fresh, WHAT: tl.constexpr, FORM: tl.constexpr):
    """What each row of windows adds to the row above it; nothing in row 0 of a `fresh` block."""
    row = tl.arange(0, FORM.rows)[:, None]
    rows = (z, y0 + row + (box[1] - 1), y0 + row - 1)
    return across(source, box, rows, x0, (row > 0) | (fresh == 0), WHAT, FORM, True)


@triton.jit
def column_sums(source, box, carried, fresh, corner, WHAT: tl.constexpr, FORM: tl.constexpr):
    """Sums down the columns of a block, differenced along rows, and what the next one begins with.

    That is a row in 2-D, where blocks follow one another down the image, and a block in 3-D, where
    they follow along z; a `fresh` block (not 0) computes it from the start. Lines carry nothing.
    """
    z, y0, x0 = corner
    if FORM.ndim == 1:
        alive = y0 < source.axes.size[1]
        sums = across(source, box, (z, y0, 0), x0, alive, WHAT, FORM, False)
    elif FORM.ndim == 2:
        if fresh != 0:
            carried = first_row(source, box, z, y0, x0, WHAT, FORM)
        steps = row_steps(source, box, z, y0, x0, fresh, WHAT, FORM)
        sums = rows_of(steps, carried, WHAT)
        carried = plus(carried, down(steps, WHAT))
    else:
        sums = plane_steps(source, box, fresh, corner, WHAT, FORM)
        if fresh == 0:
            sums = plus(carried, sums)
        carried = sums
    return sums, carried


@triton.jit
def rows_of(steps, top, WHAT: tl.constexpr):
    """Every row from the first and what each adds to the one above it."""
    sum2, count = steps[1], steps[2]
    if WHAT < MAP:
        sum2 = top[1] + tl.cumsum(sum2, 0)
    if WHAT == PAIR:
        count = top[2] + tl.cumsum(count, 0)
    return top[0] + tl.cumsum(steps[0], 0), sum2, count


@triton.jit
def plane_steps(source, box, fresh, corner, WHAT: tl.constexpr, FORM: tl.constexpr):
    """What a block adds to the block one plane before; all box[0] planes of a fresh one."""
    z, y0, x0 = corner
    top, sums = zeros(1, FORM.columns), zeros(FORM.rows, FORM.columns)
    planes = tl.where(fresh != 0, box[0], 2)
    for k in range(planes):
        plane = tl.where(fresh != 0, z + k, tl.where(k == 0, z + box[0] - 1, z - 1))
        enters = tl.where((fresh != 0) | (k == 0), 1, -1)
        top = plus(top, times(first_row(source, box, plane, y0, x0, WHAT, FORM), enters))
        sums = plus(sums, times(row_steps(source, box, plane, y0, x0, 1, WHAT, FORM), enters))
    return rows_of(sums, top, WHAT)


@triton.jit
def times(sums, factor):
    """Sums and a count times an integer."""
    wide = factor.to(tl.float64)
    return wide * sums[0], wide * sums[1], factor * sums[2]


@triton.jit
def flat_and_non_finite(source, corner, FORM: tl.constexpr):
    """Which windows of a block are flat, and which contain what is not finite, by counting."""
    window = source.axes.window
    box = (
        tl.maximum(window[0] - 1, 1),
        tl.maximum(window[1] - 1, 1),
        tl.maximum(window[2] - 1, 1),
    )
    none = zeros(FORM.rows if FORM.ndim == 3 else 1, FORM.columns)
    flags, _ = column_sums(source, box, none, 1, corner, FLAGS, FORM)
    non_finite = tl.cumsum(flags[1], 1) > 0.5
    flat = (tl.cumsum(flags[0], 1) < 0.5) & ~non_finite
    return flat, non_finite
