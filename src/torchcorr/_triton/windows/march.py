"""Programs that march over window positions and write a map: sums, moments, deviations or scores.

A march takes its sums from ``sliding`` and bounds what rounding may have done to them. Where the
squares of a window (or what remains of them without the mean) are too small a share of the
largest squares that the running sums have contained, the window is doubtful: its block is begun
again with fresh sums and a level of its windows, and if that does not help either, its doubtful
windows are recomputed exactly: flat ones by counting neighbours that differ, the others from their
definition.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ..tiles.emit import emit_scores, emit_upstream
from ..values import converted
from .records import MOMENTS, SCORE, SUM, UPSTREAM, Block
from .sliding import (
    PAIR,
    VALUES,
    about,
    column_sums,
    find,
    flat_and_non_finite,
    from_lead,
    zeros,
)

# Least squares, relative to the largest in the running sums, that give a variance to 1e-7: sums
# carry up to 64 roundings of 2**-53.
TRUSTED = tl.constexpr(64 / 2**53 / 1e-7)
# The same to 2e-11, for scores of float64 and for gradients.
TRUSTED_WIDE = tl.constexpr(64 / 2**53 / 2e-11)
# The same for a sum that has to be right to 2**-30 of its root sum of squares, per element.
TRUSTED_SUM = tl.constexpr(2.0**-38)
# The same to 1e-8, for a sum that elements of any size are multiplied by.
TRUSTED_FACTOR = tl.constexpr(64 / 2**53 / 1e-8)

# How the next block of a march gets its sums.
CONTINUED = tl.constexpr(0)  # from those of the block before
FRESH = tl.constexpr(1)  # from the start
CAREFUL = tl.constexpr(2)  # from the start, without elements that are not finite


@triton.jit
def is_careful(state):
    """1 for CAREFUL, 0 otherwise."""
    return state // CAREFUL


@triton.jit
def after(state):
    """FRESH after a CAREFUL block, otherwise CONTINUED. By division, which spills least."""
    return state // 2


@triton.jit
def place(grid, FORM: tl.constexpr):
    """Lead, plane, row and column of the first position of a program.

    Of lines, the rows of a block are stretches of B positions, of any lead: y is the lead.
    """
    pid = tl.program_id(0)
    blocks, steps = grid.blocks, grid.steps
    if FORM.ndim == 1:
        row = pid.to(tl.int64) * FORM.rows + tl.arange(0, FORM.rows)[:, None]
        lead, z = 0, 0
        y, x = row // blocks[2], (row % blocks[2]) * FORM.columns
    else:
        x = (pid % blocks[2]) * FORM.columns
        rest = pid // blocks[2]
        y = (rest % blocks[1]) * FORM.rows
        rest = rest // blocks[1]
        z = (rest % blocks[0]) * steps
        lead = (rest // blocks[0]).to(tl.int64)
        if FORM.ndim == 2:
            y = y * steps
    return lead, z, y, x


@triton.jit
def block_at(grid, lead, z, y, x, FORM: tl.constexpr):
    """The block of positions that begins at (z, y, x)."""
    if FORM.ndim != 1:
        y = y + tl.arange(0, FORM.rows)[:, None]
    x = x + tl.arange(0, FORM.columns)[None, :]
    valid = (y < grid.positions[1]) & (x < grid.positions[2])
    return Block(lead, z, y, x, valid)


@triton.jit
def marched(grid, z0, y0, t, FORM: tl.constexpr):
    """Plane and first row of the t-th block of a program."""
    z = z0 + t if FORM.ndim == 3 else z0
    y = y0 + t * FORM.rows if FORM.ndim == 2 else y0
    return z, y


@triton.jit
def marches(grid, z, y, FORM: tl.constexpr):
    """How many blocks a program has."""
    count = grid.steps
    if FORM.ndim == 2:
        count = tl.minimum(count, (grid.positions[1] - y + FORM.rows - 1) // FORM.rows)
    if FORM.ndim == 3:
        count = tl.minimum(count, grid.positions[0] - z)
    return count


@triton.jit
def anything(mask):
    """Whether anything in a block is true."""
    return tl.max(tl.max(mask.to(tl.int32), 1), 0) > 0


@triton.jit
def offsets(position, window, step, FORM: tl.constexpr):
    """Where elements may be in a window along an axis: first offset, distance, number."""
    if FORM.spread and FORM.strided:
        first = (step - (position + (step - 1) * (window - 1)) % step) % step
        return first, step, (window + step - 1) // step
    else:
        return position * 0, 1, window


@triton.jit
def by_definition(source, z, y, x, alive, WHAT: tl.constexpr, FORM: tl.constexpr):
    """Sums over each window, element by element: about a level and of squares, or of two maps."""
    axes, window, step = source.axes, source.axes.window, source.axes.stride
    sum1 = tl.zeros(alive.shape, tl.float64)
    sum2 = tl.zeros(alive.shape, tl.float64)
    z0, z_step, deep = offsets(z, window[0], step[0], FORM)
    y0, y_step, tall = offsets(y, window[1], step[1], FORM)
    x0, x_step, wide = offsets(x, window[2], step[2], FORM)
    for k in range(deep):
        dz = z0 + k * z_step
        for i in range(tall):
            dy = y0 + i * y_step
            row = alive & (dz < window[0]) & (dy < window[1])
            for j in range(wide):
                dx = x0 + j * x_step
                inside = row & (dx < window[2])
                offset, inside = find(
                    axes, z + dz, y + dy, x + dx, inside, FORM.spread, FORM.strided
                )
                for c in range(source.channels):
                    at = source.first + c * source.pitch_c + offset
                    a = tl.load(at, mask=inside, other=0).to(tl.float64)
                    d = tl.where(inside, a - source.level, 0.0)
                    sum1 += d
                    if WHAT == PAIR:
                        b = tl.load(source.second + offset, mask=inside, other=0)
                        sum2 += b.to(tl.float64)
                    else:
                        sum2 += d * d
    return sum1, sum2


@triton.jit
def moments_by_definition(source, z, y, x, alive, share, KIND: tl.constexpr, FORM: tl.constexpr):
    """Mean and variance of each window (or its sum, and 0), exact where it is flat.

    The level is the window's first element: it differs from the mean by no more than the root of
    the sum of squares, so little cancels. Float64 takes a second pass about the mean.
    """
    level = tl.zeros(alive.shape, tl.float64)
    if KIND != SUM:
        offset, inside = find(source.axes, z, y, x, alive, FORM.spread, FORM.strided)
        level = tl.load(source.first + offset, mask=inside, other=0).to(tl.float64)
    s, q = by_definition(about(source, level, 0), z, y, x, alive, VALUES, FORM)
    if KIND == SUM:
        value, var = s, q * 0
    else:
        value = level + s * share
        flat = q == 0
        if source.first.dtype.element_ty == tl.float64:
            s, q = by_definition(about(source, value, 0), z, y, x, alive, VALUES, FORM)
            value = tl.where(flat, level, value + s * share)
        rest = q * share - (s * share) * (s * share)
        var = tl.where(flat | (rest < 0), 0.0, rest)
    return value, var


@triton.jit
def root(v):
    """The root of a float64 in float32, over the whole range of float32 squares."""
    tiny, huge = v < 2.0**-120, v > 2.0**120
    scaled = v * tl.where(tiny, 2.0**100, tl.where(huge, 2.0**-100, 1.0)).to(tl.float64)
    scaled = scaled * tl.where(tiny, 2.0**100, tl.where(huge, 2.0**-60, 1.0)).to(tl.float64)
    unscale = tl.where(tiny, 2.0**-100, tl.where(huge, 2.0**80, 1.0))
    return tl.sqrt_rn(scaled.to(tl.float32)) * unscale


@triton.jit
def elements(source):
    """The number of elements of a window."""
    window = source.axes.window
    count = tl.cast(source.channels, tl.int64) * window[0] * window[1] * window[2]
    return tl.cast(count, tl.float64)


@triton.jit
def place_in(pitch, step, block, THINNED: tl.constexpr):
    """Offsets of positions in a map, and which of them it has: every step-th if it is thinned."""
    z, y, x, valid = block.z, block.y, block.x, block.valid
    if THINNED:
        valid = valid & (z % step[0] == 0) & (y % step[1] == 0) & (x % step[2] == 0)
        z, y, x = z // step[0], y // step[1], x // step[2]
    row = block.lead * pitch[2] + tl.cast(z, tl.int64) * pitch[0] + y.to(tl.int64) * pitch[1]
    return row + x, valid


@triton.jit
def emit(value, var, to, step, block, RESULT: tl.constexpr, FORM: tl.constexpr):
    """Writes a block of results where the map has a place for them."""
    if RESULT.kind == SCORE:
        emit_scores(value, var, to, step, block, RESULT, FORM)
    elif RESULT.kind == UPSTREAM:
        emit_upstream(value, var, to, step, block, RESULT, FORM)
    else:
        emit_moments(value, var, to, step, block, RESULT.kind, FORM)


@triton.jit
def emit_moments(value, var, to, step, block, KIND: tl.constexpr, FORM: tl.constexpr):
    """Sums, means and variances, or deviations."""
    out = to.out
    offset, keep = place_in(to.pitch, step, block, FORM.thinned)
    dtype = out.dtype.element_ty
    if KIND == SUM:
        for c in range(to.channels):
            tl.store(out + c * to.pitch_c + offset, converted(value, dtype), mask=keep)
    elif KIND == MOMENTS:
        tl.store(out + offset, value, mask=keep)
        tl.store(to.var_out + offset, var, mask=keep)
    else:
        energy = var * to.scale + to.eps
        if dtype == tl.float64:
            tl.store(out + offset, tl.sqrt(energy), mask=keep)
        else:
            tl.store(out + offset, root(energy).to(dtype), mask=keep)


@triton.jit
def recompute_exactly(
    value, var, doubtful, source, block, corner, KIND: tl.constexpr, FORM: tl.constexpr
):
    """Results of a block some of whose windows are doubtful.

    Sums of flags say which windows are flat and which contain what is not finite: that costs about
    as much as some blocks of values. Only the other doubtful windows are read one by one.
    """
    z, y, x = block.z, block.y, block.x
    count = elements(source)
    flat, non_finite = flat_and_non_finite(source, corner, FORM)
    offset, inside = find(source.axes, z, y, x, block.valid, FORM.spread, FORM.strided)
    first = tl.load(source.first + offset, mask=inside, other=0).to(tl.float64)
    value = tl.where(flat, first * count if KIND == SUM else first, value)
    var = tl.where(flat, 0.0, var)
    value = tl.where(non_finite, float("nan"), value)
    var = tl.where(non_finite, float("nan"), var)
    doubtful = doubtful & ~flat & ~non_finite
    if anything(doubtful):
        exact, square = moments_by_definition(source, z, y, x, doubtful, 1 / count, KIND, FORM)
        value = tl.where(doubtful, exact, value)
        var = tl.where(doubtful, square, var)
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
def trusted_factors(total, most, valid, NDIM: tl.constexpr):
    """Whether sums are large relative to the rounding of the largest so far; and that largest.

    A sum that is not would show its rounding once it is multiplied by a large element.
    """
    size = tl.abs(total)
    most = tl.maximum(most, largest(tl.where(valid & (size < float("inf")), size, 0.0), NDIM))
    return size >= TRUSTED_FACTOR * most, most


@triton.jit
def window_march(source, grid, to, RESULT: tl.constexpr, FORM: tl.constexpr):
    """One program: blocks of R x B windows, one after another down the image or along z.

    A block with doubtful windows is begun again, CAREFUL: no element that is not finite goes into
    its sums, and windows that are still doubtful are recomputed. The block after it is FRESH.
    """
    KIND: tl.constexpr = RESULT.kind
    lead, z0, y0, x0 = place(grid, FORM)
    source = from_lead(source, lead)
    axes = source.axes
    count = elements(source)
    share = 1 / count
    trusted = TRUSTED_SUM * count if KIND == SUM else count * 0 + TRUSTED
    if KIND == UPSTREAM or (KIND == SCORE and source.first.dtype.element_ty == tl.float64):
        trusted = count * 0 + TRUSTED_WIDE
    carried = zeros(FORM.rows if FORM.ndim == 3 else 1, FORM.columns)
    level = tl.zeros((FORM.rows if FORM.ndim == 1 else 1, 1), tl.float64)
    most = level
    t, state = 0, FRESH
    limit = marches(grid, z0, y0, FORM)
    while t < limit:
        z, y = marched(grid, z0, y0, t, FORM)
        if state != CONTINUED:
            origin = y if FORM.ndim == 1 else y + tl.zeros((1, 1), tl.int32)
            level = level_of(source.first, axes, z, origin, x0, KIND)
            most = level * 0
        seen = about(source, level, is_careful(state))
        corner = (z, y, x0)
        sums, carried = column_sums(seen, axes.window, carried, state, corner, VALUES, FORM)
        total, square = tl.cumsum(sums[0], 1), tl.cumsum(sums[1], 1)
        block = block_at(grid, lead, z, y, x0, FORM)
        valid = block.valid
        most = tl.maximum(most, largest(tl.where(valid & (square >= 0), square, 0.0), FORM.ndim))
        squares = square if KIND == SUM else square - total * total * share
        doubtful = valid & ~(squares >= trusted * most)
        if anything(doubtful) & (state != CAREFUL):
            state = CAREFUL
        else:
            value = total if KIND == SUM else level + total * share
            var = tl.maximum(squares, 0.0) * share
            if state == CAREFUL:
                value, var = recompute_exactly(
                    value, var, doubtful, seen, block, corner, KIND, FORM
                )
            emit(value, var, to, axes.stride, block, RESULT, FORM)
            t += 1
            state = after(state)


@triton.jit
def direct(source, grid, to, RESULT: tl.constexpr, FORM: tl.constexpr):
    """One program: R x B positions that are returned, each window from its definition."""
    lead, z, y, x = place(grid, FORM)
    source = from_lead(source, lead)
    block = block_at(grid, lead, z, y, x, FORM)
    step = source.axes.stride
    if FORM.thinned:
        block = Block(lead, block.z * step[0], block.y * step[1], block.x * step[2], block.valid)
    share = 1 / elements(source)
    value, var = moments_by_definition(
        source, block.z, block.y, block.x, block.valid, share, RESULT.kind, FORM
    )
    emit(value, var, to, step, block, RESULT, FORM)


@triton.jit
def write_map(source, grid, to, RESULT: tl.constexpr, FORM: tl.constexpr):
    """One program, by definition or by sums that slide."""
    if FORM.direct:
        direct(source, grid, to, RESULT, FORM)
    else:
        window_march(source, grid, to, RESULT, FORM)
