"""Correlation and its transposes on CUDA: by direct sums or in tiles, as the plan says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._definition.transforms import bordered
from .._plan.shapes import Ints
from .direct import correlate as direct
from .direct import template_grad as direct_template
from .tiles import correlate as tiles
from .tiles.transforms import arranged


def _is_direct(
    input: Ints, template: Ints, stride: Sequence[int], method: str, like: Tensor
) -> bool:
    call = arranged(input, template, stride, method, like, normalised=False)
    return call.plan.method == "direct"


def correlate(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None = None,
    pads: Sequence[int] = (),
) -> Tensor:
    input = bordered(input, pads)
    if _is_direct(input.shape, template.shape, stride, method, input):
        return direct.correlate(input, template, stride)
    return tiles.correlate(input, template, stride)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    if _is_direct(tuple(input_shape), template.shape, stride, method, grad):
        return direct.correlate_input_grad(grad, template, input_shape, stride)
    return tiles.correlate_input_grad(grad, template, input_shape, stride)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    if _is_direct(input.shape, tuple(template_shape), stride, method, grad):
        return direct_template.correlate_template_grad(grad, input, template_shape, stride)
    return tiles.correlate_template_grad(grad, input, template_shape, stride)
