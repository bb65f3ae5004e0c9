"""Normalised scores of small templates on CUDA in one pass: no map of moments is ever in memory.

The loop is that of `direct`: a lane owns ROWS windows, one above the other, and an element that is
loaded once meets all of them. Each element is taken as its distance from a level of the lane, the
median of three elements it sees; differences of floating-point numbers keep their digits. With
four rows and eight taps, a column costs 11 loads and 8 taps, 32 multiply-adds for numerators and
5 x 11 operations for sums, squares and largest distances of its rows, which the windows then
share.

A window whose variance is faint beside its mean square about that level, or out of range, is
computed again from its definition: extremes, which also tell whether it is flat, then the mean,
then all sums about it, scaled by a power of two. Only the rows of a program that hold such a
window pay for it, and nothing is decided by the host.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition import scores as definition
from ..._plan.leads import Leads
from ..._plan.shapes import output_size
from .correlate import (
    MOST_LANES,
    TALL,
    chosen,
    compensated,
    place,
    supported,
    three,
    wide_type,
    zeros,
)

_COLUMNS = tl.constexpr(8)
_TOGETHER = tl.constexpr(4)
# Largest mean square about the level, beside the variance, whose difference is trusted, and the
# number of blocks of a sum from which on it has to be less.
_TRUSTED = {torch.float64: 1e4}
_TRUSTED_SINGLE = 32.0
_BLOCKS = 16


@triton.jit
def _column(
    part, firsts, seconds, peaks, at, tap, level, row, tap_row,
    ROWS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """One column: products of ROWS windows, and sums, squares and largest distances of its rows."""
    wide: tl.constexpr = part[0].dtype
    taps = ()
    for j in tl.static_range(TAPS):
        taps = taps + (tl.load(tap + j * tap_row).to(wide),)
    chain = part
    new_firsts, new_seconds, new_peaks = (), (), ()
    for i in tl.static_range(ROWS + TAPS - 1):
        x = tl.load(at + i * row).to(wide) - level
        new_firsts = new_firsts + (firsts[i] + x,)
        new_seconds = new_seconds + (tl.fma(x, x, seconds[i]),)
        new_peaks = new_peaks + (tl.maximum(peaks[i], tl.abs(x)),)
        longer = ()
        for r in tl.static_range(ROWS):
            if i < r or i - r >= TAPS:
                longer = longer + (chain[r],)
            elif i == r:
                longer = longer + (x * taps[0],)
            else:
                longer = longer + (tl.fma(x, taps[i - r], chain[r]),)
        chain = longer
    found = ()
    for r in tl.static_range(ROWS):
        found = found + (part[r] + chain[r],)
    return found, new_firsts, new_seconds, new_peaks


@triton.jit
def _rows(
    totals, firsts, seconds, peaks, at, tap, level, columns, step_x, tap_x, row, tap_row,
    ROWS: tl.constexpr, TAPS: tl.constexpr, LANES: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Adds TAPS rows of the windows to their four sums."""
    wide: tl.constexpr = level.dtype
    for first in range(0, columns, _COLUMNS):
        part = zeros(ROWS, LANES, wide)
        one = zeros(ROWS + TAPS - 1, LANES, wide)
        two, far = one, one
        last = min(first + _COLUMNS, columns)
        single = first
        if UNIT:
            # Neighbouring columns differ by a constant that the loads hold.
            single = last - (last - first) % _TOGETHER
            for c in range(first, single, _TOGETHER):
                for k in tl.static_range(_TOGETHER):
                    part, one, two, far = _column(
                        part, one, two, far, at + c + k, tap + (c + k) * tap_x, level, row, tap_row,
                        ROWS, TAPS,
                    )  # fmt: skip
        for c in range(single, last):
            part, one, two, far = _column(
                part, one, two, far, at + c * step_x, tap + c * tap_x, level, row, tap_row,
                ROWS, TAPS,
            )  # fmt: skip
        new_totals, new_firsts, new_seconds, new_peaks = (), (), (), ()
        for r in tl.static_range(ROWS):
            a, b, c = one[r], two[r], far[r]
            for j in tl.static_range(1, TAPS):
                a, b, c = a + one[r + j], b + two[r + j], tl.maximum(c, far[r + j])
            new_totals = new_totals + (totals[r] + part[r],)
            new_firsts = new_firsts + (firsts[r] + a,)
            new_seconds = new_seconds + (seconds[r] + b,)
            new_peaks = new_peaks + (tl.maximum(peaks[r], c),)
        totals, firsts, seconds, peaks = new_totals, new_firsts, new_seconds, new_peaks
    return totals, firsts, seconds, peaks


