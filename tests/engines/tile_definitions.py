"""The steps of the CPU engine (`_cpu/steps.py`) from their definitions in plain torch.

They take records where the C++ steps take the records' numbers or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchcorr._definition import correlate as correlation
from torchcorr._definition import scores
from torchcorr._definition.windows import windows
from torchcorr._plan.dtypes import widen
from torchcorr._plan.tiling import TileBatch, TileMoments, TileStats, WindowState

if TYPE_CHECKING:
    from torchcorr._cpu.rules import ScoreRule


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    return correlation.correlate(input, template, stride, "direct")


def is_doubtful(states: Tensor) -> Tensor:
    return (states == WindowState.DOUBTFUL) | (states == WindowState.UNKNOWN)


def _column(x: Tensor, axes: int) -> Tensor:
    """One number a tile (or template), shaped to multiply arrays of `axes` more axes."""
    return x[(..., *(None,) * axes)]


def _tile_slices(batch: TileBatch, tile: int) -> list[tuple[Any, Any]]:
    """For each axis where a tile's elements lie: slice of the tile, slice of the input."""
    tiling, slices = batch.tiling, []
    for axis in reversed(range(len(tiling.grid))):
        step, extent, size = (
            tiling.outputs[axis] * tiling.stride[axis],
            tiling.extent[axis],
            tiling.size[axis],
        )
        start = tile % tiling.grid[axis] * step - tiling.pad[axis]
        tile //= tiling.grid[axis]
        begin = min(max(-start, 0), extent)
        end = max(min(size - start, extent), begin)
        slices.append((slice(begin, end), slice(start + begin, start + end)))
    return slices[::-1]


def raw_tiles(input: Tensor, batch: TileBatch) -> tuple[Tensor, Tensor]:
    """The tiles of items (I, C, *size) as they are, and a mask of what lies in the input."""
    tiling = batch.tiling
    tiles = input.new_zeros((len(batch.tiles), input.shape[1], *tiling.length))
    there = torch.zeros_like(tiles, dtype=torch.bool)
    for row, i in enumerate(batch.tiles):
        if i < 0:
            continue
        item, tile = divmod(i, tiling.tiles)
        to, source = zip(*_tile_slices(batch, tile), strict=True)
        tiles[(row, slice(None), *to)] = input[(item, slice(None), *source)]
        there[(row, slice(None), *to)] = True
    return tiles, there


def _places(
    batch: TileBatch, size: Sequence[int]
) -> Iterator[tuple[int, int, tuple[slice, ...], tuple[slice, ...]]]:
    """Row, item, positions of the map and positions of the tile, for each tile there is."""
    tiling = batch.tiling
    for row, i in enumerate(batch.tiles):
        if i < 0:
            continue
        item, tile = divmod(i, tiling.tiles)
        to: list[slice] = []
        source: list[slice] = []
        for axis in reversed(range(len(tiling.grid))):
            first = tile % tiling.grid[axis] * tiling.outputs[axis]
            tile //= tiling.grid[axis]
            n = min(tiling.outputs[axis], size[axis] - first)
            to.insert(0, slice(first, first + n))
            source.insert(0, slice(0, n))
        yield row, item, tuple(to), tuple(source)


