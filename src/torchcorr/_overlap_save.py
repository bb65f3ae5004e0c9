"""Correlation through torch.fft, registered for CPU and CUDA.

The transforms run in float64 and on a centred input, so that rounding which they spread over the
whole image stays far below what float32 shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import _reference
from ._geometry import Tiling, dilated_size, fast_length
from ._ops import library, ops

_KEYS = ("CPU", "CUDA")
# Parts of template spectra kept for the batches of one call.
_KEPT = 64


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


# --- tiles ----------------------------------------------------------------------------------------


def conjugate_spectrum(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Conjugate of the spectrum of a real x padded with zeros; zero rows are not transformed."""
    for axis in range(-1, -len(lengths) - 1, -1):
        x = torch.fft.ifft(x, n=lengths[axis], dim=axis, norm="forward")
    return x.contiguous()


class TemplateSpectra:
    """Templates (paired, templates, C, *window) as the tiles of one tiling need them."""

    def __init__(
        self, template: Tensor, tiling: Tiling, stride: Sequence[int], transformed: bool
    ) -> None:
        self.template, self.tiling, self.stride = template, tiling, list(stride)
        self.transformed = transformed
        self._kept: dict[tuple[torch.dtype, int, int, int], Tensor] = {}

    def part(self, dtype: torch.dtype, pairs: slice, first: int, last: int) -> Tensor:
        """Templates first to last of some pairs, in one precision."""
        key = (dtype, pairs.start, first, last)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            part = self.template[pairs, first:last]
            if self.transformed:
                # The 1/n of the inverse is folded in here, where it is cheapest.
                part = (part / math.prod(self.tiling.length)).to(dtype)
                self._kept[key] = conjugate_spectrum(part, self.tiling.length)
            else:
                self._kept[key] = part.to(dtype)
        return self._kept[key]


def numerators(
    tiles: Tensor, spectra: TemplateSpectra, pairs: slice, at_once: int
) -> Iterator[tuple[int, Tensor]]:
    """(first template, numerators) of tiles that come from `pairs` in equal parts.

    By transforms two tiles are one complex one, as they come and as they are returned: a template
    is real, so real and imaginary part do not meet.
    """
    ndim = len(spectra.tiling.length)
    groups = pairs.stop - pairs.start
    all_templates = spectra.template.shape[1]
    shape = (groups, tiles.shape[0] // groups, 1, *tiles.shape[1:])
    axes = tuple(range(-ndim, 0))
    if spectra.transformed:
        found = torch.fft.fftn(torch.view_as_complex(tiles), dim=axes).reshape(shape[:-1])
        in_place = spectra.template.shape[1:3] == (1, 1)
    for first in range(0, all_templates, at_once):
        last = min(first + at_once, all_templates)
        weights = spectra.part(tiles.dtype, pairs, first, last).unsqueeze(1)
        if not spectra.transformed:
            result = ops.correlate_direct(tiles.reshape(shape), weights, spectra.stride)
        else:
            if in_place:
                product = found.squeeze(-ndim - 1).mul_(weights.squeeze(-ndim - 1))
            else:
                product = _sum_channels(found, weights, ndim)
            result = torch.view_as_real(torch.fft.ifftn(product, dim=axes, norm="forward"))
        yield first, result.reshape(tiles.shape[0], *result.shape[2:])


for _key in _KEYS:
    library.impl("correlate_fft", correlate, _key)
    library.impl("correlate_fft_input_grad", correlate_input_grad, _key)
    library.impl("correlate_fft_template_grad", correlate_template_grad, _key)
