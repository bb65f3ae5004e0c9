"""Moments of windows with weights from their elements, in float64.

`sums_about` takes one pass about any level; `exact` takes three, about an element of the window and
then about the mean, whatever the elements: equal ones deviate by exactly 0, and what has no weight
may hold anything.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..values import converted, scale_of_span
from .records import MOMENTS, PLANES, SCORES, STATISTICS, Totals


@triton.jit
def lines_of(w):
    """Rows of a group's windows, and elements of a group's template."""
    lines = w.channels * w.size[0] * w.size[1]
    return lines, lines * w.size[2]


@triton.jit
def row_of(at, pitch, w, group, line):
    """Pointers to the first element of a row."""
    plane = line // w.size[1]
    c = group * w.channels + plane // w.size[0]
    offset = c.to(tl.int64) * pitch[0] + (plane % w.size[0]).to(tl.int64) * pitch[1]
    return at + (offset + (line % w.size[1]).to(tl.int64) * pitch[2])


@triton.jit
def _rows_of(w, group, line, FORM: tl.constexpr):
    """Of the input and of its weights, or again of the input if there are none."""
    at = row_of(w.source, w.pitch, w, group, line)
    there = at
    if FORM.there:
        there = row_of(w.there, w.there_pitch, w, group, line)
    return at, there


@triton.jit
def _weight_of(w, there, dx, m, none, FORM: tl.constexpr):
    """The weight of an element in each window."""
    if FORM.there:
        return tl.load(there + dx * w.there_pitch[3]).to(tl.float64) * m
    else:
        return none + m


@triton.jit
def sums_about(w, group, level, FORM: tl.constexpr):
    """Of a group: weight, sum and squares about a level; products, sum and squares of the template.

    Rows are added up first, so that rounding grows with the sides of a window. Without weights of
    the input, those of the template are the same in all windows and are not computed.
    """
    none = tl.zeros(level.shape, tl.float64)
    count, total, square, product, other, energy = none, none, none, none, none, none
    lines, elements = lines_of(w)
    factors = w.factors + group * PLANES * elements
    for line in range(lines):
        at, there = _rows_of(w, group, line, FORM)
        count_r, total_r, square_r = none, none, none
        product_r, other_r, energy_r = none, none, none
        for dx in range(w.size[2]):
            coefficient = factors + line * w.size[2] + dx
            p = _weight_of(w, there, dx, tl.load(coefficient), none, FORM)
            x = tl.load(at + dx * w.pitch[3]).to(tl.float64) - level
            x = tl.where(p > 0.0, x, 0.0)
            seen = p * x
            total_r += seen
            square_r += seen * x
            if FORM.there:
                count_r += p
            if FORM.result != MOMENTS:
                t = tl.load(coefficient + (PLANES - 1) * elements)
                product_r += seen * t
                if FORM.there:
                    other_r += p * t
                    energy_r += p * t * t
        count, total, square = count + count_r, total + total_r, square + square_r
        product, other, energy = product + product_r, other + other_r, energy + energy_r
    return count, total, square, product, other, energy


@triton.jit
def mean_of(total, count):
    return total / tl.where(count > 0.0, count, 1.0)


@triton.jit
def _extremes(w, group, wanted, FORM: tl.constexpr):
    """Of elements with weight: the least and the greatest, the template's least, their weight, and
    whether one is not finite."""
    low = tl.full(wanted.shape, float("inf"), tl.float64)
    high = tl.full(wanted.shape, float("-inf"), tl.float64)
    none = tl.zeros(wanted.shape, tl.float64)
    template_low, count = low, none
    bad = wanted & False
    lines, elements = lines_of(w)
    factors = w.factors + group * PLANES * elements
    for line in range(lines):
        at, there = _rows_of(w, group, line, FORM)
        for dx in range(w.size[2]):
            coefficient = factors + line * w.size[2] + dx
            p = _weight_of(w, there, dx, tl.load(coefficient), none, FORM)
            live = p > 0.0
            count += p
            x = tl.load(at + dx * w.pitch[3]).to(tl.float64)
            low = tl.where(live & (x < low), x, low)
            high = tl.where(live & (x > high), x, high)
            bad = bad | (live & ((x - x) != 0.0))
            if FORM.result != MOMENTS:
                t = tl.load(coefficient + (PLANES - 1) * elements)
                template_low = tl.where(live & (t < template_low), t, template_low)
    return low, high, template_low, count, bad


@triton.jit
def not_finite(w, wanted, FORM: tl.constexpr):
    """Which windows have an element with weight that is not finite."""
    bad = wanted & False
    for group in range(w.groups):
        _, _, _, _, found = _extremes(w, group, wanted, FORM)
        bad = bad | found
    return bad


@triton.jit
def _about(w, group, level, template_level, scale, FORM: tl.constexpr):
    """Of a group: sum and squares of deviations, their products with the template's, and the sum
    and squares of these."""
    none = tl.zeros(level.shape, tl.float64)
    total, square, product, other, energy = none, none, none, none, none
    lines, elements = lines_of(w)
    factors = w.factors + group * PLANES * elements
    for line in range(lines):
        at, there = _rows_of(w, group, line, FORM)
        for dx in range(w.size[2]):
            coefficient = factors + line * w.size[2] + dx
            p = _weight_of(w, there, dx, tl.load(coefficient), none, FORM)
            x = tl.load(at + dx * w.pitch[3]).to(tl.float64) * scale - level
            x = tl.where(p > 0.0, x, 0.0)
            total += p * x
            square += p * x * x
            if FORM.result != MOMENTS:
                t = tl.load(coefficient + (PLANES - 1) * elements) - template_level
                t = tl.where(p > 0.0, t, 0.0)
                product += p * x * t
                other += p * t
                energy += p * t * t
    return total, square, product, other, energy


@triton.jit
def exact(w, to, wanted, FORM: tl.constexpr):
    """Totals of the wanted windows, the scale of their input, and which are not finite.

    Statistics and moments are written at once.
    """
    none = tl.zeros(wanted.shape, tl.float64)
    bad = wanted & False
    scale = none + 1.0
    if FORM.wide:
        span = none
        for group in range(w.groups):
            low, high, _, _, _ = _extremes(w, group, wanted, FORM)
            if FORM.zero_mean:
                one = high * 0.5 - low * 0.5
            else:
                one = tl.maximum(tl.abs(low), tl.abs(high))
            span = tl.maximum(span, tl.where(one < float("inf"), one, 0.0))
        scale = tl.where(span > 0.0, scale_of_span(span), 1.0)
    totals = Totals(none, none, none, none)
    for group in range(w.groups):
        low, high, template_low, count, found = _extremes(w, group, wanted, FORM)
        bad = bad | found
        level, template_level = none, none
        busy = wanted
        if FORM.zero_mean:
            level = tl.where(tl.abs(low) < float("inf"), low, 0.0) * scale
            template_level = tl.where(template_low < float("inf"), template_low, 0.0)
            # Nothing else is needed of flat windows, unless other groups are not flat.
            busy = wanted & ((low < high) | (w.groups > 1) | (FORM.result == STATISTICS))
        energy, template_energy, product = none, none, none
        if tl.max(busy.to(tl.int32), 0) > 0:
            if FORM.zero_mean:
                total, _, _, other, _ = _about(w, group, level, template_level, scale, FORM)
                level += mean_of(total, count)
                template_level += mean_of(other, count)
            total, energy, product, other, template_energy = _about(
                w, group, level, template_level, scale, FORM
            )
            if FORM.zero_mean:
                shift, template_shift = mean_of(total, count), mean_of(other, count)
                energy = tl.maximum(energy - total * shift, 0.0)
                template_energy = tl.maximum(template_energy - other * template_shift, 0.0)
                product -= total * template_shift
                level += shift
                template_level += template_shift
        found_here = Totals(count, energy, template_energy, product)
        write_group(to, group, found_here, level, template_level, scale, wanted, found, FORM)
        totals = added(totals, found_here)
    return totals, scale, bad


@triton.jit
def added(a, b):
    return Totals(
        a.count + b.count, a.energy + b.energy, a.template_energy + b.template_energy,
        a.product + b.product,
    )  # fmt: skip


@triton.jit
def write_group(to, group, found, mean, template_mean, scale, keep, bad, FORM: tl.constexpr):
    """Statistics or moments of a group, from an input that was multiplied by a scale."""
    if FORM.result == STATISTICS:
        at = to.out + to.at + group * to.step
        base = tl.load(to.base + group)
        tl.store(at, found.count, mask=keep)
        tl.store(at + to.pitch, mean / scale - base, mask=keep)
        tl.store(at + 2 * to.pitch, found.energy / scale / scale, mask=keep)
        tl.store(at + 3 * to.pitch, template_mean, mask=keep)
        tl.store(at + 4 * to.pitch, found.template_energy, mask=keep)
        tl.store(at + 5 * to.pitch, found.product / scale, mask=keep)
    if FORM.result == MOMENTS:
        at = to.out + to.at
        live = (found.count > 0.0) & (found.count >= to.least)
        count = tl.where(live, found.count, 0.0)
        var = tl.where(live, mean_of(found.energy, count) / scale / scale, 0.0)
        mean = tl.where(live, mean / scale, 0.0)
        tl.store(at, count, mask=keep)
        tl.store(at + to.pitch, tl.where(bad, float("nan"), mean), mask=keep)
        tl.store(at + 2 * to.pitch, tl.where(bad, float("nan"), var), mask=keep)


@triton.jit
def write_scores(to, found, scale, keep, bad, FORM: tl.constexpr):
    """Scores, 0 where a window is flat or has too little weight."""
    if FORM.result == SCORES:
        live = (found.energy > 0.0) & (found.template_energy > 0.0) & (found.count >= to.least)
        soft = found.energy + to.eps * scale * scale * found.count
        size = tl.sqrt(tl.where(live, soft, 1.0))
        size = size * tl.sqrt(tl.where(live, found.template_energy, 1.0))
        score = found.product / size
        score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
        score = tl.where(bad, float("nan"), tl.where(live, score, 0.0))
        tl.store(to.out + to.at, converted(score, to.out.dtype.element_ty), mask=keep)


@triton.jit
def settle(w, to, doubtful, FORM: tl.constexpr):
    """Computes doubtful windows of a block once more, from their elements."""
    if tl.max(doubtful.to(tl.int32), 0) > 0:
        totals, scale, bad = exact(w, to, doubtful, FORM)
        write_scores(to, totals, scale, doubtful, bad, FORM)
