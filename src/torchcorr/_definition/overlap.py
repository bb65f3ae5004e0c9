"""The coefficient of correlation over the overlap at each lag, and over nothing else.

An overlap begins or ends where a recording does, or is a window of the longer one. Its mean and its
energy (the sum of squared deviations from the mean) are merged from the corner outwards: every term
that is added is positive, so what lies outside an overlap cannot disturb it (math.md, eq. corner).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.lags import AxisLags, Lags, lags_between
from .correlate import correlate
from .traced import is_traced
from .transforms import bordered
from .windows import window_moments, window_sum

# Rounding of a product of transforms in float64, relative to the norms of both recordings.
TRANSFORM = 64 * rounding.unit(torch.float64)
# Energy that rounding of the mean can leave in a flat overlap of n elements: n (mean * this)².
_FLAT = 1e-12
# The largest error of a score. An overlap that is too faint beside the rest for it counts as flat.
ALLOWED = 1e-7
# Multiply-adds from which on scores that transforms cannot resolve are not summed term by term,
# and lags from which on transforms are quicker.
LOOP = 1 << 27
_FEW_LAGS = 256
# Elements of transforms along all axes but the last that are in memory at the same time, and how
# many columns they have at least.
_COLUMN_ELEMENTS, _LEAST_COLUMNS = 1 << 18, 16
# Elements that the level of a recording is the median of.
_SAMPLED = 4096
# Of recordings whose largest element is in this range products of energies are in range too.
RANGE = (1e-60, 1e60)


class OverlapOperators(NamedTuple):
    """What scores are computed with: sums of products, and moments and sums of windows."""

    correlate: Callable[..., Tensor]
    window_moments: Callable[..., tuple[Tensor, Tensor]]
    window_sum: Callable[..., Tensor]


@dataclass(frozen=True)
class Moments:
    """Mean and energy of parts of ``count`` elements each; of single elements it is None."""

    mean: Tensor
    energy: Tensor | None
    count: Tensor


def overlap_scores_by(operators: OverlapOperators) -> Callable[..., Tensor]:
    """Pearson's r of x (*S) and y (*K) at each lag, (*lags), float64; 0 where an overlap of either
    is flat.
    """

    def overlap_scores(
        x: Tensor, y: Tensor, low: Sequence[int], high: Sequence[int], method: str
    ) -> Tensor:
        lags = lags_between(x.shape, y.shape, low, high)
        lags, x, y = lags.cropped(x, y)
        ndim = len(lags.axes)
        x, y = levelled(x, ndim), levelled(y, ndim)
        mean, scale = overlap_moments(x, lags, operators)
        other, energy = (
            v.flip(*range(ndim)) for v in overlap_moments(y, lags.swapped(), operators)
        )
        # Two roots: the product of two energies could leave the range of the exponent.
        scale = scale.sqrt() * energy.sqrt()
        faint = scale <= faintest(x, y)
        some = bool((faint & (scale > 0)).any())
        by_loop = math.prod(lags.shape) <= _FEW_LAGS or (some and lags.products <= LOOP)
        direct = method == "direct" or (method == "auto" and by_loop)
        sums = _summed(x, y, lags, operators) if direct else products(x, y, lags)
        sums = sums - mean * other * lags.counts(x.device)
        dead = scale <= 0 if direct else faint
        scores = (sums / scale.masked_fill(dead, 1.0)).clamp_(-1.0, 1.0)
        return scores.masked_fill_(dead, 0.0)

    return overlap_scores


def levelled(x: Tensor, ndim: int) -> Tensor:
    """x without its level, which no single element can move far, in float64: in units of its
    largest element, if there are leading axes or it is very large or small.
    """
    axes = tuple(range(-ndim, 0))
    x = x.double() - level_of(x, ndim).double()[(..., *(None,) * ndim)]
    if ndim == x.dim() and not is_traced():
        least, most = torch.aminmax(x.detach())
        if RANGE[0] < max(-float(least), float(most)) < RANGE[1]:
            return x
    peak = torch.maximum(-x.amin(axes, keepdim=True), x.amax(axes, keepdim=True))
    scale = torch.where(peak > 0, peak, 1.0)
    # A derivative of the peak needs x as it was.
    return x / scale if is_traced() or x.requires_grad else x.div_(scale)


def level_of(x: Tensor, ndim: int) -> Tensor:
    """The median of some elements, for each index of the leading axes."""
    flat = x.flatten(-ndim)
    return flat[..., :: max(1, flat.shape[-1] // _SAMPLED)].median(-1).values


def faintest(x: Tensor, y: Tensor) -> float:
    """The root of the product of both energies of an overlap up to which transforms of the whole
    cannot promise its score.
    """
    norms = (float(torch.linalg.vector_norm(v)) for v in (x, y))
    return math.prod(norms) * (TRANSFORM / ALLOWED)


def overlap_moments(x: Tensor, lags: Lags, operators: OverlapOperators) -> tuple[Tensor, Tensor]:
    """Mean and energy of the part of x that overlaps at each lag, (*lags); a flat part has none."""
    part = Moments(x, None, torch.ones((), dtype=x.dtype, device=x.device))
    for i in reversed(range(len(lags.axes))):
        part = _along(part, lags.axes[i], i - len(lags.axes), operators)
    mean, energy = part.mean, part.energy
    if energy is None:
        raise ValueError("an overlap has at least one axis")
    flat = energy <= (mean * _FLAT).square_().mul_(part.count)
    return mean, energy.masked_fill_(flat, 0.0)


def _along(part: Moments, lags: AxisLags, axis: int, operators: OverlapOperators) -> Moments:
    """Parts merged along an axis: those of a prefix, a window or a suffix of it at each lag."""
    n, m = lags.size, lags.moved
    until, since = lags.grown
    pieces = []
    if (low := lags.low) <= (high := min(lags.high, until)):
        pieces.append(_prefixes(part, low + m, high + m, axis))
    if (low := max(lags.low, until + 1)) <= (high := min(lags.high, since - 1)):
        window = AxisLags(n, m, low, high)
        pieces.append(moments_between(part, window, axis, operators))
    if (low := max(lags.low, since)) <= (high := lags.high):
        energy = None if part.energy is None else part.energy.flip(axis)
        flipped = Moments(part.mean.flip(axis), energy, part.count)
        mean, energy = _prefixes(flipped, n - high, n - low, axis)
        pieces.append((mean.flip(axis), energy.flip(axis)))
    mean, energy = (torch.cat(maps, axis) for maps in zip(*pieces, strict=True))
    counts = lags.counts(part.mean.device)
    return Moments(mean, energy, _column(counts, axis) * part.count)


def _column(values: Tensor, axis: int) -> Tensor:
    """Values along an axis, counted from the last."""
    return values[(..., *(None,) * (-1 - axis))]


def _prefixes(part: Moments, first: int, last: int, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and energy of the first k parts together, for k from `first` to `last`."""
    mean, energy = _merged(part, first, axis)
    if last == first:
        return mean, energy
    more = part.mean.narrow(axis, first, last - first)
    ks = torch.arange(first, last + 1, dtype=more.dtype, device=more.device)
    means = torch.cat([mean * first, more], axis).cumsum_(axis)
    means /= _column(ks, axis)
    energies = torch.empty_like(means)
    energies.narrow(axis, 0, 1).copy_(energy)
    steps = energies.narrow(axis, 1, last - first)
    torch.sub(more, means.narrow(axis, 0, last - first), out=steps)
    steps.square_().mul_(_column(ks[:-1] / ks[1:], axis) * part.count)
    if part.energy is not None:
        steps += part.energy.narrow(axis, first, last - first)
    return means, energies.cumsum_(axis)


