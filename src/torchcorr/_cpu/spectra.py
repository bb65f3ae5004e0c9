"""Spectra of templates, and the step `correlate`: numerators of tiles and templates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._definition.spectra import forward_fft, inverse_fft, template_spectra
from .._definition.transforms import sum_channels
from .._plan.tiling import Tiling
from .steps import correlate_direct

# Bytes of spectra that a call keeps for its other batches.
_ROOM = 32 << 20


class TemplateSpectra:
    """Templates (pairs, templates, C, *window) in the form that the tiles of a tiling multiply."""

    def __init__(
        self,
        template: Tensor,
        tiling: Tiling,
        *,
        transformed: bool = True,
        prepared: Tensor | None = None,
    ) -> None:
        self.template, self.tiling, self.transformed = template, tiling, transformed
        self._prepared = prepared
        self._kept: dict[tuple[torch.dtype, int, int, int], Tensor] = {}
        self._room = _ROOM

    def part(self, dtype: torch.dtype, pairs: slice, first: int, last: int) -> Tensor:
        """Templates first to last of some pairs, in one precision."""
        if not self.transformed:
            return self.template[pairs, first:last].to(dtype)
        if self._prepared is not None and self._prepared.dtype == dtype.to_complex():
            return self._prepared[pairs, first:last]
        key = (dtype, pairs.start, first, last)
        spectra = self._kept.get(key)
        if spectra is None:
            part = self.template[pairs, first:last]
            spectra = template_spectra(part, self.tiling.length, dtype)
            self._room -= spectra.nbytes
            if self._room >= 0:
                self._kept[key] = spectra
        return spectra


def numerators(
    tiles: Tensor,
    spectra: TemplateSpectra,
    pairs: slice,
    at_once: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """(first template, numerators) for templates `start` to `stop`; each of the `pairs` has equally
    many of the tiles.

    Through transforms two tiles are one complex tile, as they are given and as they are returned:
    a template is real, so real and imaginary parts do not mix (math.md, eq. pair).
    """
    ndim = len(spectra.tiling.length)
    groups = pairs.stop - pairs.start
    end = spectra.template.shape[1] if stop is None else stop
    shape = (groups, tiles.shape[0] // groups, 1, *tiles.shape[1:])
    if spectra.transformed:
        lines = torch.view_as_complex(tiles)
        spectrum = forward_fft(lines.flatten(0, 1), ndim).reshape(shape[:-1])
        in_place = spectra.template.shape[1:3] == (1, 1)
    for first in range(start, end, at_once):
        last = min(first + at_once, end)
        weights = spectra.part(tiles.dtype, pairs, first, last).unsqueeze(1)
        if not spectra.transformed:
            sums = correlate_direct(tiles.reshape(shape), weights, list(spectra.tiling.stride))
        else:
            if in_place:
                product = spectrum.squeeze(-ndim - 1).mul_(weights.squeeze(-ndim - 1))
            else:
                product = sum_channels(spectrum, weights, ndim)
            lead = product.shape[:-ndim]
            lines = inverse_fft(product.flatten(0, -ndim - 1), ndim)
            sums = torch.view_as_real(lines.unflatten(0, lead))
        yield first, sums.reshape(tiles.shape[0], *sums.shape[2:])


def pair_scales(scale: Tensor, tiles: Tensor) -> Tensor:
    """One number a tile, shaped to multiply pairs of tiles."""
    return scale.unflatten(0, (-1, 2)).reshape(tiles.shape[0], *(1,) * (tiles.dim() - 2), 2)
