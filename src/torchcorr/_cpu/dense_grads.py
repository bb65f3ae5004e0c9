"""Both gradients of a score through the direct loop, for many channels and templates.

Sums over templates and positions are computed in the input's precision where a bound of their
rounding, relative to the largest element of the gradient, is below what is promised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _contract
from .._definition.correlate import all_finite
from .._definition.scores import ScoreGradCall
from .._plan import rounding
from .._plan.choose import arrange, arrange_gradients
from .._plan.dtypes import widen
from .._plan.leads import Leads
from .._plan.predict import is_dense
from . import steps

# Roundings of a sum of the direct loop and of its factors, relative to the sum of absolute products
# (DESIGN: promise 8), and share of the allowed error that they may take.
_ROUNDINGS = 10.0
_SHARE = 0.5


@dataclass(frozen=True)
class _Windows:
    """Of each window the means, (items, K, *positions), and 1 / (N sigma), (items, 1, ...)."""

    mean: Tensor
    norm: Tensor
    inverse_energy: Tensor  # 1 / (N sigma^2); both are 0 where the window is flat


def is_worth(of: ScoreGradCall) -> bool:
    """Whether the loop takes less time than transforms of tiles."""
    if of.method == "fft" or 0 in (of.input.numel(), of.template.numel(), of.grad.numel()):
        return False
    sizes, dtype = (of.input.shape, of.template.shape, of.stride), of.input.dtype
    loop = arrange(*sizes, "direct", normalised=False, dtype=dtype, device="cpu")
    if not is_dense(loop.problem) or loop.plan.method != "direct":
        return False
    quick = arrange_gradients(*sizes, dtype=dtype, device="cpu")
    return loop.plan.cost < quick.plan.cost


def score_grads(of: ScoreGradCall, own_means: bool) -> tuple[Tensor, Tensor] | None:
    """Both gradients, for the standardised template (docs/math.md, eq. zncc-input, zncc-template).

    None if an element is not finite. With `own_means` each channel of a window and of the template
    has a mean.
    """
    if not all_finite(of.input, of.template, of.grad):
        return None
    ndim = len(of.stride)
    leads = Leads.of(tuple(of.input.shape[: -ndim - 1]), tuple(of.template.shape[: -ndim - 1]))
    x = leads.input(of.input, ndim + 1).contiguous()
    weights = leads.template(of.template, ndim + 1)[0]
    grad, score = (leads.output(y, ndim) for y in (of.grad, of.score))
    windows = _windows(of, x, own_means)
    into = grad * windows.norm.to(grad.dtype)
    for_input, for_template = x.new_empty(0), weights.new_empty(0)
    if of.need_input:
        through = _onto_input(of, into, weights, x)
        share = (grad * score).sum(1, keepdim=True) * windows.inverse_energy
        seen, like = (x.unsqueeze(2), 2) if own_means else (x, 1)
        first = share * windows.mean if of.zero_mean else torch.zeros_like(share)
        second = (share / -2).expand_as(first)
        if not own_means:
            first, second = first.squeeze(1), second.squeeze(1)
        window = of.template.shape[-ndim:]
        rest = _contract.window_combine.kernel(first, second.contiguous(), seen, window, of.stride)
        through += rest.squeeze(like) if own_means else rest
        for_input = leads.input_restored(
            through.to(of.input.dtype), tuple(of.input.shape), ndim + 1
        )
    if of.need_template:
        total = _onto_template(of, into, x, weights, windows, own_means)
        for_template = leads.template_restored(total[None], tuple(of.template.shape), ndim + 1)
    return for_input, for_template


def _windows(of: ScoreGradCall, x: Tensor, own_means: bool) -> _Windows:
    count = math.prod(of.template.shape[-len(of.stride) - 1 :])
    window = of.template.shape[-len(of.stride) :]
    seen = x.unsqueeze(2) if own_means else x
    mean, var = _contract.window_moments.kernel(seen, window, of.stride)
    if own_means:
        energy = var.mean(1, keepdim=True)
    else:
        mean, energy = mean.unsqueeze(1), var.unsqueeze(1)
    if not of.zero_mean:
        energy = energy + mean * mean
    live = energy != 0
    soft = torch.where(live, energy, 1.0) + of.eps
    norm = torch.where(live, 1 / (count * soft.sqrt()), 0.0)
    return _Windows(mean, norm, torch.where(live, 1 / (count * soft), 0.0))


def _is_exact(result: Tensor, largest_sum: float) -> bool:
    """Whether a sum whose absolute products have at most this sum keeps the promise."""
    if result.dtype == torch.float64:
        return True
    noise = _ROUNDINGS * rounding.unit(result.dtype) * largest_sum
    return noise <= _SHARE * rounding.ALLOWED_GRADIENT_ERROR * _largest(result)


def _largest(x: Tensor) -> float:
    return max(abs(float(y)) for y in torch.aminmax(x))


def _onto_input(of: ScoreGradCall, into: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    shape = (x.shape[0], 1, *x.shape[1:])
    narrow = steps.correlate_direct_input_grad(into, weights.to(into.dtype), shape, of.stride)
    ndim = len(of.stride)
    sums = weights.abs().sum((0, *range(-ndim, 0)))
    if not _is_exact(narrow, _largest(into) * float(sums.max())):
        wide = (widen(into), widen(weights))
        narrow = steps.correlate_direct_input_grad(*wide, shape, of.stride)
    return narrow.squeeze(1)


def _onto_template(
    of: ScoreGradCall, into: Tensor, x: Tensor, weights: Tensor, windows: _Windows, own_means: bool
) -> Tensor:
    """The gradient for a standardised template; that of each mean is orthogonal to it."""
    ndim = len(of.stride)
    axes = tuple(range(-ndim, 0))
    centred = x
    if of.zero_mean:
        centred = x - x.mean((0, *axes) if own_means else (0, 1, *axes), keepdim=True)
    centred, shape = centred.unsqueeze(1), tuple(weights.shape)
    # What all positions of a template have in common multiplies sums of the input alone.
    common = into.mean((0, *axes), keepdim=True)
    rest = into - common if _is_mostly(common, into) else into
    narrow = steps.correlate_direct_template_grad(rest, centred, shape, of.stride)
    total = widen(narrow)
    if rest is not into:
        total += widen(common[0].unsqueeze(1)) * _sums_of_positions(centred[:, 0], of, into)
    # By Cauchy and Schwarz, over all items and positions.
    norms = [torch.linalg.vector_norm(y, dim=(0, *axes)).max() for y in (rest, centred[:, 0])]
    if of.zero_mean:
        # What is left behind the standardisation.
        total = total - total.mean(axes if own_means else (-ndim - 1, *axes), keepdim=True)
    along = (total * weights).mean((-ndim - 1, *axes), keepdim=True)
    left = (total - weights * along).to(narrow.dtype)
    if not _is_exact(left, float(norms[0] * norms[1])):
        return _onto_template_wide(of, into, x, weights, windows, own_means)
    return total


def _is_mostly(common: Tensor, into: Tensor) -> bool:
    """Whether one value for all positions is most of an upstream gradient, as behind a sum."""
    if into.dtype == torch.float64:
        return False  # whose sums are exact enough
    of_common, of_all = (float(torch.linalg.vector_norm(y)) for y in (common, into))
    return of_common**2 * into[:, 0].numel() > 0.5 * of_all**2


def _sums_of_positions(x: Tensor, of: ScoreGradCall, into: Tensor) -> Tensor:
    """For each element of a template the sum of what all positions see there: (C, *window)."""
    ndim = len(of.stride)
    seen = x.sum(0, dtype=torch.float64)
    for axis, (step, k, n) in enumerate(
        zip(of.stride, of.template.shape[-ndim:], into.shape[-ndim:], strict=True), -ndim
    ):
        seen = seen.unfold(axis, (n - 1) * step + 1, 1)[..., ::step].sum(-1)
        seen = seen.narrow(axis, 0, k)
    return seen


def _onto_template_wide(
    of: ScoreGradCall, into: Tensor, x: Tensor, weights: Tensor, windows: _Windows, own_means: bool
) -> Tensor:
    wide = ScoreGradCall(**{**of.__dict__, "input": widen(of.input)})
    return _onto_template(wide, widen(into), widen(x), weights, windows, own_means)
