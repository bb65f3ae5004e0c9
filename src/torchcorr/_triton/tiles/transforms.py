"""Correlation of tiles by torch.fft on CUDA: how many at once, their spectra, their numerators.

Real transforms of whole batches; 1/n is folded into the template, and the host decides nothing
from data, so that a call can be captured in a graph. A call in one piece transforms its templates
together with its tiles: for small calls a launch costs more than its work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..._definition.transforms import sum_channels
from ..._plan.choose import Arrangement, arrange
from ..._plan.costs import family
from ..._plan.plan import Plan
from ..._plan.predict import Problem
from ..._plan.shapes import Ints
from ..._plan.tiling import Tiling
from .templates import prepare

# Bytes of templates and their spectra that a call keeps, or transforms together with tiles.
_ROOM = 256 << 20


@dataclass(frozen=True)
class Piece:
    """Items that are computed together with their templates, and which part of each item.

    Items are those of whole pairs, or some of one pair; a part is some of the tiles along the
    first window axis.
    """

    pairs: slice
    items: slice
    tiling: Tiling
    first: int  # position and element along the first axis
    element: int

    @property
    def groups(self) -> int:
        return self.pairs.stop - self.pairs.start

    def of_input(self, x: Tensor) -> Tensor:
        """The elements of (I, C, *size) that the tiles contain."""
        return x[self.items].narrow(2, self.element, self.tiling.size[0])

    def of_map(self, x: Tensor) -> Tensor:
        """The positions of (I, T, *positions) that the tiles cover."""
        return x[self.items].narrow(2, self.first, self.tiling.positions[0])


def pieces(problem: Problem, plan: Plan, tiling: Tiling) -> Iterator[Piece]:
    """A call in pieces whose scratch stays near what the plan allows."""
    inputs, paired = problem.leads.inputs, problem.leads.paired
    whole = plan.batch // tiling.tiles
    if whole >= inputs:
        step = max(1, whole // inputs)
        for p in range(0, paired, step):
            last = min(p + step, paired)
            yield Piece(slice(p, last), slice(p * inputs, last * inputs), tiling, 0, 0)
        return
    step = max(1, whole)
    for p in range(paired):
        for i in range(0, inputs, step):
            items = slice(p * inputs + i, p * inputs + min(i + step, inputs))
            for part, first, element in _parts(plan, tiling):
                yield Piece(slice(p, p + 1), items, part, first, element)


def _parts(plan: Plan, tiling: Tiling) -> Iterator[tuple[Tiling, int, int]]:
    """Some of the tiles along the first axis at a time, evenly."""
    rows, outputs, step = tiling.grid[0], tiling.outputs[0], tiling.stride[0]
    at_once = max(1, min(rows, plan.batch * rows // tiling.tiles))
    at_once = -(-rows // -(-rows // at_once))
    for row in range(0, rows, at_once):
        last = min(row + at_once, rows)
        first, stop = row * outputs, min(last * outputs, tiling.positions[0])
        element = min(max(0, first * step - tiling.pad[0]), tiling.size[0] - 1)
        end = min(tiling.size[0], (stop - 1) * step - tiling.pad[0] + tiling.window[0])
        yield (
            replace(
                tiling,
                size=(max(end - element, 1), *tiling.size[1:]),
                positions=(stop - first, *tiling.positions[1:]),
                grid=(last - row, *tiling.grid[1:]),
                pad=(tiling.pad[0] - first * step + element, *tiling.pad[1:]),
            ),
            first,
            element,
        )


class Spectra:
    """Conjugate half spectra of templates (paired, T, C, *window), and their moments."""

    def __init__(
        self,
        template: Tensor,
        problem: Problem,
        plan: Plan,
        tiling: Tiling,
        working: torch.dtype,
        *,
        absolute: bool = False,
    ) -> None:
        self.template, self.length = template, tiling.length
        self.working, self.absolute = working, absolute
        self._kept: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._room = _ROOM
        paired, templates, channels = template.shape[:3]
        # With several pieces, keeping these spectra would keep those of the tiles in memory too.
        alone = plan.batch >= paired * problem.leads.inputs * tiling.tiles
        elements = paired * templates * channels * math.prod(self.length)
        fits = plan.templates >= templates and 2 * elements * working.itemsize <= _ROOM
        # Templates that are transformed together with the tiles, in memory after these.
        self.extra = paired * templates if alone and fits else 0

    def forward_fft(self, tiles: Tensor, piece: Piece) -> Tensor:
        """Half spectra (groups, tiles of each, C, ...) of tiles, the last `extra` of them unset."""
        ndim, count = len(self.length), tiles.shape[0] - self.extra
        if self.extra == 0:
            return forward_fft(tiles, piece.groups, ndim)
        moments = prepare(self.template, tiles[count:], absolute=self.absolute)
        spectra = forward_fft(tiles, 1, ndim)[0]
        of_templates = spectra[count:].unflatten(0, self.template.shape[:2])
        self._kept[0, 0, self.template.shape[1]] = of_templates, moments
        return spectra[:count].unflatten(0, (piece.groups, -1))

    def part(self, pairs: slice, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Of templates first to last of some pairs: spectra (pairs, templates, C, ...), moments."""
        key = (pairs.start, first, last)
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        part = self.template[pairs, first:last]
        lines = part.shape[:2].numel()
        tiles = part.new_empty((lines, part.shape[2], *self.length), dtype=self.working)
        moments = prepare(part, tiles, absolute=self.absolute)
        spectra = forward_fft(tiles, part.shape[0], len(self.length))
        self._room -= spectra.nbytes
        if self._room >= 0:
            self._kept[key] = spectra, moments
        return spectra, moments


