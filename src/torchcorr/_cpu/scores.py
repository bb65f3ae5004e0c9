"""Normalised scores, tile by tile.

Each tile is centred on a level, so that float32 carries its contrast. Windows whose deviation is
small relative to the rounding of their tile are doubtful; a tile that has many is computed in
float64 instead, and the few that remain are recomputed exactly, from their definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import _contract
from .._definition import scores as definition
from .._plan import rounding
from .._plan.choose import Arrangement, arrange, blocks
from .._plan.dtypes import HALVES, widen
from .._plan.tiling import TileBatch, TileMoments, TileStats, WindowState
from . import steps
from .rules import ScoreRule
from .spectra import TemplateSpectra

# What the numerators of a transform usually contain, relative to the deviation of their tile.
_USUAL_CONTENT = 0.4
# Rounding errors of the direct loop, relative to the root mean square of a window about the level.
_DIRECT_NOISE = 4.0
# Smallest variance, relative to the mean square, that a difference of the two gives exactly enough.
_LEAST_VARIANCE = {torch.float32: 1e-8, torch.float64: 3e-5}
# Multiply-adds of recomputed windows, for each element of a tile, that take as long as transforming
# it in float64.
_RECOMPUTED = 128


class TiledScores:
    """What scores and their gradients share: normal forms, tiles, and moments of windows."""

    def __init__(
        self,
        input: Tensor,
        coefficients: Tensor,
        call: Arrangement,
        zero_mean: bool,
        eps: float,
        prepared: Tensor | None = None,
    ) -> None:
        self.problem, self.plan, self.tiling = call.problem, call.plan, call.tiling
        leads, core = self.problem.leads, len(self.tiling.stride) + 1
        self.input = leads.input(input, core).contiguous()
        self.coefficients = leads.template(widen(coefficients), core).contiguous()
        self.count = self.problem.channels * math.prod(self.tiling.window)
        self.is_direct = self.plan.method == "direct"
        self.spectra = TemplateSpectra(self.coefficients, self.tiling, prepared=prepared)
        budget = max(1, _RECOMPUTED * math.prod(self.tiling.length) // self.count)
        least_variance = _LEAST_VARIANCE[input.dtype]
        self.rule = ScoreRule(
            zero_mean,
            eps,
            self._least_energy(input.dtype),
            self.is_direct,
            least_variance,
            self._noise(input.dtype),
            budget,
        )

    def cut(self, tiles: list[int], *, centred: bool, wide: bool) -> tuple[Tensor, TileStats]:
        batch = TileBatch(self.tiling, tiles).numbers
        values, rows = steps.cut_tiles(self.input, batch, centred, wide, not self.is_direct)
        return values, TileStats(rows)

    def moments(
        self, tiles: list[int], stats: TileStats, *, means: bool
    ) -> tuple[TileMoments, list[int]]:
        """The moments of tiles and the places of those that need float64."""
        batch = TileBatch(self.tiling, tiles).numbers
        *windows, doubtful = steps.tile_moments(
            self.input, stats.rows, batch, self.rule.numbers, means
        )
        hard = [i for i, n in enumerate(doubtful.tolist()) if n > self.rule.budget]
        return TileMoments(stats, *windows), hard

    def _least_energy(self, working: torch.dtype) -> float:
        """Energy of a window below which rounding exceeds what is allowed.

        Relative to the mean square of the window itself for direct sums, and of the tile for
        transforms, where it is an estimate that their numerators replace later.
        """
        dtype = self.input.dtype
        if self.is_direct:
            allowed = rounding.ALLOWED_SCORE_ERROR[dtype]
            return (_DIRECT_NOISE * rounding.unit(working) / allowed) ** 2
        return (_USUAL_CONTENT * rounding.transform_noise(dtype, working)) ** 2

    def _noise(self, working: torch.dtype) -> float:
        return 0.0 if self.is_direct else rounding.transform_noise(self.input.dtype, working)

    def wide_moments(self, tiles: list[int], stats: TileStats) -> TileMoments:
        """Moments in float64 that are merged from parts, so that nothing cancels."""
        raw, raw_stats = self.cut(tiles, centred=False, wide=True)
        zero_mean, eps = self.rule.zero_mean, self.rule.eps
        power, column = stats.mean_square, (slice(None), *(None,) * len(self.tiling.stride))
        if not self.is_direct:
            raw = raw.movedim(-1, 1).flatten(0, 1)
            power = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2)
        inside = (..., *(slice(0, n) for n in self.tiling.extent))
        mean, var = _contract.window_moments.kernel(
            raw[inside], self.tiling.window, self.tiling.stride
        )
        # Both in the units of the centred tiles.
        unit, scale = raw_stats.scale[column], stats.scale[column]
        energy = (var if zero_mean else var + mean.square()) * (scale / unit).square()
        mean = (mean / unit - stats.level[column]) * scale
        softened = energy + eps * scale.square()
        flat = energy == 0
        norms = torch.where(flat, 0.0, 1 / (self.count * softened.sqrt()))
        limit = self._least_energy(torch.float64) * power[column]
        states = torch.zeros_like(norms, dtype=torch.uint8)
        states.masked_fill_(softened < limit, WindowState.DOUBTFUL)
        states.masked_fill_(flat, WindowState.FLAT)
        return TileMoments(stats, norms, states, mean if zero_mean else torch.zeros_like(mean))


class _Scores(TiledScores):
    """The scores of one call."""

    def run(self) -> Tensor:
        leads, plan = self.problem.leads, self.plan
        shape = (leads.paired * leads.inputs, leads.templates, *self.tiling.positions)
        out = steps.new_map(self.input, shape)
        batch = TileBatch(self.tiling, []).numbers
        wide_rule = replace(
            self.rule,
            least_energy=self._least_energy(torch.float64),
            noise=self._noise(torch.float64),
            budget=math.inf,
        )
        for block in blocks(self.problem, plan):
            spectra = None
            if not self.is_direct:
                ends = (block.templates.start, block.templates.stop)
                spectra = self.spectra.part(self.input.dtype, block.pairs, *ends)
                spectra = spectra.flatten(0, 1).contiguous()
            steps.score_tiles(
                self.input,
                self.coefficients,
                spectra,
                batch,
                block.numbers,
                self.rule.numbers,
                wide_rule.numbers,
                out,
            )
        return leads.restored(out, len(self.tiling.stride))


def ncc(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    spectra: Tensor | None = None,
) -> Tensor:
    if input.dtype in HALVES:
        wide = input.float()
        return ncc(wide, template, stride, zero_mean, eps, method).to(input.dtype)
    if input.numel() == 0 or template.numel() == 0:
        return definition.ncc(input, template, stride, zero_mean, eps, "direct")
    call = arrange(
        input.shape,
        template.shape,
        stride,
        method,
        normalised=True,
        dtype=input.dtype,
        device="cpu",
    )
    return _Scores(input, template, call, zero_mean, eps, spectra).run()


def register() -> None:
    _contract.ncc.implement(ncc, "CPU")
