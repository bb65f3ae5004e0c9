"""Tiles for transforms: cut out, centred and scaled in two launches, and what their sums hold.

A tile's level and scale come from sums of 2048 elements each, which every program that writes a
part of the tile adds up for itself: nothing waits for the host. Cutting reads the input twice and
writes the tiles once; the noise of a tile (math.md, noise) reads its sums once, in one launch if
they are at most 65536.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan.tiling import Tiling
from ..direct.correlate import three

PART = 2048
# Sums of a tile that one program looks through; of more, parts are looked through first.
_WHOLE = 1 << 16
_LANES = 8192
_NUMBERS = [
    "channels", "parts", "item", "channel", "plane", "row", "size_z", "size_y", "size_x",
    "grid_z", "grid_y", "grid_x", "step_z", "step_y", "step_x", "pad_z", "pad_y", "pad_x",
    "extent_z", "extent_y", "extent_x", "length_z", "length_y", "length_x",
]  # fmt: skip


@triton.jit
def _elements(
    source, tile, number, channels, item, channel, plane, row, size, grid, step, pad, extent,
    length,
):  # fmt: skip
    """Elements `number` of a tile (C, *length) in float64, and which of them the input has."""
    per_item = grid[0] * grid[1] * grid[2]
    lead = (tile // per_item).to(tl.int64)
    t = tile % per_item
    volume = length[0] * length[1] * length[2]
    c, rest = number // volume, number % volume
    z, rest = rest // (length[1] * length[2]), rest % (length[1] * length[2])
    y, x = rest // length[2], rest % length[2]
    inside = (c < channels) & (z < extent[0]) & (y < extent[1]) & (x < extent[2])
    z += t // (grid[1] * grid[2]) * step[0] - pad[0]
    y += t // grid[2] % grid[1] * step[1] - pad[1]
    x += t % grid[2] * step[2] - pad[2]
    inside = inside & (z >= 0) & (z < size[0]) & (y >= 0) & (y < size[1]) & (x >= 0) & (x < size[2])
    at = lead * item + c.to(tl.int64) * channel + z.to(tl.int64) * plane + y.to(tl.int64) * row + x
    return tl.load(source + at, mask=inside, other=0).to(tl.float64), inside


@triton.jit
def _pivot(source, tile, item, plane, row, size, grid, step, pad):
    """An element near the middle of a tile, for squares that do not cancel; 0 if not finite."""
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
    size, grid, step = (size_z, size_y, size_x), (grid_z, grid_y, grid_x), (step_z, step_y, step_x)
    pad, extent = (pad_z, pad_y, pad_x), (extent_z, extent_y, extent_x)
    length = (length_z, length_y, length_x)
    number = part * PART + tl.arange(0, PART)
    x, inside = _elements(
        source, tile, number, channels, item, channel, plane, row, size, grid, step, pad, extent,
        length,
    )  # fmt: skip
    pivot = 0.0
    if CENTRED:
        pivot = _pivot(source, tile, item, plane, row, size, grid, step, pad)
    counts = inside & (tl.abs(x) < float("inf"))
    d = tl.where(counts, x - pivot, 0.0)
    at = sums + tl.program_id(0).to(tl.int64) * 4
    tl.store(at, tl.sum(counts.to(tl.float64), 0))
    tl.store(at + 1, tl.sum((inside & ~counts).to(tl.float64), 0))
    tl.store(at + 2, tl.sum(d, 0))
    tl.store(at + 3, tl.sum(d * d, 0))


@triton.jit
def _total(sums, parts, PITCH: tl.constexpr, PARTS: tl.constexpr):
    """A sum over the parts of a tile, always in the same order."""
    lane = tl.arange(0, PARTS)
    found = tl.zeros([PARTS], tl.float64)
    for first in range(0, parts, PARTS):
        found += tl.load(sums + (first + lane) * PITCH, mask=first + lane < parts, other=0.0)
    return tl.sum(found, 0)


@triton.jit
def _halving(v):
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
    size, grid, step = (size_z, size_y, size_x), (grid_z, grid_y, grid_x), (step_z, step_y, step_x)
    pad, extent = (pad_z, pad_y, pad_x), (extent_z, extent_y, extent_x)
    length = (length_z, length_y, length_x)
    number = part * PART + tl.arange(0, PART)
    x, inside = _elements(
        source, tile, number, channels, item, channel, plane, row, size, grid, step, pad, extent,
        length,
    )  # fmt: skip
    own = sums + tile.to(tl.int64) * parts * 4
    count = tl.maximum(_total(own, parts, 4, PARTS), 1.0)
    first, second = _total(own + 2, parts, 4, PARTS), _total(own + 3, parts, 4, PARTS)
    level = 0.0
    energy = second / count
    if CENTRED:
        pivot = _pivot(source, tile, item, plane, row, size, grid, step, pad)
        # A float32, so that elements near it lose nothing.
        rounded = (pivot + first / count).to(tl.float32).to(tl.float64)
        level = tl.where(tl.abs(rounded) < float("inf"), rounded, pivot)
        off = level - pivot
        energy = tl.maximum(energy - 2 * off * (first / count) + off * off, 0.0)
    scale = count * 0 + 1
    if SCALED:
        scale = _halving(tl.sqrt(energy))
    d = tl.where(inside & (tl.abs(x) < float("inf")), (x - level) * scale, 0.0)
    volume = channels.to(tl.int64) * length_z * length_y * length_x
    tl.store(
        tiles + tile.to(tl.int64) * volume + number,
        d.to(tiles.dtype.element_ty),
        mask=number < volume,
    )
    if part == 0:
        at = stats + tile * 4
        tl.store(at, level)
        tl.store(at + 1, scale)
        tl.store(at + 2, energy * scale * scale)
        tl.store(at + 3, _total(own + 1, parts, 4, PARTS))


@triton.jit(do_not_specialize=["volume", "parts"])
def tile_content_kernel(numerators, content, volume, parts, PART: tl.constexpr):
    """Of a part of a tile's sums: that of their squares, and the largest size."""
    line, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    number = part * PART + tl.arange(0, PART)
    at = numerators + line.to(tl.int64) * volume + number
    y = tl.load(at, mask=number < volume, other=0.0).to(tl.float64)
    to = content + tl.program_id(0).to(tl.int64) * 2
    tl.store(to, tl.sum(y * y, 0))
    tl.store(to + 1, tl.max(tl.abs(y), 0))


