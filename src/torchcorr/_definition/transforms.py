"""Correlation through whole transforms in float64, on any device; and products of spectra.

The input is centred before it is transformed: rounding is then relative to its contrast instead of
its offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad as torch_pad

from .._plan import rounding
from .._plan.dtypes import widen
from .._plan.shapes import dilated_size, fast_length, output_size
from .sums import mean_over, sum_over

# MKL inverts so short real lines, and transforms of several axes, in different ways for different
# numbers of threads. So they are complex, and axis by axis.
_SHORT_LINE = 32


def dilated(grad: Tensor, stride: Sequence[int]) -> Tensor:
    """grad with stride - 1 zeros between its values."""
    if all(s == 1 for s in stride):
        return grad
    extent = dilated_size(grad.shape[-len(stride) :], stride)
    result = grad.new_zeros((*grad.shape[: -len(stride)], *extent))
    crop(result, extent, stride).copy_(grad)
    return result


def bordered(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """x with elements of one value around it, so many before and behind each window axis in turn.

    Negative numbers cut elements off.
    """
    if not pads:
        return x
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    return torch_pad(x, [n for pair in reversed(pairs) for n in pair], value=value)


def crop(x: Tensor, extent: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    """The first elements of each window axis, every stride-th of them."""
    steps = stride if stride is not None else (1,) * len(extent)
    return x[(..., *(slice(0, n, s) for n, s in zip(extent, steps, strict=True)))]


def sum_channels(input: Tensor, template: Tensor, ndim: int) -> Tensor:
    """Product of two spectra, summed over their channel axis without a tensor of all products."""
    axis = -ndim - 1
    total = input.select(axis, 0) * template.select(axis, 0)
    for c in range(1, input.shape[axis]):
        total = torch.addcmul(total, input.select(axis, c), template.select(axis, c))
    return total


def _lengths(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(fast_length(n) for n in size)


def _forward(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectrum of x padded to some lengths, axis by axis: lines of padding are not transformed."""
    spectrum = (torch.fft.fft if x.is_complex() else torch.fft.rfft)(x, n=lengths[-1])
    for axis in range(-2, -len(lengths) - 1, -1):
        spectrum = torch.fft.fft(spectrum, n=lengths[axis], dim=axis)
    return spectrum


def _conjugate(x: Tensor) -> Tensor:
    """The complex conjugate, computed now: an operator must not return or keep a lazy one."""
    return x.conj().resolve_conj()


