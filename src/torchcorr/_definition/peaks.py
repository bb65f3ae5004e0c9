"""Greedy choices: what is taken leaves out what is near it. How much is left depends on values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Lowest values that are found by a scan each; for more, all are put in order.
_SCANNED = 16


def pick_peaks(
    values: Tensor,
    ndim: int,
    threshold: float | None,
    limit: int | None,
    min_distance: Sequence[int],
) -> Tensor:
    """Places ``(n, lead + ndim)`` of the peaks of maps over the last axes, sorted by map and then
    the best first: at least a threshold, and of each map at most `limit`.
    """
    lead = values.dim() - ndim
    candidates = local_maxima(values, ndim=ndim)
    if threshold is not None:
        candidates &= values >= threshold
    points = candidates.nonzero()
    order = values[points.unbind(1)].argsort(descending=True, stable=True)
    points = points[order]
    if max(min_distance) > 1 or (lead > 0 and limit is not None):
        kept = _kept([tuple(p) for p in points.tolist()], lead, limit, tuple(min_distance))
        return points[torch.tensor(kept, dtype=torch.long, device=points.device)]
    if lead > 0:
        return points[_by_item(points[:, :lead], values.shape[:lead])]
    return points[:limit]


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


def pick_lowest(values: Tensor, zone: int, most: int | None, limit: float) -> Tensor:
    """Indices of the lowest values of a line, of equals the first, without those that lie at most
    `zone` from one that was taken: as many as there are, are finite and do not exceed `limit`.
    """
    left = values.clone()
    taken: list[int] = []
    while len(left) > 0 and (most is None or len(taken) < most):
        if len(taken) == _SCANNED:
            taken += _lowest_sorted(left, zone, None if most is None else most - _SCANNED, limit)
            break
        at = int(left.argmin())
        lowest = float(left[at])
        if not (math.isfinite(lowest) and lowest <= limit):
            break
        taken.append(at)
        left[max(0, at - zone) : at + zone + 1] = torch.inf
    return torch.tensor(taken, dtype=torch.long, device=values.device)


def _lowest_sorted(values: Tensor, zone: int, most: int | None, limit: float) -> list[int]:
    """The same of many, for which values are put in order once instead of scanned for each."""
    eligible = ((values <= limit) & values.isfinite()).nonzero().squeeze(1)
    order: list[int] = eligible[values[eligible].argsort(stable=True)].tolist()
    near = bytearray(len(values))
    taken: list[int] = []
    for at in order:
        if most is not None and len(taken) == most:
            break
        if not near[at]:
            taken.append(at)
            low, high = max(0, at - zone), min(len(values), at + zone + 1)
            near[low:high] = b"\1" * (high - low)
    return taken


def _by_item(items: Tensor, lead: Sequence[int]) -> Tensor:
    """An order that sorts peaks by map and keeps their order within it."""
    number = torch.zeros(items.shape[0], dtype=torch.long, device=items.device)
    for axis, n in enumerate(lead):
        number = number * n + items[:, axis]
    return number.argsort(stable=True)


def _kept(
    points: list[tuple[int, ...]], lead: int, limit: int | None, distance: tuple[int, ...]
) -> list[int]:
    """Indices of the points that are kept, map by map."""
    by_item = sorted(range(len(points)), key=lambda i: points[i][:lead])
    kept: list[int] = []
    for _, group in itertools.groupby(by_item, key=lambda i: points[i][:lead]):
        members = list(group)
        if max(distance) > 1:
            places = [points[i][lead:] for i in members]
            members = [members[i] for i in kept_of(places, min_distance=distance, limit=limit)]
        kept += members[:limit]
    return kept


def kept_of(
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
