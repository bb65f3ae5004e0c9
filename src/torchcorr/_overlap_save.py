"""Correlation through torch.fft, registered for CPU and CUDA.

The transforms run in float64 and on a centred input, so that rounding which they spread over the
whole image stays far below what float32 shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _reference
from ._geometry import dilated_size, fast_length
from ._ops import library

_KEYS = ("CPU", "CUDA")


def _lengths(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(fast_length(n) for n in size)


def _transform(x: Tensor, lengths: Sequence[int]) -> Tensor:
    axes = tuple(range(-len(lengths), 0))
    if x.is_complex():
        return torch.fft.fftn(x, s=tuple(lengths), dim=axes)
    return torch.fft.rfftn(x, s=tuple(lengths), dim=axes)


def _conjugate(x: Tensor) -> Tensor:
    """The complex conjugate, computed now: a kernel must not return or keep a lazy one."""
    return x.conj().resolve_conj()


def _reversed(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectrum of x with every window axis reversed, which turns a convolution into a
    correlation.
    """
    return _conjugate(_transform(_conjugate(x), lengths))


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


def finite_correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v) of finite tensors, in the precision they come in."""
    size, window = input.shape[-len(stride) :], template.shape[-len(stride) :]
    lengths = _lengths(size)
    weights = _reversed(template, lengths)
    product = _sum_channels(_transform(input, lengths), weights, len(stride))
    valid = [n - k + 1 for n, k in zip(size, window, strict=True)]
    return _crop(_inverse(product, lengths, input.is_complex()), valid, stride)


def _non_finite_terms(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """0, or the Inf or NaN to which the non-finite elements of each window sum by IEEE rules."""

    def meets(elements: Tensor, weights: Tensor) -> Tensor:
        hits = finite_correlate(elements.to(torch.float64), weights.to(torch.float64), stride)
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
    if input.numel() == 0 or template.numel() == 0:
        return _reference.correlate(input, template, stride)
    wide, weights = _reference.widen(input), _reference.widen(template)
    if input.is_complex():
        if not torch.isfinite(input).all():
            return _reference.correlate(input, template, stride)
        return finite_correlate(wide, weights, stride).to(input.dtype).contiguous()
    centre = _reference.centre(input, ndim)
    finite = torch.isfinite(wide)
    centred = torch.where(finite, wide - centre, 0.0)
    level = (
        centre.squeeze(-ndim - 1) * weights.sum(tuple(range(-ndim - 1, 0)))[(..., *(None,) * ndim)]
    )
    total = finite_correlate(centred, weights, stride) + level
    if not finite.all():
        total = total + _non_finite_terms(input, template, stride)
    return total.to(input.dtype).contiguous()


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(input_shape))
    lengths = _lengths(input_shape[-ndim:])
    weights = _reference.widen(template)
    spread = _transform(_dilate(_reference.widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = spread * _transform(_conjugate(weights), lengths)
    product = product.sum_to_size((*input_shape[:-ndim], *product.shape[-ndim:]))
    full = _inverse(product, lengths, grad.is_complex())
    return _crop(full, input_shape[-ndim:]).to(grad.dtype).contiguous()


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(template_shape))
    lengths = _lengths(input.shape[-ndim:])
    seen = _reference.widen(input)
    weights = _reversed(_dilate(_reference.widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = weights * _transform(_conjugate(seen), lengths)
    product = product.sum_to_size((*template_shape[:-ndim], *product.shape[-ndim:]))
    full = _inverse(product, lengths, grad.is_complex())
    return _crop(full, template_shape[-ndim:]).to(grad.dtype).contiguous()


for _key in _KEYS:
    library.impl("correlate_fft", correlate, _key)
    library.impl("correlate_fft_input_grad", correlate_input_grad, _key)
    library.impl("correlate_fft_template_grad", correlate_template_grad, _key)
