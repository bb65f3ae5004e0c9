"""Normalised scores on CUDA: by direct sums or in tiles, as the plan says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .direct import scores as direct
from .standardise import standardise
from .tiles import scores as tiles
from .tiles.transforms import arranged


def ncc(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    spectra: Tensor | None = None,
    whole: Tensor | None = None,
) -> Tensor:
    if not input.is_floating_point():
        input = input.float()
        template = standardise(template.float(), len(stride), zero_mean)
    call = arranged(input.shape, template.shape, stride, method, input, normalised=True)
    score = direct.ncc if call.plan.method == "direct" else tiles.ncc
    return score(input, template, stride, zero_mean, eps)
