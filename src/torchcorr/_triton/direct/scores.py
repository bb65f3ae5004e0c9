"""Normalised scores of small templates on CUDA in one pass: no map of moments is stored.

The loop is that of `correlate`: a lane computes ROWS windows, one above the other, and an element
that is loaded once contributes to all of them. Elements are taken relative to a level of the lane,
the median of three elements of its windows; differences of floating-point numbers keep their
digits. With four rows and eight coefficients, a column costs 11 loads and 8 coefficients, 32
multiply-adds for numerators and 5 x 11 operations for the sums, squares and largest distances of
its rows, which the windows then share.

A window is doubtful if its variance is faint relative to its mean square about that level, or out
of range. It is recomputed from its definition: extremes, which also say whether it is flat, then
the mean, then all sums about it, scaled by a power of two. Only the rows of a program with such a
window are recomputed, and the host decides nothing from data.
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

from ..._definition import scores as definition
from ..._plan.leads import Leads
from ..._plan.shapes import output_size
from ..values import MOST_LANES, bits, scale_of_span, supported, three, wide_type
from .correlate import (
    COLUMNS,
    TALL,
    TOGETHER,
    Strided,
    Unrolled,
    chosen,
    coefficients_of,
    compensated,
    place,
    plus,
    zeros,
)

# Largest mean square about the level, relative to the variance, whose difference is trusted; and
# the number of blocks of a sum above which the limit falls in proportion.
_TRUSTED = {torch.float64: 1e4}
_TRUSTED_SINGLE = 32.0
_BLOCKS = 16


class Sums(NamedTuple):
    """Of windows or of their rows, about a level: numerators, sums, squares, largest distances."""

    numerators: Any
    firsts: Any
    seconds: Any
    peaks: Any


@triton.jit
def _column(sums, source, template, level, HEIGHT: tl.constexpr, FORM: tl.constexpr):
    """Adds a column to the numerators of a lane's windows and to the other sums of its rows.

    source and template are pointers with the pitch of rows.
    """
    wide: tl.constexpr = level.dtype
    ROWS: tl.constexpr = FORM.rows
    coefficients = coefficients_of(template.at, template.pitch, HEIGHT, wide)
    chain = sums.numerators
    firsts, seconds, peaks = (), (), ()
    for i in tl.static_range(ROWS + HEIGHT - 1):
        x = tl.load(source.at + i * source.pitch).to(wide) - level
        firsts = firsts + (sums.firsts[i] + x,)
        seconds = seconds + (tl.fma(x, x, sums.seconds[i]),)
        peaks = peaks + (tl.maximum(sums.peaks[i], tl.abs(x)),)
        longer = ()
        for r in tl.static_range(ROWS):
            if i < r or i - r >= HEIGHT:
                longer = longer + (chain[r],)
            elif i == r:
                longer = longer + (x * coefficients[0],)
            else:
                longer = longer + (tl.fma(x, coefficients[i - r], chain[r]),)
        chain = longer
    return Sums(plus(sums.numerators, chain, ROWS), firsts, seconds, peaks)


@triton.jit
def _rows(sums, source, template, columns, level, HEIGHT: tl.constexpr, FORM: tl.constexpr):
    """Adds HEIGHT rows of the windows to their four sums; pitches are those of rows and columns."""
    wide: tl.constexpr = level.dtype
    row, step = source.pitch
    template_row, template_step = template.pitch
    for first in range(0, columns, COLUMNS):
        none = zeros(FORM.rows + HEIGHT - 1, FORM.lanes, wide)
        part = Sums(zeros(FORM.rows, FORM.lanes, wide), none, none, none)
        last = min(first + COLUMNS, columns)
        single = first
        if FORM.unit:
            # Adjacent columns differ by a constant that is part of the load instruction.
            single = last - (last - first) % TOGETHER
            for c in range(first, single, TOGETHER):
                for k in tl.static_range(TOGETHER):
                    part = _column(
                        part, Strided(source.at + c + k, row),
                        Strided(template.at + (c + k) * template_step, template_row), level, HEIGHT,
                        FORM,
                    )  # fmt: skip
        for c in range(single, last):
            part = _column(
                part, Strided(source.at + c * step, row),
                Strided(template.at + c * template_step, template_row), level, HEIGHT, FORM,
            )  # fmt: skip
        sums = _of_windows(sums, part, HEIGHT, FORM)
    return sums


@triton.jit
def _of_windows(sums, part, HEIGHT: tl.constexpr, FORM: tl.constexpr):
    """Adds a block's numerators, and the other sums of its rows, to the windows they belong to."""
    firsts, seconds, peaks = (), (), ()
    for r in tl.static_range(FORM.rows):
        a, b, c = part.firsts[r], part.seconds[r], part.peaks[r]
        for j in tl.static_range(1, HEIGHT):
            a, b = a + part.firsts[r + j], b + part.seconds[r + j]
            c = tl.maximum(c, part.peaks[r + j])
        firsts = firsts + (sums.firsts[r] + a,)
        seconds = seconds + (sums.seconds[r] + b,)
        peaks = peaks + (tl.maximum(sums.peaks[r], c),)
    return Sums(plus(sums.numerators, part.numerators, FORM.rows), firsts, seconds, peaks)


