"""Records that the window kernels pass around, and what distinguishes their compiled variants.

Kernels take their numbers one by one: Triton specialises numbers inside a tuple on 1 and on
multiples of 16 whatever ``do_not_specialize`` says, so that new shapes would be
compiled again. The kernels first collect them in these records. In Triton 3.6 the fields of a
record that is a constant must be ``tl.constexpr`` themselves, hence ``Form.of`` and ``Result.of``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

# Kinds of results.
SUM = tl.constexpr(0)
MOMENTS = tl.constexpr(1)
DEVIATION = tl.constexpr(2)
SCORE = tl.constexpr(3)
UPSTREAM = tl.constexpr(4)  # shares of a score's upstream gradient

# Where the scores that an upstream gradient is multiplied by come from.
NOWHERE = tl.constexpr(0)
NUMERATORS = tl.constexpr(1)
SCORE_MAP = tl.constexpr(2)


class Result(NamedTuple):
    """What a kernel writes for each window."""

    kind: Any
    zero_mean: Any  # of scores and their gradients: whether windows are centred
    scores: Any  # of an upstream gradient: NOWHERE, NUMERATORS or SCORE_MAP

    @classmethod
    def of(cls, kind: Any, *, zero_mean: bool = False, scores: Any = NOWHERE) -> Result:
        return cls(kind, tl.constexpr(zero_mean), scores)


class Form(NamedTuple):
    """What distinguishes the variants of a window kernel."""

    ndim: Any
    spread: Any  # sums over the windows that contain an element, not over a window's elements
    strided: Any
    thinned: Any  # all positions are visited, and only those of the stride are written
    direct: Any  # windows are read element by element; otherwise their sums slide
    single_channel: Any
    rows: Any  # of positions in a block
    columns: Any
    chunk: Any  # elements along a window's row that are read at once

    @classmethod
    def of(cls, **fields: int) -> Form:
        return cls(**{name: tl.constexpr(value) for name, value in fields.items()})


class Axes(NamedTuple):
    """Sizes (z, y, x) of a map, its pitches (planes, rows, leads), the window and the stride.

    Of lines, y is the lead.
    """

    size: Any
    pitch: Any
    window: Any
    stride: Any


class Source(NamedTuple):
    """One map that is summed over windows, or two of the same layout."""

    first: Any
    second: Any
    channels: Any
    pitch_c: Any
    level: Any  # subtracted from each element; of products, one for each map
    finite_only: Any  # whether elements that are not finite count as the level
    axes: Any


class Grid(NamedTuple):
    """Positions that are visited (z, y, x), blocks of them, and how many a program marches over."""

    positions: Any
    blocks: Any
    steps: Any


class Block(NamedTuple):
    """Positions of a block, as columns and rows, and which of them exist."""

    lead: Any
    z: Any
    y: Any
    x: Any
    valid: Any


class Target(NamedTuple):
    """Where sums, moments or deviations sqrt(var * scale + eps) go."""

    out: Any
    var_out: Any
    channels: Any
    pitch_c: Any
    pitch: Any
    scale: Any
    eps: Any
