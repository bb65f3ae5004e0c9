"""The coefficient of two inputs in windows with weights, which may leave the inputs' border.

All elements of a window along one axis are merged at once, about their own mean (math.md, eq.
merge-weights), so that no large sums are subtracted and elements of weight 0 may hold anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._plan.dtypes import wide_dtype, widen
from .._plan.shapes import border_pads
from .._plan.taps import per_axis
from .lncc import lncc, lncc_into, lncc_window_grads, scores
from .transforms import dilated
from .weights import kept
from .windows import Summary, in_slabs


class Windows(NamedTuple):
    """Weights along each axis, sizes, steps, and what windows find outside of the inputs."""

    taps: Sequence[float]
    sizes: Sequence[int]
    stride: Sequence[int]
    border: str

    @property
    def pads(self) -> list[tuple[int, int]]:
        """Elements that windows reach before and behind the inputs, along each axis."""
        return border_pads(self.border, self.sizes)

    @property
    def reach(self) -> list[int]:
        """The same as `pad` takes it: last axis first."""
        return [n for pair in reversed(self.pads) for n in pair]

    def is_plain(self, weight: Tensor | None) -> bool:
        """Whether they are boxes on elements without weights, with zeros around that count."""
        return weight is None and self.border != "renormalize" and set(self.taps) <= {1.0}

    def inner(self, wide: Tensor) -> Tensor:
        """What lies within padding by `reach`."""
        axes = enumerate(self.pads, -len(self.sizes))
        for axis, (before, behind) in axes:
            wide = wide.narrow(axis, before, wide.shape[axis] - before - behind)
        return wide


class PairMoments(NamedTuple):
    """Of both inputs in each window; all 0 in a window without weight."""

    weight: Tensor
    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    covariance: Tensor


def _merge_along(parts: Summary, axis: int, taps: Sequence[float], step: int) -> Summary:
    """Summaries of windows along an axis: weight, means, what rounding took from them, moments.

    The means are taken about that of an element with weight, so those of equal elements are exact.
    """
    count = (parts[0].shape[axis] - len(taps)) // step + 1
    index: list[slice] = [slice(None)] * parts[0].dim()
    seen = []
    for j in range(len(taps)):
        index[axis] = slice(j, j + (count - 1) * step + 1, step)
        seen.append(tuple(x[tuple(index)] for x in parts))
    shares = [g * part[0] for g, part in zip(taps, seen, strict=True)]
    total = functools.reduce(torch.add, shares)
    one = 1 / torch.where(total > 0, total, torch.ones_like(total))
    middle = seen[len(taps) // 2]
    has, levels = middle[0] > 0, [middle[1], middle[2]]
    for part in seen:
        levels = [torch.where(has, m, part[i]) for i, m in enumerate(levels, 1)]
        has = has | (part[0] > 0)
    means, lows = [], []
    for i, level in enumerate(levels, 1):
        shift = torch.zeros_like(total)
        for share, part in zip(shares, seen, strict=True):
            shift = torch.addcmul(shift, share, (part[i] - level) + part[i + 2])
        shift = shift * one
        means.append(level + shift)
        lows.append((level - means[-1]) + shift)
    moments = [torch.zeros_like(total)] * 3
    for share, part in zip(shares, seen, strict=True):
        da, db = ((part[i + 1] - means[i]) + (part[i + 3] - lows[i]) for i in (0, 1))
        own = (part[5] + da * da, part[6] + db * db, part[7] + da * db)
        moments = [torch.addcmul(m, share, x) for m, x in zip(moments, own, strict=True)]
    return total, *means, *lows, *(m * one for m in moments)


def _spread(one: Tensor, size: Sequence[int], windows: Windows) -> Tensor:
    """Each element's weighted sum over the windows that contain it, (*lead, 1, *size)."""
    ndim, wide = len(size), dilated(one, windows.stride)
    reach: list[int] = []
    for n, m, k, (before, _) in zip(
        size, wide.shape[-ndim:], windows.sizes, windows.pads, strict=True
    ):
        reach[:0] = [k - 1 - before, n + before - m]
    wide = pad(wide, reach)
    for i, taps in enumerate(per_axis(windows.taps, windows.sizes)):
        parts = [wide.narrow(i - ndim, j, size[i]) for j in range(len(taps))]
        wide = functools.reduce(
            torch.add, (g * part for g, part in zip(reversed(taps), parts, strict=True))
        )
    return wide.unsqueeze(-ndim - 1)


class Steps(NamedTuple):
    """Merging summaries along an axis, and the transpose of sums: by definition, or an engine's."""

    merge: Callable[[Summary, int, Sequence[float], int], Summary] = _merge_along
    spread: Callable[[Tensor, Sequence[int], Windows], Tensor] = _spread


DEFINITION = Steps()


