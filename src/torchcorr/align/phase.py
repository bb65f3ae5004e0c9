"""Generalised cross-correlation: spectra weighed before they are transformed back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _checks
from .._definition.overlap import levelled
from .._plan.lags import Lags
from ..local import local_mean
from .lags import lags_of

__all__ = ["WEIGHTINGS", "phase_correlation", "weighed_scores"]

WEIGHTINGS = ("phat", "scot", "roth", "ml")
# Frequencies along an axis, of each length, whose spectra are averaged.
_AVERAGED = 0.01


def phase_correlation(
    a: Tensor,
    b: Tensor,
    *,
    ndim: int = 2,
    weighting: str = "phat",
    lags: Sequence[object] | None = None,
    max_shift: int | Sequence[int] | None = None,
    centre: int | Sequence[int] = 0,
) -> Tensor:
    r"""Return the generalised cross-correlation of two recordings at each lag.

    The cross-spectrum is weighed before it is transformed back, which sharpens the peak of the
    delay: an echo that colours the spectrum of a recording then counts less than with
    `cross_correlation`. ``estimate_shift(..., weighting=...)`` finds its peak.

    Parameters
    ----------
    a, b : Tensor
        ``(*lead, *S)`` and ``(*lead, *K)``: real, of one dtype; leading axes broadcast. Their
        levels are removed. Computed in float64, with zeros around, so that lags do not wrap.
    ndim : int, default 2
        Number of axes that move: 1 for signals, 2 for images, 3 for volumes.
    weighting : {"phat", "scot", "roth", "ml"}
        With power spectra :math:`A` and :math:`B`, averaged over neighbouring frequencies, and the
        cross-spectrum :math:`G`: "phat" :math:`1 / |G|`, "scot" :math:`1 / \sqrt{AB}`, "roth"
        :math:`1 / A`, and "ml" (Hannan and Thomson)
        :math:`\gamma^2 / (|G| (1 - \gamma^2))` with the coherence :math:`\gamma`.
    lags : (low, high) or sequence of (low, high), optional
        The lags, ends included, for all axes or for each; None leaves an end open. By default all.
    max_shift : int or sequence of int, optional
        Instead of ``lags``: those at most so far from ``centre``.
    centre : int or sequence of int, default 0
        The middle of the lags.

    Returns
    -------
    Tensor
        ``(*lead, *lags)``, float64, in [-1, 1]: 1 where all frequencies agree. The sign of a lag is
        that of `estimate_shift`.

    Raises
    ------
    TypeError
        If an argument is no real tensor, or dtypes differ.
    ValueError
        If an axis is missing, leading axes do not broadcast, or a recording contains NaN or
        infinity.

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
    _checks.recordings({"a": a, "b": b}, ndim)
    asked = lags_of(lags, max_shift, centre, (tuple(a.shape[-ndim:]), tuple(b.shape[-ndim:])))
    return weighed_scores(a.double(), b.double(), asked, weighting)


def weighed_scores(x: Tensor, y: Tensor, lags: Lags, weighting: str) -> Tensor:
    """Generalised cross-correlation of float64 recordings, ``(*lead, *lags)``."""
    ndim = len(lags.axes)
    axes = tuple(range(-ndim, 0))
    lengths = [axis.length() for axis in lags.axes]
    first, second = (
        torch.fft.fftn(_windowless(levelled(v, ndim), axes), lengths, axes) for v in (x, y)
    )
    cross = first * second.conj()
    size = cross.abs()
    floor = size.amax(axes, keepdim=True) * 2.0**-40
    weight = _weight(weighting, first, second, cross, lags)
    weight = torch.where(size > floor, weight, 0.0)
    total = (weight * size).sum(axes, keepdim=True)
    spectrum = cross * weight * (math.prod(lengths) / torch.where(total > 0, total, 1.0))
    return _unrolled(torch.fft.ifftn(spectrum, dim=axes).real, lags).clamp(-1.0, 1.0)


def _windowless(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x - x.mean(axes, keepdim=True)


def _weight(weighting: str, first: Tensor, second: Tensor, cross: Tensor, lags: Lags) -> Tensor:
    ndim = len(lags.axes)
    size = cross.abs()
    tiny = torch.finfo(size.dtype).tiny
    if weighting == "phat":
        return 1 / size.clamp(min=tiny)
    powers = [_averaged(v.real.square() + v.imag.square(), ndim) for v in (first, second)]
    if weighting == "roth":
        return 1 / powers[0].clamp(min=tiny)
    if weighting == "scot":
        return 1 / (powers[0].sqrt() * powers[1].sqrt()).clamp(min=tiny)
    # The average of a spectrum whose phase turns would vanish: the delay that turns it is removed.
    axes = tuple(range(-ndim, 0))
    peak = torch.fft.ifftn(cross / size.clamp(min=tiny), dim=axes).real.flatten(-ndim).argmax(-1)
    turned = cross
    for axis, at in zip(axes, torch.unravel_index(peak, cross.shape[-ndim:]), strict=True):
        turns = torch.fft.fftfreq(cross.shape[axis], dtype=size.dtype, device=size.device)
        angle = 2 * math.pi * turns[(..., *(None,) * (-1 - axis))] * at[(..., *(None,) * ndim)]
        turned = turned * torch.polar(torch.ones_like(angle), angle)
    mean = torch.complex(_averaged(turned.real, ndim), _averaged(turned.imag, ndim))
    product = (powers[0] * powers[1]).clamp(min=tiny)
    coherence = ((mean.real.square() + mean.imag.square()) / product).clamp(max=1 - 1e-6)
    return coherence / (size.clamp(min=tiny) * (1 - coherence))


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
