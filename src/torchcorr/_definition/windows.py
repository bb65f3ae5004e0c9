"""Sums and moments of windows, merged from parts, so that no large sums are subtracted.

A run of 2k elements is two runs of k, so each window axis of length k takes about log2(k) merges
(math.md, eq. merge). An element reaches only the windows that contain it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .._plan.dtypes import widen
from .._plan.shapes import output_size
from .transforms import bordered, dilated

# Statistics of each run, such as its sum, or its mean and the sum of squares about it.
Summary = tuple[Tensor, ...]
# Merges the summaries of two neighbouring runs; the numbers count the elements of each.
Merge = Callable[[Summary, Summary, float, float], Summary]

# Elements of a slab: its summaries fit in a cache.
_SLAB = 1 << 18
# Variance, relative to the mean square about a level, from which on their difference is accurate.
_CLEAR = 2.0**-25


def windows(x: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A view (*lead, *output, C, *window) of every window; no memory is copied."""
    first = x.dim() - len(window)
    for axis, (k, s) in enumerate(zip(window, stride, strict=True), first):
        x = x.unfold(axis, k, s)
    return x.movedim(first - 1, first - 1 + len(window))


def _part(summary: Summary, axis: int, first: int, length: int) -> Summary:
    return tuple(x.narrow(axis, first, length) for x in summary)


def _runs(single: Summary, axis: int, k: int, elements: int, merge: Merge) -> Summary:
    """Summaries of all runs of k positions along an axis, from those of `elements` at one."""
    size = single[0].shape[axis]
    power, length = single, 1  # runs of a power of two
    result: Summary | None = None
    done = 0  # elements in `result`
    while True:
        if k & length:
            if result is None:
                result = power
            else:
                count = size - done - length + 1
                parts = _part(result, axis, 0, count), _part(power, axis, done, count)
                result = merge(*parts, done * elements, length * elements)
            done += length
        if done == k and result is not None:
            return result
        count = size - 2 * length + 1
        parts = _part(power, axis, 0, count), _part(power, axis, length, count)
        power = merge(*parts, length * elements, length * elements)
        length *= 2


def summarise(
    single: Summary, window: Sequence[int], stride: Sequence[int], channels: int, merge: Merge
) -> Summary:
    """Summaries (*lead, *output) of windows, from those (*lead, *size) of all channels."""
    ndim, elements = len(window), channels
    for axis, k in zip(range(-ndim, 0), window, strict=True):
        single = _runs(single, axis, k, elements, merge)
        elements *= k
    steps = tuple(slice(None, None, s) for s in stride)
    return tuple(x[(..., *steps)] for x in single)


def in_slabs(
    inputs: Sequence[Tensor],
    window: Sequence[int],
    stride: Sequence[int],
    compute: Callable[..., Summary],
) -> Summary:
    """compute(*inputs), a part of the first window axis at a time; results (*lead, *output)."""
    ndim = len(window)
    size, k, s = inputs[0].shape[-ndim], window[0], stride[0]
    rows = max(k * s, _SLAB * size // max(1, inputs[0].numel()))
    total = (size - k) // s + 1
    parts = []
    for first in range(0, total, rows):
        length = (min(rows, total - first) - 1) * s + k
        parts.append(compute(*(x.narrow(-ndim, first * s, length) for x in inputs)))
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(maps, -ndim) for maps in zip(*parts, strict=True))


def _merge_sums(a: Summary, b: Summary, _na: float, _nb: float) -> Summary:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _merge_moments(a: Summary, b: Summary, na: float, nb: float) -> Summary:
    """Means and sums of squares about them; equal elements keep a sum of exactly 0."""
    d = b[0] - a[0]
    mean = torch.add(a[0], d, alpha=nb / (na + nb))
    return mean, (a[1] + b[1]).addcmul_(d, d, value=na * nb / (na + nb))


def _over_channels(x: Tensor, ndim: int) -> Tensor:
    """The sum over channels, which is no copy if there is one."""
    return x.squeeze(-ndim - 1) if x.shape[-ndim - 1] == 1 else x.sum(-ndim - 1)


