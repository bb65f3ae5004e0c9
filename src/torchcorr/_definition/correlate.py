"""Correlation and its two transposes: loops over the template, or whole transforms in float64."""

from __future__ import annotations

import cmath
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.dtypes import widen
from .._plan.shapes import offsets, output_size, positions
from . import transforms
from .windows import chosen_windows, finite_values, window_sum

# Elements of a window from which on transforms take less time than the loop.
_CROSSOVER = 16
# Multiply-adds of recomputed sums for each element of the input, and at least in all.
_RECOMPUTED = 32
_LEAST_RECOMPUTED = 1 << 24


def template_axes(x: Tensor, ndim: int) -> Tensor:
    """(*lead, C) reshaped to broadcast against (*lead, C, *output)."""
    return x[(..., *(None,) * ndim)]


def by_transforms(method: str, window: Sequence[int], *tensors: Tensor) -> bool:
    """Whether a call is computed by transforms: if asked for, or for `auto` if that is faster."""
    if method == "auto":
        method = "fft" if math.prod(window) > _CROSSOVER else "direct"
    return method == "fft" and all(x.numel() > 0 for x in tensors)


def all_finite(*tensors: Tensor) -> bool:
    # A finite sum says so without a tensor of flags.
    return all(cmath.isfinite(x.sum().item()) or bool(x.isfinite().all()) for x in tensors)


def correlate(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None = None,
    pads: Sequence[int] = (),
) -> Tensor:
    """sum_v I(u s + v) T(v), summed over channels (math.md, eq. correlate).

    `pads` zeros are around I: so many before and behind each window axis in turn.
    """
    ndim = len(stride)
    sizes = template.shape[-ndim - 1 :]
    fft = by_transforms(method, sizes, input, template) and all_finite(template)
    if pads:
        if fft and (input.dtype == torch.float64 or input.is_complex()) and all_finite(input):
            return transforms.correlate(input, template, stride, pads)
        input = transforms.bordered(input, pads)
    if fft:
        return _through_transforms(input, template, stride)
    return _by_loop(widen(input), widen(template), stride).to(input.dtype)


def _by_loop(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """The sum of shifted inputs, each times one element of the template.

    Sums of as many terms are added, so that rounding does not grow with the number of terms.
    """
    ndim = len(stride)
    window = template.shape[-ndim:]
    output = output_size(input.shape[-ndim:], window, stride)
    parts: list[Tensor] = []  # sums of powers of two of terms, fewer from one to the next
    for done, v in enumerate(offsets(window), 1):
        seen = input[(..., *positions(v, output, stride))]
        part = (seen * template_axes(template[(..., *v)], ndim)).sum(-ndim - 1)
        for _ in range((done & -done).bit_length() - 1):
            part += parts.pop()
        parts.append(part)
    return functools.reduce(torch.add, reversed(parts))


def _through_transforms(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """The same by float64 transforms; in float32, values that rounding spoils are recomputed."""
    window = template.shape[-len(stride) :]
    raw, weights = widen(input), widen(template)
    wide, affected = finite_values(raw, window, stride)
    if input.is_complex():
        sums = transforms.correlate(wide, weights, stride)
        if affected is not None:
            sums = recompute_exactly(sums, affected, raw, weights, stride)
        return sums.to(input.dtype)
    if input.dtype == torch.float64:
        sums = transforms.correlate(wide, weights, stride)
    else:
        sums = _without_faint(wide, weights, stride, input.dtype)
    if affected is not None:
        sums = torch.where(affected, _non_finite_sums(raw, weights, stride), sums)
    return sums.to(input.dtype)


def _without_faint(
    input: Tensor, template: Tensor, stride: Sequence[int], result: torch.dtype
) -> Tensor:
    """Sums by transforms. Those that may differ by more than the promise, relative to their sums of
    absolute products, are recomputed, if that does not take quadratic time.

    A sum is at most that of absolute products, which is computed if the sum itself is too small.
    """
    ndim, allowed = len(stride), rounding.unit(result)
    sums, noise = transforms.correlate_with_noise(input, template, stride)
    doubtful = sums.abs() * allowed < noise
    if not bool(doubtful.any()):
        return sums
    terms, noise_of_terms = transforms.correlate_with_noise(input.abs(), template.abs(), stride)
    doubtful &= (terms - noise_of_terms) * allowed < noise
    # How many products are not zero.
    there = [(x != 0).to(x.dtype) for x in (input, template)]
    empty = doubtful & (transforms.correlate(there[0], there[1], stride) < 0.5)
    sums = sums.masked_fill(empty, 0)
    doubtful &= ~empty
    products = int(doubtful.sum()) * template.shape[-ndim - 1 :].numel()
    if products > max(_LEAST_RECOMPUTED, _RECOMPUTED * input.numel()):
        return sums
    return recompute_exactly(sums, doubtful, input, template, stride)


def _non_finite_sums(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """Sums over windows with elements that are not finite (math.md, eq. non-finite)."""
    window = template.shape[-len(stride) :]
    counts = window_sum((~torch.isfinite(input)).to(input.dtype), window, stride)
    infinite = torch.where(torch.isinf(input), input.sign(), 0.0)
    signs = transforms.correlate(infinite, template.sign(), stride).round()
    sums = torch.where(signs == counts, torch.inf, torch.nan).to(input.dtype)
    return torch.where(signs == -counts, -torch.inf, sums)


def recompute_exactly(
    numerators: Tensor,
    doubtful: Tensor,
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    level: Tensor | None = None,
) -> Tensor:
    """Writes sums of products from their definition where they are doubtful.

    `level`, as `numerators` but for axes of length 1, is subtracted from the windows.
    """
    doubtful = doubtful.expand_as(numerators)
    for place, seen, coefficients in chosen_windows(doubtful, input, template, stride):
        if level is not None:
            seen = seen - level.expand_as(numerators)[place][(..., *(None,) * (len(stride) + 1))]
        numerators[place] = (seen * coefficients).flatten(1).sum(1)
    return numerators


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
