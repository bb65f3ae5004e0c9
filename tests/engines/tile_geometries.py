"""Geometries of tiles, the image that the tests cut, and the rules they cut it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from inputs import draw

from torchcorr._plan.tiling import EMPTY, TileBatch, Tiling

if TYPE_CHECKING:
    from torchcorr._cpu.rules import ScoreRule

# size, window, stride, tiles along each axis
GEOMETRIES = {
    "1d": ((67,), (5,), (1,), (3,)),
    "1d-long": ((9001,), (400,), (3,), (4,)),
    "1d-one-tile": ((31,), (31,), (1,), (1,)),
    "2d": ((37, 41), (5, 8), (1, 1), (2, 3)),
    "2d-thin-last-tile": ((30, 33), (4, 3), (1, 1), (4, 6)),
    "2d-stride": ((37, 45), (6, 4), (2, 3), (3, 2)),
    "2d-stride-past-window": ((29, 31), (2, 3), (3, 5), (2, 2)),
    "2d-tall-window": ((90, 20), (70, 3), (1, 1), (2, 1)),
    "3d": ((13, 11, 19), (3, 4, 5), (1, 1, 1), (2, 2, 2)),
    "3d-stride": ((12, 17, 15), (4, 3, 2), (2, 3, 1), (2, 1, 3)),
}
# Those whose sums are transformed back at every `folds`th position only, an entry an axis.
FOLDED = {
    "1d-folded": ((9001,), (400,), (3,), (4,)),
    "2d-folded": ((37, 45), (6, 4), (2, 3), (3, 2)),
    "2d-folded-axis": ((37, 45), (6, 4), (1, 2), (2, 2)),
    "2d-folded-past-window": ((29, 31), (2, 3), (3, 5), (2, 2)),
    "2d-half-folded": ((60, 70), (9, 7), (4, 6), (2, 2)),
    "3d-folded": ((12, 17, 15), (4, 3, 2), (2, 3, 1), (2, 1, 3)),
}
FOLDS = {name: stride for name, (_, _, stride, _) in FOLDED.items()} | {"2d-half-folded": (2, 3)}
ALL = GEOMETRIES | FOLDED
# Moments of such lines are computed in pieces.
LONG = {
    "1d-pieces": ((17_003,), (331,), (1,), (1,)),
    "1d-pieces-stride": ((50_001,), (700,), (3,), (2,)),
}
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)
every_line_too = pytest.mark.parametrize("name", GEOMETRIES | LONG)
every_tiling = pytest.mark.parametrize("name", ALL)
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
LIMITS = {torch.float32: (5.5e-3, 1e-8), torch.float64: (2e-10, 3e-5)}


def rows_of_line(n: int) -> int:
    """The rows of the array that a long line is transformed as."""
    return max(k for k in range(1, n + 1) if n % k == 0 and k * k <= n)


def image_of(name: str, dtype: torch.dtype, channels: int = 2) -> torch.Tensor:
    """Noise with a flat part, a faint part and an offset."""
    size = (ALL | LONG)[name][0]
    image = draw((2, channels, *size), torch.float64)
    image[0, :, : size[0] // 3] = 0.25
    image[1, :, size[0] // 2 :] *= 1e-3
    return (image + 5).to(dtype)


def batch_of(name: str, pairs: bool, first_template: int = 0) -> TileBatch:
    """All tiles of two items."""
    size, window, stride, grid = (ALL | LONG)[name]
    folds = FOLDS.get(name) if pairs else None
    tiling = Tiling.cut(size, window, stride, grid, folds=folds, fast=pairs)
    tiles = list(range(2 * tiling.tiles))
    return TileBatch(tiling, tiles + [EMPTY] * (pairs and len(tiles) % 2), first_template)


def rule_of(
    dtype: torch.dtype,
    pairs: bool,
    *,
    zero_mean: bool = True,
    noise: float = 0.0,
    budget: float = 0,
) -> ScoreRule:
    # Tests of tilings alone also run where there is no CPU engine.
    from torchcorr._cpu.rules import ScoreRule

    least_energy, least_variance = LIMITS[dtype]
    return ScoreRule(zero_mean, 0.0, least_energy, not pairs, least_variance, noise, budget)


def same(got: torch.Tensor, want: torch.Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
