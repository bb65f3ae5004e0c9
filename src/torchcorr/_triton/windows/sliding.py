"""Device code that sums over windows: one element enters, one leaves, in float64.

A program owns R rows and B columns of window positions. Two rules make the sums of all its windows:

* along a row, lane x > 0 holds what enters window x less what leaves it, lane 0 the sum of window
  0: the running total is the sum of each window's elements of that row.
* down the rows the same holds: the row that enters less the one that leaves, added to the row
  before. Both rules are linear, so all of it is subtracted first, and one scan down and one scan
  along end in the window sums.

An element is loaded four times (twice where lines slide), once by each of the positions whose
sums it enters or leaves; only the first load comes from memory, the others from caches. Lane 0
loads a whole row of its window, w/B more, and the first row of a march h rows. No lane reads
another's register but in the two scans.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

# What is summed over a window: two numbers in float64, and of a pair a count; from MAP on only one.
VALUES = tl.constexpr(0)  # the element less a level, and its square
FLAGS = tl.constexpr(1)  # 1 where neighbours or channels differ, 1 where one is not finite
PAIR = tl.constexpr(2)  # the elements of two maps; how many of them are not 0
MAPS = tl.constexpr(3)  # the elements of two maps, not counted
MAP = tl.constexpr(4)  # the elements of one
PRODUCTS = tl.constexpr(5)  # the product of two maps' elements, each less a level

# Two tuples stand for what all functions need:
# data: pointers to the map and to a second one, channels and their pitch, a level (of products
#       two), and whether elements that are not finite count as the level.
# axes: sizes of the map, its pitches (of planes, rows, leads), the window, the stride.


@triton.jit
def locate(position, size, window, step, SPREAD: tl.constexpr, STRIDED: tl.constexpr):
    """Where a position lies along an axis, and whether anything is there.

    A map that is spread stands dilated by the stride behind window - 1 zeros.
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
    size, pitch, window, step = axes
    iz, in_z = locate(z, size[0], window[0], step[0], SPREAD, STRIDED)
    iy, in_y = locate(y, size[1], window[1], step[1], SPREAD, STRIDED)
    ix, in_x = locate(x, size[2], window[2], step[2], SPREAD, STRIDED)
    row = tl.cast(iz, tl.int64) * pitch[0] + iy.to(tl.int64) * pitch[1]
    return row + ix, alive & in_z & in_y & in_x


@triton.jit
def values_at(data, offset, inside):
    """Sums over channels of the elements and of their squares about a level."""
    first, _, channels, pitch_c, level, clean = data
    total = tl.zeros(inside.shape, tl.float64)
    square = tl.zeros(inside.shape, tl.float64)
    for c in range(channels):
        x = tl.load(first + c * pitch_c + offset, mask=inside, other=0).to(tl.float64)
        counts = inside & ((clean == 0) | (tl.abs(x) < float("inf")))
        d = tl.where(counts, x - level, 0.0)
        total += d
        square += d * d
    return total, square


