"""Recordings some of whose elements are missing, or count less than others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .._definition.overlap import ALLOWED, TRANSFORM, levelled, products, spectrum
from .._plan import rounding
from .._plan.lags import Lags
from ..local import local_sum

__all__ = ["NAN", "Masks", "masks_of"]

NAN = ("refuse", "ignore")
# Weight that is rounding of a transform.
_NOTHING = 1e-6
# Overlaps that are computed one by one.
_FEW = 1 << 12
# Elements of a recording that are summed apart from the transforms, at most, and how many times the
# root mean square of the others they are.
_SPIKES = 64
_LARGE = 100.0
# Rounding of what they add to a sum, relative to its terms.
_UNIT = _SPIKES * rounding.unit(torch.float64)


@dataclass(frozen=True)
class Masks:
    """The weights of the elements of both recordings, float64."""

    x: Tensor
    y: Tensor

    def swapped(self) -> Masks:
        return Masks(self.y, self.x)

    @property
    def smaller(self) -> float:
        return min(float(self.x.sum()), float(self.y.sum()))

    def counts(self, lags: Lags) -> Tensor:
        """The weight of what overlaps at each lag."""
        counts = products(self.x, self.y, lags).clamp_(min=0)
        return counts.round_() if _are_whole(self.x) and _are_whole(self.y) else counts

    def concentration(self, lags: Lags, lag: Sequence[int]) -> float:
        """How many times the variance of the correlation of unrelated recordings at a lag, as a
        share of that of all lags, exceeds what it is at most without masks: at least 1 (math.md,
        eq. weighed-spectra).
        """
        of_x, of_y = lags.overlap(lag)
        x, y = ((w / w.amax()).square() for w in (self.x, self.y))
        share = float((x[of_x] * y[of_y]).sum() / (x.sum() * y.sum()))
        return max(1.0, share * math.prod(max(a.size, a.moved) for a in lags.axes))

    def scores(self, x: Tensor, y: Tensor, lags: Lags) -> tuple[Tensor, Tensor]:
        """Pearson's r at each lag with the weights of both, and the weight of what overlaps.

        By transforms of the whole (math.md, eq. masked), but for a few elements that are much
        larger than the others: those are added to the lags that they take part in, so that no other
        lag sees them. Overlaps too faint for transforms beside the rest are computed one by one if
        they are few, and else count as flat.
        """
        ndim = len(lags.axes)
        x, y = levelled(x, ndim), levelled(y, ndim)
        of_x, of_y = (_Powers.of(v, w) for v, w in ((x, self.x), (y, self.y)))
        lengths = [axis.length() for axis in lags.axes]
        first = [spectrum(v, lengths) for v in of_x.values]
        second = [spectrum(v, lengths) for v in of_y.reversed()]
        place = tuple(slice(a.low + a.moved - 1, a.high + a.moved) for a in lags.axes)

        def sums(i: int, j: int) -> tuple[Tensor, Tensor | float]:
            values = torch.fft.irfftn(first[i] * second[j], lengths, tuple(range(ndim)))[place]
            error = TRANSFORM * of_x.norms[i] * of_y.norms[j]
            spikes = of_x.larger(i), of_y.larger(j)
            if not any(spikes):
                return values, error
            sizes = torch.zeros_like(values)
            # Those of x meet all of y, and those of y the rest of x.
            values = values.contiguous()
            _meet(values, sizes, lags, spikes[0], of_y.whole(j), True)
            _meet(values, sizes, lags, spikes[1], of_x.values[i], False)
            return values, error + _UNIT * sizes

        counts = sums(0, 0)[0].clamp_(min=0)
        if of_x.are_whole and of_y.are_whole:
            counts = counts.round_()
        there = torch.where(counts > _NOTHING, counts, 1.0)
        (mean, error), (other, error_of_other) = (
            (v / there, e) for v, e in (sums(1, 0), sums(0, 1))
        )
        energy, noise = _energy(sums(2, 0), mean, error, there)
        energy_of_other, noise_of_other = _energy(sums(0, 2), other, error_of_other, there)
        product, rounding = sums(1, 1)
        product -= mean * other * there
        scale = energy.clamp(min=0).sqrt() * energy_of_other.clamp(min=0).sqrt()
        noise_of_product = rounding + mean.abs() * error_of_other + other.abs() * error
        faint = energy * ALLOWED <= noise
        faint |= energy_of_other * ALLOWED <= noise_of_other
        faint |= scale * ALLOWED <= noise_of_product
        scores = (product / scale.masked_fill(faint, 1.0)).clamp_(-1.0, 1.0)
        scores.masked_fill_(faint, 0.0)
        self._recompute(scores, x, y, lags, faint & (counts > _NOTHING))
        return scores, counts

    def _recompute(self, scores: Tensor, x: Tensor, y: Tensor, lags: Lags, faint: Tensor) -> None:
        index = faint.nonzero().tolist()
        if len(index) > _FEW:
            return
        for place in index:
            lag = [a.low + i for a, i in zip(lags.axes, place, strict=True)]
            of_x, of_y = lags.overlap(lag)
            scores[tuple(place)] = _score(x[of_x], y[of_y], self.x[of_x] * self.y[of_y])

    def surrounded(
        self, of_x: tuple[slice, ...], of_y: tuple[slice, ...], reach: Sequence[int]
    ) -> Tensor:
        """1 for elements of an overlap around which none is missing in either recording."""
        size = [2 * r + 1 for r in reach]
        missing = ((self.x[of_x] == 0) | (self.y[of_y] == 0)).double()
        return (local_sum(missing, size, ndim=len(size)) < 0.5).double()


@dataclass(frozen=True)
class _Powers:
    """The weights of a recording, with its elements, and with their squares, without the elements
    that are much larger than the others: those, and where they are.
    """

    values: tuple[Tensor, Tensor, Tensor]
    norms: tuple[float, ...]
    are_whole: bool
    spikes: list[tuple[tuple[int, ...], tuple[float, float, float]]]

    @classmethod
    def of(cls, x: Tensor, weights: Tensor) -> _Powers:
        first = weights * x
        values = (weights, first, first * x)
        spikes = []
        for place in _large(values[2]):
            spikes.append((place, (0.0, float(values[1][place]), float(values[2][place]))))
        for place, _ in spikes:
            values[1][place] = values[2][place] = 0.0
        norms = tuple(float(torch.linalg.vector_norm(v)) for v in values)
        return cls(values, norms, _are_whole(weights), spikes)

    def larger(self, i: int) -> list[tuple[tuple[int, ...], float]]:
        return [(place, values[i]) for place, values in self.spikes] if i > 0 else []

    def whole(self, i: int) -> Tensor:
        values = self.values[i]
        if i > 0 and self.spikes:
            values = values.clone()
            for place, value in self.larger(i):
                values[place] = value
        return values

    def reversed(self) -> tuple[Tensor, ...]:
        return tuple(v.flip(tuple(range(v.dim()))) for v in self.values)


def _are_whole(weights: Tensor) -> bool:
    return bool(((weights == 0) | (weights == 1)).all())


def _large(squares: Tensor) -> list[tuple[int, ...]]:
    """The places of a few elements that are much larger than the root mean square of the others."""
    flat = squares.flatten()
    top = flat.topk(min(_SPIKES, len(flat)))
    others = flat.index_fill(0, top.indices, 0.0).mean()
    places = top.indices[top.values > _LARGE**2 * others].tolist()
    return [
        tuple(int(i) for i in torch.unravel_index(torch.tensor(n), squares.shape)) for n in places
    ]


def _meet(
    to: Tensor,
    sizes: Tensor,
    lags: Lags,
    spikes: list[tuple[tuple[int, ...], float]],
    other: Tensor,
    of_reference: bool,
) -> None:
    """Adds the products of single elements of one recording with all of the other to the lags at
    which they meet, and the sizes of the products.
    """
    for place, value in spikes:
        kept, seen = [], []
        for axis, at in zip(lags.axes, place, strict=True):
            if of_reference:
                low, high = max(axis.low, at - axis.moved + 1), min(axis.high, at)
                seen.append(slice(at - high, at - low + 1))
            else:
                low, high = max(axis.low, -at), min(axis.high, axis.size - 1 - at)
                seen.append(slice(at + low, at + high + 1))
            kept.append(slice(low - axis.low, high - axis.low + 1))
        if any(part.start >= part.stop for part in kept):
            continue
        products = value * other[tuple(seen)]
        if of_reference:
            products = products.flip(tuple(range(products.dim())))
        to[tuple(kept)] += products
        sizes[tuple(kept)] += products.abs_()


def _energy(
    squares: tuple[Tensor, Tensor | float], mean: Tensor, error: Tensor | float, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted squares about the mean, and their rounding."""
    values, noise = squares
    return values - mean.square() * count, noise + 2 * mean.abs() * error


