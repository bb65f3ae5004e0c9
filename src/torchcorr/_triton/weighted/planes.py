"""Tiles of what sums with weights are transforms of: the weighted input, its squares, its weights.

As `tiles.cut`, but each group of channels of a tile has a level and a scale of its own, and only
elements with weight count. The last kernel multiplies spectra, and reads each of them once for all
products.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan.tiling import TileStats, Tiling
from ..tiles.cut import PART, Cut, elements_of, parts_of, pivot_of, power_of_two, total_of
from ..tiles.records import LEVEL, MEAN_SQUARE, NOT_FINITE, SCALE, STATS
from ..values import three
from .records import MOMENTS, Variant

_NUMBERS = [
    "groups", "channels", "parts", "item", "channel", "plane", "row", "there_item", "there_channel",
    "there_plane", "there_row", "size_z", "size_y", "size_x", "grid_z",
    "grid_y", "grid_x", "step_z", "step_y", "step_x", "extent_z", "extent_y", "extent_x",
    "length_z", "length_y", "length_x",
]  # fmt: skip
_BLOCK = 256


@triton.jit
def _read(source, there, unit, number, groups, cuts, FORM: tl.constexpr):
    """Elements of a unit, their weights, where either counts, and an element near most others."""
    of_input, of_weights = cuts
    tile, group = unit // groups, unit % groups
    source += (group * of_input.channels).to(tl.int64) * of_input.pitch[1]
    x, inside = elements_of(source, tile, number, of_input)
    pivot = 0.0
    if FORM.zero_mean:
        pivot = pivot_of(source, tile, of_input)
    g = inside.to(tl.float64)
    if FORM.there:
        there += (group * of_input.channels).to(tl.int64) * of_weights.pitch[1]
        g, _ = elements_of(there, tile, number, of_weights)
        if FORM.zero_mean:
            pivot = tl.where(pivot_of(there, tile, of_weights) > 0.0, pivot, 0.0)
    return x, g, pivot


@triton.jit
def _cuts(channels, pitch, there_pitch, size, grid, step, extent, length):
    """Of the input and of its weights."""
    none = (step[0] * 0, step[0] * 0, step[0] * 0)
    return (
        Cut(channels, pitch, size, grid, step, none, extent, length),
        Cut(channels, there_pitch, size, grid, step, none, extent, length),
    )


@triton.jit(do_not_specialize=_NUMBERS)
def plane_sums_kernel(
    source, there, sums, groups, channels, parts, item, channel, plane, row,
    there_item, there_channel, there_plane, there_row, size_z, size_y, size_x,
    grid_z, grid_y, grid_x, step_z, step_y, step_x, extent_z, extent_y, extent_x,
    length_z, length_y, length_x, FORM: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Of a part of a unit: elements that are finite and that are not, sum and sum of squares."""
    unit, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    cuts = _cuts(
        channels, (item, channel, plane, row),
        (there_item, there_channel, there_plane, there_row),
        (size_z, size_y, size_x), (grid_z, grid_y, grid_x), (step_z, step_y, step_x),
        (extent_z, extent_y, extent_x), (length_z, length_y, length_x),
    )  # fmt: skip
    x, g, pivot = _read(source, there, unit, part * PART + tl.arange(0, PART), groups, cuts, FORM)
    counts = (g > 0.0) & (tl.abs(x) < float("inf"))
    d = tl.where(counts, x - pivot, 0.0)
    at = sums + tl.program_id(0).to(tl.int64) * 4
    tl.store(at, tl.sum(counts.to(tl.float64), 0))
    tl.store(at + 1, tl.sum(((g > 0.0) & (counts == 0)).to(tl.float64), 0))
    tl.store(at + 2, tl.sum(d, 0))
    tl.store(at + 3, tl.sum(d * d, 0))