@triton.jit(do_not_specialize=["volume", "parts", "held", "templates", "tiles"])
def tile_noise_kernel(
    numerators, content, stats, moments, noise_out, noise, volume, parts, held, templates, tiles,
    WHOLE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What rounding left in a tile's sums, in the input's units (math.md, noise); and what the
    tile's level adds to each of them. WHOLE: from the sums themselves, not from their content.
    """
    line = tl.program_id(0)
    lane = tl.arange(0, LANES)
    squares = tl.zeros([LANES], tl.float64)
    peaks = tl.zeros([LANES], tl.float64)
    if WHOLE:
        own = numerators + line.to(tl.int64) * volume
        for first in range(0, volume, LANES):
            y = tl.load(own + first + lane, mask=first + lane < volume, other=0.0).to(tl.float64)
            squares += y * y
            peaks = tl.maximum(peaks, tl.abs(y))
    else:
        own = content + line.to(tl.int64) * parts * 2
        for first in range(0, parts, LANES):
            there = first + lane < parts
            squares += tl.load(own + (first + lane) * 2, mask=there, other=0.0)
            more = tl.load(own + (first + lane) * 2 + 1, mask=there, other=0.0)
            peaks = tl.maximum(peaks, more)
    weights = moments + (line // templates // tiles * templates + line % templates) * held * 2
    elements = _total(weights + 1, held, 2, 32)
    at = stats + line // templates * 4
    level, scale, power = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    spread = tl.sqrt(power * elements + tl.sum(squares, 0) / volume.to(tl.float64))
    tl.store(noise_out + line * 2, noise * (spread + tl.max(peaks, 0) / 2) / scale)
    tl.store(noise_out + line * 2 + 1, level * _total(weights, held, 2, 32))


def _parts(elements: int) -> tuple[int, int]:
    parts = -(-elements // PART)
    return parts, min(1024, triton.next_power_of_2(parts))


def gather(
    x: Tensor,
    tiling: Tiling,
    working: torch.dtype,
    *,
    centred: bool,
    scaled: bool = True,
    behind: int = 0,
) -> tuple[Tensor, Tensor]:
    """All tiles (items * tiles, C, *length) of items (I, C, *size) whose rows are dense.

    And for each its level, scale, mean square and how many of its elements are not finite; these
    are 0 in the tile. The scale brings the root mean square of the others into [0.5, 1). Memory
    for some tiles more is left behind them.
    """
    items, channels = x.shape[:2]
    tiles, volume = items * tiling.tiles, channels * math.prod(tiling.length)
    parts, at_once = _parts(volume)
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
    out = x.new_empty((tiles + behind, channels, *tiling.length), dtype=working)
    stats = sums.new_empty((tiles, 4))
    grid = (tiles * parts,)
    tile_sums_kernel[grid](x, sums, *numbers, CENTRED=centred, PART=PART)
    gather_tiles_kernel[grid](
        x, sums, out, stats, *numbers, CENTRED=centred, SCALED=scaled, PART=PART, PARTS=at_once
    )
    return out, stats


def noise_of(numerators: Tensor, stats: Tensor, moments: Tensor, noise: float) -> Tensor:
    """What rounding left in sums (tiles, templates, *length), and what the level of their tile
    adds to each: (tiles, templates, 2), in float64.

    `moments` are those of the templates (`templates.prepare`); `noise` is the rounding of a
    transform beside what it holds.
    """
    (tiles, templates), volume = numerators.shape[:2], numerators.shape[2:].numel()
    lines = tiles * templates
    parts, lanes = _parts(volume)
    out = stats.new_empty((tiles, templates, 2))
    content, whole = out, volume <= _WHOLE
    if whole:
        lanes = min(_LANES, max(256, triton.next_power_of_2(volume)))
    else:
        content = stats.new_empty((lines * parts, 2))
        tile_content_kernel[(lines * parts,)](numerators, content, volume, parts, PART=PART)
    tile_noise_kernel[(lines,)](
        numerators, content, stats, moments, out, noise, volume, parts, moments.shape[1],
        templates, lines // moments.shape[0], WHOLE=whole, LANES=lanes,
        num_warps=max(4, lanes // 512),
    )  # fmt: skip
    return out
