"""Every operator from its definition in plain torch: slow, clear, on any device.

Shapes are those of the normal form: an input is ``(*lead, C, *size)``, a template
``(*lead, C, *window)``, a score map ``(*lead, *output)``; the channel axis C belongs to the
window. Sums run in float64 where the device has it. Window by window, nothing here mixes an
element with windows that do not hold it. `docs/math.md` derives the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._geometry import offsets, output_size, positions


def wide_dtype(x: Tensor) -> torch.dtype:
    """The type in which sums are taken."""
    if x.device.type == "mps":
        return x.dtype
    return torch.complex128 if x.is_complex() else torch.float64


def widen(x: Tensor) -> Tensor:
    """x in the type in which sums are taken."""
    return x.to(wide_dtype(x))


def centre(input: Tensor, ndim: int) -> Tensor:
    """One level an item, shaped (*lead, 1, ..., 1): the mean of what is finite in it.

    Scores do not depend on it and no gradient flows into it; subtracting it spares digits.
    """
    wide = widen(input.detach())
    return torch.nan_to_num(wide, 0, 0, 0).mean(tuple(range(-ndim - 1, 0)), keepdim=True)


def windows(x: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A view (*lead, *output, C, *window) of every window; no memory is copied."""
    first = x.dim() - len(window)
    for axis, (k, s) in enumerate(zip(window, stride, strict=True), first):
        x = x.unfold(axis, k, s)
    return x.movedim(first - 1, first - 1 + len(window))


def _spread_axes(x: Tensor, ndim: int) -> Tensor:
    """(*lead, C) made to broadcast against (*lead, C, *output)."""
    return x[(...,) + (None,) * ndim]


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v), summed over channels (math.md, correlation)."""
    ndim = len(stride)
    window = template.shape[-ndim:]
    output = output_size(input.shape[-ndim:], window, stride)
    wide, weights = widen(input), widen(template)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total = wide.new_zeros((*lead, *output))
    for v in offsets(window):
        seen = wide[(..., *positions(v, output, stride))]
        total += (seen * _spread_axes(weights[(..., *v)], ndim)).sum(-ndim - 1)
    return total.to(input.dtype)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its input: every output is spread over its window."""
    ndim = len(stride)
    output = grad.shape[-ndim:]
    wide, weights = widen(grad).unsqueeze(-ndim - 1), widen(template).conj().resolve_conj()
    total = wide.new_zeros(tuple(input_shape))
    share = (*input_shape[:-ndim], *output)
    for v in offsets(template.shape[-ndim:]):
        part = wide * _spread_axes(weights[(..., *v)], ndim)
        total[(..., *positions(v, output, stride))] += part.sum_to_size(share)
    return total.to(grad.dtype)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its template: the input correlated with the gradient."""
    ndim = len(stride)
    output = grad.shape[-ndim:]
    wide, seen = widen(grad).unsqueeze(-ndim - 1), widen(input).conj().resolve_conj()
    total = wide.new_zeros(tuple(template_shape))
    axes = tuple(range(-ndim, 0))
    for v in offsets(template_shape[-ndim:]):
        part = (wide * seen[(..., *positions(v, output, stride))]).sum(axes)
        total[(..., *v)] = part.sum_to_size(tuple(template_shape[:-ndim]))
    return total.to(grad.dtype)


def window_sum(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sum of each window over all its channels."""
    axes = tuple(range(-len(window) - 1, 0))
    return windows(widen(input), window, stride).sum(axes).to(input.dtype)


