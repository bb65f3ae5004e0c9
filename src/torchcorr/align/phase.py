"""Generalised cross-correlation: spectra weighed before they are transformed back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _checks
from .._definition.overlap import levelled
from .._definition.traced import is_traced
from .._plan.lags import Lags
from ..local import local_mean
from .lags import lags_of
from .masked import Masks

__all__ = ["WEIGHTINGS", "phase_correlation", "weighed_scores"]

WEIGHTINGS = ("phat", "scot", "roth", "ml")
# Frequencies along an axis, of each length, whose spectra are averaged.
_AVERAGED = 0.01
# What tells nothing but rounding, as a share of the largest of a cross-spectrum.
_FAINT = 2.0**-40


def phase_correlation(
    reference: Tensor,
    moving: Tensor,
    *,
    ndim: int = 2,
    weighting: str = "phat",
    lags: Sequence[object] | None = None,
    max_shift: int | Sequence[int] | None = None,
    centre: int | Sequence[int] = 0,
    reference_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
) -> Tensor:
    r"""Return the generalised cross-correlation of two recordings at each lag.

    The cross-spectrum is weighed before it is transformed back, which sharpens the peak of the
    delay: an echo that colours the spectrum of a recording then counts less than with
    `cross_correlation`. ``estimate_shift(..., weighting=...)`` finds its peak.

    Parameters
    ----------
    reference, moving : Tensor
        ``(*lead, *S)`` and ``(*lead, *K)``: real, of one dtype; leading axes broadcast. Their
        means are removed. Computed in float64, with zeros around, so that lags do not wrap.
    ndim : int, default 2
        Number of axes that move: 1 for signals, 2 for images, 3 for volumes.
    weighting : {"phat", "scot", "roth", "ml"}
        With power spectra :math:`A` of the reference and :math:`B` of the moving recording,
        averaged over neighbouring frequencies, and the cross-spectrum :math:`G`: "phat"
        :math:`1 / |G|`, "scot" :math:`1 / \sqrt{AB}`, "roth" :math:`1 / A`, and "ml" (Hannan and
        Thomson) :math:`\gamma^2 / (|G| (1 - \gamma^2))` with the coherence :math:`\gamma`.
    lags : (low, high) or sequence of (low, high), optional
        The lags, ends included, for all axes or for each; None leaves an end open. By default all.
    max_shift : int or sequence of int, optional
        Instead of ``lags``: those at most so far from ``centre``.
    centre : int or sequence of int, default 0
        The middle of the lags.
    reference_mask, moving_mask : Tensor, optional
        Weights of the elements of either recording, not negative, boolean or floating-point, that
        broadcast to it. What has weight 0 is missing, whatever it is, NaN too.

    Returns
    -------
    Tensor
        ``(*lead, *lags)``, float64, in [-1, 1]: 1 where all frequencies agree. The sign of a lag is
        that of `estimate_shift`. 0 where a recording is flat or all of it is missing.
        Differentiable, also with respect to masks, where they are not 0.

    Raises
    ------
    TypeError
        If an argument is no real tensor, dtypes differ, or a mask holds integers.
    ValueError
        If an axis is missing, leading axes do not broadcast, a recording contains NaN or infinity
        that is not missing, or a mask does not fit, is negative or zero everywhere.

    Notes
    -----
    With masks each recording is centred by its weighted mean and multiplied by its weights, and the
    spectra are those of the products (math.md, eq. weighed-spectra). An element without weight adds
    nothing to them. Centring comes first, as the outline of a mask would else be a pattern of its
    own, which whitening makes as strong as that of the recording. All weights of a recording times
    one number change nothing.

    References
    ----------
    C. H. Knapp and G. C. Carter, "The generalized correlation method for estimation of time delay",
    IEEE Transactions on Acoustics, Speech, and Signal Processing 24 (1976) 320-327.

    Examples
    --------
    >>> import torch, torchcorr
    >>> noise = torch.randn(300, generator=torch.Generator().manual_seed(0))
    >>> source = noise.cumsum(0)
    >>> scores = torchcorr.phase_correlation(source[:250], source[20:270], ndim=1, max_shift=50)
    >>> int(scores.argmax()) - 50
    20
    """
    _checks.dimension(ndim)
    _checks.one_of(weighting, WEIGHTINGS, "weighting")
    recordings = {"reference": reference, "moving": moving}
    weights = {"reference": reference_mask, "moving": moving_mask}
    for name, mask in weights.items():
        x = recordings[name]
        if mask is not None:
            _checks.tensor(x, name)
            _checks.mask(mask, x, name, values=not is_traced())
            recordings[name] = x.masked_fill(mask <= 0, 0)
    _checks.recordings(recordings, ndim)
    x, y = recordings.values()
    asked = lags_of(lags, max_shift, centre, (tuple(x.shape[-ndim:]), tuple(y.shape[-ndim:])))
    masks = None
    if any(mask is not None for mask in weights.values()):
        masks = Masks(*(_expanded(weights[name], v) for name, v in recordings.items()))
        x, y = _filled(x, masks.x, ndim), _filled(y, masks.y, ndim)
    return weighed_scores(x.double(), y.double(), asked, weighting, masks)


def _expanded(mask: Tensor | None, x: Tensor) -> Tensor:
    ones = x.new_ones((), dtype=torch.float64)
    return (ones if mask is None else mask.double()).expand(x.shape)


def _filled(x: Tensor, weights: Tensor, ndim: int) -> Tensor:
    """x with what is missing as high as an element that is not, so that its level is theirs."""
    heaviest = weights.flatten(-ndim).argmax(-1, keepdim=True)
    value = x.flatten(-ndim).gather(-1, heaviest)
    return x.where(weights > 0, value[(..., *(None,) * (ndim - 1))])


def weighed_scores(
    x: Tensor, y: Tensor, lags: Lags, weighting: str, masks: Masks | None = None
) -> Tensor:
    """Generalised cross-correlation of float64 recordings, ``(*lead, *lags)``."""
    ndim = len(lags.axes)
    axes = tuple(range(-ndim, 0))
    lengths = [axis.length() for axis in lags.axes]
    weights = (None, None) if masks is None else (masks.x, masks.y)
    first, second = (
        torch.fft.fftn(_centred(levelled(v, ndim), w, axes), lengths, axes)
        for v, w in zip((x, y), weights, strict=True)
    )
    cross = first * second.conj()
    size = cross.abs()
    floor = _share_of_peak(size, ndim, _FAINT)
    weight = _weight(weighting, first, second, cross, lags)
    weight = torch.where(size > floor, weight, 0.0)
    total = (weight * size).sum(axes, keepdim=True)
    spectrum = cross * weight * (math.prod(lengths) / torch.where(total > 0, total, 1.0))
    return _unrolled(torch.fft.ifftn(spectrum, dim=axes).real, lags).clamp(-1.0, 1.0)


def _centred(x: Tensor, weights: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """x about its mean, times its weights in units of the largest; no derivative passes a 0."""
    if weights is None:
        return x - x.mean(axes, keepdim=True)
    peak = weights.detach().amax(axes, keepdim=True)
    weights = weights.masked_fill(weights <= 0, 0.0) / torch.where(peak > 0, peak, 1.0)
    total = weights.sum(axes, keepdim=True)
    mean = (weights * x).sum(axes, keepdim=True) / torch.where(total > 0, total, 1.0)
    return weights * (x - mean)


def _weight(weighting: str, first: Tensor, second: Tensor, cross: Tensor, lags: Lags) -> Tensor:
    ndim = len(lags.axes)
    size = cross.abs()
    # A derivative of the inverse of less could be infinite, and NaN where its weight is 0.
    size = size.clamp(min=_share_of_peak(size, ndim, _FAINT))
    if weighting == "phat":
        return 1 / size
    powers = [_averaged(v.real.square() + v.imag.square(), ndim) for v in (first, second)]
    powers = [power.clamp(min=_share_of_peak(power, ndim, _FAINT**2)) for power in powers]
    if weighting == "roth":
        return 1 / powers[0]
    if weighting == "scot":
        return 1 / (powers[0].sqrt() * powers[1].sqrt())
    # The average of a spectrum whose phase turns would vanish: the delay that turns it is removed.
    axes = tuple(range(-ndim, 0))
    peak = torch.fft.ifftn(cross / size, dim=axes).real.flatten(-ndim).argmax(-1)
    turned = cross
    for axis, at in zip(axes, torch.unravel_index(peak, cross.shape[-ndim:]), strict=True):
        turns = torch.fft.fftfreq(cross.shape[axis], dtype=size.dtype, device=size.device)
        angle = 2 * math.pi * turns[(..., *(None,) * (-1 - axis))] * at[(..., *(None,) * ndim)]
        turned = turned * torch.polar(torch.ones_like(angle), angle)
    mean = torch.complex(_averaged(turned.real, ndim), _averaged(turned.imag, ndim))
    product = powers[0] * powers[1]
    coherence = ((mean.real.square() + mean.imag.square()) / product).clamp(max=1 - 1e-6)
    return coherence / (size * (1 - coherence))


def _share_of_peak(values: Tensor, ndim: int, share: float) -> Tensor:
    """Of the largest of all frequencies; 1 where all are 0."""
    peak = values.detach().amax(tuple(range(-ndim, 0)), keepdim=True)
    return torch.where(peak > 0, peak * share, 1.0)


def _averaged(spectrum: Tensor, ndim: int) -> Tensor:
    """Mean over neighbouring frequencies along every axis; the spectrum is a circle."""
    reach = [
        max(1, min(n - 1, round(_AVERAGED * n))) if n > 1 else 0 for n in spectrum.shape[-ndim:]
    ]
    flat = spectrum.reshape(-1, 1, *spectrum.shape[-ndim:])
    around = pad(flat, [r for r in reversed(reach) for _ in range(2)], mode="circular")
    return local_mean(around, [2 * r + 1 for r in reach], ndim=ndim).reshape(spectrum.shape)


def _unrolled(circle: Tensor, lags: Lags) -> Tensor:
    """The lags of a circular correlation, in their order: lag k lies at k modulo its length."""
    for axis, lag in zip(range(-len(lags.axes), 0), lags.axes, strict=True):
        if lag.low >= 0 or lag.high < 0:
            circle = circle.narrow(axis, lag.low % circle.shape[axis], len(lag))
        else:
            ends = circle.narrow(axis, circle.shape[axis] + lag.low, -lag.low)
            circle = torch.cat([ends, circle.narrow(axis, 0, lag.high + 1)], axis)
    return circle
