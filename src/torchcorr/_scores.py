"""Normalised scores tile by tile, registered for the CPU.

Each tile is centred on a level of its own, so that float32 carries it. Windows too faint for the
promised bound beside what rounding left in their tile's sums are counted; a tile that has many is
computed again in float64, and the few that remain come from their definition.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from . import _choose, _reference
from ._ops import kernels as ops
from ._ops import library
from ._overlap_save import TemplateSpectra, numerators
from ._tile_ops import new_map

# A transform's noise: this many roundings of what its sums hold, as `finish_tiles` adds it up.
_NOISE = 10.0
# What the sums mostly hold, beside the tile's deviation times the window's elements.
_MOSTLY = 0.4
# The same of the direct loop, beside the window's own root mean square about the level.
_NOISE_OF_SUMS = 4.0
# What promise 2 allows, less a margin for what the other steps of a score cost.
_TOLERANCE = {torch.float32: 8e-6, torch.float64: 8e-11}
# Smallest variance beside the mean square that a difference of the two can give.
_EXACT = {torch.float32: 1e-8, torch.float64: 3e-5}
# Multiply-adds of windows computed again, for each element of a tile, that cost as much as
# transforming it in float64.
_AGAIN = 128


def noise_beside(result: torch.dtype, working: torch.dtype) -> float:
    """Roundings that a transform leaves, beside the error that is allowed."""
    return _NOISE * torch.finfo(working).eps / 2 / _TOLERANCE[result]


def _counted(left: Tensor) -> list[int]:
    """Places of the tiles that left windows in doubt."""
    return [i for i, n in enumerate(left.tolist()) if n > 0]


class TiledScores:
    """One call: normal forms, their tiles and what all batches share."""

    def __init__(
        self,
        method: str,
        input: Tensor,
        template: Tensor,
        stride: Sequence[int],
        zero_mean: bool,
        eps: float,
    ) -> None:
        ndim = len(stride)
        arranged = _choose.arrange(input, template, stride, method, True)
        self.problem, self.plan = arranged.problem, arranged.plan
        self.tiling, self.geometry = arranged.tiling, arranged.geometry
        leads = self.problem.leads
        self.input = leads.input(input, ndim + 1).contiguous()
        self.template = leads.template(_reference.widen(template), ndim + 1).contiguous()
        self.stride = list(stride)
        self.window = list(self.problem.window)
        self.count = self.problem.channels * math.prod(self.window)
        self.zero_mean, self.eps = zero_mean, eps
        self.spectra = TemplateSpectra(self.template, self.tiling, stride, method == "fft")
        self.local = method == "direct"
        self.budget = max(1, _AGAIN * math.prod(self.tiling.length) // self.count)

    def run(self) -> Tensor:
        leads = self.problem.leads
        shape = (leads.paired * leads.inputs, leads.templates, *self.tiling.positions)
        self.out = new_map(self.input, shape)
        step = self._direct if self.local else self._batch
        for pairs, ids in _choose.batches(self.problem, self.plan):
            step(pairs, ids)
        return leads.restored(self.out, len(self.stride))

    def tiles(self, ids: list[int], centred: bool, wide: bool) -> tuple[Tensor, Tensor]:
        return ops.gather_tiles(self.input, ids, self.geometry, centred, wide, not self.local)

    def norms(self, ids: list[int], stats: Tensor, means: bool) -> tuple[Tensor, list[int], Tensor]:
        """Norms, the places in `ids` of tiles that need float64, and means if asked for."""
        dtype = self.input.dtype
        norms, faint, mean = ops.tile_norms(
            stats,
            self.input,
            ids,
            self.geometry,
            self.window,
            self.stride,
            self.zero_mean,
            self.local,
            self.eps,
            self.faint(dtype),
            _EXACT[dtype],
            means,
        )
        hard = [i for i, n in enumerate(faint.tolist()) if n > self.budget]
        return norms, hard, mean

    def faint(self, working: torch.dtype) -> float:
        """Variance beside the tile's, or the window's square, below which noise is too much: what
        it mostly is for transforms, whose sums tell it later.
        """
        if self.local:
            unit = torch.finfo(working).eps / 2
            return (_NOISE_OF_SUMS * unit / _TOLERANCE[self.input.dtype]) ** 2
        return (_MOSTLY * noise_beside(self.input.dtype, working)) ** 2

    def _direct(self, pairs: slice, ids: list[int]) -> None:
        """Tiles by the direct sum; those that have too many faint windows again, in float64."""
        dtype = self.input.dtype
        left, norms = ops.direct_scores(
            self.input,
            self.template,
            self.spectra.part(dtype, pairs, 0, self.template.shape[1]).unsqueeze(1),
            ids,
            self.geometry,
            self.window,
            self.stride,
            self.plan.templates,
            self.zero_mean,
            self.eps,
            self.faint(dtype),
            _EXACT[dtype],
            self.budget,
            self.out,
        )
        if bool(left.any()):
            self._again(pairs, ids, norms, _counted(left), 0, None)

    def _batch(self, pairs: slice, ids: list[int]) -> None:
        tiles, stats = self.tiles(ids, self.zero_mean, False)
        norms, hard, _ = self.norms(ids, stats, False)
        if not hard:
            self._finish(pairs, ids, tiles, norms, stats)
            return
        del tiles
        self._again(pairs, ids, norms, hard, 0, None)
        each = len(ids) // (pairs.stop - pairs.start)
        for k in range(pairs.stop - pairs.start):
            own = range(k * each, (k + 1) * each)
            soft = [ids[i] for i in own if i not in hard and ids[i] >= 0]
            if soft:
                self._batch(slice(pairs.start + k, pairs.start + k + 1), self.even(soft))

    def even(self, ids: list[int]) -> list[int]:
        """Tiles as transforms take them: an even number, filled up with an empty one."""
        return ids if self.local or len(ids) % 2 == 0 else [*ids, _choose.EMPTY]

    def _wide(
        self, pairs: slice, ids: list[int], known: Tensor, start: int = 0, stop: int | None = None
    ) -> None:
        """Tiles in float64, with the norms that are known, or better ones if many are not."""
        tiles, stats = self.tiles(ids, self.zero_mean, True)
        lost = int(known.isinf().flatten(1).sum(1).amax())
        if lost <= self.budget and self.input.dtype != torch.float64:
            # Faint beside what float32 transforms leave, but not beside what float64 ones do.
            norms = tiles.new_zeros((len(ids), *known.shape[1:]))
            norms[: len(known)] = torch.where(known.isinf(), known, known.abs())
        else:
            norms, _ = self.wide_norms(ids, stats)
            norms[: len(known)].masked_fill_(known.isnan(), torch.nan)
        for first, found in numerators(
            tiles, self.spectra, pairs, self.plan.templates, start, stop
        ):
            self._write(found, norms, stats, ids, first, torch.float64, sys.maxsize)

    def wide_norms(self, ids: list[int], stats: Tensor) -> tuple[Tensor, Tensor]:
        """Norms and means in float64, from moments that are merged so that nothing cancels."""
        raw, raw_stats = self.tiles(ids, False, True)
        power, column = stats[:, 2], (slice(None), *(None,) * len(self.stride))
        if not self.local:
            raw = raw.movedim(-1, 1).flatten(0, 1)
            power = power.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2)
        inside = (..., *(slice(0, n) for n in self.tiling.extent))
        mean, var = ops.window_moments(raw[inside], self.window, self.stride)
        # Both in the units of the centred tiles.
        unit, scale = raw_stats[:, 1][column], stats[:, 1][column]
        energy = (var if self.zero_mean else var + mean.square()) * (scale / unit).square()
        mean = (mean / unit - stats[:, 0][column]) * scale
        softened = energy + self.eps * scale.square()
        norms = 1 / (self.count * softened.sqrt())
        limit = self.faint(torch.float64) * power[column]
        norms = torch.where(softened < limit, -norms, norms)
        norms = torch.where(energy == 0, 0.0, norms)
        return norms, mean if self.zero_mean else torch.zeros_like(mean)

    def _finish(
        self, pairs: slice, ids: list[int], tiles: Tensor, norms: Tensor, stats: Tensor
    ) -> None:
        """Scores of tiles in the input's precision; of those that are too noisy, in float64."""
        for first, found in numerators(tiles, self.spectra, pairs, self.plan.templates):
            left = self._write(found, norms, stats, ids, first, tiles.dtype, self.budget)
            if bool(left.any()):
                self._again(pairs, ids, norms, _counted(left), first, first + found.shape[1])

    def _again(
        self,
        pairs: slice,
        ids: list[int],
        norms: Tensor,
        places: Iterable[int],
        start: int,
        stop: int | None,
    ) -> None:
        """The tiles at these places in `ids`, which have too many windows in doubt, in float64."""
        each = len(ids) // (pairs.stop - pairs.start)
        for k in range(pairs.stop - pairs.start):
            own = [i for i in places if i // each == k]
            if own:
                group = slice(pairs.start + k, pairs.start + k + 1)
                self._wide(group, self.even([ids[i] for i in own]), norms[own], start, stop)

    def _write(
        self,
        found: Tensor,
        norms: Tensor,
        stats: Tensor,
        ids: list[int],
        first: int,
        working: torch.dtype,
        budget: int,
    ) -> Tensor:
        return ops.finish_tiles(
            found,
            norms,
            stats,
            self.input,
            self.template,
            ids,
            self.geometry,
            self.stride,
            first,
            self.zero_mean,
            self.eps,
            0.0 if self.local else noise_beside(self.input.dtype, working),
            sys.maxsize if self.local else budget,
            self.out,
        )


def _score(
    method: str,
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
) -> Tensor:
    if input.numel() == 0 or template.numel() == 0:
        return _reference.ncc(input, template, stride, zero_mean, eps)
    return TiledScores(method, input, template, stride, zero_mean, eps).run()


for _name in ("direct", "fft"):
    library.impl(f"ncc_{_name}", partial(_score, _name), "CPU")
