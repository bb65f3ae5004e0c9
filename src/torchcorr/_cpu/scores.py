"""Normalised scores, tile by tile.

Each tile is centred on a level of its own, so that float32 carries its contrast. Windows whose
deviation is small relative to the rounding of their tile are counted; a tile that has many is
computed again in float64, and the few that remain are recomputed from their definition.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import _contract
from .._definition import scores as definition
from .._plan import rounding
from .._plan.choose import Arrangement, arrange, batches
from .._plan.dtypes import HALVES, widen
from .._plan.tiling import EMPTY, Batch, TileStats
from . import steps
from .spectra import TemplateSpectra, numerators

# What the sums of a transform usually contain, relative to the deviation of their tile.
_USUAL_CONTENT = 0.4
# Rounding errors of the direct loop, relative to the window's own root mean square about the level.
_DIRECT_NOISE = 4.0
# Smallest variance, relative to the mean square, that a difference of the two gives exactly enough.
_LEAST_VARIANCE = {torch.float32: 1e-8, torch.float64: 3e-5}
# Multiply-adds of recomputed windows, for each element of a tile, that take as long as transforming
# it in float64.
_RECOMPUTED = 128


def _places_of(counts: Tensor) -> list[int]:
    """Places of the tiles that have doubtful windows left."""
    return [i for i, n in enumerate(counts.tolist()) if n > 0]


class TiledScores:
    """One call: normal forms, their tiles and what all batches share."""

    def __init__(
        self,
        input: Tensor,
        template: Tensor,
        call: Arrangement,
        zero_mean: bool,
        eps: float,
        prepared: Tensor | None = None,
    ) -> None:
        self.problem, self.plan, self.tiling = call.problem, call.plan, call.tiling
        self.geometry, self.stride = self.tiling.numbers, list(self.tiling.stride)
        leads, core = self.problem.leads, len(self.stride) + 1
        self.input = leads.input(input, core).contiguous()
        self.template = leads.template(widen(template), core).contiguous()
        self.window = list(self.problem.window)
        self.count = self.problem.channels * math.prod(self.window)
        self.zero_mean, self.eps = zero_mean, eps
        self.is_direct = self.plan.method == "direct"
        self.spectra = TemplateSpectra(
            self.template, self.tiling, transformed=not self.is_direct, prepared=prepared
        )
        self.budget = max(1, _RECOMPUTED * math.prod(self.tiling.length) // self.count)

    def run(self) -> Tensor:
        leads = self.problem.leads
        shape = (leads.paired * leads.inputs, leads.templates, *self.tiling.positions)
        self.out = steps.new_map(self.input, shape)
        score = self._score_directly if self.is_direct else self._score
        for batch in batches(self.problem, self.plan):
            score(batch)
        return leads.restored(self.out, len(self.stride))

    def cut(self, tiles: list[int], *, centred: bool, wide: bool) -> tuple[Tensor, TileStats]:
        pairs = not self.is_direct
        found, rows = steps.gather_tiles(self.input, tiles, self.geometry, centred, wide, pairs)
        return found, TileStats(rows)

    def norms(
        self, tiles: list[int], stats: TileStats, *, means: bool
    ) -> tuple[Tensor, list[int], Tensor]:
        """Norms, the places of tiles that need float64, and the windows' means if asked for."""
        dtype = self.input.dtype
        norms, faint, mean = steps.tile_norms(
            stats.rows,
            self.input,
            tiles,
            self.geometry,
            self.window,
            self.stride,
            self.zero_mean,
            self.is_direct,
            self.eps,
            self.least_energy(dtype),
            _LEAST_VARIANCE[dtype],
            means,
        )
        return norms, [i for i, n in enumerate(faint.tolist()) if n > self.budget], mean

    def least_energy(self, working: torch.dtype) -> float:
        """Energy of a window below which rounding exceeds what is allowed.

        Relative to the mean square of the window itself for direct sums, and of the tile for
        transforms, where it is an estimate that their sums replace later.
        """
        dtype = self.input.dtype
        if self.is_direct:
            allowed = rounding.ALLOWED_SCORE_ERROR[dtype]
            return (_DIRECT_NOISE * rounding.unit(working) / allowed) ** 2
        return (_USUAL_CONTENT * rounding.transform_noise(dtype, working)) ** 2

    def even(self, tiles: list[int]) -> list[int]:
        """Tiles as transforms take them: an even number, filled up with an empty one."""
        return tiles if self.is_direct or len(tiles) % 2 == 0 else [*tiles, EMPTY]

    def _score_directly(self, batch: Batch) -> None:
        """A batch by the direct sum; tiles with too many faint windows again, in float64."""
        dtype = self.input.dtype
        counts, norms = steps.direct_scores(
            self.input,
            self.template,
            self.spectra.part(dtype, batch.pairs, 0, self.template.shape[1]).unsqueeze(1),
            batch.tiles,
            self.geometry,
            self.window,
            self.stride,
            self.plan.templates,
            self.zero_mean,
            self.eps,
            self.least_energy(dtype),
            _LEAST_VARIANCE[dtype],
            self.budget,
            self.out,
        )
        if bool(counts.any()):
            self._rescore(batch, norms, _places_of(counts), 0, None)

    def _score(self, batch: Batch) -> None:
        """A batch by transforms in the input's precision, tiles with many faint windows apart."""
        tiles, stats = self.cut(batch.tiles, centred=self.zero_mean, wide=False)
        norms, hard, _ = self.norms(batch.tiles, stats, means=False)
        if hard:
            del tiles
            self._rescore(batch, norms, hard, 0, None)
            each = len(batch.tiles) // batch.groups
            for k, one in enumerate(batch.by_pair()):
                easy = [t for i, t in enumerate(one.tiles, k * each) if i not in hard and t >= 0]
                if easy:
                    self._score(Batch(one.pairs, self.even(easy)))
            return
        for first, sums in numerators(tiles, self.spectra, batch.pairs, self.plan.templates):
            counts = self._write(sums, norms, stats, batch.tiles, first, tiles.dtype, self.budget)
            if bool(counts.any()):
                self._rescore(batch, norms, _places_of(counts), first, first + sums.shape[1])

    def _rescore(
        self, batch: Batch, norms: Tensor, places: Iterable[int], start: int, stop: int | None
    ) -> None:
        """The tiles at these places, which have too many doubtful windows, in float64."""
        each = len(batch.tiles) // batch.groups
        for k, one in enumerate(batch.by_pair()):
            own = [i for i in places if i // each == k]
            if own:
                tiles = self.even([batch.tiles[i] for i in own])
                self._score_wide(Batch(one.pairs, tiles), norms[own], start, stop)

    def _score_wide(self, batch: Batch, known: Tensor, start: int, stop: int | None) -> None:
        """A batch in float64, with the norms that are known, or better ones if many are not."""
        tiles, stats = self.cut(batch.tiles, centred=self.zero_mean, wide=True)
        unknown = int(known.isinf().flatten(1).sum(1).amax())
        if unknown <= self.budget and self.input.dtype != torch.float64:
            # Faint relative to the rounding of float32 transforms, but not of float64 ones.
            norms = tiles.new_zeros((len(batch.tiles), *known.shape[1:]))
            norms[: len(known)] = torch.where(known.isinf(), known, known.abs())
        else:
            norms, _ = self.wide_norms(batch.tiles, stats)
            norms[: len(known)].masked_fill_(known.isnan(), torch.nan)
        at_once = self.plan.templates
        for first, sums in numerators(tiles, self.spectra, batch.pairs, at_once, start, stop):
            self._write(sums, norms, stats, batch.tiles, first, torch.float64, sys.maxsize)

    def wide_norms(self, tiles: list[int], stats: TileStats) -> tuple[Tensor, Tensor]:
        """Norms and means in float64, from moments that are merged so that nothing cancels."""
        raw, raw_stats = self.cut(tiles, centred=False, wide=True)
        power, column = stats.mean_square, (slice(None), *(None,) * len(self.stride))
        if not self.is_direct:
            raw = raw.movedim(-1, 1).flatten(0, 1)
            power = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2)
        inside = (..., *(slice(0, n) for n in self.tiling.extent))
        mean, var = _contract.window_moments.kernel(raw[inside], self.window, self.stride)
        # Both in the units of the centred tiles.
        unit, scale = raw_stats.scale[column], stats.scale[column]
        energy = (var if self.zero_mean else var + mean.square()) * (scale / unit).square()
        mean = (mean / unit - stats.level[column]) * scale
        softened = energy + self.eps * scale.square()
        norms = 1 / (self.count * softened.sqrt())
        limit = self.least_energy(torch.float64) * power[column]
        norms = torch.where(softened < limit, -norms, norms)
        norms = torch.where(energy == 0, 0.0, norms)
        return norms, mean if self.zero_mean else torch.zeros_like(mean)

    def _write(
        self,
        sums: Tensor,
        norms: Tensor,
        stats: TileStats,
        tiles: list[int],
        first: int,
        working: torch.dtype,
        budget: int,
    ) -> Tensor:
        """Writes scores; how many doubtful windows each tile has left."""
        noise = 0.0
        if not self.is_direct:
            noise = rounding.transform_noise(self.input.dtype, working)
        return steps.finish_tiles(
            sums,
            norms,
            stats.rows,
            self.input,
            self.template,
            tiles,
            self.geometry,
            self.stride,
            first,
            self.zero_mean,
            self.eps,
            noise,
            sys.maxsize if self.is_direct else budget,
            self.out,
        )


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
    return TiledScores(input, template, call, zero_mean, eps, spectra).run()


def register() -> None:
    _contract.ncc.implement(ncc, "CPU")