def cut_tiles(
    input: Tensor, batch: TileBatch, centred: bool, wide: bool, pairs: bool
) -> tuple[Tensor, Tensor]:
    """Tiles minus a level each, times a power of two each, 0 where not finite; and for each tile
    (level, scale, mean square, 1 if something is not finite). Tile -1 is zero. As pairs, two tiles
    are one with an axis of 2 at the end.
    """
    raw, there = raw_tiles(input, batch)
    x = widen(raw)
    finite = torch.isfinite(x) & there
    axes = tuple(range(1, x.dim()))
    count = finite.sum(axes, keepdim=True)
    level = torch.where(finite, x, 0.0).sum(axes, keepdim=True) / count.clamp(min=1)
    level = torch.nan_to_num(level.to(torch.float32).to(x.dtype), 0, 0, 0)
    if not centred:
        level = torch.zeros_like(level)
    deviation = torch.where(finite, x - level, 0.0)
    # Divided by the largest before it is squared, so that nothing leaves the range.
    peak = deviation.abs().amax(axes, keepdim=True)
    unit = torch.where(peak > 0, peak, torch.ones_like(peak))
    root = unit * (deviation / unit).square().sum(axes, keepdim=True).div(count.clamp(min=1)).sqrt()
    scale = torch.ldexp(torch.ones_like(root), -torch.frexp(root).exponent)
    deviation = deviation * scale
    stats = (level, scale, deviation.square().mean(axes, keepdim=True))
    whole = (finite | ~there).all(-1).flatten(1).all(1)
    columns = [*(s.flatten() for s in stats), (~whole).to(x.dtype)]
    tiles = deviation if wide else deviation.to(input.dtype)
    if pairs:
        tiles = torch.stack((tiles[0::2], tiles[1::2]), -1)
    return tiles, torch.stack(columns, 1)


def tile_moments(
    input: Tensor, stats: TileStats, batch: TileBatch, rule: ScoreRule, means: bool
) -> tuple[TileMoments, Tensor]:
    """The moments of each window of each scaled tile, with means if asked for, and how many
    windows of each tile are doubtful or unknown. A flat window is flat if it would be unknown.
    """
    tiling = batch.tiling
    ndim, window, stride = len(tiling.window), tiling.window, tiling.stride
    count = input.shape[1] * math.prod(window)
    raw, there = raw_tiles(input, batch)
    inside = (..., *(slice(0, n) for n in tiling.extent))
    raw, there = raw[inside], there[inside]
    inner = windows(there, window, stride).all(-1).flatten(-ndim).all(-1)
    level, scale, power = (
        _column(s, ndim + 1) for s in (stats.level, stats.scale, stats.mean_square)
    )
    x = torch.where(there, (widen(raw) - level) * scale, 0.0)
    x = torch.where(torch.isfinite(raw) | ~there, x, torch.nan)
    axes = tuple(range(-ndim - 1, 0))
    seen, seen_raw = windows(x, window, stride), windows(raw, window, stride)
    total = seen.square().mean(axes)
    mean = seen.mean(axes) if rule.zero_mean else torch.zeros_like(total)
    energy = total - mean.square()
    softened = energy + rule.eps * scale.squeeze(1).square()
    if rule.of_window:
        limit = total * rule.least_energy
    else:
        # The noise of a transform is that of both tiles of a pair.
        both = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
        limit = rule.least_energy * both.squeeze(1)
    unknown = energy <= rule.least_variance * total
    lowest, highest = seen_raw.amin(axes), seen_raw.amax(axes)
    flat = unknown & (lowest == highest) & (rule.zero_mean | (lowest == 0))
    states = torch.zeros_like(energy, dtype=torch.uint8)
    states[softened < limit] = WindowState.DOUBTFUL
    states[unknown] = WindowState.UNKNOWN
    states[flat] = WindowState.FLAT
    states[energy.isnan()] = WindowState.NON_FINITE
    states[~inner] = WindowState.GOOD
    norm = 1 / (count * torch.sqrt(torch.where(unknown, 1.0, softened)))
    norm = torch.where(unknown, 0.0, norm).to(input.dtype)
    mean = mean.to(input.dtype)
    moments = TileMoments(stats, norm, states, mean if means else mean[:0])
    return moments, is_doubtful(states).flatten(1).sum(1)


