"""Records that the kernels of tiles pass around."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

# Columns of the stats of a tile (`TileStats`).
STATS = tl.constexpr(4)
LEVEL = tl.constexpr(0)
SCALE = tl.constexpr(1)
MEAN_SQUARE = tl.constexpr(2)
NOT_FINITE = tl.constexpr(3)


class Tiles(NamedTuple):
    """Positions of a tile, tiles of an item, and elements of a tile's array: (z, y, x) each."""

    outputs: Any
    grid: Any
    length: Any


class Chunk(NamedTuple):
    """The templates of one launch: the first, their number, that of all, and inputs of a pair."""

    first: Any
    templates: Any
    all_templates: Any
    inputs: Any


class ScoreTarget(NamedTuple):
    """Where scores go, and what they are made of."""

    out: Any
    numerators: Any  # (tiles, templates, *length), scaled
    stats: Any
    noise: Any
    coefficients: Any
    input: Any
    pitch: Any  # of the input's channels, planes, rows and leads
    out_pitch: Any  # of items, templates, planes and rows
    chunk: Any
    channels: Any
    window: Any
    eps: Any
    tiles: Any


class UpstreamTarget(NamedTuple):
    """Where the shares of an upstream gradient go that windows' moments get, and its sources."""

    scores: Any  # a ScoreTarget, whose `out` gets the numerators' share
    grad: Any
    score_map: Any
    grad_s1: Any
    grad_s2: Any
    non_finite: Any  # (items, templates): set where an item makes a template's gradient NaN
    map_pitch: Any


class Placed(NamedTuple):
    """Windows that are kept, their tiles, their places in these and in the map."""

    keep: Any
    tile: Any
    inner: Any
    target: Any