def _merged(part: Moments, count: int, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and energy of the first parts along an axis together."""
    means = part.mean.narrow(axis, 0, count)
    if count == 1:
        energy = part.energy.narrow(axis, 0, 1) if part.energy is not None else None
        return means, torch.zeros_like(means) if energy is None else energy
    mean = means.mean(axis, keepdim=True)
    energy = (means - mean).square_().sum(axis, keepdim=True) * part.count
    if part.energy is not None:
        energy += part.energy.narrow(axis, 0, count).sum(axis, keepdim=True)
    return mean, energy


def moments_between(
    part: Moments, lags: AxisLags, axis: int, operators: OverlapOperators
) -> tuple[Tensor, Tensor]:
    """Moments at lags at which one recording lies within the other along an axis: the windows of
    this one, one for each lag, or the whole of it, one for all.
    """
    window, count = min(lags.size, lags.moved), len(lags)
    if lags.size == window:
        mean, energy = _merged(part, window, axis)
        sizes = [-1] * mean.dim()
        sizes[axis] = count
        return mean.expand(sizes), energy.expand(sizes)
    sizes, steps = [1] * part.mean.dim(), [1] * part.mean.dim()
    sizes[axis] = window
    means = part.mean.narrow(axis, lags.low, count + window - 1)
    mean, var = operators.window_moments(means[None].contiguous(), sizes, steps)
    energy = var * (part.count * window)
    if part.energy is not None:
        inside = part.energy.narrow(axis, lags.low, count + window - 1)
        energy += operators.window_sum(inside[None].contiguous(), sizes, steps)
    return mean, energy


def products(x: Tensor, y: Tensor, lags: Lags) -> Tensor:
    """``sum_i x[i + lag] y[i]`` over the overlap at each lag, by transforms of the whole: a
    convolution with y reversed, whose lags lie side by side.
    """
    axes = tuple(range(len(lags.axes)))
    lengths = [axis.length() for axis in lags.axes]
    *outer, last = lengths
    if not outer or math.prod(outer) * (last // 2) <= 2 * _COLUMN_ELEMENTS:
        both = spectrum(x, lengths)
        both *= spectrum(y.flip(axes), lengths)
        if outer:
            both = torch.fft.ifftn(both, dim=axes[:-1])
    else:
        # Some columns at a time, so that few transforms along other axes are in memory.
        first, second = torch.fft.rfft(x, last), torch.fft.rfft(y.flip(axes), last)
        both = first.new_empty((*outer, first.shape[-1]))
        width = max(_LEAST_COLUMNS, _COLUMN_ELEMENTS // math.prod(outer))
        for start in range(0, first.shape[-1], width):
            columns = slice(start, start + width)
            some = torch.fft.fftn(first[..., columns], outer, axes[:-1])
            some *= torch.fft.fftn(second[..., columns], outer, axes[:-1])
            both[..., columns] = torch.fft.ifftn(some, dim=axes[:-1])
        del first, second, some
    circle = torch.fft.irfft(both, last)
    return circle[tuple(slice(a.low + a.moved - 1, a.high + a.moved) for a in lags.axes)]


def spectrum(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Axis by axis, so that lines of padding are not transformed."""
    found = torch.fft.rfft(x, lengths[-1])
    for axis in range(x.dim() - 2, -1, -1):
        found = torch.fft.fft(found, lengths[axis], axis)
    return found


def _summed(x: Tensor, y: Tensor, lags: Lags, operators: OverlapOperators) -> Tensor:
    """The same term by term."""
    if math.prod(lags.shape) > y.numel():
        step = [1] * x.dim()
        return operators.correlate(
            bordered(x, reach(lags))[None], y[None].contiguous(), step, "direct"
        )
    sums = [(x[of_x] * y[of_y]).sum() for of_x, of_y in (lags.overlap(lag) for lag in lags.every())]
    return torch.stack(sums).reshape(lags.shape)


def reach(lags: Lags) -> list[int]:
    """Zeros that a valid correlation with these lags takes before and behind the reference along
    each axis in turn; negative where it leaves elements out.
    """
    return [end for a in lags.axes for end in (-a.low, a.high + a.moved - a.size)]


overlap_scores = overlap_scores_by(OverlapOperators(correlate, window_moments, window_sum))
