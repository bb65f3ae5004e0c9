"""Tiles cut out of an input, centred and scaled, in two launches.

A tile's level and scale come from sums over parts of 2048 elements. Every program that writes a
part of the tile adds these up again, so that nothing waits for the host. Cutting reads the input
twice and writes the tiles once.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan.tiling import TileStats, Tiling
from ..values import three
from .records import LEVEL, MEAN_SQUARE, NOT_FINITE, SCALE, STATS

PART = 2048
_NUMBERS = [
    "channels", "parts", "item", "channel", "plane", "row", "size_z", "size_y", "size_x",
    "grid_z", "grid_y", "grid_x", "step_z", "step_y", "step_x", "pad_z", "pad_y", "pad_x",
    "extent_z", "extent_y", "extent_x", "length_z", "length_y", "length_x",
]  # fmt: skip


class Cut(NamedTuple):
    """Items (channels, *size) and how tiles are cut out of them: a `Tiling` of three axes."""

    channels: Any
    pitch: Any  # of items, channels, planes and rows
    size: Any
    grid: Any
    step: Any
    pad: Any
    extent: Any
    length: Any


@triton.jit
def elements_of(source, tile, number, cut):
    """Elements `number` of a tile (C, *length) in float64, and which of them the input has."""
    grid, step, pad, extent, size = cut.grid, cut.step, cut.pad, cut.extent, cut.size
    item, channel, plane, row = cut.pitch
    length = cut.length
    per_item = grid[0] * grid[1] * grid[2]
    lead = (tile // per_item).to(tl.int64)
    t = tile % per_item
    volume = length[0] * length[1] * length[2]
    c, rest = number // volume, number % volume
    z, rest = rest // (length[1] * length[2]), rest % (length[1] * length[2])
    y, x = rest // length[2], rest % length[2]
    inside = (c < cut.channels) & (z < extent[0]) & (y < extent[1]) & (x < extent[2])
    z += t // (grid[1] * grid[2]) * step[0] - pad[0]
    y += t // grid[2] % grid[1] * step[1] - pad[1]
    x += t % grid[2] * step[2] - pad[2]
    inside = inside & (z >= 0) & (z < size[0]) & (y >= 0) & (y < size[1]) & (x >= 0) & (x < size[2])
    at = lead * item + c.to(tl.int64) * channel + z.to(tl.int64) * plane + y.to(tl.int64) * row + x
    return tl.load(source + at, mask=inside, other=0).to(tl.float64), inside


@triton.jit
def pivot_of(source, tile, cut):
    """The first element of a tile, for squares that do not cancel; 0 if it is not finite."""
    grid, step, pad, size = cut.grid, cut.step, cut.pad, cut.size
    item, _, plane, row = cut.pitch
    per_item = grid[0] * grid[1] * grid[2]
    t = tile % per_item
    z = tl.minimum(tl.maximum(t // (grid[1] * grid[2]) * step[0] - pad[0], 0), size[0] - 1)
    y = tl.minimum(tl.maximum(t // grid[2] % grid[1] * step[1] - pad[1], 0), size[1] - 1)
    x = tl.minimum(tl.maximum(t % grid[2] * step[2] - pad[2], 0), size[2] - 1)
    at = (tile // per_item).to(tl.int64) * item + z.to(tl.int64) * plane + y.to(tl.int64) * row + x
    value = tl.load(source + at).to(tl.float64)
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit(do_not_specialize=_NUMBERS)
def tile_sums_kernel(
    source, sums, channels, parts, item, channel, plane, row, size_z, size_y, size_x,
    grid_z, grid_y, grid_x, step_z, step_y, step_x, pad_z, pad_y, pad_x,
    extent_z, extent_y, extent_x, length_z, length_y, length_x,
    CENTRED: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Of a part of a tile: elements that are finite and that are not, sum and sum of squares."""
    tile, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    cut = Cut(
        channels, (item, channel, plane, row), (size_z, size_y, size_x), (grid_z, grid_y, grid_x),
        (step_z, step_y, step_x), (pad_z, pad_y, pad_x), (extent_z, extent_y, extent_x),
        (length_z, length_y, length_x),
    )  # fmt: skip
    x, inside = elements_of(source, tile, part * PART + tl.arange(0, PART), cut)
    pivot = 0.0
    if CENTRED:
        pivot = pivot_of(source, tile, cut)
    counts = inside & (tl.abs(x) < float("inf"))
    d = tl.where(counts, x - pivot, 0.0)
    at = sums + tl.program_id(0).to(tl.int64) * 4
    tl.store(at, tl.sum(counts.to(tl.float64), 0))
    tl.store(at + 1, tl.sum((inside & ~counts).to(tl.float64), 0))
    tl.store(at + 2, tl.sum(d, 0))
    tl.store(at + 3, tl.sum(d * d, 0))


