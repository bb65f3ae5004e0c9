"""Scores of two recordings over what overlaps at each lag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definition import overlap as definition
from .correlate import correlate
from .registry import register
from .windows import window_moments, window_sum


def _fake(x: Tensor, _y: Tensor, low: Sequence[int], high: Sequence[int], *_: Any) -> Tensor:
    shape = tuple(b - a + 1 for a, b in zip(low, high, strict=True))
    return x.new_empty(shape, dtype=torch.float64)


overlap_scores = register(
    "overlap_scores",
    "(Tensor x, Tensor y, int[] low, int[] high, str method) -> Tensor",
    definition.overlap_scores,
    _fake,
)
# For engines: made of what they have registered.
operators = definition.OverlapOperators(
    *(operator.kernel for operator in (correlate, window_moments, window_sum))
)
scores_by_kernels = definition.overlap_scores_by(operators)
