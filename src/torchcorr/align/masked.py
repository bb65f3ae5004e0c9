"""Recordings some of whose elements are missing, or count less than others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import _checks
from .._definition.overlap import ALLOWED, TRANSFORM, levelled, spectrum
from .._plan.lags import Lags
from ..local import local_sum

__all__ = ["NAN", "Masks", "masks_of"]

NAN = ("refuse", "ignore")
# Weight that is rounding of a transform.
_NOTHING = 1e-6
# Overlaps that are computed one by one.
_FEW = 1 << 12


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

    def scores(self, x: Tensor, y: Tensor, lags: Lags) -> tuple[Tensor, Tensor]:
        """Pearson's r at each lag with the weights of both, and the weight of what overlaps.

        By transforms of the whole (math.md, eq. masked). Overlaps too faint for them beside the
        rest are computed one by one if they are few, and else count as flat.
        """
        ndim = len(lags.axes)
        x, y = levelled(x, ndim), levelled(y, ndim)
        of_x, of_y = (_Powers.of(v, w) for v, w in ((x, self.x), (y, self.y)))
        lengths = [axis.length() for axis in lags.axes]
        first = of_x.spectra(lengths)
        second = of_y.reversed().spectra(lengths)
        place = tuple(slice(a.low + a.moved - 1, a.high + a.moved) for a in lags.axes)

        def sums(i: int, j: int) -> tuple[Tensor, float]:
            values = torch.fft.irfftn(first[i] * second[j], lengths, tuple(range(ndim)))[place]
            return values, TRANSFORM * of_x.norms[i] * of_y.norms[j]

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
    """The weights of a recording, with its elements, and with their squares."""

    values: tuple[Tensor, Tensor, Tensor]
    norms: tuple[float, ...]
    are_whole: bool

    @classmethod
    def of(cls, x: Tensor, weights: Tensor) -> _Powers:
        first = weights * x
        values = (weights, first, first * x)
        norms = tuple(float(torch.linalg.vector_norm(v)) for v in values)
        return cls(values, norms, bool(((weights == 0) | (weights == 1)).all()))

    def reversed(self) -> _Powers:
        zero, one, two = (v.flip(tuple(range(v.dim()))) for v in self.values)
        return replace(self, values=(zero, one, two))

    def spectra(self, lengths: Sequence[int]) -> list[Tensor]:
        return [spectrum(v, lengths) for v in self.values]


def _energy(
    squares: tuple[Tensor, float], mean: Tensor, error: float, count: Tensor
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