@triton.jit(do_not_specialize=_NUMBERS)
def gather_planes_kernel(
    source, there, sums, planes, powers, stats, groups, channels, parts, item, channel, plane, row,
    there_item, there_channel, there_plane, there_row,
    size_z, size_y, size_x, grid_z, grid_y, grid_x, step_z, step_y, step_x,
    extent_z, extent_y, extent_x, length_z, length_y, length_x,
    FORM: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A part of a unit's planes, the sums of their squares, and the unit's stats."""
    unit, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    cuts = _cuts(
        channels, (item, channel, plane, row),
        (there_item, there_channel, there_plane, there_row),
        (size_z, size_y, size_x), (grid_z, grid_y, grid_x), (step_z, step_y, step_x),
        (extent_z, extent_y, extent_x), (length_z, length_y, length_x),
    )  # fmt: skip
    number = part * PART + tl.arange(0, PART)
    x, g, pivot = _read(source, there, unit, number, groups, cuts, FORM)
    sums_of_unit = sums + unit.to(tl.int64) * parts * 4
    count = tl.maximum(total_of(sums_of_unit, parts, 4, PARTS), 1.0)
    first = total_of(sums_of_unit + 2, parts, 4, PARTS) / count
    energy = total_of(sums_of_unit + 3, parts, 4, PARTS) / count
    level = 0.0
    if FORM.zero_mean:
        # A float32, so that elements near it lose nothing.
        rounded = (pivot + first).to(tl.float32).to(tl.float64)
        level = tl.where(tl.abs(rounded) < float("inf"), rounded, pivot)
        off = level - pivot
        energy = tl.maximum(energy - 2 * off * first + off * off, 0.0)
    scale = power_of_two(tl.sqrt(energy))
    good = (g > 0.0) & (tl.abs(x) < float("inf"))
    d = tl.where(good, (x - level) * scale, 0.0)
    volume = channels.to(tl.int64) * length_z * length_y * length_x
    keep = number < volume
    COUNT: tl.constexpr = 3 if FORM.there else 2
    to = planes + unit.to(tl.int64) * COUNT * volume + number
    power = powers + tl.program_id(0).to(tl.int64) * COUNT
    seen = g * d
    tl.store(to, seen, mask=keep)
    tl.store(power, tl.sum(seen * seen, 0))
    square = seen * d
    tl.store(to + volume, square, mask=keep)
    tl.store(power + 1, tl.sum(square * square, 0))
    if FORM.there:
        tl.store(to + 2 * volume, g, mask=keep)
        tl.store(power + 2, tl.sum(g * g, 0))
    if part == 0:
        at = stats + unit * STATS
        tl.store(at + LEVEL, level)
        tl.store(at + SCALE, scale)
        tl.store(at + MEAN_SQUARE, energy * scale * scale)
        tl.store(at + NOT_FINITE, total_of(sums_of_unit + 1, parts, 4, PARTS))


@triton.jit
def _times(total, left, at, inside):
    """total + left * at, of complex numbers."""
    a, b = left
    u, v = tl.load(at, mask=inside, other=0.0), tl.load(at + 1, mask=inside, other=0.0)
    return total[0] + (a * u - b * v), total[1] + (a * v + b * u)


@triton.jit
def _stored(at, total, step, inside):
    tl.store(at, total[0], mask=inside)
    tl.store(at + 1, total[1], mask=inside)
    return at + step


@triton.jit(do_not_specialize=["templates", "groups", "channels", "size", "blocks", "units"])
def plane_products_kernel(
    planes, factors, out, templates, groups, channels, size, blocks, units, FORM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of frequencies of all products of a unit with a template, summed over channels.

    planes are (units, 2 or 3, C, size), factors (pairs, templates, groups, 1 or 3, C, size), out is
    (units, templates, products, size), as pairs of numbers. `units` is the number of those of a
    pair. The order of products is that of `sums_of_window`.
    """
    pid = tl.program_id(0)
    number = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = number < size
    k, unit = pid // blocks % templates, (pid // blocks // templates).to(tl.int64)
    pair, group = unit // units, unit % groups
    COUNT: tl.constexpr = 3 if FORM.there else 2
    KINDS: tl.constexpr = 1 if FORM.result == MOMENTS else 3
    volume = channels.to(tl.int64) * size * 2
    left = planes + unit * COUNT * volume
    right = factors + ((pair * templates + k) * groups + group) * KINDS * volume
    none = (tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64))
    square, total, count, product, energy, other = none, none, none, none, none, none
    for c in range(channels):
        at = (tl.cast(c, tl.int64) * size + number) * 2
        x = (
            tl.load(left + at, mask=inside, other=0.0),
            tl.load(left + at + 1, mask=inside, other=0.0),
        )
        xx = (
            tl.load(left + volume + at, mask=inside, other=0.0),
            tl.load(left + volume + at + 1, mask=inside, other=0.0),
        )
        square = _times(square, xx, right + at, inside)
        if FORM.zero_mean:
            total = _times(total, x, right + at, inside)
        if FORM.result != MOMENTS:
            product = _times(product, x, right + volume + at, inside)
        if FORM.there:
            g = (
                tl.load(left + 2 * volume + at, mask=inside, other=0.0),
                tl.load(left + 2 * volume + at + 1, mask=inside, other=0.0),
            )
            count = _times(count, g, right + at, inside)
            if FORM.result != MOMENTS:
                energy = _times(energy, g, right + 2 * volume + at, inside)
                if FORM.zero_mean:
                    other = _times(other, g, right + volume + at, inside)
    step = size.to(tl.int64) * 2
    to = out + (unit * templates + k) * products_in(FORM) * step + number * 2
    to = _stored(to, square, step, inside)
    if FORM.zero_mean:
        to = _stored(to, total, step, inside)
    if FORM.there:
        to = _stored(to, count, step, inside)
    if FORM.result != MOMENTS:
        to = _stored(to, product, step, inside)
        if FORM.there:
            to = _stored(to, energy, step, inside)
            if FORM.zero_mean:
                to = _stored(to, other, step, inside)


