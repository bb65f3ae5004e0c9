"""Rotation and scale of two images from their spectra, which shifts do not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..functional import zncc
from ..match.peaks import find_peaks

__all__ = ["Turn", "likely_turns", "sampled"]

# Angles in half a turn, and radii for each factor of two.
_ANGLES = 360
_RADII = 50
# Frequencies that are compared: from so many periods in the smaller image to so many in a pixel.
_LOWEST, _HIGHEST = 3.0, 0.45
# What is added to a spectrum before its logarithm is taken, in units of its mean.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Turn:
    """How the moving image is turned, in radians, and by which factor it is enlarged."""

    angle: float
    scale: float


def likely_turns(
    x: Tensor, y: Tensor, max_angle: float, max_scale: float, count: int
) -> list[Turn]:
    """The turns at which log-polar spectra agree best; none is told from its opposite."""
    shapes = (*x.shape, *y.shape)
    lowest = _LOWEST / min(shapes)
    radii = int(math.log2(_HIGHEST / lowest) * _RADII) if lowest < _HIGHEST else 0
    reach = min(math.ceil(math.log2(max_scale) * _RADII), (radii - 1) // 3)
    if reach < 0:
        return []
    fixed, moved = (_spectrum(v, 2 * max(shapes), lowest, radii) for v in (x, y))
    # Angles are a circle. A spectrum is the larger, the smaller its image.
    around = torch.cat([fixed, fixed[:, : _ANGLES - 1]], 1)
    scores = zncc(around, moved[reach : radii - reach])
    wide = torch.cat([scores[:, -1:], scores, scores[:, :1]], 1)
    peaks = find_peaks(wide, max_peaks=4 * count, min_distance=1)
    turns: list[Turn] = []
    for radius, column in peaks.positions.tolist():
        angle = ((column - 1) * math.pi / _ANGLES) % math.pi
        turn = Turn(angle, 2.0 ** ((reach - radius) / _RADII))
        known = any(
            abs(math.sin(turn.angle - t.angle)) < math.pi / _ANGLES
            and abs(math.log2(turn.scale / t.scale)) < 1 / _RADII
            for t in turns
        )
        if known or not 1 / max_scale <= turn.scale * 1.02 or not turn.scale <= max_scale * 1.02:
            continue
        turns.append(turn)
    both = [Turn(t.angle - half, t.scale) for t in turns[:count] for half in (0.0, math.pi)]
    return [t for t in both if abs(t.angle) <= max_angle + math.pi / _ANGLES]


def _spectrum(x: Tensor, length: int, lowest: float, radii: int) -> Tensor:
    """Logarithm of the spectrum at radii and angles of half a turn, each radius about its mean."""
    rows, columns = (
        torch.hann_window(n + 2, periodic=False, dtype=x.dtype, device=x.device)[1:-1]
        for n in x.shape
    )
    window = rows[:, None] * columns
    flat = (x - (x * window).sum() / window.sum()) * window
    size = torch.fft.fftshift(torch.fft.fft2(flat, (length, length)).abs())
    size = (size + _FLOOR * size.mean()).log()
    angle = torch.arange(_ANGLES, dtype=x.dtype, device=x.device) * (math.pi / _ANGLES)
    steps = torch.arange(radii, dtype=x.dtype, device=x.device)
    radius = (length * lowest * (steps / _RADII).exp2())[:, None]
    polar = sampled(size, length // 2 + radius * angle.cos(), length // 2 + radius * angle.sin())
    return polar - polar.mean(1, keepdim=True)


def sampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x between its elements, by cubic interpolation; outside as at the border."""
    height, width = x.shape
    places = torch.stack(
        [columns * (2 / max(width - 1, 1)) - 1, rows * (2 / max(height - 1, 1)) - 1], -1
    )
    shape: Sequence[int] = rows.shape
    return grid_sample(
        x[None, None],
        places.reshape(1, 1, -1, 2),
        mode="bicubic",
        padding_mode="border",
        align_corners=True,
    ).reshape(shape)
