"""How likely a score is by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["false_alarm", "significance", "unrelated"]

# A score whose square is this has the deviate of a perfect one.
_HIGHEST = 1 - 1e-9
# Elements whose correlation says how many independent ones there are.
_SAMPLE = 1 << 12


def significance(score: float, independent: float) -> float:
    """Normal deviate of a coefficient r over n independent pairs, signed as r.

    ``(8 v + 1) / (8 v + 3) * sqrt(-v log(1 - r**2))`` with ``v = n - 2``: Wallace's normal deviate
    of Student's ``t**2 = v r**2 / (1 - r**2)``.
    """
    free = max(independent - 2, 0.0)
    square = -free * math.log1p(-min(score * score, _HIGHEST))
    return math.copysign((8 * free + 1) / (8 * free + 3) * math.sqrt(square), score)


def false_alarm(deviate: float, either: bool, trials: float) -> float:
    """Probability that the largest of so many normal deviates comes that far (Šidák)."""
    tail = math.erfc(abs(deviate) / math.sqrt(2)) * (1.0 if either else 0.5)
    return -math.expm1(trials * math.log1p(-tail)) if tail < 1 else 1.0


def unrelated(x: Tensor, y: Tensor) -> float:
    """Pairs of elements that count as one independent pair, ``sum_k rho_x(k) rho_y(k)``.

    Bartlett's variance of the coefficient of unrelated recordings, times the number of pairs, here
    from the power spectra of their middles (Parseval).
    """
    size = round(_SAMPLE ** (1 / x.dim()))
    axes = tuple(range(1, x.dim() + 1))
    # Both in one tensor, as such short transforms are mostly the time to begin one.
    middles = x.new_zeros((2, *(2 * size for _ in axes)), dtype=torch.float64)
    for v, to in zip((x, y), middles, strict=True):
        starts = [max(0, (n - size) // 2) for n in v.shape]
        v = v[tuple(slice(start, start + size) for start in starts)].double()
        torch.sub(v, v.mean(), out=to[tuple(slice(n) for n in v.shape)])
    peaks = torch.linalg.vector_norm(middles, torch.inf, axes, keepdim=True)
    spectrum = torch.fft.rfftn(middles / torch.where(peaks > 0, peaks, 1.0), dim=axes)
    power = spectrum.real.square() + spectrum.imag.square()
    first, second = power / torch.where(peaks > 0, _mean(power, size), 1.0)
    return max(1.0, float(_mean((first * second)[None], size)))


def _mean(power: Tensor, size: int) -> Tensor:
    """Of all frequencies of each item, the negative ones of the last axis being those that are not
    there.
    """
    axes = tuple(range(1, power.dim()))
    first, second = (power.narrow(-1, k, size).sum(axes, keepdim=True) for k in (0, 1))
    return (first + second) / (power[0].numel() / power.shape[-1] * 2 * size)
