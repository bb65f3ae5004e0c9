"""Aligning two recordings of one source: the shift between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from ..functional import correlate
from ..match.maxima import local_maxima, parabola

__all__ = ["Shift", "estimate_shift"]

# Peaks this close in height count as equal: a periodic source repeats, and rounding must not
# decide.
_TIE = 3e-4
# An overlap must contain this share of its recording's energy: below it, rounding of the transform
# and of running sums (1e-16 of the whole) could reach 1e-6 of the score.
_FAINT = 1e-9


@dataclass(frozen=True, eq=False)
class Shift:
    """A shift between two recordings, and how well they agree under it.

    Attributes
    ----------
    shift : Tensor
        ``(*lead, ndim)``, float64, in samples: applied to ``moving``, it lays ``moving`` on
        ``reference``. Axis order as in the tensors.
    score : Tensor
        ``(*lead,)``, float64: the correlation coefficient of the overlap at the whole-sample shift.
    """

    shift: Tensor
    score: Tensor


def estimate_shift(
    reference: Tensor,
    moving: Tensor,
    *,
    ndim: int = 2,
    max_shift: int | Sequence[int] | None = None,
    min_overlap: float = 0.5,
    subpixel: bool = True,
    method: str = "auto",
) -> Shift:
    r"""Return the shift that, applied to ``moving``, lays it on ``reference``.

    At each whole-sample shift the coefficient of correlation (Pearson's r) is taken over the
    samples that overlap, and over nothing else: neither the mean of the recordings nor the padding
    around them draws the answer towards zero. The highest peak wins. Peaks within 3e-4 of it are
    taken as equal, and the smallest shift among them wins: a periodic source repeats.

    Parameters
    ----------
    reference, moving : Tensor
        ``(*lead, *S)`` and ``(*lead, *K)``: real, of one dtype, the last ``ndim`` axes being those
        that move, and the axes before them broadcast. ``S`` and ``K`` may differ. Computed in
        float64.
    ndim : int, default 2
        Number of axes that move: 1 for signals, 2 for images, 3 for volumes.
    max_shift : int or sequence of int, optional
        Largest shift considered, in samples, one for all axes or one per axis. By default any.
    min_overlap : float, default 0.5
        Smallest overlap, as a fraction of the elements of the smaller recording, in (0, 1].
        A coefficient over few samples is high by chance.
    subpixel : bool, default True
        Refine by a parabola through the peak and its neighbours along each axis, by at most half a
        sample (so the result may exceed ``max_shift`` by as much).
    method : {"auto", "direct", "fft"}
        As for `correlate`.

    Returns
    -------
    Shift
        The shift ``(*lead, ndim)`` and the score ``(*lead,)``, both float64, detached. The sign is
        that of ``skimage.registration.phase_cross_correlation``: ``scipy.ndimage.shift(moving,
        shift)`` resembles ``reference``. Two recordings without a common pattern, or flat ones,
        score 0.

    Raises
    ------
    TypeError
        If an argument is no real tensor, or dtypes differ.
    ValueError
        If an axis is missing, leading axes do not broadcast, a recording contains NaN or infinity,
        or ``max_shift`` and ``min_overlap`` leave no shift to consider.

    References
    ----------
    D. Padfield, "Masked object registration in the Fourier domain", IEEE Transactions on Image
    Processing 21 (2012) 2706-2718: the coefficient over the overlap, here for rectangular masks.

    Examples
    --------
    >>> import torch, torchcorr
    >>> time = torch.arange(400, dtype=torch.float64) * (2 * torch.pi / 100)
    >>> shift = torchcorr.estimate_shift(3 * time.sin(), 0.5 * time.cos(), ndim=1)
    >>> round(shift.shift.item(), 3), round(shift.score.item(), 3)
    (25.0, 1.0)
    """
    _checks.dimension(ndim)
    limits: tuple[int, ...] | None = None
    if max_shift is not None:
        limits = _checks.per_axis(max_shift, ndim, "max_shift", least=0)
    _checks.fraction(min_overlap, "min_overlap")
    _checks.one_of(method, _checks.METHODS, "method")
    for name, tensor in (("reference", reference), ("moving", moving)):
        _checks.real_tensor(tensor, name)
        _checks.rank(tensor, ndim, False, name)
        _checks.input_not_empty(tuple(tensor.shape[-ndim:]), name)
        _checks.finite(tensor, name)
    _checks.same_dtype({"reference": reference, "moving": moving})
    size, other = reference.shape[-ndim:], moving.shape[-ndim:]
    overlap, lags = _overlaps(size, other, reference.device)
    smaller = min(size.numel(), other.numel())
    allowed = overlap >= max(min_overlap * smaller, min(2, smaller))
    for axis, limit in enumerate(limits if limits is not None else ()):
        shape = [-1 if a == axis else 1 for a in range(ndim)]
        allowed &= (lags[axis].abs() <= limit).reshape(shape)
    if not allowed.any():
        raise ValueError(
            f"max_shift and min_overlap leave no shift to consider: got max_shift={max_shift}, "
            f"min_overlap={min_overlap} for sizes {tuple(size)} and {tuple(other)}"
        )
    scores = _overlap_scores(reference, moving, overlap, lags, method)
    return _best(scores, allowed, lags, subpixel)


def _overlaps(
    size: torch.Size, other: torch.Size, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """Overlapping elements at each shift, in full mode's order, and the shifts of each axis."""
    overlap = torch.ones((), dtype=torch.float64, device=device)
    lags = []
    for length, moved in zip(size, other, strict=True):
        lag = torch.arange(-(moved - 1), length, device=device)
        count = (lag + moved).clamp(max=length) - lag.clamp(min=0)
        overlap = overlap[..., None] * count
        lags.append(lag)
    return overlap, lags


def _overlap_scores(
    reference: Tensor, moving: Tensor, overlap: Tensor, lags: list[Tensor], method: str
) -> Tensor:
    ndim = len(lags)
    axes = tuple(range(-ndim, 0))
    x, y = (_unit(tensor.detach().double(), axes) for tensor in (reference, moving))
    cross = correlate(x, y, ndim=ndim, mode="full", method=method)
    spans_x = [
        (lag.clamp(min=0), (lag + y.shape[axis]).clamp(max=x.shape[axis]))
        for axis, lag in zip(axes, lags, strict=True)
    ]
    spans_y = [(start - lag, stop - lag) for (start, stop), lag in zip(spans_x, lags, strict=True)]
    sum_x, sum_y = _box_sums(x, spans_x), _box_sums(y, spans_y)
    energy_x = _box_sums(x.square(), spans_x) - sum_x.square() / overlap
    energy_y = _box_sums(y.square(), spans_y) - sum_y.square() / overlap
    live = (energy_x > _FAINT) & (energy_y > _FAINT)
    # Two roots: the product of two energies could leave the range of the exponent.
    scale = torch.where(live, energy_x, 1.0).sqrt() * torch.where(live, energy_y, 1.0).sqrt()
    return torch.where(live, (cross - sum_x * sum_y / overlap) / scale, 0.0).clamp(-1.0, 1.0)


def _box_sums(values: Tensor, spans: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sums over the box ``start:stop`` of each pair of shifts, by running sums along each axis."""
    for axis, (start, stop) in zip(range(-len(spans), 0), spans, strict=True):
        running = values.cumsum(axis)
        running = torch.cat([torch.zeros_like(running.narrow(axis, 0, 1)), running], dim=axis)
        values = running.index_select(axis, stop) - running.index_select(axis, start)
    return values


def _unit(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The values centred, with energy 1 (flat ones stay 0)."""
    peak = values.abs().amax(axes, keepdim=True)
    values = values / torch.where(peak > 0, peak, 1.0)
    flat = values.amax(axes, keepdim=True) == values.amin(axes, keepdim=True)
    values = torch.where(flat, 0.0, values - values.mean(axes, keepdim=True))
    energy = values.square().sum(axes, keepdim=True)
    return values / torch.where(energy > 0, energy, 1.0).sqrt()


def _best(scores: Tensor, allowed: Tensor, lags: list[Tensor], subpixel: bool) -> Shift:
    ndim = len(lags)
    lead = scores.shape[: scores.ndim - ndim]
    scores = scores.reshape(-1, *allowed.shape)
    candidate = local_maxima(torch.where(allowed, scores, -torch.inf), ndim=ndim)
    index = candidate.nonzero().unbind(1)
    offsets, gain = parabola(scores, index, ndim=ndim)
    height = torch.full_like(scores, -torch.inf)
    height[index] = scores[index] + gain
    flat = height.flatten(1)
    tied = flat >= flat.amax(1, keepdim=True) - _TIE
    distance = torch.zeros((), dtype=torch.float64, device=scores.device)
    for lag in lags:
        distance = distance[..., None] + lag.double().square()
    chosen = torch.where(tied, distance.flatten(), torch.inf).argmin(1)
    refined = torch.zeros(*scores.shape, ndim, dtype=torch.float64, device=scores.device)
    if subpixel:
        refined[index] = offsets
    place = torch.unravel_index(chosen, allowed.shape)
    whole = torch.stack([lag[at] for lag, at in zip(lags, place, strict=True)], dim=-1)
    rows = torch.arange(len(chosen), device=chosen.device)
    shift = whole + refined[(rows, *place)]
    score = scores[(rows, *place)]
    return Shift(shift=shift.reshape(*lead, ndim), score=score.reshape(lead))
