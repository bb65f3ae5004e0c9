"""Every operator from its definition in plain torch: slow, clear, on any device.

Shapes are those of the normal form: an input is ``(*lead, C, *size)``, a template
``(*lead, C, *window)``, a score map ``(*lead, *output)``; the channel axis C belongs to the
window. Sums run in float64 where the device has it. Window by window, nothing here mixes an
element with windows that do not hold it. `docs/math.md` derives the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._geometry import offsets, output_size, positions


def wide_dtype(x: Tensor) -> torch.dtype:
    """The type in which sums are taken."""
    if x.device.type == "mps":
        return x.dtype
    return torch.complex128 if x.is_complex() else torch.float64


def widen(x: Tensor) -> Tensor:
    """x in the type in which sums are taken."""
    return x.to(wide_dtype(x))


def centre(input: Tensor, ndim: int) -> Tensor:
    """One level an item, shaped (*lead, 1, ..., 1): the mean of what is finite in it.

    Scores do not depend on it and no gradient flows into it; subtracting it spares digits.
    """
    wide = widen(input.detach())
    return torch.nan_to_num(wide, 0, 0, 0).mean(tuple(range(-ndim - 1, 0)), keepdim=True)


def windows(x: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A view (*lead, *output, C, *window) of every window; no memory is copied."""
    first = x.dim() - len(window)
    for axis, (k, s) in enumerate(zip(window, stride, strict=True), first):
        x = x.unfold(axis, k, s)
    return x.movedim(first - 1, first - 1 + len(window))


def _spread_axes(x: Tensor, ndim: int) -> Tensor:
    """(*lead, C) made to broadcast against (*lead, C, *output)."""
    return x[(...,) + (None,) * ndim]


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v), summed over channels (math.md, correlation)."""
    ndim = len(stride)
    window = template.shape[-ndim:]
    output = output_size(input.shape[-ndim:], window, stride)
    wide, weights = widen(input), widen(template)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total = wide.new_zeros((*lead, *output))
    for v in offsets(window):
        seen = wide[(..., *positions(v, output, stride))]
        total += (seen * _spread_axes(weights[(..., *v)], ndim)).sum(-ndim - 1)
    return total.to(input.dtype)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its input: every output is spread over its window."""
    ndim = len(stride)
    output = grad.shape[-ndim:]
    wide, weights = widen(grad).unsqueeze(-ndim - 1), widen(template).conj().resolve_conj()
    total = wide.new_zeros(tuple(input_shape))
    share = (*input_shape[:-ndim], *output)
    for v in offsets(template.shape[-ndim:]):
        part = wide * _spread_axes(weights[(..., *v)], ndim)
        total[(..., *positions(v, output, stride))] += part.sum_to_size(share)
    return total.to(grad.dtype)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its template: the input correlated with the gradient."""
    ndim = len(stride)
    output = grad.shape[-ndim:]
    wide, seen = widen(grad).unsqueeze(-ndim - 1), widen(input).conj().resolve_conj()
    total = wide.new_zeros(tuple(template_shape))
    axes = tuple(range(-ndim, 0))
    for v in offsets(template_shape[-ndim:]):
        part = (wide * seen[(..., *positions(v, output, stride))]).sum(axes)
        total[(..., *v)] = part.sum_to_size(tuple(template_shape[:-ndim]))
    return total.to(grad.dtype)


def window_sum(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sum of each window over all its channels."""
    axes = tuple(range(-len(window) - 1, 0))
    return windows(widen(input), window, stride).sum(axes).to(input.dtype)