@triton.jit
def _rows_at(sums, lines, dy, columns, level, HEIGHT: tl.constexpr, FORM: tl.constexpr):
    """Adds HEIGHT rows from row dy of a plane on; lines: source, template, gap."""
    source, template, gap = lines
    _, _, s_y, s_x = source.pitch
    _, _, t_y, t_x = template.pitch
    source = Strided(source.at + dy * s_y, (gap * s_y, s_x))
    template = Strided(template.at + dy * t_y, (t_y, t_x))
    return _rows(sums, source, template, columns, level, HEIGHT, FORM)


@triton.jit
def _windows(source, template, window, gap, level, FORM: tl.constexpr):
    """The four sums of a lane's windows (channels, planes, rows, columns), `gap` rows apart."""
    channels, planes, rows, columns = window
    none = zeros(FORM.rows, FORM.lanes, level.dtype)
    sums = Sums(none, none, none, none)
    tall = 0
    if FORM.tall > 1:
        tall = rows // FORM.tall
    for plane in range(channels * planes):
        k, dz = plane // planes, plane % planes
        lines = (
            Strided(source.at + k * source.pitch[0] + dz * source.pitch[1], source.pitch),
            Strided(template.at + k * template.pitch[0] + dz * template.pitch[1], template.pitch),
            gap,
        )
        for q in range(tall):
            sums = _rows_at(sums, lines, q * FORM.tall, columns, level, FORM.tall, FORM)
        if FORM.rest > 0:
            sums = _rows_at(sums, lines, tall * FORM.tall, columns, level, FORM.rest, FORM)
        if FORM.rolled:
            for dy in range(tall * FORM.tall, rows):
                sums = _rows_at(sums, lines, dy, columns, level, 1, FORM)
    return sums


@triton.jit
def _level(source, window, gap, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """The median of three elements of a lane's windows, 0 if it is not finite."""
    _, planes, rows, columns = window
    _, s_z, s_y, s_x = source.pitch
    middle = source.at + planes // 2 * s_z + (((ROWS - 1) * gap + rows) // 2) * s_y
    a = tl.load(middle).to(WIDE)
    b = tl.load(middle + columns // 2 * s_x).to(WIDE)
    c = tl.load(middle + (columns - 1) * s_x).to(WIDE)
    level = tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))
    return tl.where(tl.abs(level) < float("inf"), level, 0.0)


@triton.jit
def _mean(total, count):
    """total / count rounded once: in float32 a plain division may be off by two units."""
    return tl.div_rn(total, count) if total.dtype == tl.float32 else total / count


@triton.jit
def _score(numerator, energy, count, eps):
    score = numerator / (count * tl.sqrt(energy + eps))
    score = tl.where(score > 1.0, 1.0, score)
    return tl.where(score < -1.0, -1.0, score)


@triton.jit
def _sums_about(source, template, window, level, scale, LANES: tl.constexpr):
    """Numerator, sum and sum of squares of a window about a level, both scaled first."""
    wide: tl.constexpr = level.dtype
    channels, planes, rows, columns = window
    s_channel, s_z, s_y, s_x = source.pitch
    t_channel, t_z, t_y, t_x = template.pitch
    total, lost = zeros(3, LANES, wide), zeros(3, LANES, wide)
    for line in range(channels * planes * rows):
        dy, plane = line % rows, line // rows
        channel, dz = plane // planes, plane % planes
        at = source.at + channel * s_channel + dz * s_z + dy * s_y
        coefficients = template.at + channel * t_channel + dz * t_z + dy * t_y
        for first in range(0, columns, COLUMNS):
            part = zeros(3, LANES, wide)
            for c in range(first, min(first + COLUMNS, columns)):
                x = tl.load(at + c * s_x).to(wide) * scale - level
                t = tl.load(coefficients + c * t_x).to(wide)
                part = (tl.fma(x, t, part[0]), part[1] + x, tl.fma(x, x, part[2]))
            total, lost = compensated(total, lost, part, 3)
    return total[0] - lost[0], total[1] - lost[1], total[2] - lost[2]


