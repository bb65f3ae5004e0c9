"""Which scores and sums are recomputed exactly, and the form in which steps take these rules.

csrc/tiles/{steps.h,masked_input.h,moment_pass.cpp,sum_pass.cpp} and csrc/integer/moments.h define
them a second time, in C++.
"""

from __future__ import annotations

from typing import NamedTuple


class ScoreRule(NamedTuple):
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
    own_means: bool = False  # each channel has its own; templates sum to 0 in each channel
    halved: bool = False  # direct sums are made of halves of rows (csrc/direct/halved_rows.h)

    @property
    def numbers(self) -> list[float]:
        return list(self)


class MaskedRule(NamedTuple):
    """How scores of windows whose elements have weights are computed through transforms."""

    zero_mean: bool
    eps: float  # added to a window's variance, in squared units of the input
    least: float  # share of the template's weight that a window must have
    allowed: float  # error of a score
    own_means: bool  # each channel has a mean of its own

    @property
    def numbers(self) -> list[float]:
        return list(self)


class MomentRule(NamedTuple):
    """What moments of windows whose elements have weights may have of rounding."""

    nothing: float  # share of a window's weight that counts as none
    allowed: float  # error of a variance, relative to itself
    allowed_of_mean: float  # of a mean, relative to the root mean square

    @property
    def numbers(self) -> list[float]:
        return list(self)


class ByteRule(NamedTuple):
    """How bytes are scored; elements are bytes minus a constant, their zero."""

    zero_mean: bool
    eps: float  # added to a window's energy, in squared units of the input
    zero_of_input: int
    zero_of_template: int
    noise: float  # of a float32 transform, relative to what it contains
    kernel: int  # of the direct loop: 0 is the best that the CPU can run
    own_means: bool  # each channel has a mean of its own

    @property
    def numbers(self) -> list[float]:
        return list(self)


class SumRule(NamedTuple):
    """How exact plain sums are, through transforms in float32 and in float64."""

    narrow_noise: float  # of a transform, relative to what it contains
    wide_noise: float
    # Error of a sum, relative to its sum of absolute products: 0 if float32 is never enough, inf if
    # float64 always is.
    narrow_allowed: float
    wide_allowed: float
    budget: float  # unknown windows of a tile and template that are recomputed

    @property
    def numbers(self) -> list[float]:
        return list(self)
