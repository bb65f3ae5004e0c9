"""Plain correlation and its two transposes: direct loops, or tiles through float64 transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import _contract
from .._definition import correlate as definition
from .._definition import transforms
from .._definition.spectra import forward_fft, inverse_fft
from .._definition.transposes import Transpose
from .._plan import rounding
from .._plan.choose import Arrangement, arrange, batches
from .._plan.dtypes import HALVES, widen
from .._plan.shapes import Ints
from .._plan.tiling import Batch, TileBatch, TileStats
from . import steps
from .rules import ScoreRule, SumRule
from .spectra import TemplateSpectra, numerators, pair_scales

# Multiply-adds of recomputed windows, for each element of a tile, that cost less than a decision
# by sums of absolute products.
_RECOMPUTED = 32


def correlate(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None = None,
) -> Tensor:
    if input.dtype in HALVES:
        return correlate(input.float(), template.float(), stride, method).to(input.dtype)
    call = _arranged(input.shape, template.shape, stride, method, input.dtype)
    if call.plan.method == "direct":
        return steps.correlate_direct(input, template, stride)
    finite = bool(torch.isfinite(template).all())
    if input.is_complex():
        finite = finite and bool(torch.isfinite(input).all())
    if not finite or input.numel() == 0 or template.numel() == 0:
        return definition.correlate(input, template, stride, "direct")
    if input.is_complex():
        return transforms.correlate(input, template, stride)
    return TiledSums(input, template, call, spectra).run()


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    if grad.dtype in HALVES:
        wide = (grad.float(), template.float())
        return correlate_input_grad(*wide, input_shape, stride, method).to(grad.dtype)
    shape = tuple(input_shape)
    if _arranged(shape, template.shape, stride, method, grad.dtype).plan.method == "direct":
        return steps.correlate_direct_input_grad(grad, template, shape, stride)
    if grad.numel() == 0:
        return grad.new_zeros(shape)
    if grad.is_complex() or not bool(torch.isfinite(grad).all()):
        return transforms.correlate_input_grad(grad, template, shape, stride)
    call = Transpose.into_input(grad, template, shape, stride, "cpu")
    upstream, weights, tiling = call.upstream, call.other, call.tiling
    spectra = TemplateSpectra(weights, tiling)
    out = steps.new_map(upstream, (upstream.shape[0], weights.shape[1], *shape[-len(stride) :]))
    # Nothing is doubtful, so neither the input nor the template is read.
    rule = SumRule(0.0, 1.0, 0.0).numbers
    for batch in batches(call.problem, call.plan):
        whole = TileBatch(tiling, batch.tiles)
        tiles, stats = steps.cut_tiles(upstream, whole.numbers, False, True, True)
        for first, sums in numerators(tiles, spectra, batch.pairs, call.plan.templates):
            part = replace(whole, first_template=first)
            steps.emit_sums(sums, None, [stats], upstream, weights, part.numbers, rule, out)
    return call.leads.input_restored(out, shape, len(stride) + 1)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    if grad.dtype in HALVES:
        wide = (grad.float(), input.float())
        return correlate_template_grad(*wide, template_shape, stride, method).to(grad.dtype)
    ndim, shape = len(stride), tuple(template_shape)
    if _arranged(input.shape, shape, stride, method, grad.dtype).plan.method == "direct":
        return steps.correlate_direct_template_grad(grad, input, shape, stride)
    if grad.numel() == 0:
        return grad.new_zeros(shape)
    finite = bool(torch.isfinite(grad).all()) and bool(torch.isfinite(input).all())
    if grad.is_complex() or not finite:
        return transforms.correlate_template_grad(grad, input, shape, stride)
    call = Transpose.into_template(grad, input, shape, stride, "cpu")
    leads, upstream, seen, tiling = call.leads, call.upstream, call.other, call.tiling
    # Tiles of the gradient: the same positions, and nothing around them.
    of_upstream = replace(tiling, window=(1,) * ndim, extent=tiling.outputs)
    total = upstream.new_zeros(
        (leads.paired, leads.templates, seen.shape[1], *tiling.length), dtype=torch.complex128
    )
    for batch in batches(call.problem, call.plan):
        for one in batch.by_pair():
            inputs = _spectra_of(seen, TileBatch(tiling, one.tiles), ndim)
            upstreams = _spectra_of(upstream, TileBatch(of_upstream, one.tiles), ndim)
            sums = total[one.pairs.start]
            for a, b in zip(inputs, upstreams.conj().resolve_conj(), strict=True):
                torch.addcmul(sums, a.unsqueeze(0), b.unsqueeze(1), out=sums)
    lead = total.shape[:3]
    lines = inverse_fft(total.flatten(0, 2), ndim).unflatten(0, lead).real
    lines = lines[(..., *(slice(0, k) for k in tiling.window))] / math.prod(tiling.length)
    return leads.template_restored(lines.to(grad.dtype), shape, ndim + 1)


def _arranged(
    input: Ints, template: Ints, stride: Sequence[int], method: str, dtype: torch.dtype
) -> Arrangement:
    return arrange(input, template, stride, method, normalised=False, dtype=dtype, device="cpu")


def _spectra_of(x: Tensor, batch: TileBatch, ndim: int) -> Tensor:
    """(pairs, channels, ...): spectra of tiles (first, second) as one complex tile."""
    tiles, rows = steps.cut_tiles(x, batch.numbers, False, True, True)
    tiles.div_(pair_scales(TileStats(rows).scale, tiles))
    lines = torch.view_as_complex(tiles)
    return forward_fft(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])


class TiledSums:
    """One correlation in tiles, in float64, each value within a few roundings of its terms.

    A value that is large relative to the rounding of its tile is known to be right. For tiles that
    have many others, the sums of absolute products decide; windows that stay doubtful are
    recomputed from the definition, whole tiles of them by the direct loop.
    """

    def __init__(
        self, input: Tensor, template: Tensor, call: Arrangement, prepared: Tensor | None
    ) -> None:
        self.problem, self.plan, self.tiling = call.problem, call.plan, call.tiling
        leads, core = self.problem.leads, len(self.tiling.stride) + 1
        self.input = leads.input(input, core).contiguous()
        self.template = leads.template(widen(template), core).contiguous()
        self.spectra = TemplateSpectra(self.template, self.tiling, prepared=prepared)
        self.absolute_spectra: TemplateSpectra | None = None
        count = self.problem.channels * math.prod(self.tiling.window)
        self.rule = SumRule(
            rounding.TRANSFORM_OF_SUMS * rounding.unit(torch.float64),
            rounding.ALLOWED_ROUNDINGS * rounding.unit(input.dtype),
            max(1, _RECOMPUTED * math.prod(self.tiling.length) // count),
        )

    def run(self) -> Tensor:
        leads = self.problem.leads
        shape = (leads.paired * leads.inputs, leads.templates, *self.tiling.positions)
        self.out = steps.new_map(self.input, shape)
        for batch in batches(self.problem, self.plan):
            self._batch(batch)
        return leads.restored(self.out, len(self.tiling.stride))

    def _batch(self, batch: Batch) -> None:
        numbers = TileBatch(self.tiling, batch.tiles).numbers
        tiles, rows = steps.cut_tiles(self.input, numbers, True, True, True)
        moments = [rows]
        if bool((TileStats(rows).non_finite > 0).any()):
            # Only which windows are not finite counts, so nothing is doubtful.
            rule = ScoreRule(False, 0.0, 0.0, False, 0.0, 0.0, 0.0).numbers
            *windows, _ = steps.tile_moments(self.input, rows, numbers, rule, False)
            moments += windows
        for first, sums in numerators(tiles, self.spectra, batch.pairs, self.plan.templates):
            doubtful = self._emit(sums, None, moments, batch.tiles, first)
            if doubtful:
                self._decide_by_absolute_sums(batch, moments, sums, first, doubtful)

    def _emit(
        self,
        sums: Tensor,
        absolute: Tensor | None,
        moments: list[Tensor],
        tiles: list[int],
        first: int,
    ) -> list[int]:
        """Writes values; the places of tiles that have too many doubtful ones left."""
        batch = TileBatch(self.tiling, tiles, first).numbers
        operands = (self.input, self.template, batch, self.rule.numbers, self.out)
        counts = steps.emit_sums(sums, absolute, moments, *operands)
        return [i for i, n in enumerate(counts.tolist()) if n > 0]

    def _decide_by_absolute_sums(
        self, batch: Batch, moments: list[Tensor], sums: Tensor, first: int, doubtful: list[int]
    ) -> None:
        """Decides doubtful values by their sums of absolute products, for which float32 is enough,
        and computes the tiles that still have many by the direct loop.
        """
        if self.absolute_spectra is None:
            self.absolute_spectra = TemplateSpectra(self.template.abs(), self.tiling)
        templates, each = sums.shape[1], len(batch.tiles) // batch.groups
        for k, one in enumerate(batch.by_pair()):
            both = sorted({i // 2 for i in doubtful if i // each == k})
            if not both:
                continue
            places = [i for p in both for i in (2 * p, 2 * p + 1)]
            tiles = [batch.tiles[i] for i in places]
            numbers = TileBatch(self.tiling, tiles).numbers
            raw, raw_rows = steps.cut_tiles(self.input, numbers, False, True, True)
            of_places = [x[places] if x.numel() > 0 else x for x in moments]
            # In the scale of the centred tiles.
            ratio = TileStats(of_places[0]).scale / TileStats(raw_rows).scale
            raw = raw.abs_().mul_(pair_scales(ratio, raw)).to(torch.float32)
            of_templates = (templates, first, first + templates)
            _, absolute = next(numerators(raw, self.absolute_spectra, one.pairs, *of_templates))
            for i in self._emit(sums[both], absolute, of_places, tiles, first):
                self._write_directly(tiles[i], one.pairs.start, first, templates)

    def _write_directly(self, tile: int, pair: int, first: int, templates: int) -> None:
        """One tile by its definition."""
        item, number = divmod(tile, self.tiling.tiles)
        elements, positions = self.tiling.slices(number)
        part = self.input[(slice(item, item + 1), slice(None), *elements)].to(torch.float64)
        weights = self.template[pair, first : first + templates]
        values = steps.correlate_direct(part, weights, self.tiling.stride)
        self.out[(item, slice(first, first + templates), *positions)] = values.to(self.out.dtype)


def register() -> None:
    _contract.correlate.implement(correlate, "CPU")
    _contract.correlate_input_grad.implement(correlate_input_grad, "CPU")
    _contract.correlate_template_grad.implement(correlate_template_grad, "CPU")
