"""Both gradients of a score through the direct loop, for many channels and templates.

Sums over templates and positions are computed in the input's precision where a bound of their
rounding, relative to the largest element of the gradient, is below what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

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
from .dense_scores import Norms

# Roundings of a sum of the direct loop and of its factors, relative to the sum of absolute products
# (DESIGN: promise 8).
_ROUNDINGS = 10.0
# Energy of windows, relative to their mean square, that is known well enough from sums.
_LEAST_VARIANCE = 1e-8


class _Windows(NamedTuple):
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
    ndim = len(of.stride)
    leads = Leads.of(tuple(of.input.shape[: -ndim - 1]), tuple(of.template.shape[: -ndim - 1]))
    x = leads.input(of.input, ndim + 1).contiguous()
    weights = leads.template(of.template, ndim + 1)[0]
    narrow, sizes = steps.dense_weights(weights.flatten(2))
    largest = float(sizes.max())
    if not math.isfinite(largest):
        return None
    grad, score = (leads.output(y, ndim) for y in (of.grad, of.score))
    parts = _in_one_pass(of, x, grad, score, own_means) if x.dtype == torch.float32 else None
    if parts is None:
        if not all_finite(of.input, of.grad):
            return None
        parts = _by_operators(of, x, grad, score, own_means)
    if not math.isfinite(float(parts.stats.sum())):
        return None
    for_input, for_template = x.new_empty(0), weights.new_empty(0)
    if of.need_input:
        narrow = narrow.view(weights.shape)
        total = _onto_input(of, parts, (narrow, weights), largest, x)
        for_input = leads.input_restored(total.to(x.dtype), tuple(of.input.shape), ndim + 1)
    if of.need_template:
        total = _onto_template(of, parts, weights, x, own_means)
        for_template = leads.template_restored(total[None], tuple(of.template.shape), ndim + 1)
    return for_input, for_template


class _Parts(NamedTuple):
    """An upstream gradient times norms, and what goes through these."""

    into: Tensor  # (items, K, *positions)
    stats: Tensor  # of each template the sum of that, of its squares, the largest size, (K, 3)
    centred: Tensor  # the images minus a level for each mean
    squares: Tensor  # of those the sums of squares, (items, C)
    add_through: Callable[[Tensor], float]  # adds to a gradient what goes through norms; its size


def _in_one_pass(
    of: ScoreGradCall, x: Tensor, grad: Tensor, score: Tensor, own_means: bool
) -> _Parts | None:
    """None where windows are so flat that sums of squares do not determine their energy."""
    window, stride = tuple(of.template.shape[-len(of.stride) :]), tuple(of.stride)
    how = (of.zero_mean, own_means, of.eps)
    norms = Norms.of(x, (window, stride), how, centred=True)
    if not norms.are_clear(_LEAST_VARIANCE, 0.0):
        return None
    count = math.prod(of.template.shape[-len(of.stride) - 1 :])
    into, share, stats = steps.dense_upstream(grad, score, norms.norm, count)

    def add_through(to: Tensor) -> float:
        of_norms = (norms.level, norms.mean, share)
        return float(steps.dense_spread(x, *of_norms, window, stride, to).max())

    return _Parts(into, stats, norms.centred, norms.squares, add_through)


def _by_operators(
    of: ScoreGradCall, x: Tensor, grad: Tensor, score: Tensor, own_means: bool
) -> _Parts:
    windows = _windows(of, x, own_means)
    into = grad * windows.norm.to(grad.dtype)
    axes = tuple(range(-len(of.stride), 0))
    centred = _centred(of, x, own_means)
    wide, over = widen(into), (0, *axes)
    stats = torch.stack((wide.sum(over), wide.square().sum(over), wide.abs().amax(over)), -1)

    def add_through(to: Tensor) -> float:
        share = (grad * score).sum(1, keepdim=True) * windows.inverse_energy
        seen, like = (x.unsqueeze(2), 2) if own_means else (x, 1)
        first = share * windows.mean if of.zero_mean else torch.zeros_like(share)
        second = (share / -2).expand_as(first)
        if not own_means:
            first, second = first.squeeze(1), second.squeeze(1)
        window = of.template.shape[-len(of.stride) :]
        rest = _contract.window_combine.kernel(first, second.contiguous(), seen, window, of.stride)
        to += rest.squeeze(like) if own_means else rest
        return steps.largest_size(to)

    squares = widen(centred).square().sum(axes)
    return _Parts(into, stats, centred, squares, add_through)


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


def _is_exact(largest_sum: float, largest: float) -> bool:
    """Whether a sum in float32 whose absolute products have at most this sum keeps the promise,
    relative to the largest element of a gradient."""
    noise = _ROUNDINGS * rounding.unit(torch.float32) * largest_sum
    return rounding.is_precise_gradient(noise, largest)


def _onto_input(
    of: ScoreGradCall, parts: _Parts, weights: tuple[Tensor, Tensor], sizes: float, x: Tensor
) -> Tensor:
    """From the templates in float32 and in float64; `sizes` is the largest sum of theirs."""
    narrow, wide = weights
    into, shape = parts.into, (x.shape[0], 1, *x.shape[1:])
    loop = steps.correlate_direct_input_grad
    if x.dtype == torch.float32:
        total = loop(into, narrow, shape, of.stride).squeeze(1)
        largest = parts.add_through(total)
        if _is_exact(float(parts.stats[:, 2].max()) * sizes, largest):
            return total
    total = loop(widen(into), wide, shape, of.stride).squeeze(1).to(x.dtype)
    parts.add_through(total)
    return total


def _onto_template(
    of: ScoreGradCall, parts: _Parts, weights: Tensor, x: Tensor, own_means: bool
) -> Tensor:
    """The gradient for a standardised template, without what goes along that or along means."""
    rest, common, none = parts.into, None, parts.stats.new_empty(0)
    squares = parts.stats[:, 1]
    if rest.dtype == torch.float32:  # sums in float64 are exact enough
        count = rest[:, 0].numel()
        mean = (parts.stats[:, 0] / count).float()
        of_common = mean.double().square() * count
        # One value for all positions is most of an upstream gradient, as behind a sum: it
        # multiplies sums of the input alone.
        if float(of_common.sum()) > 0.5 * float(squares.sum()):
            common, squares = mean.double(), (squares - of_common).clamp_min(0.0)
            rest = rest.sub_(mean[(..., *(None,) * len(of.stride))])

    def left_of(rest: Tensor, centred: Tensor) -> tuple[Tensor, float]:
        shape = tuple(weights.shape)
        total = steps.correlate_direct_template_grad(rest, centred.unsqueeze(1), shape, of.stride)
        sums = none
        if common is not None:
            sums = steps.dense_position_sums(x, shape[2:], of.stride).flatten(1)
        args = (total.flatten(2), common, sums, weights.flatten(2), of.zero_mean, own_means)
        left, largest = steps.dense_project(*args)
        return left.view(shape), float(largest.max())

    left, largest = left_of(rest, parts.centred)
    # By Cauchy and Schwarz, over all items and positions.
    most = math.sqrt(float(squares.max()) * float(parts.squares.sum(0).max()))
    if x.dtype == torch.float32 and not _is_exact(most, largest):
        left, _ = left_of(widen(rest), _centred(of, widen(x), own_means))
    return left


def _centred(of: ScoreGradCall, x: Tensor, own_means: bool) -> Tensor:
    if not of.zero_mean:
        return x
    axes = tuple(range(-len(of.stride), 0))
    return x - x.mean((0, *axes) if own_means else (0, 1, *axes), keepdim=True)
