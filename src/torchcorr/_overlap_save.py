"""Correlation through torch.fft, registered for CPU and CUDA.

The transform runs in float64 and on a centred input: the answer is then good in float32 at
windows far fainter than their surroundings, and what float64 itself cannot promise is computed
again from its definition, window by window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _reference
from ._geometry import dilated_size, fast_length, output_size
from ._ops import library, ops

# The score's noise is at most about this times eps64 * deviation(input) / deviation(window).
_NOISE = 8.0
# What promise 2 allows, less a margin for what the other steps of a score cost.
_TOLERANCE = {torch.float32: 5e-6, torch.float64: 5e-11}
# Elements gathered at once when windows are computed again from their definition.
_GATHER = 1 << 22

_KEYS = ("CPU", "CUDA")


def _lengths(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(fast_length(n) for n in size)


def _transform(x: Tensor, lengths: Sequence[int]) -> Tensor:
    axes = tuple(range(-len(lengths), 0))
    if x.is_complex():
        return torch.fft.fftn(x, s=tuple(lengths), dim=axes)
    return torch.fft.rfftn(x, s=tuple(lengths), dim=axes)


def _reversed(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectrum of x with every window axis reversed, which turns a convolution into a correlation."""
    return _transform(x.conj() if x.is_complex() else x, lengths).conj()


def _inverse(spectrum: Tensor, lengths: Sequence[int], is_complex: bool) -> Tensor:
    axes = tuple(range(-len(lengths), 0))
    if is_complex:
        return torch.fft.ifftn(spectrum, s=tuple(lengths), dim=axes)
    return torch.fft.irfftn(spectrum, s=tuple(lengths), dim=axes)