def window_spread(
    grad: Tensor, window: Sequence[int], input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `window_sum`: each element gets the sum over the windows that hold it."""
    ndim = len(window)
    wide = widen(grad).unsqueeze(-ndim - 1)
    total = wide.new_zeros(tuple(input_shape))
    for v in offsets(window):
        total[(..., *positions(v, grad.shape[-ndim:], stride))] += wide
    return total.to(grad.dtype)


def window_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and uncorrected variance of each window; the variance of a flat window is exactly 0."""
    ndim = len(window)
    axes = tuple(range(-ndim - 1, 0))
    wide = widen(input)
    seen = windows(wide, window, stride)
    mean = seen.mean(axes)
    output, level = mean.shape[mean.dim() - ndim :], mean.unsqueeze(-ndim - 1)
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for v in offsets(window):
        deviation = wide[(..., *positions(v, output, stride))] - level
        first += deviation.sum(-ndim - 1)
        second += deviation.square().sum(-ndim - 1)
    count = seen.shape[-ndim - 1] * torch.Size(window).numel()
    # What the rounded mean left over is taken out of both; it cancels nothing that matters.
    left = first / count
    var = (second / count - left.square()).clamp(min=0)
    lowest, highest = seen.amin(axes), seen.amax(axes)
    flat = (lowest == highest) & torch.isfinite(lowest)
    mean = torch.where(flat, lowest, mean + left)
    return mean, torch.where(flat, 0.0, var)


def window_combine(
    grad_s1: Tensor, grad_s2: Tensor, input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """spread(grad_s1) + 2 I spread(grad_s2) (math.md, local deviation, backward)."""
    shape = tuple(input.shape)
    first = window_spread(grad_s1, window, shape, stride)
    second = window_spread(grad_s2, window, shape, stride)
    return (first + 2 * widen(input) * second).to(input.dtype)


def local_std(
    input: Tensor, window: Sequence[int], stride: Sequence[int], correction: float, eps: float
) -> Tensor:
    """Deviation of each window: sqrt(var N / (N - correction) + eps)."""
    count = input.shape[-len(window) - 1] * torch.Size(window).numel()
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


def _energy(mean: Tensor, var: Tensor, zero_mean: bool) -> Tensor:
    """What stands under the root of a normalised score, without eps."""
    return var if zero_mean else var + mean * mean


def standardise(template: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """The template in float64, scaled to a mean square of 1, centred if asked; a flat one is 0."""
    axes = tuple(range(-ndim - 1, 0))
    wide = widen(template)
    flat = torch.zeros_like(wide[(..., *(slice(0, 1),) * (ndim + 1))], dtype=torch.bool)
    if zero_mean:
        flat = wide.amax(axes, keepdim=True) == wide.amin(axes, keepdim=True)
        # Twice: the first mean is rounded in units of the offset, the second of the contrast.
        wide = wide - wide.mean(axes, keepdim=True)
        wide = wide - wide.mean(axes, keepdim=True)
    # Dividing by the peak first keeps squares in range; the result does not depend on it.
    peak = wide.detach().abs().amax(axes, keepdim=True)
    flat = flat | (peak == 0)
    wide = torch.where(flat, 1.0, wide / torch.where(flat, 1.0, peak))
    scaled = wide * wide.square().mean(axes, keepdim=True).rsqrt()
    return torch.where(flat, 0.0, scaled)


def ncc(
    input: Tensor, template: Tensor, stride: Sequence[int], zero_mean: bool, eps: float
) -> Tensor:
    """Score of a standardised template at each window (math.md, ZNCC)."""
    ndim = len(stride)
    window = template.shape[-ndim:]
    mean, var = window_moments(input, window, stride)
    wide, weights = widen(input), widen(template)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total = wide.new_zeros((*lead, *mean.shape[mean.dim() - ndim :]))
    level = mean.unsqueeze(-ndim - 1) if zero_mean else 0.0
    for v in offsets(window):
        seen = wide[(..., *positions(v, total.shape[-ndim:], stride))] - level
        total += (seen * _spread_axes(weights[(..., *v)], ndim)).sum(-ndim - 1)
    count = template.shape[-ndim - 1] * window.numel()
    energy = _energy(mean, var, zero_mean)
    flat = energy == 0
    norm = count * torch.sqrt(torch.where(flat, torch.ones_like(energy), energy) + eps)
    score = (total / norm).clamp(-1, 1)
    return torch.where(flat, torch.zeros_like(score), score).to(input.dtype)


def ncc_prepare_grads(
    grad: Tensor,
    score: Tensor,
    mean: Tensor,
    var: Tensor,
    count: float,
    zero_mean: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a score for its numerator and for the window's S1 and S2."""
    energy = _energy(mean, var, zero_mean)
    live = energy != 0
    energy = torch.where(live, energy, torch.ones_like(energy)) + eps
    wide = widen(grad)
    zero = wide.new_zeros(())
    numerator_grad = torch.where(live, wide / (count * torch.sqrt(energy)), zero)
    share = torch.where(live, wide * score / (count * energy), zero).sum_to_size(mean.shape)
    grad_s1 = share * mean if zero_mean else torch.zeros_like(share)
    return numerator_grad.to(grad.dtype), grad_s1, -share / 2


def ncc_grads(
    grad: Tensor,
    input: Tensor,
    template: Tensor,
    score: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    need_input: bool,
    need_template: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients of `ncc`; one that is not needed is empty (math.md, ZNCC, gradients)."""
    ndim = len(stride)
    window, axes = tuple(template.shape[-ndim:]), tuple(range(-ndim, 0))
    mean, var = window_moments(input, window, stride)
    count = template.shape[-ndim - 1] * math.prod(window)
    wide, weights = widen(input), widen(template)
    score = ncc(wide, weights, stride, zero_mean, eps)
    numerator_grad, s1, s2 = ncc_prepare_grads(widen(grad), score, mean, var, count, zero_mean, eps)
    for_input, for_template = input.new_empty(0), template.new_empty(0)
    if need_input:
        level = weights.mean((-ndim - 1, *axes), keepdim=True) if zero_mean else 0.0
        through_score = correlate_input_grad(numerator_grad, weights - level, input.shape, stride)
        found = through_score + window_combine(s1, s2, wide, window, stride)
        for_input = found.to(input.dtype)
    if need_template:
        base = (
            centre(input, ndim)
            if zero_mean
            else torch.zeros_like(wide[(..., *(slice(1),) * (ndim + 1))])
        )
        found = correlate_template_grad(numerator_grad, wide - base, template.shape, stride)
        if zero_mean:
            level = mean - base.squeeze(-ndim - 1)
            offset = (numerator_grad * level).sum(axes)[(..., None, *(None,) * ndim)]
            found = found - offset.sum_to_size((*template.shape[: -ndim - 1], *(1,) * (ndim + 1)))
        for_template = found.to(template.dtype)
    return for_input, for_template


def lncc(a: Tensor, b: Tensor, window: Sequence[int], stride: Sequence[int], eps: float) -> Tensor:
    """Pearson's coefficient of two inputs in each window (math.md, LNCC)."""
    mean_a, var_a = window_moments(a, window, stride)
    mean_b, var_b = window_moments(b, window, stride)
    covariance = _covariance(a, b, mean_a, mean_b, window, stride)
    energy_a, energy_b, _ = _energies(var_a, var_b, eps)
    # Where a window is flat its covariance is 0, and NaN if the other one's is.
    score = covariance / (energy_a.sqrt() * energy_b.sqrt())
    return score.clamp(-1, 1).to(a.dtype)


def _covariance(
    a: Tensor,
    b: Tensor,
    mean_a: Tensor,
    mean_b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    ndim = len(window)
    output = mean_a.shape[mean_a.dim() - ndim :]
    total = torch.zeros_like(mean_a)
    level_a, level_b = mean_a.unsqueeze(-ndim - 1), mean_b.unsqueeze(-ndim - 1)
    for v in offsets(window):
        at = (..., *positions(v, output, stride))
        total += ((widen(a[at]) - level_a) * (widen(b[at]) - level_b)).sum(-ndim - 1)
    return total / (a.shape[-ndim - 1] * math.prod(window))


def _energies(var_a: Tensor, var_b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What stands under both roots, 1 where either window is flat; and whether one is."""
    flat = (var_a == 0) | (var_b == 0)
    one = torch.ones_like(var_a)
    return torch.where(flat, one, var_a) + eps, torch.where(flat, one, var_b) + eps, flat


def lncc_window_grads(
    grad: Tensor,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    covariance: Tensor,
    count: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What each window gives its elements, from the mean and variance of both (math.md, LNCC).

    Factors of the other input, of a and of b, and offsets for a and for b; 0 where one is flat.
    """
    (mean_a, var_a), (mean_b, var_b) = a, b
    energy_a, energy_b, flat = _energies(var_a, var_b, eps)
    root = energy_a.sqrt() * energy_b.sqrt()
    share = torch.where(flat, torch.zeros_like(root), widen(grad) / count)
    other, scored = share / root, share * (covariance / root)
    own_a, own_b = scored / energy_a, scored / energy_b
    return other, own_a, own_b, own_a * mean_a - other * mean_b, own_b * mean_b - other * mean_a


def lncc_into(
    x: Tensor, y: Tensor, maps: Sequence[Tensor], spread: Callable[[Tensor], Tensor]
) -> Tensor:
    """The gradient of one input, from y's factor, its own and the offset of each window."""
    through, own, offset = (spread(one) for one in maps)
    return (widen(y) * through - widen(x) * own + offset).to(x.dtype)


def lncc_grads(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    eps: float,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients of `lncc`; one that is not needed is empty (math.md, LNCC)."""
    of_a, of_b = window_moments(a, window, stride), window_moments(b, window, stride)
    covariance = _covariance(a, b, of_a[0], of_b[0], window, stride)
    count = a.shape[-len(window) - 1] * math.prod(window)
    maps = lncc_window_grads(grad, of_a, of_b, covariance, count, eps)
    other, own_a, own_b, offset_a, offset_b = maps

    def spread(one: Tensor) -> Tensor:
        return window_spread(one, window, tuple(a.shape), stride)

    return (
        lncc_into(a, b, (other, own_a, offset_a), spread) if need_a else a.new_empty(0),
        lncc_into(b, a, (other, own_b, offset_b), spread) if need_b else b.new_empty(0),
    )
