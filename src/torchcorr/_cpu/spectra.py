"""Spectra of templates that the tiles of a gradient multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from .._definition.spectra import template_spectra
from .._plan.tiling import Tiling

# Bytes of spectra that a call keeps for its other batches.
_ROOM = 32 << 20


class TemplateSpectra:
    """Templates (pairs, templates, C, *window) in the form that the tiles of a tiling multiply."""

    def __init__(
        self,
        template: Tensor,
        tiling: Tiling,
    ) -> None:
        self.template, self.tiling = template, tiling
        self._kept: dict[tuple[torch.dtype, int, int, int], Tensor] = {}
        self._room = _ROOM

    def part(self, dtype: torch.dtype, pairs: slice, first: int, last: int) -> Tensor:
        """Templates first to last of some pairs, in one precision."""
        key = (dtype, pairs.start, first, last)
        spectra = self._kept.get(key)
        if spectra is None:
            part = self.template[pairs, first:last]
            spectra = template_spectra(part, self.tiling.length, dtype)
            self._room -= spectra.nbytes
            if self._room >= 0:
                self._kept[key] = spectra
        return spectra
