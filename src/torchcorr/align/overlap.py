"""The coefficient of correlation over the overlap at each lag, and over nothing else.

An overlap begins or ends where a recording does, or is a window of the longer one. Its mean and its
energy (the sum of squared deviations from the mean) are merged from the corner outwards: every term
that is added is positive, so what lies outside an overlap cannot disturb it (math.md, eq. corner).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..functional import correlate
from ..local import local_mean, local_sum, local_var
from .lags import AxisLags, Lags

# Rounding of a product of transforms in float64, relative to the norms of both recordings.
_TRANSFORM = 64 * 2.0**-53
# Energy that rounding of the mean can leave in a flat overlap of n elements: n (mean * this)².
_FLAT = 1e-12
# The largest error of a score. An overlap that is too faint beside the rest for it counts as flat.
_ALLOWED = 1e-7
# Multiply-adds from which on scores that transforms cannot resolve are not summed term by term,
# and lags from which on transforms are quicker.
_LOOP = 1 << 27
_FEW_LAGS = 256
# Elements that the level of a recording is the median of.
_SAMPLED = 4096


@dataclass(frozen=True)
class Moments:
    """Mean and energy of parts of ``count`` elements each; of single elements it is None."""

    mean: Tensor
    energy: Tensor | None
    count: Tensor


def overlap_scores(x: Tensor, y: Tensor, lags: Lags, method: str = "auto") -> Tensor:
    """Pearson's r of recordings of one leading axis, ``(lead, *lags)``, float64; 0 where an overlap
    of either is flat.
    """
    lags, x, y = lags.cropped(x, y)
    ndim = len(lags.axes)
    axes = tuple(range(-ndim, 0))
    x, y = levelled(x, ndim), levelled(y, ndim)
    (mean, scale), (other, energy) = overlap_moments(x, lags), overlap_moments(y, lags.swapped())
    mean *= other.flip(axes)
    # Two roots: the product of two energies could leave the range of the exponent.
    scale = scale.sqrt_().mul_(energy.flip(axes).sqrt_())
    norms = (torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in (x, y))
    faint = scale <= math.prod(norms) * (_TRANSFORM / _ALLOWED)
    some = bool(faint.any())
    few = math.prod(lags.shape) <= _FEW_LAGS
    by_loop = few or (some and cost_by_loop(lags) <= _LOOP)
    if method == "direct" or (method == "auto" and by_loop):
        method = "direct" if some else method
        sums = correlate(stretched(x, lags), y, ndim=ndim, method=method)
    else:
        sums = products(x, y, lags)
    sums -= mean.mul_(lags.counts(x.device))
    if some:
        dead = scale <= 0 if method == "direct" else faint
        scale, sums = scale.masked_fill_(dead, 1.0), sums.masked_fill_(dead, 0.0)
    return sums.div_(scale).clamp_(-1.0, 1.0)


def levelled(x: Tensor, ndim: int) -> Tensor:
    """x without its level, which no single element can move far, in units of its largest."""
    flat = x.flatten(-ndim)
    level = flat[..., :: max(1, flat.shape[-1] // _SAMPLED)].median(-1).values
    x = x.double() - level.double()[(..., *(None,) * ndim)]
    least, most = torch.aminmax(x.flatten(-ndim), dim=-1)
    peak = torch.maximum(-least, most)[(..., *(None,) * ndim)]
    return x.div_(torch.where(peak > 0, peak, 1.0))


def overlap_moments(x: Tensor, lags: Lags) -> tuple[Tensor, Tensor]:
    """Mean and energy of the part of x that overlaps at each lag, ``(lead, *lags)``; a flat part
    has none.
    """
    part = Moments(x, None, torch.ones((), dtype=x.dtype, device=x.device))
    for i in reversed(range(len(lags.axes))):
        part = _along(part, lags.axes[i], i - len(lags.axes))
    mean, energy = part.mean, part.energy
    if energy is None:
        raise ValueError("an overlap has at least one axis")
    flat = energy <= (mean * _FLAT).square_().mul_(part.count)
    return mean, energy.masked_fill_(flat, 0.0)


def _along(part: Moments, lags: AxisLags, axis: int) -> Moments:
    """Parts merged along an axis: those of a prefix, a window or a suffix of it at each lag."""
    n, m = lags.size, lags.moved
    pieces = []
    if (low := lags.low) <= (high := min(lags.high, -1, n - m - 1)):
        pieces.append(_prefixes(part, low + m, high + m, axis))
    if (low := max(lags.low, min(0, n - m))) <= (high := min(lags.high, max(0, n - m))):
        pieces.append(_whole(part, low, high, axis, min(n, m)))
    if (low := max(lags.low, 1, n - m + 1)) <= (high := lags.high):
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
    if first == 1:
        means = part.mean.narrow(axis, 0, last).cumsum(axis)
    else:
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


def _whole(part: Moments, low: int, high: int, axis: int, window: int) -> tuple[Tensor, Tensor]:
    """The windows of the longer recording at these lags, or the whole of the shorter."""
    count = high - low + 1
    if part.mean.shape[axis] == window:
        mean, energy = _merged(part, window, axis)
        sizes = [-1] * mean.dim()
        sizes[axis] = count
        return mean.expand(sizes), energy.expand(sizes)
    ndim = -axis
    sizes = [window] + [1] * (ndim - 1)
    means = part.mean.narrow(axis, low, count + window - 1)
    energy = local_var(means, sizes, ndim=ndim) * (part.count * window)
    if part.energy is not None:
        inside = part.energy.narrow(axis, low, count + window - 1)
        energy += local_sum(inside, sizes, ndim=ndim)
    return local_mean(means, sizes, ndim=ndim), energy


def products(x: Tensor, y: Tensor, lags: Lags) -> Tensor:
    """``sum_i x[i + lag] y[i]`` over the overlap at each lag, by transforms of the whole."""
    axes = tuple(range(-len(lags.axes), 0))
    lengths = [axis.length() for axis in lags.axes]
    spectrum = torch.fft.rfftn(x, lengths, axes)
    spectrum *= torch.fft.rfftn(y, lengths, axes).conj()
    return unrolled(torch.fft.irfftn(spectrum, lengths, axes), lags)


def unrolled(circle: Tensor, lags: Lags) -> Tensor:
    """The lags of a circular correlation, in their order: lag k lies at k modulo its length."""
    for axis, lag in zip(range(-len(lags.axes), 0), lags.axes, strict=True):
        if lag.low >= 0 or lag.high < 0:
            circle = circle.narrow(axis, lag.low % circle.shape[axis], len(lag))
        else:
            ends = circle.narrow(axis, circle.shape[axis] + lag.low, -lag.low)
            circle = torch.cat([ends, circle.narrow(axis, 0, lag.high + 1)], axis)
    return circle


def stretched(x: Tensor, lags: Lags) -> Tensor:
    """The reference cut or padded so that a valid correlation has these lags."""
    ends = [(-a.low, a.high + a.moved - a.size) for a in reversed(lags.axes)]
    return pad(x, [end for pair in ends for end in pair])


def cost_by_loop(lags: Lags) -> int:
    """Multiply-adds of the sums of products, term by term."""
    return math.prod(min(a.size, a.moved) for a in lags.axes) * math.prod(lags.shape)
