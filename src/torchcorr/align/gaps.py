"""Scores of recordings in which elements are missing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import zncc
from ..local import local_sum


def scores_beside_gaps(line: Tensor, templates: Tensor, method: str) -> Tensor:
    """`zncc` in 1-D: NaN where a window contains what is not finite, with a gradient of 0 there."""
    if not (torch.is_grad_enabled() and (line.requires_grad or templates.requires_grad)):
        return zncc(line, templates, ndim=1, method=method)
    # The gradient of a NaN would be one too, in all templates.
    gaps = ~line.isfinite()
    scores = zncc(line.masked_fill(gaps, 0.0), templates, ndim=1, method=method)
    missing = local_sum(gaps.float(), templates.shape[-1], ndim=1) > 0
    return scores.masked_fill(missing, torch.nan)
