"""Normalised scores, tile by tile.

Each tile is centred on a level, so that float32 carries its contrast. Windows whose deviation is
small relative to the rounding of their tile are doubtful; a tile that has many is computed in
float64 instead, and the few that remain are recomputed exactly, from their definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import _contract
from .._definition import scores as definition
from .._plan import rounding
from .._plan.choose import Arrangement, arrange, batches
from .._plan.dtypes import HALVES, widen
from .._plan.tiling import EMPTY, Batch, TileBatch, TileMoments, TileStats, WindowState
from . import steps
from .rules import ScoreRule
from .spectra import TemplateSpectra, numerators

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
        self.spectra = TemplateSpectra(
            self.coefficients, self.tiling, transformed=not self.is_direct, prepared=prepared
        )
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
        leads = self.problem.leads
        shape = (leads.paired * leads.inputs, leads.templates, *self.tiling.positions)
        self.out = steps.new_map(self.input, shape)
        score = self._score_directly if self.is_direct else self._score
        for batch in batches(self.problem, self.plan):
            score(batch)
        return leads.restored(self.out, len(self.tiling.stride))

    def _even(self, tiles: list[int]) -> list[int]:
        """Tiles as transforms take them: an even number, filled up with an empty one."""
        return tiles if self.is_direct or len(tiles) % 2 == 0 else [*tiles, EMPTY]

    def _score_directly(self, batch: Batch) -> None:
        """A batch by the direct sum; tiles with too many doubtful windows in float64."""
        counts, norms, states = steps.direct_scores(
            self.input,
            self.coefficients,
            TileBatch(self.tiling, batch.tiles).numbers,
            self.rule.numbers,
            self.plan.templates,
            self.out,
        )
        self._rescore(batch, (norms, states), counts, slice(None))

    def _score(self, batch: Batch) -> None:
        """A batch by transforms in the input's precision; hard tiles apart."""
        tiles, stats = self.cut(batch.tiles, centred=self.rule.zero_mean, wide=False)
        moments, hard = self.moments(batch.tiles, stats, means=False)
        known = (moments.norms, moments.states)
        if hard:
            del tiles
            self._score_wide_at(batch, known, hard, slice(None))
            each = len(batch.tiles) // batch.groups
            for k, one in enumerate(batch.by_pair()):
                easy = [t for i, t in enumerate(one.tiles, k * each) if i not in hard and t >= 0]
                if easy:
                    self._score(Batch(one.pairs, self._even(easy)))
            return
        for first, sums in numerators(tiles, self.spectra, batch.pairs, self.plan.templates):
            counts = self._normalise(sums, moments, batch.tiles, first, self.rule)
            self._rescore(batch, known, counts, slice(first, first + sums.shape[1]))

    def _normalise(
        self, sums: Tensor, moments: TileMoments, tiles: list[int], first: int, rule: ScoreRule
    ) -> Tensor:
        """Writes scores; how many doubtful windows each tile has left."""
        batch = TileBatch(self.tiling, tiles, first).numbers
        operands = (self.input, self.coefficients, batch, rule.numbers, self.out)
        counts: Tensor = steps.normalise_tiles(sums, moments.tensors, *operands)
        return counts

    def _rescore(
        self, batch: Batch, known: tuple[Tensor, Tensor], counts: Tensor, templates: slice
    ) -> None:
        """The tiles that have doubtful windows left, in float64."""
        places = [i for i, n in enumerate(counts.tolist()) if n > 0]
        if places:
            self._score_wide_at(batch, known, places, templates)

    def _score_wide_at(
        self, batch: Batch, known: tuple[Tensor, Tensor], places: Iterable[int], templates: slice
    ) -> None:
        """The tiles at these places in float64; norms and states of all are known."""
        each = len(batch.tiles) // batch.groups
        for k, one in enumerate(batch.by_pair()):
            of_pair = [i for i in places if i // each == k]
            if of_pair:
                tiles = self._even([batch.tiles[i] for i in of_pair])
                self._score_wide(Batch(one.pairs, tiles), known, of_pair, templates)

    def _score_wide(
        self, batch: Batch, known: tuple[Tensor, Tensor], places: list[int], templates: slice
    ) -> None:
        """A batch in float64, with the norms that are known, or better ones if many are not."""
        rows = torch.tensor(places)
        states = known[1].index_select(0, rows)
        tiles, stats = self.cut(batch.tiles, centred=self.rule.zero_mean, wide=True)
        unknown = int((states == WindowState.UNKNOWN).flatten(1).sum(1).amax())
        if unknown <= self.rule.budget and self.input.dtype != torch.float64:
            # Doubtful relative to the rounding of float32 transforms, but not of float64 ones.
            states.masked_fill_(states == WindowState.DOUBTFUL, WindowState.GOOD)
            shape = (len(batch.tiles), *states.shape[1:])
            moments = TileMoments(
                stats, tiles.new_zeros(shape), states.new_zeros(shape), tiles.new_empty(0)
            )
            moments.norms[: len(states)] = known[0].index_select(0, rows)
            moments.states[: len(states)] = states
        else:
            moments = self.wide_moments(batch.tiles, stats)
            if bool((stats.non_finite > 0).any()):
                # Cut tiles have zeros where an element is not finite.
                non_finite = states == WindowState.NON_FINITE
                moments.norms[: len(states)].masked_fill_(non_finite, torch.nan)
                moments.states[: len(states)].masked_fill_(non_finite, WindowState.NON_FINITE)
        rule = replace(self.rule, noise=self._noise(torch.float64), budget=math.inf)
        start, stop, _ = templates.indices(self.coefficients.shape[1])
        at_once = self.plan.templates
        for first, sums in numerators(tiles, self.spectra, batch.pairs, at_once, start, stop):
            self._normalise(sums, moments, batch.tiles, first, rule)


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
