"""Which way the tiles and windows of calls took, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import steps


class Ways(NamedTuple):
    """Counts since the last reading, of all threads; csrc/common/counters.h has the same order.

    A tile counts once for each template. One that was begun in float32 and repeated counts for what
    its result came from.
    """

    float32: int  # tiles by float32 transforms or sums
    float64: int
    integers: int  # tiles by sums of products of bytes
    digits: int  # tiles whose templates were split, so that float32 transforms are exact
    exact_windows: int  # windows recomputed from their definition
    repeated: int = 0  # tiles with weights that were begun in float32 in vain
    looked_again: int = 0  # tiles of which the faint windows took a second float32 transform


def take() -> Ways:
    """The counts since the last call."""
    counts = torch.zeros(len(Ways._fields), dtype=torch.int64)
    steps.take_counts(counts)
    return Ways(*counts.tolist())
