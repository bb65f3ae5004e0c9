"""Bounds of rounding that every engine uses (docs/math.md, What float32 can carry)."""

from __future__ import annotations

import torch

# Rounding errors of a transform, in units of the norm of its values (eq. noise).
TRANSFORM = 10.0
# The same for float64 transforms of plain sums, relative to the larger side of a tile.
TRANSFORM_OF_SUMS = 64.0
# Error that a plain sum may have, in roundings of its sum of absolute products.
ALLOWED_ROUNDINGS = 16.0
# The same where the transform is in float32: the promise, less one for the rounding of the result.
ALLOWED_ROUNDINGS_IN_FLOAT32 = 7.0
# Error that a score may have: the promise, less a margin for the other steps of a score.
ALLOWED_SCORE_ERROR = {torch.float32: 8e-6, torch.float64: 8e-11}
# Error that a gradient may have, relative to its largest element.
ALLOWED_GRADIENT_ERROR = 1e-4
# Share of it that sums in float32 may take.
_SHARE_OF_SUMS = 0.5


def unit(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: the largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def is_precise_gradient(noise: float, largest: float) -> bool:
    """Whether a gradient whose sums in float32 have this rounding error keeps the promise, relative
    to its largest element."""
    return noise <= _SHARE_OF_SUMS * ALLOWED_GRADIENT_ERROR * largest


def transform_noise(result: torch.dtype, working: torch.dtype) -> float:
    """Rounding errors of a transform in `working`, relative to the error allowed in `result`."""
    return TRANSFORM * unit(working) / ALLOWED_SCORE_ERROR[result]