@triton.jit
def _by_definition(
    source, template, window, eps, LANES: tl.constexpr, WIDE: tl.constexpr,
    ZERO_MEAN: tl.constexpr,
):  # fmt: skip
    """The score of one window a lane in three passes: extremes, mean, sums about the mean."""
    channels, planes, rows, columns = window
    s_channel, s_z, s_y, s_x = source.pitch
    count = (channels * planes * rows * columns).to(WIDE)
    low = tl.full([LANES], float("inf"), WIDE)
    high = tl.full([LANES], float("-inf"), WIDE)
    for line in range(channels * planes * rows):
        dy, plane = line % rows, line // rows
        at = source.at + plane // planes * s_channel + plane % planes * s_z + dy * s_y
        for c in range(columns):
            x = tl.load(at + c * s_x).to(WIDE)
            low, high = tl.minimum(low, x), tl.maximum(high, x)
    if ZERO_MEAN:
        flat = low == high
        span = high * 0.5 - low * 0.5
    else:
        flat = (low == 0.0) & (high == 0.0)
        span = tl.maximum(tl.abs(low), tl.abs(high))
    scale = tl.where(flat, 1.0, scale_of_span(span)).to(WIDE)
    level = tl.zeros([LANES], WIDE)
    if ZERO_MEAN:
        level = low * scale
        _, first, _ = _sums_about(source, template, window, level, scale, LANES)
        level += _mean(first, count)
    numerator, first, second = _sums_about(source, template, window, level, scale, LANES)
    rest = _mean(first, count)
    energy = _mean(second, count)
    if ZERO_MEAN:
        energy -= rest * rest
    score = _score(numerator, tl.maximum(energy, 0.0), count, eps * scale * scale)
    # A NaN or an infinity is in the sums even where the extremes do not show it.
    non_finite = (first - first) != 0.0
    return tl.where(non_finite, float("nan"), tl.where(flat, 0.0, score))


