"""Programs that march over window positions and write a map: sums, moments or deviations.

A sweep takes its sums from ``sliding``, and looks at what rounding may have done to them. Where a
window's own squares (or what is left of them once the mean is taken out) do not stand well above
the largest squares its sums have held, they tell nothing: the block begins anew with sums and a
level of its own, and if that does not help either, its windows are settled one by one: flat ones
by counting neighbours that differ, the others from their definition.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ..tiles.emit import converted, emit_scores, emit_upstream
from .sliding import PAIR, VALUES, alike, column_sums, find

# What a sweep writes.
SUM = tl.constexpr(0)
MOMENTS = tl.constexpr(1)
DEVIATION = tl.constexpr(2)
SCORE = tl.constexpr(3)  # of a zero-mean template
PLAIN_SCORE = tl.constexpr(4)
# Shares of an upstream gradient: of a zero-mean template, then of any, and of each without scores,
# with those of sums at hand and with those of a map.
UPSTREAM = tl.constexpr(5)

# Squares that tell a variance to 1e-7, beside the largest that were held: 64 roundings of 2**-53.
TELLING = tl.constexpr(64 / 2**53 / 1e-7)
# The same of a score of float64 and of what a gradient takes, to 2e-11.
TELLING_WIDE = tl.constexpr(64 / 2**53 / 2e-11)
# The same of a sum that is to be right to 2**-30 of its root sum of squares; once an element.
TELLING_SUM = tl.constexpr(2.0**-38)

# The same of a factor that elements of any size are multiplied by, to 1e-8.
TELLING_FACTOR = tl.constexpr(64 / 2**53 / 1e-8)


@triton.jit
def place(blocks, steps, NDIM: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """Which lead, and which first plane, row and column, a program begins with.

    Of lines, the rows of a block are stretches of B positions, of any lead: y is the lead.
    """
    pid = tl.program_id(0)
    if NDIM == 1:
        row = pid.to(tl.int64) * R + tl.arange(0, R)[:, None]
        lead, z = 0, 0
        y, x = row // blocks[2], (row % blocks[2]) * B
    else:
        x = (pid % blocks[2]) * B
        rest = pid // blocks[2]
        y = (rest % blocks[1]) * R
        rest = rest // blocks[1]
        z = (rest % blocks[0]) * steps
        lead = (rest // blocks[0]).to(tl.int64)
        if NDIM == 2:
            y = y * steps
    return lead, z, y, x


@triton.jit
def taps(position, window, step, SPREAD: tl.constexpr, STRIDED: tl.constexpr):
    """First offset in a window at which an element may lie, the next one's distance, how many."""
    if SPREAD and STRIDED:
        first = (step - (position + (step - 1) * (window - 1)) % step) % step
        return first, step, (window + step - 1) // step
    else:
        return position * 0, 1, window


@triton.jit
def by_definition(
    data, axes, z, y, x, alive, level, WHAT: tl.constexpr, SPREAD: tl.constexpr,
    STRIDED: tl.constexpr,
):  # fmt: skip
    """Sums over each window, element by element: about a level and of squares, or of two maps."""
    first, second, channels, pitch_c, _, _ = data
    window, step = axes[2], axes[3]
    sum1 = tl.zeros(alive.shape, tl.float64)
    sum2 = tl.zeros(alive.shape, tl.float64)
    z0, z_step, deep = taps(z, window[0], step[0], SPREAD, STRIDED)
    y0, y_step, tall = taps(y, window[1], step[1], SPREAD, STRIDED)
    x0, x_step, wide = taps(x, window[2], step[2], SPREAD, STRIDED)
    for k in range(deep):
        dz = z0 + k * z_step
        for i in range(tall):
            dy = y0 + i * y_step
            held = alive & (dz < window[0]) & (dy < window[1])
            for j in range(wide):
                dx = x0 + j * x_step
                offset, inside = find(
                    axes, z + dz, y + dy, x + dx, held & (dx < window[2]), SPREAD, STRIDED
                )
                for c in range(channels):
                    a = tl.load(first + c * pitch_c + offset, mask=inside, other=0)
                    d = tl.where(inside, a.to(tl.float64) - level, 0.0)
                    sum1 += d
                    if WHAT == PAIR:
                        sum2 += tl.load(second + offset, mask=inside, other=0).to(tl.float64)
                    else:
                        sum2 += d * d
    return sum1, sum2


