"""Local maxima of a map, their place between the samples, and which are too close to others."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def local_maxima(values: Tensor, *, ndim: int) -> Tensor:
    """Boolean map of the peaks over the last ``ndim`` axes.

    An element is a peak if it exceeds the neighbours before it in raster order and is no smaller
    than those after it, so that a level top is reported once, at its first element. NaN and minus
    infinity are never peaks and hide nothing.
    """
    lowest = -torch.inf
    values = torch.where(values.isnan(), lowest, values)
    padded = torch.nn.functional.pad(values, (1, 1) * ndim, value=lowest)
    peak = values > lowest
    inner = values.shape[values.ndim - ndim :]
    for offset in itertools.product((-1, 0, 1), repeat=ndim):
        if not any(offset):
            continue
        slices = tuple(slice(1 + o, 1 + o + n) for o, n in zip(offset, inner, strict=True))
        neighbour = padded[(..., *slices)]
        before = offset < (0,) * ndim
        peak &= (values > neighbour) if before else (values >= neighbour)
    return peak


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


def suppress(
    points: list[tuple[int, ...]], *, min_distance: tuple[int, ...], limit: int | None
) -> list[int]:
    """Indices of the points that survive, the first given winning over all later ones near it.

    Two points are near if they differ by less than ``min_distance`` along every axis. A grid with
    cells of that size contains at most one survivor a cell, which makes the cost linear.
    """
    survivors: dict[tuple[int, ...], tuple[int, ...]] = {}
    kept: list[int] = []
    steps = list(itertools.product((-1, 0, 1), repeat=len(min_distance)))
    for number, point in enumerate(points):
        if limit is not None and len(kept) >= limit:
            break
        cell = tuple(p // d for p, d in zip(point, min_distance, strict=True))
        if cell in survivors:
            continue
        around = (
            survivors.get(tuple(c + s for c, s in zip(cell, step, strict=True))) for step in steps
        )
        if not any(
            all(abs(p - q) < d for p, q, d in zip(point, other, min_distance, strict=True))
            for other in around
            if other is not None
        ):
            survivors[cell] = point
            kept.append(number)
    return kept
