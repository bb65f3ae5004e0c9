"""Templates whose spectra are kept between calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._definition.spectra import tile_spectra
from ._plan.choose import arrange
from ._plan.costs import family
from ._plan.dtypes import widen
from ._plan.shapes import Ints


@dataclass(frozen=True)
class PreparedTemplate:
    """A template as it was when it was prepared, and its spectra for each length of tiles."""

    template: Tensor
    spectra: dict[tuple[Ints, Ints, Ints, torch.dtype], Tensor] = field(default_factory=dict)

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
        # An engine that does not transform tiles in pairs transforms templates in each call.
        if call.plan.method != "fft" or input.is_complex() or not call.problem.costs.pairs:
            return None
        working = torch.float64 if input.dtype == torch.float64 else torch.float32
        key = (tuple(template.shape), call.tiling.length, call.tiling.parts, working)
        if key not in self.spectra:
            weights = call.problem.leads.template(widen(template.detach()), len(stride) + 1)
            self.spectra[key] = tile_spectra(weights, call.tiling, working)
        return self.spectra[key]
