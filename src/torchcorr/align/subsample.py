"""The place of a peak between samples: through its neighbours, or by resampling a recording."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _contract
from .._plan.lags import Lags
from .masked import Masks

__all__ = ["SUBSAMPLE", "Place", "from_neighbours", "from_recordings", "linearised", "resampled"]

SUBSAMPLE = ("fourier", "gauss", "parabola")
# Both recordings pass the same filter, so that none is smoothed more than the other: a sinc
# function of this share of the frequencies, tapered by a Gaussian of this width, that reaches so
# many elements to either side. Next to nothing passes at the highest frequency, so it can be
# shifted by any part of a sample.
_BAND = 0.5
_TAPER = 2.5
_REACH = 8
# Fewer elements along an axis tell nothing about places between them.
_FEWEST = 9
_STEPS = 20
# Samples: a step this short leaves an error that is shorter still by the same factor.
_ENOUGH = 1e-6
# Differences of scores that rounding alone can make.
_ROUNDING = 1e-10
# Elements in the middle of an overlap that are used: at least and at most so many, and else as many
# as make the deviation of the place this many samples where a sample changes the recording by its
# own deviation.
_LEAST, _MOST = 1 << 14, 1 << 20
_DEVIATION = 2e-3


@dataclass(frozen=True)
class Place:
    """A lag, its score, and which elements of the recordings are there."""

    lags: Lags
    lag: Sequence[int]
    score: float
    masks: Masks | None


def from_neighbours(patch: Tensor, how: str) -> Tensor:
    """Offset ``(ndim,)`` of the top from the middle of a patch of 3 scores an axis, at most half a
    sample: by a parabola through three scores, or through their logarithms (a Gaussian) where all
    are positive. An axis along which they are level, or a neighbour is NaN, keeps 0.
    """
    offsets = []
    for axis in range(patch.dim()):
        three = patch[tuple(slice(None) if a == axis else 1 for a in range(patch.dim()))]
        if how != "parabola" and bool((three > 0).all()):
            three = three.log()
        left, centre, right = three.unbind()
        bend = left - 2 * centre + right
        top = (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
        offsets.append(top if bool(bend < -_ROUNDING) else torch.zeros_like(top))
    return torch.stack(offsets)


def from_recordings(
    x: Tensor, y: Tensor, place: Place, start: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Offset ``(ndim,)`` from a lag at which y, interpolated as a band-limited
    function, correlates best with x, and the score there; the start and None if no top lies within
    a sample. An axis with too few elements keeps 0.

    Gauss-Newton steps on the coefficient itself. If x or y require a gradient, the offset has that
    of the implicit function theorem (math.md, eq. place).
    """
    reach, of_x, of_y = _window(place)
    a, b = x[of_x].double(), y[of_y].double()
    here = torch.zeros_like(start)
    if max(reach) == 0:
        return here, None
    if not is_followed(a, b) and torch.equal(a, b):
        return here, torch.ones_like(start[0])
    a, b = _scaled(a), _scaled(b)
    live = torch.tensor([r > 0 for r in reach], device=x.device)
    start = torch.where(live, start, 0.0)
    there = None if place.masks is None else place.masks.surrounded(of_x, of_y, reach).flatten()
    # Where the filter leaves fewer even if none is missing, none may be.
    if there is not None and float(there.sum()) < min(_FEWEST ** int(live.sum()), len(there)):
        return start, None
    fixed, moved = _smoothed(a.detach(), reach), b.detach()
    offset = start
    score = None
    for _ in range(_STEPS):
        score, slope, bend = _linearised(fixed, moved, offset, reach, there)
        if not _bends(bend[live][:, live]) or not bool(score > 0):
            return start, None
        step = torch.zeros_like(offset)
        step[live] = torch.linalg.solve(bend[live][:, live], slope[live])
        offset = offset + step.clamp(-0.5, 0.5)
        if bool((offset.abs() >= 1).any()):
            return start, None
        if bool(step.abs().max() < _ENOUGH):
            break
    if is_followed(a, b):
        offset = _implicit(a, b, offset, reach, live, there)
    return offset, score