def window_sum(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sum of each window over all its channels."""
    single = (widen(input).sum(-len(window) - 1),)
    return summarise(single, window, stride, 1, _merge_sums)[0].to(input.dtype).contiguous()


def window_spread(
    grad: Tensor, window: Sequence[int], input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `window_sum`: each element gets the sum over the windows that contain it."""
    ndim = len(window)
    wide = dilated(widen(grad), stride)
    sizes = zip(input_shape[-ndim:], window, wide.shape[-ndim:], strict=True)
    wide = bordered(wide, [pad for n, k, m in sizes for pad in (k - 1, n - m)])
    sums = summarise((wide,), window, (1,) * ndim, 1, _merge_sums)[0]
    return sums.unsqueeze(-ndim - 1).expand(tuple(input_shape)).to(grad.dtype).contiguous()


def of_channels(x: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Mean over channels, and the deviations of each; those of equal elements are exactly 0."""
    if x.shape[-ndim - 1] == 1:
        return x.squeeze(-ndim - 1), x - x
    first = x.narrow(-ndim - 1, 0, 1)
    deviation = x - first
    rest = deviation.mean(-ndim - 1, keepdim=True)
    return (first + rest).squeeze(-ndim - 1), deviation - rest


def window_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and uncorrected variance of each window; the variance of a flat window is exactly 0."""

    def compute(part: Tensor) -> Summary:
        return _merged_moments(widen(part), window, stride)

    mean, var = in_slabs([input], window, stride, compute)
    return mean.contiguous(), var.contiguous()


def _merged_moments(x: Tensor, window: Sequence[int], stride: Sequence[int]) -> Summary:
    ndim, channels = len(window), x.shape[-len(window) - 1]
    mean, deviation = of_channels(x, ndim)
    single = (mean, _over_channels(deviation.square(), ndim))
    mean, squares = summarise(single, window, stride, channels, _merge_moments)
    return mean, squares / (channels * math.prod(window))


def rough_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int], level: Tensor
) -> tuple[Tensor, Tensor]:
    """`window_moments` to 1e-7, at half the cost where no window is faint relative to `level`.

    The variance is the mean square about the level, (*lead, 1, ..., 1), less the mean's square. It
    has about 40 roundings of the mean square; parts where this may show are merged as usual.
    """
    ndim, channels = len(window), input.shape[-len(window) - 1]
    count = channels * math.prod(window)

    def compute(part: Tensor) -> Summary:
        deviation = part - level  # float64, as the level
        single = tuple(_over_channels(x, ndim) for x in (deviation, deviation.square()))
        sums = summarise(single, window, stride, 1, _merge_sums)
        mean, square = (x.mul_(1 / count) for x in sums)
        var = torch.addcmul(square, mean, mean, value=-1)
        if var.numel() == 0 or float(var.sub(square, alpha=_CLEAR).amin()) > 0:
            return mean.add_(level.squeeze(-ndim - 1)), var
        return _merged_moments(widen(part), window, stride)

    mean, var = in_slabs([input], window, stride, compute)
    return mean, var


def centre(input: Tensor, ndim: int) -> Tensor:
    """One level an item, shaped (*lead, 1, ..., 1): the mean of its finite elements.

    Scores do not depend on it, so no gradient flows into it; subtracting it keeps digits.
    """
    wide = widen(input.detach())
    return torch.nan_to_num(wide, 0, 0, 0).mean(tuple(range(-ndim - 1, 0)), keepdim=True)


def window_combine(
    grad_s1: Tensor, grad_s2: Tensor, input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """spread(grad_s1) + 2 I spread(grad_s2) (math.md, eq. local-std-combine)."""
    shape = tuple(input.shape)
    first = window_spread(grad_s1, window, shape, stride)
    second = window_spread(grad_s2, window, shape, stride)
    return (first + 2 * widen(input) * second).to(input.dtype)


def local_std(
    input: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    correction: float,
    eps: float,
    pads: Sequence[int] = (),
    pad_value: float = 0.0,
) -> Tensor:
    """Deviation of each window: sqrt(var N / (N - correction) + eps); of a bordered input."""
    input = bordered(input, pads, pad_value)
    count = input.shape[-len(window) - 1] * math.prod(window)
    var = window_moments(input, window, stride)[1]
    return torch.sqrt(var * (count / (count - correction)) + eps).to(input.dtype)


def local_std_prepare_grads(
    grad: Tensor, mean: Tensor, var: Tensor, count: float, correction: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of a deviation for the window's S1 and S2; exactly 0 where the window is flat."""
    ratio = count / (count - correction)
    live = var != 0
    std = torch.sqrt(torch.where(live, var, torch.ones_like(var)) * ratio + eps)
    grad_var = torch.where(live, widen(grad) * ratio / (2 * std), torch.zeros_like(var))
    grad_s2 = grad_var / count
    return -2 * mean * grad_s2, grad_s2


def finite_values(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """The input with zeros for what is not finite, and which windows contain that; None if none."""
    if bool(torch.isfinite(input.sum())):
        return input, None
    finite = torch.isfinite(input)
    affected = window_sum((~finite).to(torch.float32), window, stride) > 0
    return torch.where(finite, input, 0.0), affected


def chosen_windows(
    chosen: Tensor, input: Tensor, template: Tensor, stride: Sequence[int]
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
    """Positions, windows (n, C, *window) and templates where `chosen` is true, in batches of n."""
    ndim = len(stride)
    lead = chosen.shape[: chosen.dim() - ndim]
    window = template.shape[-ndim:]
    seen = windows(input, window, stride)
    output = output_size(input.shape[-ndim:], window, stride)
    seen = seen.expand(*lead, *output, *template.shape[-ndim - 1 :])
    weights = template.expand(*lead, *template.shape[-ndim - 1 :])
    step = max(1, _SLAB // math.prod(template.shape[-ndim - 1 :]))
    for part in chosen.nonzero().split(step):
        place = part.unbind(1)
        yield place, seen[place], weights[place[: len(lead)]] if lead else weights