def merged_moments(
    input: Tensor, stats: TileStats, batch: TileBatch, rule: ScoreRule, pairs: bool
) -> TileMoments:
    """Norms, states and means in float64, each window in two passes; finite input."""
    tiling = batch.tiling
    ndim, count = len(tiling.window), input.shape[1] * math.prod(tiling.window)
    raw, there = raw_tiles(input, batch)
    raw = torch.where(there, widen(raw), 0.0)[(..., *(slice(0, n) for n in tiling.extent))]
    seen = windows(raw, tiling.window, tiling.stride)
    axes = tuple(range(-ndim - 1, 0))
    first = seen[(..., *(slice(0, 1),) * (ndim + 1))]
    level = first + (seen - first).mean(axes, keepdim=True)
    energy = (seen - level).square().mean(axes)
    flat = seen.amin(axes) == seen.amax(axes)
    energy = torch.where(flat, 0.0, energy)
    mean = level[(..., *(0,) * (ndim + 1))]
    if not rule.zero_mean:
        energy = energy + mean.square()
    tile_level, scale, power = (
        _column(s, ndim) for s in (stats.level, stats.scale, stats.mean_square)
    )
    if pairs:
        power = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
    energy, softened = energy * scale**2, (energy + rule.eps) * scale**2
    states = torch.zeros_like(energy, dtype=torch.uint8)
    states[softened < rule.least_energy * power] = WindowState.DOUBTFUL
    states[energy == 0] = WindowState.FLAT
    norms = torch.where(energy == 0, 0.0, 1 / (count * softened.sqrt()))
    means = (mean - tile_level) * scale if rule.zero_mean else torch.zeros_like(mean)
    return TileMoments(stats, norms, states, means)


def normalise_tiles(
    numerators: Tensor,
    moments: TileMoments,
    input: Tensor,
    coefficients: Tensor,
    batch: TileBatch,
    rule: ScoreRule,
    out: Tensor,
) -> Tensor:
    """Writes scores: numerator * norm, or the definition where the window is doubtful, or the norm
    times `noise` and what rounding left in the pair's numerators exceeds 1. A tile and template
    with more than `budget` of these keeps its scores; they are counted.
    """
    tiling, ndim, stats = batch.tiling, len(batch.tiling.stride), moments.stats
    left = torch.zeros(len(batch.tiles), dtype=torch.int64, device=stats.rows.device)
    error = widen(stats.rows.new_zeros((len(batch.tiles), numerators.shape[1])))
    if numerators.dim() == ndim + 3:
        elements = math.prod(coefficients.shape[2:])
        sums = widen(numerators).flatten(2)
        power = elements * stats.mean_square.unflatten(0, (-1, 2)).sum(1)[:, None]
        spread = (power + 2 * sums.square().mean(2)).sqrt() + sums.abs().amax(2) / 2
        error = rule.noise * spread.repeat_interleave(2, 0)
        numerators = numerators.movedim(-1, 1).flatten(0, 1)
    if tuple(numerators.shape[2:]) != tiling.outputs:
        step = zip(tiling.outputs, tiling.stride, strict=True)
        numerators = numerators[(..., *(slice(0, (n - 1) * s + 1, s) for n, s in step))]
    first = batch.first_template
    templates = slice(first, first + numerators.shape[1])
    for row, item, to, source in _places(batch, out.shape[2:]):
        norm, states = moments.norms[(row, *source)], moments.states[(row, *source)]
        score = (numerators[(row, slice(None), *source)] * norm).clamp(-1, 1)
        score = torch.where(norm == 0, torch.zeros_like(score), score).to(out.dtype)
        doubtful = is_doubtful(states) | (widen(norm) * _column(error[row], ndim) > 1)
        counts = doubtful.flatten(1).sum(1)
        left[row] = torch.where(counts > rule.budget, counts, 0).sum()
        paired = coefficients[item // (input.shape[0] // coefficients.shape[0])]
        exact = scores.ncc(
            input[item], paired[templates], tiling.stride, rule.zero_mean, rule.eps, "direct"
        )
        recomputed = doubtful & _column(counts <= rule.budget, ndim)
        score = torch.where(recomputed, exact[(slice(None), *to)], score)
        out[(item, templates, *to)] = score
    return left
