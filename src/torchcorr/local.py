"""Moments of every window: check, call one operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks, _contract
from ._arguments import Arguments, Window
from ._docstrings import shared
from ._plan.shapes import Ints
from ._weights import WeightedInput


def _count(of: WeightedInput) -> int:
    return int(of.input.shape[-len(of.window) - 1]) * math.prod(of.window)


def _sum(of: WeightedInput, stride: Ints) -> Tensor:
    if of.is_plain():
        total: Tensor = _contract.window_sum(of.input, of.window, stride)
        return total
    count, mean, _ = _moments(of, stride)
    return count * mean


def _moments(of: WeightedInput, stride: Ints) -> tuple[float | Tensor, Tensor, Tensor]:
    """Weight, mean and uncorrected variance of windows."""
    if not of.is_plain():
        weights = (of.input_weight, of.weight)
        count, mean, var = _contract.weighted_moments(of.input, *weights, of.window, stride)
        return count, mean, var
    mean, var = _contract.window_moments(of.input, of.window, stride)
    return _count(of), mean, var


def _corrected(var: Tensor, count: float | Tensor, correction: float) -> Tensor:
    """0 in windows whose weight is not larger than the correction."""
    if not isinstance(count, Tensor):
        _checks.correction_fits(correction, int(count))
        return var * (count / (count - correction))
    if correction == 0:
        return var
    enough = count > correction
    ratio = count / torch.where(enough, count - correction, 1.0)
    return torch.where(enough, var * ratio, 0.0)


def _root(var: Tensor, eps: float) -> Tensor:
    """The root of a variance plus eps, with no gradient where the variance is 0."""
    flat = var == 0
    root = (torch.where(flat, 1.0, var) + eps).sqrt()
    return torch.where(flat, math.sqrt(eps), root)


@shared
def local_sum(
    input: Tensor,
    window: Window | Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    input_mask: Tensor | None = None,
) -> Tensor:
    """Return the sum of every window.

    For a window ``(h, w)`` it equals ``input.unfold(-2, h, 1).unfold(-2, w, 1).sum((-2, -1))``, but
    costs the same for every window. An element reaches only the windows that contain it.

    Parameters
    ----------
    $windowed
    $weighted_window
    $ndim
    $mode
    $stride
    $channels
    $padding_of_moments
    $input_mask

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_moments

    Raises
    ------
    $errors_of_windows
    $errors_of_weighted_windows

    References
    ----------
    $box_references

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_sum(torch.tensor([1.0, 2, 3, 4]), 2, ndim=1)
    tensor([3., 5., 7.])
    """
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, ignore_allowed=True
    )
    of = WeightedInput.parse(input, window, arguments, input_mask)
    return _sum(of, arguments.stride).to(of.result)


@shared
def local_mean(
    input: Tensor,
    window: Window | Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    input_mask: Tensor | None = None,
) -> Tensor:
    """Return the mean of every window.

    For a window ``(h, w)`` it equals ``input.unfold(-2, h, 1).unfold(-2, w, 1).mean((-2, -1))``, at
    one cost for every window.

    Parameters
    ----------
    $windowed
    $weighted_window
    $ndim
    $mode
    $stride
    $channels
    $padding_of_moments
    $input_mask

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_moments

    Raises
    ------
    $errors_of_windows
    $errors_of_weighted_windows

    References
    ----------
    $box_references

    $merge_reference

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_mean(torch.tensor([1.0, 2, 3, 4]), 2, ndim=1)
    tensor([1.5000, 2.5000, 3.5000])
    """
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, ignore_allowed=True
    )
    of = WeightedInput.parse(input, window, arguments, input_mask)
    return _moments(of, arguments.stride)[1].to(of.result)


@shared
def local_var(
    input: Tensor,
    window: Window | Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    input_mask: Tensor | None = None,
    correction: float = 0,
    eps: float = 0.0,
) -> Tensor:
    """Return the variance of every window.

    For a window ``(h, w)`` it equals, with `eps` 0, ``u.var((-2, -1), correction=correction)`` of
    the windows ``u = input.unfold(-2, h, 1).unfold(-2, w, 1)``, and 0 exactly where one is flat.

    Parameters
    ----------
    $windowed
    $weighted_window
    $ndim
    $mode
    $stride
    $channels
    $padding_of_moments
    $input_mask
    correction : float
        The sum of squares is divided by the window's elements less this; 1 is Bessel's.
    eps : float
        Added to the variance, in squared units of the input.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_moments

    Raises
    ------
    $errors_of_windows
    $errors_of_weighted_windows

    Notes
    -----
    Squares are summed about means, part by part, and never subtracted: no offset costs digits.

    References
    ----------
    $box_references

    $merge_reference

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_var(torch.tensor([1.0, 3, 3, 9]), 2, ndim=1)
    tensor([1., 0., 9.])
    """
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, ignore_allowed=True
    )
    _checks.not_negative(correction, "correction")
    _checks.not_negative(eps, "eps")
    of = WeightedInput.parse(input, window, arguments, input_mask)
    count, _, var = _moments(of, arguments.stride)
    return (_corrected(var, count, correction) + eps).to(of.result)


@shared
def local_std(
    input: Tensor,
    window: Window | Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    input_mask: Tensor | None = None,
    correction: float = 0,
    eps: float = 0.0,
) -> Tensor:
    """Return the standard deviation of every window.

    The root of `local_var`, ``u.std((-2, -1), correction=correction)`` of the unfolded windows
    ``u``. Where a window is flat its gradient is exactly 0; that of a root would be infinite.

    Parameters
    ----------
    $windowed
    $weighted_window
    $ndim
    $mode
    $stride
    $channels
    $padding_of_moments
    $input_mask
    correction : float
        The sum of squares is divided by the window's elements less this; 1 is Bessel's.
    eps : float
        Added to the variance under the root, in squared units of the input.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_moments

    Raises
    ------
    $errors_of_windows
    $errors_of_weighted_windows

    References
    ----------
    $box_references

    $merge_reference

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_std(torch.tensor([1.0, 3, 3, 9]), 2, ndim=1)
    tensor([1., 0., 3.])
    """
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, ignore_allowed=True
    )
    _checks.not_negative(correction, "correction")
    _checks.not_negative(eps, "eps")
    of = WeightedInput.parse(input, window, arguments, input_mask, padded=False)
    if not of.is_plain():
        count, _, var = _moments(of, arguments.stride)
        return _root(_corrected(var, count, correction), eps).to(of.result)
    _checks.correction_fits(correction, _count(of))
    how = (arguments.stride, float(correction), float(eps), of.pads, float(arguments.pad_value))
    out: Tensor = _contract.local_std(of.input, of.window, *how)
    return out.to(of.result)


@shared
def flat_windows(
    input: Tensor,
    window: Window | Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    input_mask: Tensor | None = None,
) -> Tensor:
    """Return which windows are flat: all their elements equal.

    Decided exactly, without a tolerance; such windows score 0 in `zncc`. For the unfolded windows
    ``u`` it equals ``u.amax((-2, -1)) == u.amin((-2, -1))``. One that contains a NaN is not flat.

    Parameters
    ----------
    $windowed
    $weighted_window
    $ndim
    $mode
    $stride
    $channels
    $padding_of_moments
    $input_mask

    Returns
    -------
    Tensor
        ``(*lead, *positions)``, boolean. The input is float64, float32, float16, bfloat16, uint8,
        int8, int16, uint16 or int32.

    Raises
    ------
    $errors_of_windows
    $errors_of_weighted_windows

    References
    ----------
    $box_references

    $merge_reference

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.flat_windows(torch.tensor([1e6, 1e6, 1e6 + 0.5]), 2, ndim=1)
    tensor([ True, False])
    """
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, ignore_allowed=True
    )
    of = WeightedInput.parse(input, window, arguments, input_mask)
    return _moments(of.detached(), arguments.stride)[2] == 0