def is_followed(*tensors: Tensor) -> bool:
    """Whether derivatives are taken through any of these, in reverse or in forward mode."""
    return any(x.requires_grad or forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def _scaled(x: Tensor) -> Tensor:
    """x without its level, so that products do not cancel, and in units of its largest element."""
    x = x - x.detach().mean()
    peak = x.detach().abs().amax()
    return x / torch.where(peak > 0, peak, 1.0)


def _enough(whole: float) -> float:
    """Elements that suffice: the variance of the place is nearly ``(1 / r² - 1) / n`` in units of
    the squared deviation over that of the slope (math.md, eq. place).
    """
    square = max(whole * whole, 1e-4)
    return min(max((1 / square - 1) / _DEVIATION**2, _LEAST), _MOST)


def _window(
    place: Place,
) -> tuple[list[int], tuple[slice, ...], tuple[slice, ...]]:
    """Reach of the interpolation along each axis and the overlap, or the middle of a large one."""
    sizes = [s.stop - s.start for s in place.lags.overlap(place.lag)[0]]
    reach = [min(_REACH, (n - 1) // 4) if n >= _FEWEST else 0 for n in sizes]
    # What is missing may lie in the middle.
    enough = _enough(place.score) if place.masks is None else _MOST
    most = int(enough ** (1 / len(sizes)))
    of_x, of_y = [], []
    for axis, k in zip(place.lags.axes, place.lag, strict=True):
        start, stop = max(0, k), min(axis.size, k + axis.moved)
        spare = max(0, (stop - start - most) // 2)
        of_x.append(slice(start + spare, stop - spare))
        of_y.append(slice(start + spare - k, stop - spare - k))
    return reach, tuple(of_x), tuple(of_y)


def _linearised(
    x: Tensor, y: Tensor, offset: Tensor, reach: list[int], there: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Score at an offset, its slope, and minus its bend as Gauss and Newton approximate it, of the
    elements that are there.
    """
    maps = _filtered(y, _kernels(offset, reach))
    return linearised(torch.cat([x[None], maps]).flatten(1), there)


def linearised(rows: Tensor, there: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The same of rows: one recording, the other, and how this changes with each number."""
    counted = rows if there is None else rows * there
    total = rows.shape[1] if there is None else float(there.sum())
    means = counted.sum(1, keepdim=True) / total
    products = counted @ rows.T - total * means * means.T
    energy = products[1, 1]
    ways = products[2:, 1] / energy
    norm = products[0, 0].sqrt() * energy.sqrt()
    score = products[0, 1] / norm
    slope = (products[2:, 0] - ways * products[0, 1]) / norm
    bend = (products[2:, 2:] - energy * ways[:, None] * ways) * (score / energy)
    return score, slope, bend


def _bends(bend: Tensor) -> bool:
    return bool(torch.isfinite(bend).all()) and bool(torch.linalg.eigvalsh(bend)[0] > 0)


def _filtered(y: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """y after a filter along each axis, and after one axis has its other filter instead: shifted by
    an offset, and its derivative by each component of it. (1 + ndim, *valid) or (1, *valid).
    """
    maps, ones = y[None], (1,) * y.dim()
    for axis, kernel in enumerate(kernels):
        shape = [-1 if a == axis else 1 for a in range(y.dim())]
        templates = kernel.reshape(len(kernel), 1, 1, *shape)
        filtered = _contract.correlate(maps[:, None], templates, ones, "auto")
        maps = filtered.flatten(0, 1)[: len(maps) + len(kernel) - 1]
    return maps


def _smoothed(x: Tensor, reach: list[int]) -> Tensor:
    """x after the filter, and not shifted."""
    kernels = _kernels(x.new_zeros(x.dim()), reach)
    return _filtered(x, [kernel[:1] for kernel in kernels])[0]


def resampled(x: Tensor, offset: Tensor) -> Tensor:
    """x shifted by less than a sample along each axis; what lies outside is as at the border."""
    kernels = []
    for axis, kernel in enumerate(_kernels(offset, [_REACH] * x.dim(), 1.0)):
        ends = torch.arange(-_REACH, x.shape[axis] + _REACH, device=x.device)
        x = x.index_select(axis, ends.clamp(0, x.shape[axis] - 1))
        kernels.append(kernel[:1] / kernel[:1].sum())
    return _filtered(x, kernels)[0]


def _kernels(offset: Tensor, reach: Sequence[int], share: float = _BAND) -> list[Tensor]:
    """Tapered sinc of a share of the frequencies at offset + (-reach..reach) and its derivative by
    the offset, (2, 2 reach + 1) for each axis.
    """
    most = max(reach)
    t = offset[:, None] + torch.arange(-most, most + 1, dtype=offset.dtype, device=offset.device)
    band = share * math.pi
    near = t.abs() < 1e-4
    s = band * torch.where(near, 1.0, t)
    value = torch.where(near, 1 - (band * t).square() / 6, s.sin() / s)
    rate = torch.where(near, -(band**2) * t / 3, band * (s.cos() - s.sin() / s) / s)
    width = offset.new_tensor([[_TAPER * max(r, 1) / _REACH] for r in reach])
    taper = (-0.5 * (t / width).square()).exp()
    both = torch.stack([value * taper, (rate - value * t / width**2) * taper], 1)
    return [pair[:, most - r : most + r + 1] for pair, r in zip(both, reach, strict=True)]


def _jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Under a transform by another; elsewhere not, since that refuses the hooks of checkpoint."""
    if torch._C._are_functorch_transforms_active():
        matrix: Tensor = torch.func.jacrev(function)(at)
        return matrix
    at = at.requires_grad_()
    rows = (torch.autograd.grad(x, at, retain_graph=True)[0] for x in function(at))
    return torch.stack(tuple(rows))


def _implicit(
    x: Tensor, y: Tensor, offset: Tensor, reach: list[int], live: Tensor, there: Tensor | None
) -> Tensor:
    """The offset with the gradient of a place where the slope of the score is zero."""

    def slope(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
        return _linearised(_smoothed(x, reach), y, at, reach, there)[1][live]

    fixed, moved = x.detach(), y.detach()
    rate = _jacobian(lambda at: slope(fixed, moved, at), offset.detach())[:, live]
    change = slope(x, y, offset.detach())
    step = torch.linalg.solve(rate, change - change.detach())
    return offset.detach() - torch.zeros_like(offset).masked_scatter(live, step)