@triton.jit
def moments_by_definition(
    data, axes, z, y, x, alive, share, KIND: tl.constexpr, SPREAD: tl.constexpr,
    STRIDED: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each window (or its sum, and 0), exact where it is flat.

    The level is the window's first element: it is off the mean by no more than the root of the
    sum of squares, so little cancels. Float64 takes a second look about the mean.
    """
    level = tl.zeros(alive.shape, tl.float64)
    if KIND != SUM:
        offset, inside = find(axes, z, y, x, alive, SPREAD, STRIDED)
        level = tl.load(data[0] + offset, mask=inside, other=0).to(tl.float64)
    s, q = by_definition(data, axes, z, y, x, alive, level, VALUES, SPREAD, STRIDED)
    if KIND == SUM:
        value, var = s, q * 0
    else:
        value = level + s * share
        flat = q == 0
        if data[0].dtype.element_ty == tl.float64:
            s, q = by_definition(data, axes, z, y, x, alive, value, VALUES, SPREAD, STRIDED)
            value = tl.where(flat, level, value + s * share)
        left = q * share - (s * share) * (s * share)
        var = tl.where(flat | (left < 0), 0.0, left)
    return value, var


@triton.jit
def root(v):
    """The root of a float64 in float32, over the whole range of float32 squares."""
    tiny, huge = v < 2.0**-120, v > 2.0**120
    scaled = v * tl.where(tiny, 2.0**100, tl.where(huge, 2.0**-100, 1.0)).to(tl.float64)
    scaled = scaled * tl.where(tiny, 2.0**100, tl.where(huge, 2.0**-60, 1.0)).to(tl.float64)
    back = tl.where(tiny, 2.0**-100, tl.where(huge, 2.0**80, 1.0))
    return tl.sqrt_rn(scaled.to(tl.float32)) * back


@triton.jit
def elements(channels, window):
    """The number of elements of a window."""
    return tl.cast(tl.cast(channels, tl.int64) * window[0] * window[1] * window[2], tl.float64)


@triton.jit
def place_in(to_pitch, step, lead, z, y, x, valid, THINNED: tl.constexpr):
    """Offsets of positions in a map, and which of them it has: every step-th if it is thinned."""
    if THINNED:
        valid = valid & (z % step[0] == 0) & (y % step[1] == 0) & (x % step[2] == 0)
        z, y, x = z // step[0], y // step[1], x // step[2]
    row = lead * to_pitch[2] + tl.cast(z, tl.int64) * to_pitch[0] + y.to(tl.int64) * to_pitch[1]
    return row + x, valid


@triton.jit
def emit(
    value, var, to, step, lead, z, y, x, valid, KIND: tl.constexpr, NDIM: tl.constexpr,
    THINNED: tl.constexpr,
):  # fmt: skip
    """Writes a block of results where the map has a place for them."""
    if KIND == SCORE:
        emit_scores(value, var, to, step, lead, z, y, x, valid, True, NDIM, THINNED)
    elif KIND == PLAIN_SCORE:
        emit_scores(value, var, to, step, lead, z, y, x, valid, False, NDIM, THINNED)
    elif KIND >= UPSTREAM:
        emit_upstream(
            value, var, to, step, lead, z, y, x, valid, KIND < UPSTREAM + 3, (KIND - UPSTREAM) % 3,
            NDIM, THINNED,
        )  # fmt: skip
    else:
        emit_moments(value, var, to, step, lead, z, y, x, valid, KIND, THINNED)


@triton.jit
def emit_moments(
    value, var, to, step, lead, z, y, x, valid, KIND: tl.constexpr, THINNED: tl.constexpr
):
    """Sums, means and variances, or deviations."""
    out, var_out, channels, pitch_c, pitch, scale, eps = to
    offset, keep = place_in(pitch, step, lead, z, y, x, valid, THINNED)
    kind = out.dtype.element_ty
    if KIND == SUM:
        for c in range(channels):
            tl.store(out + c * pitch_c + offset, converted(value, kind), mask=keep)
    elif KIND == MOMENTS:
        tl.store(out + offset, value, mask=keep)
        tl.store(var_out + offset, var, mask=keep)
    else:
        energy = var * scale + eps
        if kind == tl.float64:
            tl.store(out + offset, tl.sqrt(energy), mask=keep)
        else:
            tl.store(out + offset, root(energy).to(kind), mask=keep)


@triton.jit
def settle(
    value, var, told, data, axes, z, y0, x0, y, x, valid, count, share, KIND: tl.constexpr,
    NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Results of a block some of whose sums do not tell.

    Sums of flags say which windows are flat and which hold what is not finite: that costs about as
    much as some blocks of values. Only what is left is read window by window.
    """
    flat, bad = alike(data, axes, z, y0, x0, NDIM, SPREAD, STRIDED, R, B, J)
    offset, inside = find(axes, z, y, x, valid, SPREAD, STRIDED)
    here = tl.load(data[0] + offset, mask=inside, other=0).to(tl.float64)
    value = tl.where(flat, here * count if KIND == SUM else here, value)
    var = tl.where(flat, 0.0, var)
    value = tl.where(bad, float("nan"), value)
    var = tl.where(bad, float("nan"), var)
    lost = valid & ~told & ~flat & ~bad
    if tl.max(tl.max(lost.to(tl.int32), 1), 0) > 0:
        mean, square = moments_by_definition(
            data, axes, z, y, x, lost, share, KIND, SPREAD, STRIDED
        )
        value = tl.where(lost, mean, value)
        var = tl.where(lost, square, var)
    return value, var


@triton.jit
def level_of(source, axes, z, y, x, KIND: tl.constexpr):
    """An element of each first window, or 0 where it is not finite or sums are wanted."""
    offset, inside = find(axes, z, y, x, y >= 0, False, False)
    level = tl.load(source + offset, mask=inside, other=0).to(tl.float64)
    if KIND == SUM:
        level = level * 0
    return tl.where(tl.abs(level) < float("inf"), level, 0.0)


@triton.jit
def largest(x, NDIM: tl.constexpr):
    """The largest of each row of a block of lines; of the whole block otherwise."""
    rows = tl.max(x, 1)[:, None]
    return rows if NDIM == 1 else tl.max(rows, 0)[None, :]


@triton.jit
def standing_out(total, most, valid, NDIM: tl.constexpr):
    """Whether sums stand out from what rounding left of the largest held, and the largest now.

    One that does not tells nothing, and an element that is large itself would show it.
    """
    size = tl.abs(total)
    most = tl.maximum(most, largest(tl.where(valid & (size < float("inf")), size, 0.0), NDIM))
    return size >= TELLING_FACTOR * most, most


@triton.jit
def marches(y0, z, positions, steps, NDIM: tl.constexpr, R: tl.constexpr):
    """How many blocks a program has."""
    count = steps
    if NDIM == 2:
        count = tl.minimum(steps, (positions[1] - y0 + R - 1) // R)
    if NDIM == 3:
        count = tl.minimum(steps, positions[0] - z)
    return count


@triton.jit
def sweep(
    source, axes, positions, channels, pitch_c, to, blocks, steps, KIND: tl.constexpr,
    NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """One program: blocks of R x B windows, one after another down the image or along z.

    A block that is unsure is begun anew; `begin` 2 then takes no element that is not finite into
    the sums and has the block settled.
    """
    lead, z0, y0, x0 = place(blocks, steps, NDIM, R, B)
    source += lead * axes[1][2]
    row, lane = tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    count = elements(channels, axes[2])
    share = 1 / count
    telling = TELLING_SUM * count if KIND == SUM else count * 0 + TELLING
    if KIND >= UPSTREAM or (KIND >= SCORE and source.dtype.element_ty == tl.float64):
        telling = count * 0 + TELLING_WIDE
    held1 = tl.zeros((R if NDIM == 3 else 1, B), tl.float64)
    held2 = held1
    held3 = held1.to(tl.int32)
    level = tl.zeros((R if NDIM == 1 else 1, 1), tl.float64)
    most = level
    t, begin = 0, 1
    limit = marches(y0, z0, positions, steps, NDIM, R)
    while t < limit:
        z = z0 + t if NDIM == 3 else z0
        top = y0 + t * R if NDIM == 2 else y0
        y = y0 if NDIM == 1 else top + row
        if begin != 0:
            origin = y0 if NDIM == 1 else top + tl.zeros((1, 1), tl.int32)
            level = level_of(source, axes, z, origin, x0, KIND)
            most = level * 0
        data = (source, source, channels, pitch_c, level, begin // 2)
        sum1, sum2, _, held1, held2, held3 = column_sums(
            data, axes, axes[2], held1, held2, held3, begin, z, top, x0, VALUES, NDIM, SPREAD,
            STRIDED, R, B, J,
        )  # fmt: skip
        total, square = tl.cumsum(sum1, 1), tl.cumsum(sum2, 1)
        x = x0 + lane
        valid = (y < positions[1]) & (x < positions[2])
        most = tl.maximum(most, largest(tl.where(valid & (square >= 0), square, 0.0), NDIM))
        own = square if KIND == SUM else square - total * total * share
        told = own >= telling * most
        unsure = tl.max(tl.max((valid & ~told).to(tl.int32), 1), 0)
        if (unsure > 0) & (begin < 2):
            begin = 2
        else:
            value = total if KIND == SUM else level + total * share
            var = tl.maximum(own, 0.0) * share
            if begin == 2:
                value, var = settle(
                    value, var, told, data, axes, z, top, x0, y, x, valid, count, share, KIND, NDIM,
                    SPREAD, STRIDED, R, B, J,
                )  # fmt: skip
            emit(value, var, to, axes[3], lead, z, y, x, valid, KIND, NDIM, STRIDED and not SPREAD)
            t += 1
            begin = begin // 2


@triton.jit
def direct(
    source, axes, positions, channels, pitch_c, to, blocks, KIND: tl.constexpr,
    NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """One program: R x B positions that are returned, each window from its definition."""
    lead, z, y, x = place(blocks, 1, NDIM, R, B)
    source += lead * axes[1][2]
    if NDIM != 1:
        y = y + tl.arange(0, R)[:, None]
    x = x + tl.arange(0, B)[None, :]
    valid = (y < positions[1]) & (x < positions[2])
    step = axes[3]
    if STRIDED and not SPREAD:
        z, y, x = z * step[0], y * step[1], x * step[2]
    data = (source, source, channels, pitch_c, 0.0, 0)
    value, var = moments_by_definition(
        data, axes, z, y, x, valid, 1 / elements(channels, axes[2]), KIND, SPREAD, STRIDED
    )
    emit(value, var, to, step, lead, z, y, x, valid, KIND, NDIM, STRIDED and not SPREAD)


@triton.jit
def write_map(
    source, axes, positions, channels, pitch_c, to, blocks, steps, KIND: tl.constexpr,
    NDIM: tl.constexpr, SPREAD: tl.constexpr, STRIDED: tl.constexpr, DIRECT: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """One program, by definition or by sums that slide."""
    if DIRECT:
        direct(
            source, axes, positions, channels, pitch_c, to, blocks, KIND, NDIM, SPREAD, STRIDED,
            R, B,
        )  # fmt: skip
    else:
        sweep(
            source, axes, positions, channels, pitch_c, to, blocks, steps, KIND, NDIM, SPREAD,
            STRIDED, R, B, J,
        )  # fmt: skip
