"""Correlation and its two transposes: loops over the template, or whole transforms in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.dtypes import widen
from .._plan.shapes import offsets, output_size, positions
from . import transforms
from .windows import chosen_windows, window_sum

# Elements of a window from which on transforms take less time than the loop.
_CROSSOVER = 16


def template_axes(x: Tensor, ndim: int) -> Tensor:
    """(*lead, C) reshaped to broadcast against (*lead, C, *output)."""
    return x[(..., *(None,) * ndim)]


def by_transforms(method: str, window: Sequence[int], *tensors: Tensor) -> bool:
    """Whether a call is computed by transforms: if asked for, or for `auto` if that is faster."""
    if method == "auto":
        method = "fft" if math.prod(window) > _CROSSOVER else "direct"
    return method == "fft" and all(x.numel() > 0 for x in tensors)


def all_finite(*tensors: Tensor) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in tensors)


def correlate(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None = None,
) -> Tensor:
    """sum_v I(u s + v) T(v), summed over channels (math.md, eq. correlate)."""
    ndim = len(stride)
    window = template.shape[-ndim:]
    sizes = template.shape[-ndim - 1 :]
    if by_transforms(method, sizes, input, template) and all_finite(template):
        return _by_transforms(input, template, stride)
    output = output_size(input.shape[-ndim:], window, stride)
    wide, weights = widen(input), widen(template)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total = wide.new_zeros((*lead, *output))
    for v in offsets(window):
        seen = wide[(..., *positions(v, output, stride))]
        total += (seen * template_axes(weights[(..., *v)], ndim)).sum(-ndim - 1)
    return total.to(input.dtype)


def _by_transforms(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """`correlate` by float64 transforms; values that rounding may have spoilt are recomputed."""
    window = template.shape[-len(stride) :]
    finite = torch.isfinite(input)
    wide, weights = torch.where(finite, widen(input), 0.0), widen(template)
    sums = transforms.correlate(wide, weights, stride)
    doubtful = _count(~finite, window, stride) > 0
    if not input.is_complex():
        if input.dtype != torch.float64:
            # |sum| is at most the sum of absolute products, to which the promise is relative.
            allowed = rounding.ALLOWED_ROUNDINGS * rounding.unit(input.dtype)
            noise = transforms.noise(wide, weights, sums, len(stride))
            doubtful = doubtful | (sums.abs() * allowed < noise)
        empty = _count((input != 0) | ~finite, window, stride) == 0
        sums = torch.where(empty, 0.0, sums)
        doubtful = doubtful & ~empty
    doubtful = doubtful.expand_as(sums)
    for place, elements, coefficients in chosen_windows(doubtful, widen(input), weights, stride):
        sums[place] = (elements * coefficients).flatten(1).sum(1)
    return sums.to(input.dtype)


def _count(flags: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """How many elements of each window are true."""
    return window_sum(flags.to(torch.float32), window, stride)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    """The transpose of `correlate` in its input: every output is spread over its window."""
    ndim = len(stride)
    sizes = template.shape[-ndim - 1 :]
    if by_transforms(method, sizes, grad, template) and all_finite(grad, template):
        return transforms.correlate_input_grad(grad, template, input_shape, stride)
    output = grad.shape[-ndim:]
    wide, weights = widen(grad).unsqueeze(-ndim - 1), widen(template).conj().resolve_conj()
    total = wide.new_zeros(tuple(input_shape))
    share = (*input_shape[:-ndim], *output)
    for v in offsets(template.shape[-ndim:]):
        part = wide * template_axes(weights[(..., *v)], ndim)
        total[(..., *positions(v, output, stride))] += part.sum_to_size(share)
    return total.to(grad.dtype)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    """The transpose of `correlate` in its template: the input correlated with the gradient."""
    ndim = len(stride)
    sizes = template_shape[-ndim - 1 :]
    if by_transforms(method, sizes, grad, input) and all_finite(grad, input):
        return transforms.correlate_template_grad(grad, input, template_shape, stride)
    output = grad.shape[-ndim:]
    wide, seen = widen(grad).unsqueeze(-ndim - 1), widen(input).conj().resolve_conj()
    total = wide.new_zeros(tuple(template_shape))
    axes = tuple(range(-ndim, 0))
    for v in offsets(template_shape[-ndim:]):
        part = (wide * seen[(..., *positions(v, output, stride))]).sum(axes)
        total[(..., *v)] = part.sum_to_size(tuple(template_shape[:-ndim]))
    return total.to(grad.dtype)
