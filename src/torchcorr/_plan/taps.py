"""Weights along one axis of a window."""

from __future__ import annotations

import math
from collections.abc import Sequence

# A Gaussian's deviation is this share of its window.
SIGMA = 1 / 3


def window_taps(weights: str, window: Sequence[int]) -> tuple[float, ...]:
    """Those of each axis one after another; a window's weights are their products.

    An axis of k elements has 1, ..., 1; or 1, 2, ..., 2, 1; or a Gaussian about its middle. Either
    half mirrors the other, whether k is odd or even.
    """
    return tuple(_tap(weights, i, k) for k in window for i in range(k))


def _tap(weights: str, i: int, k: int) -> float:
    if weights == "triangle":
        return float(min(i, k - 1 - i) + 1)
    if weights == "gaussian":
        # Twice the distance is a whole number, so both halves have the same bits.
        return math.exp(-0.125 * ((2 * i - (k - 1)) / (SIGMA * k)) ** 2)
    return 1.0


def per_axis(taps: Sequence[float], window: Sequence[int]) -> list[Sequence[float]]:
    """What `window_taps` put one after another."""
    ends = [sum(window[: i + 1]) for i in range(len(window))]
    return [taps[end - k : end] for end, k in zip(ends, window, strict=True)]
