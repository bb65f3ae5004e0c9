"""Records that the kernels of windows with weights pass around."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

# What a kernel writes for each window: its score; six statistics of each group of channels, for
# gradients; or its weight, mean and variance.
SCORES = tl.constexpr(0)
STATISTICS = tl.constexpr(1)
MOMENTS = tl.constexpr(2)
# Planes of factors: the template's weights, these times the template and its squares, and itself.
PLANES = tl.constexpr(4)


class Variant(NamedTuple):
    """What distinguishes the variants of the kernels."""

    result: Any  # SCORES, STATISTICS or MOMENTS
    zero_mean: Any
    there: Any  # whether elements of the input have weights
    wide: Any  # whether squares of the input may leave the range of float64

    @classmethod
    def of(cls, **fields: int) -> Variant:
        return cls(**{name: tl.constexpr(value) for name, value in fields.items()})


class Windows(NamedTuple):
    """Windows, one a lane, and the factors of their template. Channels of a group share a mean."""

    source: Any  # pointers to the first element of each window
    pitch: Any  # of channels, planes, rows and columns
    there: Any  # the same of the weights
    there_pitch: Any
    factors: Any  # (groups, PLANES, channels, *size)
    groups: Any
    channels: Any  # of a group
    size: Any


class Totals(NamedTuple):
    """Of windows, over all their groups: weight, energies of both, products of deviations."""

    count: Any
    energy: Any
    template_energy: Any
    product: Any


class Target(NamedTuple):
    """Where results go: a map, or several of them one behind the other; and what scores need."""

    out: Any
    pitch: Any  # from one map to the next
    at: Any  # offsets of the windows in a map
    step: Any  # from one group's map to the next
    base: Any  # what means are relative to, of each group
    eps: Any
    least: Any  # weight from which on a window is covered