# Sizes are not specialised: a new shape needs no new compilation.
_SIZES = [
    "blocks", "templates", "inputs", "channels", "w_z", "w_y", "w_x", "o_z", "o_y", "o_x",
    "d_z", "d_y", "d_x", "s_lead", "s_channel", "s_z", "s_y", "s_x",
    "t_pair", "t_template", "t_channel", "t_z", "t_y", "t_x", "eps_bits", "trusted",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _score_kernel(
    source, coefficients, out,
    blocks, templates, inputs, channels, w_z, w_y, w_x, o_z, o_y, o_x, d_z, d_y, d_x,
    s_lead, s_channel, s_z, s_y, s_x, t_pair, t_template, t_channel, t_z, t_y, t_x,
    eps_bits, trusted, WIDE: tl.constexpr, ZERO_MEAN: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """A block of scores of one lead and one template.

    source is (lead, channel, i), coefficients are (pair, template, channel, w), out is (lead,
    template, o).
    """
    ROWS: tl.constexpr = FORM.rows
    LANES: tl.constexpr = FORM.lanes
    pid = tl.program_id(0)
    k, pid = pid % templates, pid // templates
    lead, block = (pid // blocks).to(tl.int64), pid % blocks
    s_channel, t_channel = s_channel.to(tl.int64), t_channel.to(tl.int64)
    s_z, s_y, s_x = s_z.to(tl.int64), s_y.to(tl.int64), s_x.to(tl.int64)
    t_z, t_y, t_x = t_z.to(tl.int64), t_y.to(tl.int64), t_x.to(tl.int64)
    number = block * LANES + tl.arange(0, LANES)
    lanes = o_z * ((o_y + ROWS - 1) // ROWS) * o_x
    z, y, x, skipped = place(tl.minimum(number, lanes - 1), o_y, o_x, ROWS)
    at = source + lead * s_lead + z * d_z * s_z + y * d_y * s_y + x * d_x * s_x
    first = coefficients + lead // inputs * t_pair + k * t_template.to(tl.int64)
    to = out + (((lead * templates + k) * o_z + z) * o_y + y) * o_x + x
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True).to(WIDE)
    count = (channels * w_z * w_y * w_x).to(WIDE)
    lowest: tl.constexpr = 1e-15 if tl.float32 == WIDE else 1e-140
    highest: tl.constexpr = 1e15 if tl.float32 == WIDE else 1e140
    pitch, window = (s_channel, s_z, s_y, s_x), (channels, w_z, w_y, w_x)
    template = Strided(first, (t_channel, t_z, t_y, t_x))

    level = tl.zeros([LANES], WIDE)
    if ZERO_MEAN:
        level = _level(Strided(at, pitch), window, d_y, ROWS, WIDE)
    sums = _windows(Strided(at, pitch), template, window, d_y, level, FORM)
    # One bit for each doubtful window of a lane.
    doubtful = tl.zeros([LANES], tl.int32)
    for r in tl.static_range(ROWS):
        peak, square = sums.peaks[r], _mean(sums.seconds[r], count)
        energy = square
        if ZERO_MEAN:
            mean = _mean(sums.firsts[r], count)
            energy = tl.maximum(square - mean * mean, 0.0)
        flat = peak == 0.0
        known = flat | ((peak > lowest) & (peak < highest) & (square <= trusted * energy))
        # A NaN is in the sum, but in no comparison.
        has_nan = (sums.firsts[r] != sums.firsts[r]) & (peak < highest)
        score = _score(sums.numerators[r], tl.where(flat, 1.0, energy), count, eps)
        score = tl.where(has_nan, float("nan"), tl.where(flat, 0.0, score))
        written = (number < lanes) & (r >= skipped)
        known = known | has_nan
        tl.store(to + r * o_x, score, written & known)
        doubtful = doubtful | tl.where(written & (known == 0), 1 << r, 0)
    if tl.max(doubtful, 0) > 0:
        for below in range(ROWS):
            wanted = (doubtful >> below) & 1
            if tl.max(wanted, 0) > 0:
                lower = Strided(at + below * d_y * s_y, pitch)
                score = _by_definition(lower, template, window, eps, LANES, WIDE, ZERO_MEAN)
                tl.store(to + below * o_x, score, wanted > 0)


def ncc(
    input: Tensor, template: Tensor, stride: Sequence[int], zero_mean: bool, eps: float
) -> Tensor:
    """Score of a standardised template at each window."""
    ndim = len(stride)
    if not supported(input, template):
        return definition.ncc(input, template, stride, zero_mean, eps, "direct")
    leads = Leads.of(tuple(input.shape[: -ndim - 1]), tuple(template.shape[: -ndim - 1]))
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    source = leads.input(input, ndim + 1)
    coefficients = leads.template(template.to(wide), ndim + 1)
    window, steps = three(template.shape[-ndim:], 1), three(stride, 1)
    size = output_size(input.shape[-ndim:], template.shape[-ndim:], stride)
    out = input.new_empty((leads.paired * leads.inputs, leads.templates, *size))
    output = three(size, 1)
    rows, lanes = chosen(out.numel(), output[1], 4)
    # Taller tiles would spill registers.
    tall = TALL if wide == torch.float32 else 4
    lanes_of_all = output[0] * -(-output[1] // rows) * output[2]
    blocks = -(-lanes_of_all // lanes)
    programs = blocks * out.shape[0] * out.shape[1]
    if lanes_of_all > MOST_LANES or programs > MOST_LANES:
        return definition.ncc(input, template, stride, zero_mean, eps, "direct")
    terms = source.shape[1] * window[0] * -(-window[1] // tall) * -(-window[2] // 8)
    trusted = _TRUSTED.get(wide, _TRUSTED_SINGLE) / max(1.0, terms / _BLOCKS)
    unrolled = steps[1] == 1
    form = Unrolled.of(
        rows=rows,
        lanes=lanes,
        tall=tall if unrolled else 1,
        rest=window[1] % tall if unrolled else 0,
        rolled=int(not unrolled),
        unit=int(source.stride()[-1] == 1),
    )
    _score_kernel[(programs,)](
        source, coefficients, out,
        blocks, leads.templates, leads.inputs, source.shape[1], *window, *output, *steps,
        *source.stride()[:2], *three(source.stride()[2:], 0),
        *coefficients.stride()[:3], *three(coefficients.stride()[3:], 0), bits(eps), trusted,
        WIDE=wide_type(wide), ZERO_MEAN=zero_mean, FORM=form, num_warps=4,
    )  # fmt: skip
    return leads.restored(out, ndim)