@triton.jit
def products_at(data, offset, inside):
    """Sums over channels of products of two inputs' elements, each about a level of its own."""
    first, second, channels, pitch_c, levels, clean = data
    total = tl.zeros(inside.shape, tl.float64)
    for c in range(channels):
        x = tl.load(first + c * pitch_c + offset, mask=inside, other=0).to(tl.float64)
        y = tl.load(second + c * pitch_c + offset, mask=inside, other=0).to(tl.float64)
        finite = (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
        counts = inside & ((clean == 0) | finite)
        total += tl.where(counts, (x - levels[0]) * (y - levels[1]), 0.0)
    return total


@triton.jit
def flags_at(
    data, axes, z, y, x, alive, NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr
):
    """Whether an element, its neighbours in front and their channels differ; or are not finite.

    A window is flat if no element but those of its last plane, row and column is so marked.
    """
    first, _, channels, pitch_c, _, _ = data
    window = axes[2]
    offset, inside = find(axes, z, y, x, alive, SPREAD, STRIDED)
    here = tl.load(first + offset, mask=inside, other=0)
    differs = alive & (here != here)
    strange = differs
    # A bound that the compiler does not know: unrolled, this would take all registers.
    for k in range(2**NDIM * tl.minimum(window[2], 1)):
        dz = (k // 4) * tl.minimum(window[0] - 1, 1)
        dy = (k // 2 % 2) * tl.minimum(window[1] - 1, 1)
        dx = (k % 2) * tl.minimum(window[2] - 1, 1)
        offset, inside = find(axes, z + dz, y + dy, x + dx, alive, SPREAD, STRIDED)
        for c in range(channels):
            there = tl.load(first + c * pitch_c + offset, mask=inside, other=0)
            differs = differs | (alive & (there != here))
            strange = strange | (inside & ~(tl.abs(there) < float("inf")))
    return differs.to(tl.float64), strange.to(tl.float64)


@triton.jit
def summands(
    data, axes, z, y, x, alive, WHAT: tl.constexpr, NDIM: tl.constexpr, SPREAD: tl.constexpr,
    STRIDED: tl.constexpr,
):  # fmt: skip
    """The numbers of each element that are summed over windows; 0 where there is none."""
    count = tl.zeros(alive.shape, tl.int32)
    if WHAT == FLAGS:
        a, b = flags_at(data, axes, z, y, x, alive, NDIM, SPREAD, STRIDED)
    else:
        offset, inside = find(axes, z, y, x, alive, SPREAD, STRIDED)
        if WHAT == VALUES:
            a, b = values_at(data, offset, inside)
        elif WHAT == PRODUCTS:
            a = products_at(data, offset, inside)
            b = tl.zeros(alive.shape, tl.float64)
        else:
            a = tl.load(data[0] + offset, mask=inside, other=0).to(tl.float64)
            b = tl.zeros(alive.shape, tl.float64)
            if WHAT != MAP:
                b = tl.load(data[1] + offset, mask=inside, other=0).to(tl.float64)
            if WHAT == PAIR:
                count = ((a != 0) | (b != 0)).to(tl.int32)
    return a, b, count


@triton.jit
def differences(
    data, axes, z, y_in, y_out, x, x_out, alive, WHAT: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What enters at one row (and column) less what leaves at another, where there are such."""
    a, b, c = summands(data, axes, z, y_in, x, alive, WHAT, NDIM, SPREAD, STRIDED)
    if COLUMNS:
        d, e, f = summands(data, axes, z, y_in, x_out, alive, WHAT, NDIM, SPREAD, STRIDED)
        a, b, c = a - d, b - e, c - f
    if ROWS:
        d, e, f = summands(data, axes, z, y_out, x, alive, WHAT, NDIM, SPREAD, STRIDED)
        a, b, c = a - d, b - e, c - f
        if COLUMNS:
            d, e, f = summands(data, axes, z, y_out, x_out, alive, WHAT, NDIM, SPREAD, STRIDED)
            a, b, c = a + d, b + e, c + f
    return a, b, c


@triton.jit
def across(
    data, axes, box, z, y_in, y_out, x0, alive, WHAT: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Rows whose running totals are the sums over box[2] elements; `alive` is (R, 1)."""
    lane = tl.arange(0, B)[None, :]
    a, b, c = differences(
        data, axes, z, y_in, y_out, x0 + lane + (box[2] - 1), x0 + lane - 1, alive & (lane > 0),
        WHAT, NDIM, SPREAD, STRIDED, ROWS, True,
    )  # fmt: skip
    own = tl.arange(0, J)[None, :]
    g = tl.zeros((R, J), tl.float64)
    h = tl.zeros((R, J), tl.float64)
    n = tl.zeros((R, J), tl.int32)
    for j in range(0, box[2], J):
        d, e, f = differences(
            data, axes, z, y_in, y_out, x0 + j + own, 0, alive & (j + own < box[2]),
            WHAT, NDIM, SPREAD, STRIDED, ROWS, False,
        )  # fmt: skip
        g += d
        h += e
        n += f
    a += tl.where(lane == 0, tl.sum(g, 1)[:, None], 0.0)
    if WHAT < MAP:
        b += tl.where(lane == 0, tl.sum(h, 1)[:, None], 0.0)
    if WHAT == PAIR:
        c += tl.where(lane == 0, tl.sum(n, 1)[:, None], 0)
    return a, b, c


@triton.jit
def first_row(
    data, axes, box, z, y0, x0, WHAT: tl.constexpr, NDIM: tl.constexpr, SPREAD: tl.constexpr,
    STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """The first row of windows: rows of `across`, summed over box[1]."""
    sum1 = tl.zeros((R, B), tl.float64)
    sum2 = tl.zeros((R, B), tl.float64)
    sum3 = tl.zeros((R, B), tl.int32)
    row = tl.arange(0, R)[:, None]
    for i in range(0, box[1], R):
        a, b, c = across(
            data, axes, box, z, y0 + i + row, 0, x0, i + row < box[1], WHAT, NDIM, SPREAD,
            STRIDED, False, R, B, J,
        )  # fmt: skip
        sum1 += a
        sum2 += b
        sum3 += c
    return down(sum1, sum2, sum3, WHAT)


@triton.jit
def down(sum1, sum2, sum3, WHAT: tl.constexpr):
    """Sums down the rows of a block, as a row."""
    row1 = tl.sum(sum1, 0)[None, :]
    row2 = tl.sum(sum2, 0)[None, :] if WHAT < MAP else tl.zeros_like(row1)
    row3 = tl.sum(sum3, 0)[None, :] if WHAT == PAIR else tl.zeros_like(row1).to(tl.int32)
    return row1, row2, row3


@triton.jit
def row_steps(
    data, axes, box, z, y0, x0, begun, WHAT: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    J: tl.constexpr,
):  # fmt: skip
    """What each row of windows adds to the row above it; nothing in row 0 where it is `begun`."""
    row = tl.arange(0, R)[:, None]
    return across(
        data, axes, box, z, y0 + row + (box[1] - 1), y0 + row - 1, x0, (row > 0) | (begun == 0),
        WHAT, NDIM, SPREAD, STRIDED, True, R, B, J,
    )  # fmt: skip


@triton.jit
def column_sums(
    data, axes, box, held1, held2, held3, begin, z, y0, x0, WHAT: tl.constexpr,
    NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Sums down the columns of a block, differenced along rows, and what the next begins with.

    Held is a row (NDIM 2: blocks follow one another down the image), or a block (NDIM 3: they
    follow along z); where `begin` is set it is computed anew. Lines hold nothing.
    """
    if NDIM == 1:
        sum1, sum2, sum3 = across(
            data, axes, box, z, y0, 0, x0, y0 < axes[0][1], WHAT, NDIM, SPREAD, STRIDED, False,
            R, B, J,
        )  # fmt: skip
    elif NDIM == 2:
        if begin != 0:
            held1, held2, held3 = first_row(
                data, axes, box, z, y0, x0, WHAT, NDIM, SPREAD, STRIDED, R, B, J
            )
        sum1, sum2, sum3 = row_steps(
            data, axes, box, z, y0, x0, begin, WHAT, NDIM, SPREAD, STRIDED, R, B, J
        )
        row1, row2, row3 = down(sum1, sum2, sum3, WHAT)
        sum1, sum2, sum3 = rows_of(sum1, sum2, sum3, held1, held2, held3, WHAT)
        held1, held2, held3 = held1 + row1, held2 + row2, held3 + row3
    else:
        sum1, sum2, sum3 = plane_steps(
            data, axes, box, begin, z, y0, x0, WHAT, NDIM, SPREAD, STRIDED, R, B, J
        )
        if begin == 0:
            sum1, sum2, sum3 = held1 + sum1, held2 + sum2, held3 + sum3
        held1, held2, held3 = sum1, sum2, sum3
    return sum1, sum2, sum3, held1, held2, held3


@triton.jit
def rows_of(sum1, sum2, sum3, top1, top2, top3, WHAT: tl.constexpr):
    """Every row from the first and what each adds to the one above it."""
    if WHAT < MAP:
        sum2 = top2 + tl.cumsum(sum2, 0)
    if WHAT == PAIR:
        sum3 = top3 + tl.cumsum(sum3, 0)
    return top1 + tl.cumsum(sum1, 0), sum2, sum3


@triton.jit
def plane_steps(
    data, axes, box, begin, z, y0, x0, WHAT: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    J: tl.constexpr,
):  # fmt: skip
    """What a block adds to the block one plane before; all box[0] planes where it begins."""
    top1 = tl.zeros((1, B), tl.float64)
    top2 = tl.zeros((1, B), tl.float64)
    top3 = tl.zeros((1, B), tl.int32)
    sum1 = tl.zeros((R, B), tl.float64)
    sum2 = tl.zeros((R, B), tl.float64)
    sum3 = tl.zeros((R, B), tl.int32)
    planes = tl.where(begin != 0, box[0], 2)
    for k in range(planes):
        plane = tl.where(begin != 0, z + k, tl.where(k == 0, z + box[0] - 1, z - 1))
        sign = tl.where((begin != 0) | (k == 0), 1, -1)
        a, b, c = first_row(data, axes, box, plane, y0, x0, WHAT, NDIM, SPREAD, STRIDED, R, B, J)
        d, e, f = row_steps(data, axes, box, plane, y0, x0, 1, WHAT, NDIM, SPREAD, STRIDED, R, B, J)
        wide = sign.to(tl.float64)
        top1 += wide * a
        top2 += wide * b
        top3 += sign * c
        sum1 += wide * d
        sum2 += wide * e
        sum3 += sign * f
    return rows_of(sum1, sum2, sum3, top1, top2, top3, WHAT)


@triton.jit
def alike(
    data, axes, z, y0, x0, NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Which windows of a block are flat, and which hold what is not finite, by counting."""
    window = axes[2]
    none = tl.zeros((R if NDIM == 3 else 1, B), tl.float64)
    box = (
        tl.maximum(window[0] - 1, 1),
        tl.maximum(window[1] - 1, 1),
        tl.maximum(window[2] - 1, 1),
    )
    differ, strange, _, _, _, _ = column_sums(
        data, axes, box, none, none, none.to(tl.int32), 1, z, y0, x0, FLAGS, NDIM, SPREAD,
        STRIDED, R, B, J,
    )  # fmt: skip
    bad = tl.cumsum(strange, 1) > 0.5
    flat = (tl.cumsum(differ, 1) < 0.5) & ~bad
    return flat, bad
