"""Templates and weights whose spectra are kept between calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _contract
from ._definition.layer_spectra import weight_spectra
from ._definition.spectra import template_spectra
from ._plan.choose import arrange
from ._plan.conv import Layer, tiles_of, way_of
from ._plan.costs import family
from ._plan.dtypes import HALVES, widen
from ._plan.shapes import Ints
from ._plan.tiling import Tiling


def tile_spectra(template: Tensor, tiling: Tiling, dtype: torch.dtype) -> Tensor:
    """Those of (pairs, templates, C, *window) as an engine would make them itself."""
    made = _contract.correlate.spectra(template, tiling, dtype == torch.float64)
    return template_spectra(template, tiling.length, dtype) if made is None else made


@dataclass(frozen=True)
class PreparedTemplate:
    """A template as it was when it was prepared, and its spectra for each length of tiles."""

    template: Tensor
    spectra: dict[tuple[Ints, Ints, torch.dtype], Tensor] = field(default_factory=dict)

    def is_of(self, template: Tensor) -> bool:
        """Whether the template still has the same values."""
        same_kind = (
            self.template.dtype == template.dtype and self.template.device == template.device
        )
        return same_kind and torch.equal(self.template, template)

    def spectra_for(
        self,
        input: Tensor,
        template: Tensor,
        stride: Sequence[int],
        method: str,
        *,
        normalised: bool,
    ) -> Tensor | None:
        """Spectra for a call with tensors in normal form; None if it needs none.

        `template` is this template, standardised if the call is `normalised`.
        """
        call = arrange(
            input.shape,
            template.shape,
            stride,
            method,
            normalised=normalised,
            dtype=input.dtype,
            device=family(input.device),
        )
        # An engine that does not transform tiles in pairs transforms templates in each call, as
        # all do for large tiles.
        in_pairs = call.problem.costs.pairs and not call.plan.large
        if call.plan.method != "fft" or input.is_complex() or not in_pairs:
            return None
        working = torch.float64 if input.dtype == torch.float64 else torch.float32
        key = (tuple(template.shape), call.tiling.length, working)
        if key not in self.spectra:
            weights = call.problem.leads.template(widen(template.detach()), len(stride) + 1)
            self.spectra[key] = tile_spectra(weights, call.tiling, working)
        return self.spectra[key]


@dataclass
class PreparedWeight:
    """The spectra of a layer's weight for the length of tiles that was asked for last."""

    kept: tuple[object, Tensor, Tensor] | None = (
        None  # what they depend on, the weight, its spectra
    )

    def spectra_for(self, layer: Layer, form: str, weight: Tensor) -> Tensor | None:
        """Spectra for a form of a layer; None if it needs none or they would take much memory.

        The weight is compared with what they were made of, so that no change goes unnoticed, not
        even one through `weight.data` or through memory that a tensor shares with others.
        """
        dense = layer.dense_of(form)
        if weight.is_complex() or way_of(layer, form).method != "spectra":
            return None
        tiles = tiles_of(dense)[0]
        if not tiles.can_be_kept(dense):
            return None
        at, now = layer.lattices, weight.detach()
        key = (form, at.steps, at.taps, tiles.length, dense.groups, now.dtype, now.device)
        if self.kept is not None:
            known, made_of, spectra = self.kept
            if known == key and torch.equal(made_of, now):
                return spectra
        self.kept = None
        single = now.float() if now.dtype in HALVES else now
        spectra = weight_spectra(single, layer, form, tiles)
        self.kept = (key, now.clone(), spectra)
        return spectra