@triton.jit
def _windows(
    at, tap, level, channels, planes, rows, columns, gap_y,
    s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x,
    ROWS: tl.constexpr, TALL: tl.constexpr, REST: tl.constexpr, LANES: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Numerators, sums, squares and largest distances of ROWS windows a lane."""
    wide: tl.constexpr = level.dtype
    totals = zeros(ROWS, LANES, wide)
    firsts, seconds, peaks = totals, totals, totals
    tall = 0
    if TALL > 1:
        tall = rows // TALL
    for plane in range(channels * planes):
        channel, dz = plane // planes, plane % planes
        here, taps = at + channel * s_channel + dz * s_z, tap + channel * t_channel + dz * t_z
        for q in range(tall):
            totals, firsts, seconds, peaks = _rows(
                totals, firsts, seconds, peaks, here + q * TALL * s_y, taps + q * TALL * t_y,
                level, columns, s_x, t_x, gap_y * s_y, t_y, ROWS, TALL, LANES, UNIT,
            )  # fmt: skip
        if REST > 0:
            totals, firsts, seconds, peaks = _rows(
                totals, firsts, seconds, peaks, here + tall * TALL * s_y, taps + tall * TALL * t_y,
                level, columns, s_x, t_x, gap_y * s_y, t_y, ROWS, REST, LANES, UNIT,
            )  # fmt: skip
        if REST < 0:
            for dy in range(tall * TALL, rows):
                totals, firsts, seconds, peaks = _rows(
                    totals, firsts, seconds, peaks, here + dy * s_y, taps + dy * t_y,
                    level, columns, s_x, t_x, gap_y * s_y, t_y, ROWS, 1, LANES, UNIT,
                )  # fmt: skip
    return totals, firsts, seconds, peaks


@triton.jit
def _level(at, planes, rows, columns, gap_y, s_z, s_y, s_x, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """The median of three elements that a lane's windows see, of those that are finite."""
    middle = at + planes // 2 * s_z + (((ROWS - 1) * gap_y + rows) // 2) * s_y
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
def _moments_about(
    at, tap, level, scale, channels, planes, rows, columns,
    s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x, LANES: tl.constexpr,
):  # fmt: skip
    """Numerator, sum and sum of squares of a window about a level, both scaled first."""
    wide: tl.constexpr = level.dtype
    total, lost = zeros(3, LANES, wide), zeros(3, LANES, wide)
    for line in range(channels * planes * rows):
        dy, plane = line % rows, line // rows
        channel, dz = plane // planes, plane % planes
        here = at + channel * s_channel + dz * s_z + dy * s_y
        taps = tap + channel * t_channel + dz * t_z + dy * t_y
        for first in range(0, columns, _COLUMNS):
            part = zeros(3, LANES, wide)
            for c in range(first, min(first + _COLUMNS, columns)):
                x = tl.load(here + c * s_x).to(wide) * scale - level
                t = tl.load(taps + c * t_x).to(wide)
                part = (tl.fma(x, t, part[0]), part[1] + x, tl.fma(x, x, part[2]))
            total, lost = compensated(total, lost, part, 3)
    return total[0] - lost[0], total[1] - lost[1], total[2] - lost[2]


@triton.jit
def _scale(span):
    """A power of two that brings a span of any size to where its square is in range."""
    if span.dtype == tl.float64:
        scale = tl.where(span < 1e-280, 2.0**900, tl.where(span > 1e120, 2.0**-800, 1.0))
        return tl.where((span < 1e-120) & (span >= 1e-280), 2.0**450, scale)
    else:
        scale = tl.where(span < 1e-30, 2.0**120, tl.where(span > 1e12, 2.0**-80, 1.0))
        return tl.where((span < 1e-12) & (span >= 1e-30), 2.0**60, scale)


@triton.jit
def _by_definition(
    at, tap, count, eps, channels, planes, rows, columns,
    s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x,
    LANES: tl.constexpr, WIDE: tl.constexpr, ZERO_MEAN: tl.constexpr,
):  # fmt: skip
    """The score of one window a lane in three passes: extremes, mean, sums about the mean."""
    low = tl.full([LANES], float("inf"), WIDE)
    high = tl.full([LANES], float("-inf"), WIDE)
    for line in range(channels * planes * rows):
        dy, plane = line % rows, line // rows
        here = at + plane // planes * s_channel + plane % planes * s_z + dy * s_y
        for c in range(columns):
            x = tl.load(here + c * s_x).to(WIDE)
            low, high = tl.minimum(low, x), tl.maximum(high, x)
    if ZERO_MEAN:
        flat = low == high
        span = high * 0.5 - low * 0.5
    else:
        flat = (low == 0.0) & (high == 0.0)
        span = tl.maximum(tl.abs(low), tl.abs(high))
    scale = tl.where(flat, 1.0, _scale(span)).to(WIDE)
    level = tl.zeros([LANES], WIDE)
    if ZERO_MEAN:
        level = low * scale
        _, first, _ = _moments_about(
            at, tap, level, scale, channels, planes, rows, columns,
            s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x, LANES,
        )  # fmt: skip
        level += _mean(first, count)
    numerator, first, second = _moments_about(
        at, tap, level, scale, channels, planes, rows, columns,
        s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x, LANES,
    )  # fmt: skip
    left = _mean(first, count)
    energy = _mean(second, count)
    if ZERO_MEAN:
        energy -= left * left
    score = _score(numerator, tl.maximum(energy, 0.0), count, eps * scale * scale)
    # NaN is in the sums whatever the extremes say; so is an infinity.
    strange = (first - first) != 0.0
    return tl.where(strange, float("nan"), tl.where(flat, 0.0, score))


# Sizes are no part of what is compiled: a new shape needs no new kernel.
_SIZES = [
    "blocks", "templates", "inputs", "channels", "w_z", "w_y", "w_x", "o_z", "o_y", "o_x",
    "d_z", "d_y", "d_x", "s_lead", "s_channel", "s_z", "s_y", "s_x",
    "t_pair", "t_template", "t_channel", "t_z", "t_y", "t_x", "eps_bits", "trusted",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _score_kernel(
    source, taps, out,
    blocks, templates, inputs, channels, w_z, w_y, w_x, o_z, o_y, o_x, d_z, d_y, d_x,
    s_lead, s_channel, s_z, s_y, s_x, t_pair, t_template, t_channel, t_z, t_y, t_x,
    eps_bits, trusted,
    ROWS: tl.constexpr, TALL: tl.constexpr, REST: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr, ZERO_MEAN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A block of scores of one lead and one template.

    source is (lead, channel, i), taps are (pair, template, channel, w), out is (lead, template, o).
    """
    pid = tl.program_id(0)
    template, pid = pid % templates, pid // templates
    lead, block = (pid // blocks).to(tl.int64), pid % blocks
    s_channel, t_channel = s_channel.to(tl.int64), t_channel.to(tl.int64)
    s_z, s_y, s_x = s_z.to(tl.int64), s_y.to(tl.int64), s_x.to(tl.int64)
    t_z, t_y, t_x = t_z.to(tl.int64), t_y.to(tl.int64), t_x.to(tl.int64)
    number = block * LANES + tl.arange(0, LANES)
    lanes = o_z * ((o_y + ROWS - 1) // ROWS) * o_x
    z, y, x, owned = place(tl.minimum(number, lanes - 1), o_y, o_x, ROWS)
    at = source + lead * s_lead + z * d_z * s_z + y * d_y * s_y + x * d_x * s_x
    tap = taps + lead // inputs * t_pair + template * t_template.to(tl.int64)
    to = out + (((lead * templates + template) * o_z + z) * o_y + y) * o_x + x
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True).to(WIDE)
    count = (channels * w_z * w_y * w_x).to(WIDE)
    lowest: tl.constexpr = 1e-15 if tl.float32 == WIDE else 1e-140
    highest: tl.constexpr = 1e15 if tl.float32 == WIDE else 1e140

    level = tl.zeros([LANES], WIDE)
    if ZERO_MEAN:
        level = _level(at, w_z, w_y, w_x, d_y, s_z, s_y, s_x, ROWS, WIDE)
    totals, firsts, seconds, peaks = _windows(
        at, tap, level, channels, w_z, w_y, w_x, d_y,
        s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x, ROWS, TALL, REST, LANES, UNIT,
    )  # fmt: skip
    again = tl.zeros([LANES], tl.int32)
    for r in tl.static_range(ROWS):
        square = _mean(seconds[r], count)
        energy = square
        if ZERO_MEAN:
            mean = _mean(firsts[r], count)
            energy = tl.maximum(square - mean * mean, 0.0)
        flat = peaks[r] == 0.0
        known = flat | ((peaks[r] > lowest) & (peaks[r] < highest) & (square <= trusted * energy))
        # A NaN is in the sum, but in no comparison.
        strange = (firsts[r] != firsts[r]) & (peaks[r] < highest)
        score = _score(totals[r], tl.where(flat, 1.0, energy), count, eps)
        score = tl.where(strange, float("nan"), tl.where(flat, 0.0, score))
        written = (number < lanes) & (r >= owned)
        known = known | strange
        tl.store(to + r * o_x, score, written & known)
        again = again | tl.where(written & (known == 0), 1 << r, 0)
    if tl.max(again, 0) > 0:
        for below in range(ROWS):
            wanted = (again >> below) & 1
            if tl.max(wanted, 0) > 0:
                score = _by_definition(
                    at + below * d_y * s_y, tap, count, eps, channels, w_z, w_y, w_x,
                    s_channel, s_z, s_y, s_x, t_channel, t_z, t_y, t_x, LANES, WIDE, ZERO_MEAN,
                )  # fmt: skip
                tl.store(to + below * o_x, score, wanted > 0)


def bits(value: float) -> int:
    """A float64 as an integer argument; a float argument would be a float32."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


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
    taps = leads.template(template.to(wide), ndim + 1)
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
    _score_kernel[(programs,)](
        source, taps, out,
        blocks, leads.templates, leads.inputs, source.shape[1], *window, *output, *steps,
        *source.stride()[:2], *three(source.stride()[2:], 0),
        *taps.stride()[:3], *three(taps.stride()[3:], 0), bits(eps), trusted,
        ROWS=rows,
        TALL=tall if steps[1] == 1 else 1,
        REST=window[1] % tall if steps[1] == 1 else -1,
        LANES=lanes,
        WIDE=wide_type(wide),
        ZERO_MEAN=zero_mean,
        UNIT=source.stride()[-1] == 1,
        num_warps=4,
    )  # fmt: skip
    return leads.restored(out, ndim)