def pair_moments(
    a: Tensor, b: Tensor, weight: Tensor | None, windows: Windows, steps: Steps
) -> PairMoments:
    """Weighted moments of both inputs in each window (math.md, eq. lncc-weights)."""
    ndim = len(windows.sizes)
    reach = windows.reach
    weight_of = torch.ones_like(a) if weight is None else weight
    outside = 1.0 if windows.border == "zeros" else 0.0
    taps = per_axis(windows.taps, windows.sizes)

    def compute(x: Tensor, y: Tensor, w: Tensor) -> Summary:
        x, y, w = (widen(part) for part in (x, y, w))
        none = torch.zeros_like(x)
        parts = steps.merge((w, x, y, *[none] * 5), -ndim - 1, [1.0] * x.shape[-ndim - 1], 1)
        parts = tuple(part.squeeze(-ndim - 1) for part in parts)
        for i in range(ndim):
            parts = steps.merge(parts, i - ndim, taps[i], windows.stride[i])
        return parts

    around = [pad(kept(x, weight), reach) for x in (a, b)]
    around.append(pad(weight_of, reach, value=outside))
    count, mean_a, mean_b, low_a, low_b, var_a, var_b, covariance = in_slabs(
        around, windows.sizes, windows.stride, compute
    )
    return PairMoments(count, (mean_a + low_a, var_a), (mean_b + low_b, var_b), covariance)


def weighted_lncc(
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    taps: Sequence[float],
    window: Sequence[int],
    stride: Sequence[int],
    border: str,
    eps: float,
    steps: Steps = DEFINITION,
) -> Tensor:
    """Pearson's coefficient with weights in each window (math.md, eq. lncc-weights)."""
    windows = Windows(taps, window, stride, border)
    if windows.is_plain(weight) and steps is DEFINITION:
        return lncc(pad(a, windows.reach), pad(b, windows.reach), window, stride, eps)
    of = pair_moments(a, b, weight, windows, steps)
    return scores(of.a[1], of.b[1], of.covariance, eps).to(a.dtype).contiguous()


def levels(x: Tensor, ndim: int) -> Tensor:
    """A mean of each item's finite elements: what its elements can be measured from."""
    axes = tuple(range(-ndim - 1, 0))
    finite = torch.isfinite(x)
    total = torch.where(finite, x, 0.0).sum(axes, keepdim=True, dtype=wide_dtype(x))
    return (total / finite.sum(axes, keepdim=True).clamp(min=1)).detach()


def gradients(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    windows: Windows,
    eps: float,
    needed: tuple[bool, bool, bool],
    steps: Steps = DEFINITION,
) -> list[Tensor | None]:
    """Those of `weighted_lncc` (math.md, eq. lncc-weights-gradient); None if not needed."""
    a, b, weight = inputs
    ndim = len(windows.sizes)
    of = pair_moments(a, b, weight, windows, steps)
    # A window without weight is flat, so it has no gradient whatever its count.
    count = torch.where(of.weight > 0, of.weight, torch.ones_like(of.weight))
    x, y = (widen(kept(one, weight)) for one in (a, b))
    maps = lncc_window_grads(grad, of.a, of.b, of.covariance, count, eps)
    other, factor_a, factor_b, offset_a, offset_b = maps

    def spread(one: Tensor) -> Tensor:
        return steps.spread(one, a.shape[-ndim:], windows)

    def of_elements(value: Tensor) -> Tensor:
        if weight is not None:
            value = torch.where(weight > 0, value * widen(weight), torch.zeros_like(value))
        return value.to(a.dtype)

    results: list[Tensor | None] = [None, None, None]
    if needed[0]:
        results[0] = of_elements(lncc_into(x, y, (other, factor_a, offset_a), spread))
    if needed[1]:
        results[1] = of_elements(lncc_into(y, x, (other, factor_b, offset_b), spread))
    if needed[2] and weight is not None:
        level_a, level_b = levels(x, ndim), levels(y, ndim)
        mean_a, mean_b = of.a[0] - level_a.squeeze(-ndim - 1), of.b[0] - level_b.squeeze(-ndim - 1)
        constant = other * (mean_a * mean_b - of.covariance)
        constant = constant - factor_a * (mean_a.square() - of.a[1]) / 2
        constant = constant - factor_b * (mean_b.square() - of.b[1]) / 2
        offset_a = factor_a * mean_a - other * mean_b
        offset_b = factor_b * mean_b - other * mean_a
        x, y = x - level_a, y - level_b
        value = spread(constant) + x * spread(offset_a) + y * spread(offset_b)
        value = value + x * y * spread(other)
        value = value - (x * x * spread(factor_a) + y * y * spread(factor_b)) / 2
        results[2] = torch.where(weight > 0, value, torch.zeros_like(value)).to(weight.dtype)
    return results


def weighted_lncc_grads(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    taps: Sequence[float],
    window: Sequence[int],
    stride: Sequence[int],
    border: str,
    eps: float,
    needed: Sequence[bool],
    steps: Steps = DEFINITION,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `weighted_lncc`; one that is not needed is empty."""
    need_a, need_b, need_weight = needed
    windows = Windows(taps, window, stride, border)
    found = gradients(grad, (a, b, weight), windows, eps, (need_a, need_b, need_weight), steps)
    for_a, for_b, for_weight = (a.new_empty(0) if g is None else g.contiguous() for g in found)
    return for_a, for_b, for_weight
