"""Scores of many templates and channels by the direct loop, where float32 is enough throughout.

Images are centred and correlated whole, and sums become scores where they are written. Calls with
windows that float32 cannot score are left to the tiles of `scores`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._plan.choose import Arrangement
from .._plan.predict import is_dense
from . import steps

# Bytes of images that are centred at a time.
_CENTRED = 16 << 20


@dataclass(frozen=True)
class Norms:
    """Of the windows of images (items, C, *size), and of the images themselves."""

    norm: Tensor  # 1 / (N sigma), (items, *positions), in float64
    centred: Tensor  # the images minus their levels
    level: Tensor  # (items, C)
    squares: Tensor  # sums of squares of the centred images, (items, C)
    mean: Tensor  # of windows, relative to the level; empty where each channel has its own
    least: Tensor  # energy relative to the mean square about the level, without and with eps

    @classmethod
    def of(
        cls,
        images: Tensor,
        sizes: tuple[tuple[int, ...], tuple[int, ...]],
        zero_mean: bool,
        own_means: bool,
        eps: float,
    ) -> Norms:
        """For windows of `sizes`: those and the stride."""
        window, stride = sizes
        maps = steps.dense_norms(images, window, stride, zero_mean, own_means, eps)
        positions = maps[0].shape[4 - len(window) :]

        def shaped(x: Tensor) -> Tensor:
            return x.reshape(len(images), *positions) if x.numel() > 0 else x

        norm, centred, level, squares, mean, least = maps
        return cls(shaped(norm), centred, level, squares, shaped(mean), least)

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
    """Scores with templates of mean square 1; None where they would not be exact enough, or an
    input is not finite.

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
    templates = leads.template(coefficients, ndim + 1)[0].float().contiguous()
    sizes, parts = (tiling.window, tiling.stride), []
    for part in images.split(some):
        norms = Norms.of(part, sizes, *how)
        if not norms.are_clear(*limits):
            return None
        seen = norms.centred.unsqueeze(1)
        found = steps.correlate_direct_scores(seen, templates, tiling.stride, norms.norm.float())
        parts.append(found)
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return leads.restored(out, ndim)
