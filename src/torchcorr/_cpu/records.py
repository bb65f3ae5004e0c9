"""Records that the steps take, and the form in which they cross the dispatcher.

csrc/common/window_state.h, csrc/common/tiling.h and csrc/tiles/steps.h define them in C++.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from .._plan.tiling import TileStats, Tiling


class WindowState(IntEnum):
    """What is known of a window; one byte of a map of states."""

    GOOD = 0
    FLAT = 1  # all elements equal: the score is 0
    DOUBTFUL = 2  # so small a norm that rounding of the numerator may exceed what is promised
    UNKNOWN = 3  # doubtful, and the norm is not known either
    NON_FINITE = 4  # an element is a NaN or an Inf


@dataclass(frozen=True)
class TileBatch:
    """Tiles of one tiling that a step works on, and the first of the templates it works with."""

    tiling: Tiling
    tiles: list[int]
    first_template: int = 0

    @property
    def numbers(self) -> list[int]:
        """Number of axes, first template, numbers of the tiling, tiles."""
        tiling = self.tiling
        return [len(tiling.grid), self.first_template, *tiling.numbers, *self.tiles]


@dataclass(frozen=True)
class ScoreRule:
    """How scores are computed and which of them are recomputed exactly."""

    zero_mean: bool
    eps: float  # added to a window's energy, in squared units of the input
    # Of a window that is not doubtful, relative to a mean square: that of the window itself, or of
    # the tiles that are transformed with it.
    least_energy: float
    of_window: bool
    least_variance: float  # that a difference of sums determines, relative to the mean square
    noise: float  # of a transform, relative to the error that is allowed; 0 without one
    budget: float  # doubtful windows of a tile and template that are recomputed

    @property
    def numbers(self) -> list[float]:
        return [
            self.zero_mean,
            self.eps,
            self.least_energy,
            self.of_window,
            self.least_variance,
            self.noise,
            self.budget,
        ]


@dataclass(frozen=True)
class SumRule:
    """Which plain sums are recomputed exactly."""

    noise: float  # of a transform, relative to what it contains
    allowed: float  # error of a sum, relative to its sum of absolute products
    budget: float  # doubtful windows of a tile and template that are recomputed

    @property
    def numbers(self) -> list[float]:
        return [self.noise, self.allowed, self.budget]


@dataclass(frozen=True)
class TileMoments:
    """What is known of tiles and of their windows, each (tiles, *positions)."""

    stats: TileStats
    norms: Tensor  # 1 / (N deviation); 0 where it is flat or unknown, NaN where it is not finite
    states: Tensor  # WindowState
    means: Tensor  # empty unless they are needed

    @property
    def tensors(self) -> list[Tensor]:
        return [self.stats.rows, self.norms, self.states, self.means]