def _crop(x: Tensor, extent: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    steps = stride if stride is not None else (1,) * len(extent)
    return x[(..., *(slice(0, n, s) for n, s in zip(extent, steps, strict=True)))]


def _dilate(grad: Tensor, stride: Sequence[int]) -> Tensor:
    """grad with stride - 1 zeros between its values."""
    if all(s == 1 for s in stride):
        return grad
    extent = dilated_size(grad.shape[-len(stride) :], stride)
    spread = grad.new_zeros((*grad.shape[: -len(stride)], *extent))
    _crop(spread, extent, stride).copy_(grad)
    return spread


def _sum_channels(input: Tensor, template: Tensor, ndim: int) -> Tensor:
    """Product of two spectra, summed over their channel axis without a tensor of all products."""
    axis = -ndim - 1
    total = input.select(axis, 0) * template.select(axis, 0)
    for c in range(1, input.shape[axis]):
        total = torch.addcmul(total, input.select(axis, c), template.select(axis, c))
    return total


def _finite_correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v) of finite tensors that are already wide."""
    size, window = input.shape[-len(stride) :], template.shape[-len(stride) :]
    lengths = _lengths(size)
    weights = _reversed(template, lengths)
    product = _sum_channels(_transform(input, lengths), weights, len(stride))
    valid = [n - k + 1 for n, k in zip(size, window, strict=True)]
    return _crop(_inverse(product, lengths, input.is_complex()), valid, stride)


def _non_finite_terms(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """0, or the Inf or NaN to which the non-finite elements of each window sum by IEEE rules."""

    def meets(elements: Tensor, weights: Tensor) -> Tensor:
        hits = _finite_correlate(elements.to(torch.float64), weights.to(torch.float64), stride)
        return hits > 0.5

    above, below = input == torch.inf, input == -torch.inf
    to_nan = meets(input.isnan(), torch.ones_like(template)) | meets(above | below, template == 0)
    up = meets(above, template > 0) | meets(below, template < 0)
    down = meets(above, template < 0) | meets(below, template > 0)
    terms = torch.zeros(up.shape, dtype=torch.float64, device=input.device)
    terms = terms.masked_fill(up, torch.inf).masked_fill(down, -torch.inf)
    return terms.masked_fill(to_nan | (up & down), torch.nan)


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    ndim = len(stride)
    wide, weights = _reference.widen(input), _reference.widen(template)
    if input.is_complex():
        if not torch.isfinite(input).all():
            return _reference.correlate(input, template, stride)
        return _finite_correlate(wide, weights, stride).to(input.dtype)
    centre = _reference.centre(input, ndim)
    finite = torch.isfinite(wide)
    centred = torch.where(finite, wide - centre, 0.0)
    level = centre.squeeze(-ndim - 1) * weights.sum(tuple(range(-ndim - 1, 0)))[
        (..., *(None,) * ndim)
    ]
    total = _finite_correlate(centred, weights, stride) + level
    if not finite.all():
        total = total + _non_finite_terms(input, template, stride)
    return total.to(input.dtype)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    lengths = _lengths(input_shape[-ndim:])
    weights = _reference.widen(template)
    spread = _transform(_dilate(_reference.widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = spread * _transform(weights.conj() if weights.is_complex() else weights, lengths)
    product = product.sum_to_size((*input_shape[:-ndim], *product.shape[-ndim:]))
    return _crop(_inverse(product, lengths, grad.is_complex()), input_shape[-ndim:]).to(grad.dtype)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    lengths = _lengths(input.shape[-ndim:])
    seen = _reference.widen(input)
    weights = _reversed(_dilate(_reference.widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = weights * _transform(seen.conj() if seen.is_complex() else seen, lengths)
    product = product.sum_to_size((*template_shape[:-ndim], *product.shape[-ndim:]))
    return _crop(_inverse(product, lengths, grad.is_complex()), template_shape[-ndim:]).to(
        grad.dtype
    )


def ncc(
    input: Tensor, template: Tensor, stride: Sequence[int], zero_mean: bool, eps: float
) -> Tensor:
    ndim = len(stride)
    window = template.shape[-ndim:]
    mean, var = ops.window_moments(input, window, stride)
    wide, weights = _reference.widen(input), _reference.widen(template)
    centre = _reference.centre(input, ndim)
    if not zero_mean:
        centre = torch.zeros_like(centre)
    centred = torch.where(torch.isfinite(wide), wide - centre, 0.0)
    numerator = _finite_correlate(centred, weights, stride)
    out = torch.empty_like(numerator, dtype=input.dtype)
    count = template.shape[-ndim - 1] * window.numel()
    template_sum = weights.sum(tuple(range(-ndim - 1, 0)))
    level = centre[(..., *(0,) * (ndim + 1))]
    ops.ncc_finish(numerator, mean, var, template_sum, level, count, zero_mean, eps, out)
    _repair(out, input, template, mean, var, stride, zero_mean, eps)
    return out


def _repair(
    out: Tensor,
    input: Tensor,
    template: Tensor,
    mean: Tensor,
    var: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
) -> None:
    """Computes again, from the definition, the scores that the transform's noise may have spoilt."""
    ndim = len(stride)
    if out.numel() == 0:
        return
    wide = _reference.widen(input)
    spread = torch.nan_to_num(wide - _reference.centre(input, ndim) if zero_mean else wide, 0, 0, 0)
    power = spread.square().mean(tuple(range(-ndim - 1, 0)))[(..., *(None,) * ndim)]
    energy = var if zero_mean else var + mean.square()
    limit = (_NOISE * torch.finfo(torch.float64).eps / _TOLERANCE[input.dtype]) ** 2
    noisy = (energy > 0) & (energy + eps < power * limit)
    if not noisy.any():
        return
    _rescore(out, noisy, input, template, mean, energy + eps, stride, zero_mean)


def _rescore(
    out: Tensor,
    noisy: Tensor,
    input: Tensor,
    template: Tensor,
    mean: Tensor,
    energy: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
) -> None:
    ndim = len(stride)
    window = template.shape[-ndim:]
    count = template.shape[-ndim - 1] * window.numel()
    seen = _reference.windows(input, window, stride).expand(
        (*out.shape, template.shape[-ndim - 1], *window)
    )
    lead = template.shape[: -ndim - 1]
    weights = template.reshape(*lead, *(1,) * ndim, *template.shape[-ndim - 1 :]).expand(seen.shape)
    mean, energy = mean.expand(out.shape), energy.expand(out.shape)
    for where in noisy.expand(out.shape).nonzero().split(max(1, _GATHER // count)):
        index = where.unbind(1)
        level = mean[index] if zero_mean else torch.zeros_like(mean[index])
        deviations = _reference.widen(seen[index]) - level[(..., *(None,) * (ndim + 1))]
        numerator = (deviations * weights[index]).flatten(1).sum(1)
        score = numerator / (count * energy[index].sqrt())
        out[index] = score.clamp(-1, 1).to(out.dtype)


for _key in _KEYS:
    library.impl("correlate_fft", correlate, _key)
    library.impl("correlate_fft_input_grad", correlate_input_grad, _key)
    library.impl("correlate_fft_template_grad", correlate_template_grad, _key)
    library.impl("ncc_fft", ncc, _key)
