"""The place of a local maximum between the samples."""

from __future__ import annotations

import torch
from torch import Tensor


def parabola(values: Tensor, index: tuple[Tensor, ...], *, ndim: int) -> tuple[Tensor, Tensor]:
    """Offset ``(n, ndim)`` and gain in height ``(n,)`` of the parabola through each peak.

    In float64. ``index`` addresses every axis of ``values``; the parabola is fitted along each of
    the last ``ndim``. Offsets are in [-0.5, 0.5] and are 0 at a border, next to a non-finite value
    and on a level top.
    """
    lead = values.ndim - ndim
    centre = values[index].double()
    offsets = []
    gain = torch.zeros_like(centre)
    for axis in range(lead, values.ndim):
        at, length = index[axis], values.shape[axis]
        left, right = (
            values[(*index[:axis], (at + step).clamp(0, length - 1), *index[axis + 1 :])].double()
            for step in (-1, 1)
        )
        bend = left - 2 * centre + right
        sound = (at > 0) & (at < length - 1) & torch.isfinite(bend) & (bend < 0)
        # The unused branch of `where` must stay finite too, or its gradient would be NaN.
        slope = torch.where(sound, left - right, 0.0)
        offset = (0.5 * slope / torch.where(sound, bend, -1.0)).clamp(-0.5, 0.5)
        offsets.append(offset)
        gain = gain - 0.25 * slope * offset
    return torch.stack(offsets, dim=-1), gain