def _reversed(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectrum of x with every window axis reversed, which makes a convolution a correlation."""
    if x.is_complex():
        return _conjugate(_forward(_conjugate(x), lengths))
    return _forward(x, lengths).conj_physical_()


def _inverse(spectrum: Tensor, lengths: Sequence[int], is_complex: bool) -> Tensor:
    n = lengths[-1]
    if spectrum.device.type != "cpu":
        axes = tuple(range(-len(lengths), 0))
        transform = torch.fft.ifftn if is_complex else torch.fft.irfftn
        return transform(spectrum, s=tuple(lengths), dim=axes)
    for axis in range(-len(lengths), -1):
        spectrum = torch.fft.ifft(spectrum, dim=axis)
    if is_complex:
        return torch.fft.ifft(spectrum)
    if n <= _SHORT_LINE:
        rest = _conjugate(spectrum[..., 1 : (n + 1) // 2].flip(-1))
        return torch.fft.ifft(torch.cat((spectrum, rest), -1)).real
    return torch.fft.irfft(spectrum, n=n)


def correlate(
    input: Tensor, template: Tensor, stride: Sequence[int], pads: Sequence[int] = ()
) -> Tensor:
    """sum_v I(u s + v) T(v) of finite tensors, summed over channels; `pads` zeros are around I."""
    if pads:
        return _among_zeros(input, template, stride, pads)
    ndim = len(stride)
    wide = widen(input)
    level = mean_over(wide, tuple(range(-ndim, 0)))
    size = input.shape[-ndim:]
    spectrum = _forward(wide - level, _lengths(size))
    return _sums_of(spectrum, size, level, widen(template), stride).to(input.dtype).contiguous()


def _sums_of(
    spectrum: Tensor, size: Sequence[int], level: Tensor, template: Tensor, stride: Sequence[int]
) -> Tensor:
    """The same of an input of that size: the spectrum of its deviation from a level."""
    ndim, lengths = len(stride), _lengths(size)
    product = sum_channels(spectrum, _reversed(template, lengths), ndim)
    whole = _inverse(product, lengths, template.is_complex())
    sums = crop(whole, output_size(size, template.shape[-ndim:], (1,) * ndim), stride)
    return sums + (level * sum_over(template, tuple(range(-ndim, 0)))).sum(-ndim - 1)


def correlate_with_noise(
    input: Tensor, template: Tensor, stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`correlate` of float64 tensors, and its rounding, (*lead, 1, ..., 1), from what transforms
    contain (math.md, eq. noise)."""
    ndim = len(stride)
    axes, item, size = tuple(range(-ndim, 0)), tuple(range(-ndim - 1, 0)), input.shape[-ndim:]
    level = mean_over(input, axes)
    deviation = input - level
    power = sum_over(deviation.square(), item) * sum_over(template.square(), item)
    spectrum = _forward(deviation, _lengths(size))
    del deviation  # not held while its spectrum is multiplied and transformed
    sums = _sums_of(spectrum, size, level, template, stride).contiguous()
    return sums, _rounding((power / math.prod(size)).squeeze(-ndim - 1), sums, axes)


def needed_among_zeros(size: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """Elements that hold all sums of windows which meet an input among zeros."""
    return tuple(n + k - 1 for n, k in zip(size, window, strict=True))


def _among_zeros(
    input: Tensor, template: Tensor, stride: Sequence[int], pads: Sequence[int]
) -> Tensor:
    """The same as a convolution with the reversed template, which no zeros enter."""
    ndim = len(stride)
    size, window = input.shape[-ndim:], template.shape[-ndim:]
    needed = needed_among_zeros(size, window)
    lengths = _lengths(needed)
    reversed = widen(template).flip(tuple(range(-ndim, 0)))
    product = sum_channels(_forward(widen(input), lengths), _forward(reversed, lengths), ndim)
    # The first and the last of these sums are of windows that hold one element of the input.
    met = crop(_inverse(product, lengths, input.is_complex()), needed)
    sums = bordered(met, [n - (window[i // 2] - 1) for i, n in enumerate(pads)])
    return crop(sums, sums.shape[-ndim:], stride).to(input.dtype).contiguous()


def correlate_each(
    inputs: dict[str, Tensor],
    templates: dict[str, Tensor],
    pairs: dict[str, tuple[str, str]],
    stride: Sequence[int],
) -> dict[str, tuple[Tensor, Tensor]]:
    """`correlate` of pairs of named float64 tensors, and its rounding (math.md, eq. noise).

    Each is transformed once, and none is centred.
    """
    ndim = len(stride)
    size = next(iter(inputs.values())).shape[-ndim:]
    window = next(iter(templates.values())).shape[-ndim:]
    lengths, valid = _lengths(size), [n - k + 1 for n, k in zip(size, window, strict=True)]
    axes, item = tuple(range(-ndim, 0)), tuple(range(-ndim - 1, 0))
    forward = {name: _forward(x, lengths) for name, x in inputs.items()}
    reversed = {name: _reversed(w, lengths) for name, w in templates.items()}
    powers = {
        name: sum_over(x.square(), item).squeeze(-ndim - 1)
        for name, x in (inputs | templates).items()
    }
    found = {}
    for name, (x, w) in pairs.items():
        whole = _inverse(sum_channels(forward[x], reversed[w], ndim), lengths, False)
        sums = crop(whole, valid, stride).contiguous()
        power = powers[x] * powers[w] / math.prod(lengths)
        found[name] = (sums, _rounding(power, whole, axes))
    return found


def _rounding(power: Tensor, sums: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Rounding from the power of both factors for each element, and what came out."""
    squared = sum_over(sums.square(), axes)
    lowest, highest = torch.aminmax(sums.flatten(axes[0]), dim=-1)
    peak = torch.maximum(-lowest, highest).reshape(squared.shape)
    squares = power + squared / math.prod(sums.shape[axes[0] :])
    return rounding.TRANSFORM * rounding.unit(sums.dtype) * (squares.sqrt() + peak / 2)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its input; a NaN reaches every element."""
    ndim = len(stride)
    lengths = _lengths(input_shape[-ndim:])
    spread = _forward(dilated(widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = spread * _forward(_conjugate(widen(template)), lengths)
    product = product.sum_to_size((*input_shape[:-ndim], *product.shape[-ndim:]))
    full = _inverse(product, lengths, grad.is_complex())
    return crop(full, input_shape[-ndim:]).to(grad.dtype).contiguous()


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its template; a NaN reaches every element."""
    ndim = len(stride)
    lengths = _lengths(input.shape[-ndim:])
    weights = _reversed(dilated(widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = weights * _forward(_conjugate(widen(input)), lengths)
    product = product.sum_to_size((*template_shape[:-ndim], *product.shape[-ndim:]))
    full = _inverse(product, lengths, grad.is_complex())
    return crop(full, template_shape[-ndim:]).to(grad.dtype).contiguous()