@triton.jit
def products_in(FORM: tl.constexpr):
    """How many sums there are of a window."""
    count = 1
    if FORM.zero_mean:
        count += 1
    if FORM.there:
        count += 1
    if FORM.result != MOMENTS:
        count += 1
        if FORM.there:
            count += 1
            if FORM.zero_mean:
                count += 1
    return count


def products_of(form: Variant) -> int:
    """How many sums there are of a window."""
    zero_mean, there = bool(form.zero_mean.value), bool(form.there.value)
    of_template = 0 if form.result.value == MOMENTS.value else 1 + there * (1 + zero_mean)
    return 1 + zero_mean + there + of_template


@dataclass(frozen=True)
class Planes:
    """Those of units (items, tiles, groups): what is transformed, and what is known of it."""

    values: Tensor  # (units, 2 or 3, channels of a group, *length)
    powers: Tensor  # sums of squares of parts of a unit, (units, parts, 2 or 3)
    stats: TileStats  # of units


def gather_planes(
    x: Tensor, there: Tensor | None, tiling: Tiling, groups: int, form: Variant
) -> Planes:
    """All tiles of items (I, C, *size) with weights of the same shape; rows of both are dense."""
    items, channels = x.shape[0], x.shape[1] // groups
    units, volume = items * tiling.tiles * groups, channels * math.prod(tiling.length)
    parts, at_once = parts_of(volume)
    count = 2 if there is None else 3
    weights = x if there is None else there
    step = [m * s for m, s in zip(tiling.outputs, tiling.stride, strict=True)]
    numbers = (
        groups, channels, parts, *x.stride()[:2], *three(x.stride()[2:], 0)[:2],
        *weights.stride()[:2], *three(weights.stride()[2:], 0)[:2], *three(tiling.size, 1),
        *three(tiling.grid, 1), *three(step, 1), *three(tiling.extent, 1), *three(tiling.length, 1),
    )  # fmt: skip
    sums = x.new_empty((units * parts, 4), dtype=torch.float64)
    powers = sums.new_empty((units, parts, count))
    values = sums.new_empty((units, count, channels, *tiling.length))
    stats = TileStats(sums.new_empty((units, 4)))
    grid = (units * parts,)
    plane_sums_kernel[grid](x, weights, sums, *numbers, FORM=form, PART=PART)
    gather_planes_kernel[grid](
        x, weights, sums, values, powers, stats.rows, *numbers, FORM=form, PART=PART, PARTS=at_once
    )
    return Planes(values, powers, stats)


def multiply(planes: Tensor, factors: Tensor, units_of_pair: int, form: Variant) -> Tensor:
    """Spectra (units, templates, products, ...) from those of planes (units, 2 or 3, C, ...) and of
    factors (pairs, templates, groups, 1 or 3, C, ...)."""
    units, channels, half = planes.shape[0], planes.shape[2], planes.shape[3:]
    templates, groups = factors.shape[1:3]
    size = half.numel()
    blocks = -(-size // _BLOCK)
    out = planes.new_empty((units, templates, products_of(form), *half))
    plane_products_kernel[(units * templates * blocks,)](
        *(torch.view_as_real(y) for y in (planes, factors, out)),
        templates, groups, channels, size, blocks, units_of_pair, FORM=form, BLOCK=_BLOCK,
    )  # fmt: skip
    return out