def forward_fft(tiles: Tensor, groups: int, ndim: int) -> Tensor:
    """Half spectra (groups, tiles of each, ...) of tiles (groups * tiles of each, ...)."""
    return torch.fft.rfftn(tiles, dim=tuple(range(-ndim, 0))).unflatten(0, (groups, -1))


def inverse_fft(spectra: Tensor, of_templates: Tensor, length: Ints, overwrite: bool) -> Tensor:
    """Tiles (tiles, templates, *length) from spectra (groups, tiles, 1, C, ...) and templates'.

    Without the inverse's 1/n. The product may overwrite `spectra` if allowed.
    """
    ndim = len(length)
    if overwrite and spectra.shape[-ndim - 1] == of_templates.shape[-ndim - 2] == 1:
        product = spectra.squeeze(-ndim - 1).mul_(of_templates.squeeze(-ndim - 1))
    else:
        product = sum_channels(spectra, of_templates, ndim)
    axes = tuple(range(-ndim, 0))
    return torch.fft.irfftn(product.flatten(0, 1), s=length, dim=axes, norm="forward")


def numerators_of(
    tiles: Tensor, spectra: Spectra, piece: Piece, at_once: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first template, numerators (tiles, templates, *length), the templates' moments)."""
    templates = spectra.template.shape[1]
    of_tiles = spectra.forward_fft(tiles, piece).unsqueeze(2)
    for first in range(0, templates, at_once):
        last = min(first + at_once, templates)
        of_templates, moments = spectra.part(piece.pairs, first, last)
        of_templates, overwrite = of_templates.unsqueeze(1), templates == 1
        yield first, inverse_fft(of_tiles, of_templates, spectra.length, overwrite), moments


def kind_of(x: Tensor) -> str:
    """The kind of device that is planned for; CUDA where the interpreter replaces a GPU."""
    return family(x.device) if x.device.type == "cuda" else "cuda"


def arranged(
    input: Ints,
    template: Ints,
    stride: Sequence[int],
    method: str,
    like: Tensor,
    *,
    normalised: bool,
    dtype: torch.dtype | None = None,
) -> Arrangement:
    """How a call with these shapes is computed, in the type of a tensor or another."""
    return arrange(
        input,
        template,
        stride,
        method,
        normalised=normalised,
        dtype=like.dtype if dtype is None else dtype,
        device=kind_of(like),
    )