def window_spread(
    grad: Tensor, window: Sequence[int], input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `window_sum`: each element gets the sum over the windows that hold it."""
    ndim = len(window)
    wide = widen(grad).unsqueeze(-ndim - 1)
    total = wide.new_zeros(tuple(input_shape))
    for v in offsets(window):
        total[(..., *positions(v, grad.shape[-ndim:], stride))] += wide
    return total.to(grad.dtype)


def window_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and uncorrected variance of each window; the variance of a flat window is exactly 0."""
    ndim = len(window)
    axes = tuple(range(-ndim - 1, 0))
    wide = widen(input)
    seen = windows(wide, window, stride)
    mean = seen.mean(axes)
    output, level = mean.shape[mean.dim() - ndim :], mean.unsqueeze(-ndim - 1)
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for v in offsets(window):
        deviation = wide[(..., *positions(v, output, stride))] - level
        first += deviation.sum(-ndim - 1)
        second += deviation.square().sum(-ndim - 1)
    count = seen.shape[-ndim - 1] * torch.Size(window).numel()
    # What the rounded mean left over is taken out of both; it cancels nothing that matters.
    left = first / count
    var = (second / count - left.square()).clamp(min=0)
    lowest, highest = seen.amin(axes), seen.amax(axes)
    flat = (lowest == highest) & torch.isfinite(lowest)
    mean = torch.where(flat, lowest, mean + left)
    return mean, torch.where(flat, 0.0, var)


def window_combine(
    grad_s1: Tensor, grad_s2: Tensor, input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """spread(grad_s1) + 2 I spread(grad_s2) (math.md, local deviation, backward)."""
    shape = tuple(input.shape)
    first = window_spread(grad_s1, window, shape, stride)
    second = window_spread(grad_s2, window, shape, stride)
    return (first + 2 * widen(input) * second).to(input.dtype)


def local_std(
    input: Tensor, window: Sequence[int], stride: Sequence[int], correction: float, eps: float
) -> Tensor:
    """Deviation of each window: sqrt(var N / (N - correction) + eps)."""
    count = input.shape[-len(window) - 1] * torch.Size(window).numel()
    var = window_moments(input, window, stride)[1]
    return torch.sqrt(var * (count / (count - correction)) + eps).to(input.dtype)


def local_std_prepare_grads(
    grad: Tensor, mean: Tensor, var: Tensor, count: float, correction: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of a deviation for the window's S1 and S2; exactly 0 where the window is flat."""
    ratio = count / (count - correction)
    live = var != 0
    std = torch.sqrt(torch.where(live, var, torch.ones_like(var)) * ratio + eps)
    grad_var = torch.where(live, widen(grad) * ratio / (2 * std), torch.zeros_like(var))
    grad_s2 = grad_var / count
    return -2 * mean * grad_s2, grad_s2


def _energy(mean: Tensor, var: Tensor, zero_mean: bool) -> Tensor:
    """What stands under the root of a normalised score, without eps."""
    return var if zero_mean else var + mean * mean


def ncc(
    input: Tensor, template: Tensor, stride: Sequence[int], zero_mean: bool, eps: float
) -> Tensor:
    """Score of a standardised template at each window (math.md, ZNCC)."""
    ndim = len(stride)
    window = template.shape[-ndim:]
    mean, var = window_moments(input, window, stride)
    wide, weights = widen(input), widen(template)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total = wide.new_zeros((*lead, *mean.shape[mean.dim() - ndim :]))
    level = mean.unsqueeze(-ndim - 1) if zero_mean else 0.0
    for v in offsets(window):
        seen = wide[(..., *positions(v, total.shape[-ndim:], stride))] - level
        total += (seen * _spread_axes(weights[(..., *v)], ndim)).sum(-ndim - 1)
    count = template.shape[-ndim - 1] * window.numel()
    energy = _energy(mean, var, zero_mean)
    flat = energy == 0
    norm = count * torch.sqrt(torch.where(flat, torch.ones_like(energy), energy) + eps)
    score = (total / norm).clamp(-1, 1)
    return torch.where(flat, torch.zeros_like(score), score).to(input.dtype)


def ncc_prepare_grads(
    grad: Tensor,
    score: Tensor,
    mean: Tensor,
    var: Tensor,
    count: float,
    zero_mean: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a score for its numerator and for the window's S1 and S2."""
    energy = _energy(mean, var, zero_mean)
    live = energy != 0
    energy = torch.where(live, energy, torch.ones_like(energy)) + eps
    wide = widen(grad)
    zero = wide.new_zeros(())
    numerator_grad = torch.where(live, wide / (count * torch.sqrt(energy)), zero)
    share = torch.where(live, wide * score / (count * energy), zero).sum_to_size(mean.shape)
    grad_s1 = share * mean if zero_mean else torch.zeros_like(share)
    return numerator_grad.to(grad.dtype), grad_s1, -share / 2


# --- tiles: what the overlap-save engine cuts, divides by and puts together -----------------------


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
    (level, scale, mean square, 1 if all is finite). Tile -1 is zero. As pairs, two tiles are one
    with an axis of 2 at the end.
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
    columns = [*(s.flatten() for s in stats), whole.to(x.dtype)]
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
) -> tuple[Tensor, Tensor]:
    """1 / (N deviation) of each window of each scaled tile: 0 where it is flat, -1 where it is
    fainter than the limits, NaN where it holds a NaN or an Inf. And how many of each are -1.
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
    energy = total - seen.mean(axes).square() if zero_mean else total
    softened = energy + eps * scale.squeeze(1).square()
    if local:
        limit = total * max(faint, exact)
    else:
        # The noise of a transform is that of both tiles of a pair.
        both = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
        limit = faint * both.squeeze(1)
    is_faint = (energy <= exact * total) | (softened < torch.maximum(limit, exact * total))
    lowest, highest = seen_raw.amin(axes), seen_raw.amax(axes)
    flat = is_faint & (lowest == highest) & (zero_mean | (lowest == 0))
    is_faint = is_faint & inner
    norm = 1 / (count * torch.sqrt(torch.where(is_faint, 1.0, softened)))
    norm = torch.where(flat, 0.0, torch.where(is_faint, -1.0, norm))
    return norm.to(input.dtype), (is_faint & ~flat).flatten(1).sum(1)


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
    out: Tensor,
) -> None:
    """Writes scores: numerator * norm, or the definition where the norm is -1."""
    ndim = len(stride)
    per_item = math.prod(geometry[:ndim])
    own = norms.shape[1:]
    if numerators.dim() == ndim + 3:
        numerators = numerators.movedim(-1, 1).flatten(0, 1)
    if numerators.shape[2:] != own:
        numerators = numerators[
            (..., *(slice(0, (n - 1) * s + 1, s) for n, s in zip(own, stride, strict=True)))
        ]
    templates = range(first_template, first_template + numerators.shape[1])
    for row, i in enumerate(ids):
        if i < 0:
            continue
        item, tile = divmod(i, per_item)
        to: list[slice] = []
        source: list[slice] = []
        for axis in reversed(range(ndim)):
            first = tile % geometry[axis] * own[axis]
            tile //= geometry[axis]
            n = min(own[axis], out.shape[2 + axis] - first)
            to.insert(0, slice(first, first + n))
            source.insert(0, slice(0, n))
        norm = norms[(row, *source)]
        score = (numerators[(row, slice(None), *source)] * norm).clamp(-1, 1)
        score = torch.where(norm == 0, torch.zeros_like(score), score).to(out.dtype)
        faint = norm < 0
        if faint.any():
            paired = template[item // (input.shape[0] // template.shape[0])]
            exact = ncc(
                input[item], paired[templates.start : templates.stop], stride, zero_mean, eps
            )
            score = torch.where(faint, exact[(slice(None), *to)], score)
        out[(item, slice(templates.start, templates.stop), *to)] = score
