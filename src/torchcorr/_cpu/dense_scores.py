"""Scores of many templates and channels by the direct loop, where float32 is enough throughout.

Images are correlated whole, centred where their means are large, and sums become scores where they
are written. Calls with windows that float32 cannot score are left to the tiles of `scores`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._plan.choose import Arrangement
from .._plan.predict import is_dense
from . import steps

# Bytes of images that are centred at a time.
_CENTRED = 16 << 20


class Norms(NamedTuple):
    """Of the windows of images (items, C, *size), and of the images themselves."""

    norm: Tensor  # 1 / (N sigma), (items, *positions), in float64
    centred: Tensor  # the images minus their levels; the images where these are 0
    level: Tensor  # (items, C)
    squares: Tensor  # sums of squares of the centred images, (items, C)
    mean: Tensor  # of windows, relative to the level; empty where each channel has its own
    least: Tensor  # energy relative to the mean square about the level, without and with eps

    @classmethod
    def of(
        cls,
        images: Tensor,
        sizes: tuple[tuple[int, ...], tuple[int, ...]],
        how: tuple[bool, bool, float],
        *,
        centred: bool,
    ) -> Norms:
        """For windows of `sizes`: those and the stride. `how` as in `scores`.

        Unless levels must be means (`centred`) they are 0 where the means are small.
        """
        window, stride = sizes
        maps = steps.dense_norms(images, window, stride, *how, centred)
        positions = maps[0].shape[4 - len(window) :]

        def shaped(x: Tensor) -> Tensor:
            return x.reshape(len(images), *positions) if x.numel() > 0 else x

        norm, above, level, squares, mean, least = maps
        if above.numel() == 0:
            above = images
        return cls(shaped(norm), above, level, squares, shaped(mean), least)

    def are_clear(self, least_variance: float, least_energy: float) -> bool:
        """Whether all windows have at least this share of energy, without and with eps."""
        of_energy, of_softened = self.least.tolist()
        return bool(of_energy > least_variance and of_softened > least_energy)


def scores(
    input: Tensor,
    coefficients: Tensor,
    call: Arrangement,
    how: tuple[bool, bool, float],
    limits: tuple[float, float],
) -> Tensor | None:
    """Scores with templates of mean square 1; None where they would not be exact enough, or a value
    is not finite.

    `how`: whether there are means, whether each channel has its own, and eps. `limits`: those of
    `Norms.are_clear`.
    """
    problem, tiling = call.problem, call.tiling
    if input.dtype != torch.float32 or call.plan.method != "direct" or not is_dense(problem):
        return None
    leads, ndim = problem.leads, len(tiling.stride)
    images = leads.input(input, ndim + 1).contiguous()
    some = _CENTRED // (4 * max(1, images[:1].numel()))
    if some == 0:
        return None
    wide = leads.template(coefficients, ndim + 1)[0]
    narrow, of_channels = steps.dense_weights(wide.flatten(2))
    if not math.isfinite(sum(of_channels.tolist())):
        return None
    templates = narrow.reshape(wide.shape)
    sizes, parts = (tiling.window, tiling.stride), []
    for part in images.split(some):
        norms = _clear_norms(part, sizes, how, limits)
        if norms is None:
            return None
        seen = norms.centred.unsqueeze(1)
        found = steps.correlate_direct_scores(seen, templates, tiling.stride, norms.norm.float())
        parts.append(found)
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return leads.restored(out, ndim)


def _clear_norms(
    images: Tensor,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    how: tuple[bool, bool, float],
    limits: tuple[float, float],
) -> Norms | None:
    """With levels that make all windows clear; None if there are none."""
    for centred in (False, True):
        norms = Norms.of(images, sizes, how, centred=centred)
        if norms.are_clear(*limits):
            return norms
        # A faint window may lie close to the mean; one that is flat is so at every level.
        if norms.centred is not images or not norms.are_clear(0.0, 0.0):
            break
    return None
