"""Scores and moments of windows with weights from their elements, for small windows on CUDA.

A lane computes one window in one pass, in float64 and about an element of the window, or about the
mean of such elements of other lanes where its own has no weight. A window whose squares about this
level are large relative to its variance is doubtful, and computed again as `exact` does, by the
same program: the host decides nothing from data.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan import rounding
from ..values import MOST_LANES, bits, three
from .factors import Limits, Pair
from .records import MOMENTS, PLANES, STATISTICS, Target, Totals, Variant, Windows
from .windows import added, mean_of, row_of, settle, sums_about, write_group, write_scores

_BLOCK = 128
# Share of an allowed error that rounding of the sums may take, for each of their relative errors.
_SHARE = 1 / 8


@triton.jit
def _levels(w, group, heaviest, FORM: tl.constexpr):
    """The element of each window under the template's heaviest, or else a mean of such elements."""
    line, dx = heaviest // w.size[2], heaviest % w.size[2]
    at = row_of(w.source, w.pitch, w, group, line) + dx * w.pitch[3]
    x = tl.load(at).to(tl.float64)
    good = tl.abs(x) < float("inf")
    if FORM.there:
        there = row_of(w.there, w.there_pitch, w, group, line) + dx * w.there_pitch[3]
        good = good & (tl.load(there).to(tl.float64) > 0.0)
    x = tl.where(good, x, 0.0)
    return tl.where(good, x, tl.sum(x, 0) / tl.maximum(tl.sum(good.to(tl.float64), 0), 1.0))


_NUMBERS = [
    "blocks", "templates", "inputs", "groups", "channels", "w_z", "w_y", "w_x", "o_z", "o_y", "o_x",
    "d_z", "d_y", "d_x", "s_lead", "s_channel", "s_z", "s_y", "s_x", "g_lead", "g_channel", "g_z",
    "g_y", "g_x", "eps_bits", "least_bits", "trusted",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def weighted_kernel(
    source, there, factors, sums, totals, heaviest, base, out,
    blocks, templates, inputs, groups, channels, w_z, w_y, w_x, o_z, o_y, o_x, d_z, d_y, d_x,
    s_lead, s_channel, s_z, s_y, s_x, g_lead, g_channel, g_z, g_y, g_x,
    eps_bits, least_bits, trusted, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of windows of an item with one template; out is (maps, item, template, groups, o)."""
    pid = tl.program_id(0)
    k, pid = pid % templates, pid // templates
    lead, block = (pid // blocks).to(tl.int64), pid % blocks
    number = block * BLOCK + tl.arange(0, BLOCK)
    positions = o_z * o_y * o_x
    keep = number < positions
    number = tl.minimum(number, positions - 1)
    x, y, z = number % o_x, number // o_x % o_y, number // o_x // o_y
    x, y, z = (x * d_x).to(tl.int64), (y * d_y).to(tl.int64), (z * d_z).to(tl.int64)
    template = lead // inputs * templates + k
    pitch, there_pitch = (s_channel, s_z, s_y, s_x), (g_channel, g_z, g_y, g_x)
    elements = channels * w_z * w_y * w_x
    w = Windows(
        source + lead * s_lead + z * s_z + y * s_y + x * s_x, pitch,
        there + lead * g_lead + z * g_z + y * g_y + x * g_x, there_pitch,
        factors + template * groups * PLANES * elements, groups, channels, (w_z, w_y, w_x),
    )  # fmt: skip
    item = lead * templates + k
    maps = 1 if FORM.result != STATISTICS else groups
    pitch_of_maps = (tl.num_programs(0) // blocks).to(tl.int64) * maps * positions
    none = tl.zeros([BLOCK], tl.float64)
    least = least_bits.to(tl.int64).to(tl.float64, bitcast=True) * tl.load(totals + template)
    least += none
    to = Target(
        out, pitch_of_maps, item * maps * positions + number, positions, base + lead * groups,
        eps_bits.to(tl.int64).to(tl.float64, bitcast=True), least,
    )  # fmt: skip
    found, squares, template_squares = Totals(none, none, none, none), none, none
    for group in range(groups):
        level = none
        if FORM.zero_mean:
            level = _levels(w, group, tl.load(heaviest + template * groups + group), FORM)
        count, total, square, product, other, energy = sums_about(w, group, level, FORM)
        if not FORM.there:
            fixed = sums + (template * groups + group) * 3
            count = none + tl.load(fixed)
            other, energy = none + tl.load(fixed + 1), none + tl.load(fixed + 2)
        squares += square
        template_squares += energy
        mean, template_mean = none, none
        if FORM.zero_mean:
            mean, template_mean = mean_of(total, count), mean_of(other, count)
            square = tl.maximum(square - total * mean, 0.0)
            energy = tl.maximum(energy - other * template_mean, 0.0)
            product -= total * template_mean
        here = Totals(count, square, energy, product)
        write_group(to, group, here, level + mean, template_mean, 1.0, keep, keep & False, FORM)
        found = added(found, here)
    finite = (squares - squares) == 0.0
    # Of float64, squares may have left its range.
    flat = finite & (squares == 0.0) & (not FORM.wide)
    good = finite & (squares <= trusted * found.energy) & (squares > 0.0)
    if FORM.result != MOMENTS:
        template_flat = template_squares == 0.0
        good = good & (template_flat | (template_squares <= trusted * found.template_energy))
        flat = flat | (finite & template_flat)
    # A template with elements that are not finite has no weight that is a number.
    bad = keep & (least != least)
    known = flat | good | (finite & (found.count < least)) | bad
    write_scores(to, found, 1.0, keep, bad, FORM)
    settle(w, to, keep & (known == 0), FORM)


def _trusted(pair: Pair, allowed: float) -> float:
    """Largest ratio of squares about a level to those about the mean that rounding leaves good."""
    channels, *window = pair.factors.planes.shape[4:]
    terms = window[-1] + channels * math.prod(window[:-1])
    return allowed * _SHARE / (terms * rounding.unit(torch.float64))


def by_sums(pair: Pair, out: Tensor, form: Variant, limits: Limits) -> bool:
    """Fills maps (maps, items, templates, groups, *positions), if 32 bits can number them."""
    factors, leads, output = pair.factors, pair.leads, three(pair.positions, 1)
    blocks = -(-math.prod(output) // _BLOCK)
    programs = blocks * leads.paired * leads.inputs * leads.templates
    if max(programs, math.prod(output), factors.planes[0, 0].numel()) > MOST_LANES:
        return False
    there = pair.input if pair.there is None else pair.there
    base = factors.total if pair.level is None else pair.level
    weighted_kernel[(programs,)](
        pair.input, there, factors.planes, factors.sums, factors.total, factors.heaviest, base, out,
        blocks, leads.templates, leads.inputs, pair.groups, factors.planes.shape[4],
        *three(pair.window, 1), *output, *three(pair.stride, 1), *pitches(pair.input),
        *pitches(there), bits(limits.eps), bits(limits.least), _trusted(pair, limits.allowed),
        FORM=form, BLOCK=_BLOCK, num_warps=4, maxnreg=128,
    )  # fmt: skip
    return True


def pitches(x: Tensor) -> tuple[int, ...]:
    """Of items, channels, planes, rows and columns of (items, C, *size)."""
    return (*x.stride()[:2], *three(x.stride()[2:], 0))