def _score(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """The weighted coefficient from its definition; 0 where either is flat."""
    there = weights > 0
    x, y, weights = x[there], y[there], weights[there]
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return 0.0
    x, y = (v - (weights * v).sum() / weights.sum() for v in (x, y))
    norms = [float((weights * v * v).sum().sqrt()) for v in (x, y)]
    size = norms[0] * norms[1]
    return max(-1.0, min(1.0, float((weights * x * y).sum()) / size)) if size > 0 else 0.0


def masks_of(
    recordings: dict[str, Tensor], masks: dict[str, Tensor | None], nan: str
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Recordings without what is missing, and the weights of their elements if any is: 0 where the
    value does not matter, which is that of the mean then.
    """
    _checks.one_of(nan, NAN, "nan")
    for name, mask in masks.items():
        if mask is not None:
            _checks.tensor(recordings[name], name)
            _checks.mask(mask, recordings[name], name, values=True)
    found = dict(masks)
    if nan == "ignore":
        for name, x in recordings.items():
            there = ~x.isnan()
            if not bool(there.all()):
                mask = found[name]
                found[name] = there if mask is None else mask * there
    if all(mask is None for mask in found.values()):
        return recordings, None
    filled, weights = {}, {}
    for name, x in recordings.items():
        mask = found[name]
        if mask is None:
            filled[name], weights[name] = x, x.new_ones((), dtype=torch.float64).expand(x.shape)
            continue
        weight = mask.double().expand(x.shape)
        there = weight > 0
        if not bool(there.any()):
            raise ValueError(f"{name} must have an element that is not missing: got none")
        filled[name] = torch.where(there, x, x[there].double().mean().to(x.dtype))
        weights[name] = weight
    return filled, weights
