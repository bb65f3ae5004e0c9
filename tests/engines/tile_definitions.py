"""The steps of the CPU engine (`_cpu/steps.py`) from their definitions in plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchcorr._definition import correlate as correlation
from torchcorr._definition import scores
from torchcorr._definition.windows import window_spread, windows
from torchcorr._plan.dtypes import widen


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    return correlation.correlate(input, template, stride, "direct")


def _tile_slices(numbers: Sequence[int], tile: int, size: Sequence[int]) -> list[tuple[Any, Any]]:
    """For each axis where a tile's elements lie: slice of the tile, slice of the input."""
    ndim = len(size)
    grid, step, pad, extent, _ = (numbers[i * ndim : (i + 1) * ndim] for i in range(5))
    slices = []
    for axis in reversed(range(ndim)):
        start = tile % grid[axis] * step[axis] - pad[axis]
        tile //= grid[axis]
        begin = min(max(-start, 0), extent[axis])
        end = max(min(size[axis] - start, extent[axis]), begin)
        slices.append((slice(begin, end), slice(start + begin, start + end)))
    return slices[::-1]


def _cut(input: Tensor, ids: Sequence[int], numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The tiles of items (I, C, *size) as they are, and a mask of what lies in the input."""
    ndim = input.dim() - 2
    per_item = math.prod(numbers[:ndim])
    tiles = input.new_zeros((len(ids), input.shape[1], *numbers[4 * ndim :]))
    there = torch.zeros_like(tiles, dtype=torch.bool)
    for row, i in enumerate(ids):
        if i < 0:
            continue
        to, source = zip(*_tile_slices(numbers, i % per_item, input.shape[2:]), strict=True)
        tiles[(row, slice(None), *to)] = input[(i // per_item, slice(None), *source)]
        there[(row, slice(None), *to)] = True
    return tiles, there


def gather_tiles(
    input: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    centred: bool,
    wide: bool,
    pairs: bool,
) -> tuple[Tensor, Tensor]:
    """Tiles minus a level each, times a power of two each, 0 where not finite; and for each tile
    (level, scale, mean square, 1 if something is not finite). Tile -1 is zero. As pairs, two tiles
    are one with an axis of 2 at the end.
    """
    raw, there = _cut(input, ids, geometry)
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


def tile_norms(
    stats: Tensor,
    input: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    zero_mean: bool,
    local: bool,
    eps: float,
    faint: float,
    exact: float,
    means: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """1 / (N deviation) of each window of each scaled tile: 0 where it is flat, negative where it
    is fainter than the limits, minus infinity where the sums do not tell, NaN where it holds a NaN
    or an Inf. How many are below zero. And the mean of each window, if asked for.
    """
    ndim = len(window)
    count = input.shape[1] * math.prod(window)
    raw, there = _cut(input, ids, geometry)
    inside = (..., *(slice(0, n) for n in geometry[3 * ndim : 4 * ndim]))
    raw, there = raw[inside], there[inside]
    inner = windows(there, window, stride).all(-1).flatten(-ndim).all(-1)
    level, scale, power = (s[(slice(None), *(None,) * (ndim + 1))] for s in stats.unbind(1)[:3])
    x = torch.where(there, (widen(raw) - level) * scale, 0.0)
    x = torch.where(torch.isfinite(raw) | ~there, x, torch.nan)
    axes = tuple(range(-ndim - 1, 0))
    seen, seen_raw = windows(x, window, stride), windows(raw, window, stride)
    total = seen.square().mean(axes)
    mean = seen.mean(axes) if zero_mean else torch.zeros_like(total)
    energy = total - mean.square()
    softened = energy + eps * scale.squeeze(1).square()
    if local:
        limit = total * faint
    else:
        # The noise of a transform is that of both tiles of a pair.
        both = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
        limit = faint * both.squeeze(1)
    unknown = energy <= exact * total
    is_faint = unknown | (softened < limit)
    lowest, highest = seen_raw.amin(axes), seen_raw.amax(axes)
    flat = is_faint & (lowest == highest) & (zero_mean | (lowest == 0))
    is_faint = is_faint & inner
    norm = 1 / (count * torch.sqrt(torch.where(unknown, 1.0, softened)))
    norm = torch.where(unknown, -torch.inf, torch.where(is_faint, -norm, norm))
    norm = torch.where(flat, 0.0, norm)
    mean = mean.to(input.dtype)
    return norm.to(input.dtype), (is_faint & ~flat).flatten(1).sum(1), mean if means else mean[:0]


def finish_tiles(
    numerators: Tensor,
    norms: Tensor,
    stats: Tensor,
    input: Tensor,
    template: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    stride: Sequence[int],
    first_template: int,
    zero_mean: bool,
    eps: float,
    noise: float,
    budget: int,
    out: Tensor,
) -> Tensor:
    """Writes scores: numerator * norm, or the definition where the norm is negative, or times
    `noise` and what rounding left in the pair's sums beyond 1. A tile and template with more than
    `budget` of these keeps its scores; they are counted.
    """
    ndim = len(stride)
    own = norms.shape[1:]
    left = torch.zeros(len(ids), dtype=torch.int64, device=stats.device)
    error = widen(stats.new_zeros((len(ids), numerators.shape[1])))
    if numerators.dim() == ndim + 3:
        elements = math.prod(template.shape[2:])
        sums = widen(numerators).flatten(2)
        power = elements * stats[:, 2].unflatten(0, (-1, 2)).sum(1)[:, None]
        spread = (power + 2 * sums.square().mean(2)).sqrt() + sums.abs().amax(2) / 2
        error = noise * spread.repeat_interleave(2, 0)
        numerators = numerators.movedim(-1, 1).flatten(0, 1)
    if numerators.shape[2:] != own:
        numerators = numerators[
            (..., *(slice(0, (n - 1) * s + 1, s) for n, s in zip(own, stride, strict=True)))
        ]
    templates = range(first_template, first_template + numerators.shape[1])
    for row, item, to, source in _places(ids, geometry, own, out.shape[2:]):
        norm = norms[(row, *source)]
        score = (numerators[(row, slice(None), *source)] * norm).clamp(-1, 1)
        score = torch.where(norm == 0, torch.zeros_like(score), score).to(out.dtype)
        column = (slice(None), *(None,) * ndim)
        doubt = (norm < 0) | (widen(norm) * error[row][column] > 1)
        found = doubt.flatten(1).sum(1)
        left[row] = torch.where(found > budget, found, 0).sum()
        paired = template[item // (input.shape[0] // template.shape[0])]
        exact = scores.ncc(
            input[item], paired[templates.start : templates.stop], stride, zero_mean, eps, "direct"
        )
        again = doubt & (found <= budget)[column]
        score = torch.where(again, exact[(slice(None), *to)], score)
        out[(item, slice(templates.start, templates.stop), *to)] = score
    return left


def direct_scores(
    input: Tensor,
    template: Tensor,
    taps: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    at_once: int,
    zero_mean: bool,
    eps: float,
    faint: float,
    exact: float,
    budget: int,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scores of tiles by the direct sum: `finish_tiles` of all templates, `at_once` at a time, and
    the norms. `taps` are the templates (groups, 1, templates, C, *window) in the input's type.
    """
    tiles, stats = gather_tiles(input, ids, geometry, zero_mean, False, False)
    norms, _, _ = tile_norms(
        stats, input, ids, geometry, window, stride, zero_mean, True, eps, faint, exact, False
    )
    found = correlate(tiles.unflatten(0, (taps.shape[0], -1)).unsqueeze(2), taps, stride)
    rest = (template, ids, geometry, stride, 0, zero_mean, eps, 0.0, budget, out)
    return finish_tiles(found.flatten(0, 1), norms, stats, input, *rest), norms


def _places(
    ids: Sequence[int], geometry: Sequence[int], own: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[int, int, tuple[slice, ...], tuple[slice, ...]]]:
    """Row, item, positions of the map and positions of the tile, for each tile there is."""
    ndim = len(own)
    per_item = math.prod(geometry[:ndim])
    for row, i in enumerate(ids):
        if i < 0:
            continue
        item, tile = divmod(i, per_item)
        to: list[slice] = []
        source: list[slice] = []
        for axis in reversed(range(ndim)):
            first = tile % geometry[axis] * own[axis]
            tile //= geometry[axis]
            n = min(own[axis], size[axis] - first)
            to.insert(0, slice(first, first + n))
            source.insert(0, slice(0, n))
        yield row, item, tuple(to), tuple(source)


def repair_norms(
    norms: Tensor,
    means: Tensor,
    stats: Tensor,
    input: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
) -> None:
    """Norms without their sign; where one is minus infinity, norm and mean from the definition."""
    ndim = len(window)
    count = input.shape[1] * math.prod(window)
    raw, _ = _cut(input, ids, geometry)
    raw = raw[(..., *(slice(0, n) for n in geometry[3 * ndim : 4 * ndim]))]
    level, scale = (s[(slice(None), *(None,) * (ndim + 1))] for s in stats.unbind(1)[:2])
    seen = windows(widen(raw) * scale, window, stride)
    axes = tuple(range(-ndim - 1, 0))
    mean = seen.mean(axes, keepdim=True)
    mean = mean + (seen - mean).mean(axes, keepdim=True)
    if not zero_mean:
        mean = torch.zeros_like(mean)
    energy = (seen - mean).square().mean(axes)
    norm = 1 / (count * torch.sqrt(energy + eps * scale.squeeze(1).square()))
    norm = torch.where(energy == 0, 0.0, norm)
    column = mean[(..., *(0,) * (ndim + 1))] - (level * scale).squeeze(1) * zero_mean
    unknown = norms == -torch.inf
    norms.copy_(torch.where(unknown, norm.to(norms.dtype), norms.abs()))
    means.copy_(torch.where(unknown, column.to(norms.dtype), means))


def tile_upstream(
    grad: Tensor,
    score: Tensor,
    norms: Tensor,
    means: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    stride: Sequence[int],
    count: float,
    first_template: int,
    templates: int,
    of_tiles: bool,
    grad_square: Tensor,
    grad_mean: Tensor,
) -> tuple[Tensor, Tensor]:
    """Upstream gradients times norms as pairs of tiles (first, minus second), at the positions'
    places in zeros; sums of their squares, of their products with the means, and their largest.

    What goes to a window's square and to its mean is added to `grad_square` and `grad_mean`.
    `score` is a map as grad is, or (tiles, templates, *positions).
    """
    ndim = len(stride)
    own = norms.shape[1:]
    alpha = norms.new_zeros((len(ids), templates, *geometry[4 * ndim :]))
    sums = widen(norms.new_zeros((len(ids), templates, 3)))
    part = slice(first_template, first_template + templates)
    for row, item, to, source in _places(ids, geometry, own, grad.shape[2:]):
        norm, mean = widen(norms[(row, *source)]), widen(means[(row, *source)])
        a = widen(grad[(item, part, *to)]) * norm
        a = torch.where(norm == 0, torch.zeros_like(a), a)
        found = score[(row, slice(None), *source)] if of_tiles else score[(item, part, *to)]
        share = (a * widen(found) * count * norm).sum(0)
        grad_square[(row, *source)] += share.to(norms.dtype)
        grad_mean[(row, *source)] += (share * mean).to(norms.dtype)
        at = tuple(slice(0, s.stop * k, k) for s, k in zip(source, stride, strict=True))
        alpha[(row, slice(None), *at)] = a.to(norms.dtype)
        flat = a.flatten(1)
        sums[row] = torch.stack(
            (flat.square().sum(1), (a * mean).flatten(1).sum(1), flat.abs().amax(1)), 1
        )
    return torch.stack((alpha[0::2], -alpha[1::2]), -1), sums


def tile_input_grad(
    found: Tensor,
    grad_square: Tensor,
    grad_mean: Tensor,
    stats: Tensor,
    input: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    out: Tensor,
) -> None:
    """Adds to `out` what came through the transforms, pairs of (first, minus second) tiles, and
    through the windows; `found` may be overwritten.
    """
    ndim = len(window)
    per_item, extent = math.prod(geometry[:ndim]), geometry[3 * ndim : 4 * ndim]
    for row, i in enumerate(ids):
        if i < 0:
            continue
        level, scale = stats[row, 0], stats[row, 1]
        shape = (1, *extent)
        first, second = (
            window_spread(widen(x[row]), window, shape, stride) for x in (grad_square, grad_mean)
        )
        through = widen(found[row // 2, ..., row % 2]) * (1 - 2 * (row % 2))
        slices = _tile_slices(geometry, i % per_item, input.shape[2:])
        to, at = (tuple(s) for s in zip(*slices, strict=True))
        target = (i // per_item, slice(None), *at)
        inside = (slice(None), *to)
        deviation = (widen(input[target]) - level) * scale
        value = through[inside] - deviation * first[inside] + second[inside]
        out[target] += (scale * value).to(out.dtype)


def finish_sums(
    numerators: Tensor,
    stats: Tensor,
    bound: Tensor | None,
    marked: Tensor | None,
    input: Tensor,
    template: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    stride: Sequence[int],
    first_template: int,
    noise: float,
    allowed: float,
    budget: int,
    out: Tensor,
) -> Tensor:
    """Writes sums in the input's units and level, the definition where rounding may show.

    A value is trusted if it, or its sum of absolute products in `bound`, is 1 / `allowed` times
    what rounding left, `noise` times the larger of both sides of the tile's sums; not if
    `marked`. A tile and template with more than `budget` others keeps them; they are counted.
    """
    ndim = len(stride)
    templates = numerators.shape[1]
    axes = tuple(range(-ndim, 0))
    pairs = numerators.square().sum(-1).mean(axes)
    left = torch.zeros(len(ids), dtype=torch.int64, device=stats.device)
    own = [geometry[ndim + i] // s for i, s in enumerate(stride)]
    for row, item, to, source in _places(ids, geometry, own, out.shape[2:]):
        paired = template[item // (input.shape[0] // template.shape[0])]
        part = paired[first_template : first_template + templates]
        level, scale = stats[row, 0], stats[row, 1]
        norm = part.flatten(1).norm(dim=1)
        both = stats[row // 2 * 2 : row // 2 * 2 + 2, 2].sum()
        error = noise * (both * norm.square() + pairs[row // 2]).sqrt() / scale
        at = tuple(slice(0, (s.stop - 1) * k + 1, k) for s, k in zip(source, stride, strict=True))
        column = (slice(None), *(None,) * ndim)
        value = numerators[(row // 2, slice(None), *at, row % 2)] / scale
        value = value + level * part.flatten(1).sum(1)[column]
        size = value.abs()
        if bound is not None:
            size = widen(bound[(row // 2, slice(None), *at, row % 2)]) / scale
        doubt = ~(size >= (error / allowed)[column])
        if marked is not None:
            doubt = doubt | marked[(row, *source)]
        exact = correlate(widen(input[item]), part, stride)[(slice(None), *to)]
        empty = correlate((input[item] != 0).to(part.dtype), torch.ones_like(part), stride)
        zero = doubt & (empty[(slice(None), *to)] == 0)
        count = doubt.flatten(1).sum(1)
        if marked is None:
            value = torch.where(zero & (count > budget)[column], 0.0, value)
            count = torch.where(count > budget, count - zero.flatten(1).sum(1), count)
        again = (count <= budget)[column] & doubt
        value = torch.where(again, exact, value)
        left[row] = torch.where(count > budget, count, 0).sum()
        out[(item, slice(first_template, first_template + templates), *to)] = value.to(out.dtype)
    return left