@triton.jit
def total_of(sums, parts, PITCH: tl.constexpr, PARTS: tl.constexpr):
    """A sum over the parts of a tile, always in the same order."""
    lane = tl.arange(0, PARTS)
    total = tl.zeros([PARTS], tl.float64)
    for first in range(0, parts, PARTS):
        total += tl.load(sums + (first + lane) * PITCH, mask=first + lane < parts, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def power_of_two(v):
    """The power of two that brings v into [0.5, 1); 1 for zero."""
    exponent = (v.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    wanted = tl.minimum(tl.maximum(2045 - exponent, 1), 2046)
    scale = (wanted << 52).to(tl.float64, bitcast=True)
    return tl.where(v > 0, scale, 1.0)


@triton.jit(do_not_specialize=_NUMBERS)
def gather_tiles_kernel(
    source, sums, tiles, stats, channels, parts, item, channel, plane, row, size_z, size_y, size_x,
    grid_z, grid_y, grid_x, step_z, step_y, step_x, pad_z, pad_y, pad_x,
    extent_z, extent_y, extent_x, length_z, length_y, length_x,
    CENTRED: tl.constexpr, SCALED: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A part of a tile, less its level and times its scale, 0 where not finite; and its stats."""
    tile, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    cut = Cut(
        channels, (item, channel, plane, row), (size_z, size_y, size_x), (grid_z, grid_y, grid_x),
        (step_z, step_y, step_x), (pad_z, pad_y, pad_x), (extent_z, extent_y, extent_x),
        (length_z, length_y, length_x),
    )  # fmt: skip
    number = part * PART + tl.arange(0, PART)
    x, inside = elements_of(source, tile, number, cut)
    sums_of_tile = sums + tile.to(tl.int64) * parts * 4
    count = tl.maximum(total_of(sums_of_tile, parts, 4, PARTS), 1.0)
    first = total_of(sums_of_tile + 2, parts, 4, PARTS)
    second = total_of(sums_of_tile + 3, parts, 4, PARTS)
    level = 0.0
    energy = second / count
    if CENTRED:
        pivot = pivot_of(source, tile, cut)
        # A float32, so that elements near it lose nothing.
        rounded = (pivot + first / count).to(tl.float32).to(tl.float64)
        level = tl.where(tl.abs(rounded) < float("inf"), rounded, pivot)
        off = level - pivot
        energy = tl.maximum(energy - 2 * off * (first / count) + off * off, 0.0)
    scale = count * 0 + 1
    if SCALED:
        scale = power_of_two(tl.sqrt(energy))
    d = tl.where(inside & (tl.abs(x) < float("inf")), (x - level) * scale, 0.0)
    volume = channels.to(tl.int64) * length_z * length_y * length_x
    tl.store(
        tiles + tile.to(tl.int64) * volume + number,
        d.to(tiles.dtype.element_ty),
        mask=number < volume,
    )
    if part == 0:
        at = stats + tile * STATS
        tl.store(at + LEVEL, level)
        tl.store(at + SCALE, scale)
        tl.store(at + MEAN_SQUARE, energy * scale * scale)
        tl.store(at + NOT_FINITE, total_of(sums_of_tile + 1, parts, 4, PARTS))


def parts_of(elements: int) -> tuple[int, int]:
    """Parts of a tile, and how many of them a program adds up at once."""
    parts = -(-elements // PART)
    return parts, min(1024, triton.next_power_of_2(parts))


def gather(
    x: Tensor,
    tiling: Tiling,
    working: torch.dtype,
    *,
    centred: bool,
    scaled: bool = True,
    extra: int = 0,
) -> tuple[Tensor, TileStats]:
    """All tiles (items * tiles + extra, C, *length) of items (I, C, *size) whose rows are dense.

    The scale brings the root mean square of a tile's finite elements into [0.5, 1). The `extra`
    tiles at the end are left unwritten.
    """
    items, channels = x.shape[:2]
    tiles, volume = items * tiling.tiles, channels * math.prod(tiling.length)
    parts, at_once = parts_of(volume)
    plane, row, _ = three(x.stride()[2:], 0)
    geometry = (
        *three(tiling.grid, 1),
        *three([m * s for m, s in zip(tiling.outputs, tiling.stride, strict=True)], 1),
        *three(tiling.pad, 0),
        *three(tiling.extent, 1),
        *three(tiling.length, 1),
    )
    numbers = (channels, parts, *x.stride()[:2], plane, row, *three(tiling.size, 1), *geometry)
    sums = x.new_empty((tiles * parts, 4), dtype=torch.float64)
    out = x.new_empty((tiles + extra, channels, *tiling.length), dtype=working)
    stats = TileStats(sums.new_empty((tiles, 4)))
    grid = (tiles * parts,)
    tile_sums_kernel[grid](x, sums, *numbers, CENTRED=centred, PART=PART)
    gather_tiles_kernel[grid](
        x, sums, out, stats.rows, *numbers, CENTRED=centred, SCALED=scaled, PART=PART,
        PARTS=at_once,
    )  # fmt: skip
    return out, stats
