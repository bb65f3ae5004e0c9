"""Inputs on which normalised correlation is often wrong, and an oracle in extended precision.

`table(f)` runs any ``f(image, template)`` from NumPy arrays to a NumPy array on all of them:

    for name, error in torture.table(my_match): print(name, error)

An error is the largest distance from the exact coefficient of the very same numbers; it is
infinite where f gives NaN or Inf. Flat windows count too: their exact score is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import oracle


class Torture(NamedTuple):
    """One image and one template, in the type under test."""

    name: str
    image: np.ndarray
    template: np.ndarray


SIDE, WINDOW = 72, 16
INSIDE = (slice(30, 30 + WINDOW), slice(22, 22 + WINDOW))


def _texture(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def _peers() -> Iterator[tuple[str, np.ndarray]]:
    """The rows of the table in PEERS.md."""
    base = _texture(1)
    yield "uniform", base
    for offset in (1e3, 1e4, 1e5, 1e6):
        yield f"offset {offset:.0e}", base + offset
    yield "offset -1e6", base - 1e6
    yield "scale 1e-4", base * 1e-4
    for value in (1e4, 1e6):
        hot = base.copy()
        hot[40, 45] = value
        yield f"one pixel {value:.0e}", hot
    spot = base.copy()
    spot[50:54, 44:48] = 1e6
    yield "spot 1e6", spot
    flat = base.copy()
    flat[4:28, 40:68] = 0.7
    yield "flat patch", flat
    for contrast in (1e-4, 1e-6):
        faint = base.copy()
        faint[26:50, 18:42] = 0.5 + contrast * _texture(2, (24, 24))
        yield f"faint patch {contrast:.0e}", faint
    ramp = np.linspace(0, 1e4, SIDE)
    yield "ramp 1e4", base + ramp[None, :]
    yield "steep ramp 1e6", base + 100 * (ramp[:, None] + ramp[None, :]) / 2


def _more() -> Iterator[tuple[str, np.ndarray]]:
    base = _texture(3)
    for power in (-10, -6, 6, 10):
        yield f"scale 1e{power}", base * 10.0**power
    rng = np.random.default_rng(4)
    yield "saturated uint8", np.clip(rng.normal(230, 40, (SIDE, SIDE)).round(), 0, 255)
    yield "near flat 245/246", 245.0 + (base > 0.995)
    yield "microscopy 16 bit", 32768.0 + rng.poisson(20, (SIDE, SIDE))
    yield "checkerboard", np.indices((SIDE, SIDE)).sum(0) % 2 + 1e-3 * base
    plateau = np.zeros((SIDE, SIDE))
    plateau[INSIDE] = base[INSIDE]
    yield "patch on zeros", plateau
    yield "steps", np.repeat(np.repeat(_texture(5, (6, 6)), 12, 0), 12, 1) * 1e5 + 1e-1 * base


def cases(dtype: np.dtype | type = np.float32) -> Iterator[Torture]:
    """Every case in one type; the template is cut from the image after rounding."""
    for group in (_peers, _more):
        for name, image in group():
            rounded = image.astype(dtype)
            template = rounded[INSIDE].copy()
            if oracle.is_flat(template.reshape(-1)):
                template = _texture(6, (WINDOW, WINDOW)).astype(dtype)
            yield Torture(name, rounded, template)
    base = _texture(7)
    shifted = (base[INSIDE] + 1e4).astype(dtype)
    yield Torture("template offset 1e4", base.astype(dtype), shifted)
    yield Torture("template scale 1e-8", base.astype(dtype), (1e-8 * base[INSIDE]).astype(dtype))
    faint = (0.5 + 1e-5 * _texture(8, (WINDOW, WINDOW))).astype(dtype)
    yield Torture("faint template 1e-5", base.astype(dtype), faint)
    other = _texture(9, (WINDOW, WINDOW)).astype(dtype)
    yield Torture("strange template, offset 1e5", (base + 1e5).astype(dtype), other)
    whole = (base + 1e3).astype(dtype)
    yield Torture("window is input", whole, (whole * 2 + _texture(10)).astype(dtype))
    prime = (_texture(11, (67, 71)) + 1e4).astype(dtype)
    yield Torture("primes", prime, prime[20:51, 11:48].copy())
    wide_image = (_texture(12, (3, 1009)) + 1e4).astype(dtype)
    yield Torture("one row window", wide_image, wide_image[1:2, 300:331].copy())


def exact(case: Torture) -> np.ndarray:
    return oracle.zncc(case.image, case.template)


def error(score: np.ndarray, truth: np.ndarray) -> float:
    score = np.asarray(score)
    if score.shape != truth.shape or not np.isfinite(score).all():
        return float("inf")
    return float(np.abs(score.astype(np.longdouble) - truth).max())


def table(
    f: Callable[[np.ndarray, np.ndarray], np.ndarray], dtype: np.dtype | type = np.float32
) -> list[tuple[str, float]]:
    """(name, error) of f for every case."""
    return [(c.name, error(f(c.image, c.template), exact(c))) for c in cases(dtype)]
