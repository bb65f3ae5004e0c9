"""Moments of every window: check, call one operator."""

from __future__ import annotations

import math

from torch import Tensor

from . import _checks, _contract
from ._arguments import Arguments, Window, normal_input
from ._docstrings import shared
from ._plan.shapes import Ints


def _count(x: Tensor, window: Ints) -> int:
    return int(x.shape[-len(window) - 1]) * math.prod(window)


@shared
def local_sum(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    """Return the sum of every window.

    For a window ``(h, w)`` it equals ``input.unfold(-2, h, 1).unfold(-2, w, 1).sum((-2, -1))``, but
    costs the same for every window. An element reaches only the windows that contain it.

    Parameters
    ----------
    $windowed
    $window
    $ndim
    $mode
    $stride
    $channels
    $padding

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_moments

    Raises
    ------
    $errors_of_windows

    References
    ----------
    $box_references

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_sum(torch.tensor([1.0, 2, 3, 4]), 2, ndim=1)
    tensor([3., 5., 7.])
    """
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = normal_input(input, window, arguments)
    out: Tensor = _contract.window_sum(x, sizes, arguments.stride)
    return out.to(result)


@shared
def local_mean(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    """Return the mean of every window.

    For a window ``(h, w)`` it equals ``input.unfold(-2, h, 1).unfold(-2, w, 1).mean((-2, -1))``, at
    one cost for every window.

    Parameters
    ----------
    $windowed
    $window
    $ndim
    $mode
    $stride
    $channels
    $padding

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_moments

    Raises
    ------
    $errors_of_windows

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
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = normal_input(input, window, arguments)
    mean: Tensor = _contract.window_moments(x, sizes, arguments.stride)[0]
    return mean.to(result)


@shared
def local_var(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    correction: float = 0,
    eps: float = 0.0,
) -> Tensor:
    """Return the variance of every window.

    For a window ``(h, w)`` it equals, with `eps` 0, ``u.var((-2, -1), correction=correction)`` of
    the windows ``u = input.unfold(-2, h, 1).unfold(-2, w, 1)``, and 0 exactly where one is flat.

    Parameters
    ----------
    $windowed
    $window
    $ndim
    $mode
    $stride
    $channels
    $padding
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
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    _checks.not_negative(correction, "correction")
    _checks.not_negative(eps, "eps")
    x, sizes, result = normal_input(input, window, arguments)
    count = _count(x, sizes)
    _checks.correction_fits(correction, count)
    var: Tensor = _contract.window_moments(x, sizes, arguments.stride)[1]
    return (var * (count / (count - correction)) + eps).to(result)


@shared
def local_std(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    correction: float = 0,
    eps: float = 0.0,
) -> Tensor:
    """Return the standard deviation of every window.

    The root of `local_var`, ``u.std((-2, -1), correction=correction)`` of the unfolded windows
    ``u``. Where a window is flat its gradient is exactly 0; that of a root would be infinite.

    Parameters
    ----------
    $windowed
    $window
    $ndim
    $mode
    $stride
    $channels
    $padding
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
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    _checks.not_negative(correction, "correction")
    _checks.not_negative(eps, "eps")
    x, sizes, result = normal_input(input, window, arguments)
    _checks.correction_fits(correction, _count(x, sizes))
    out: Tensor = _contract.local_std(x, sizes, arguments.stride, float(correction), float(eps))
    return out.to(result)


@shared
def flat_windows(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    """Return which windows are flat: all their elements equal.

    Decided exactly, without a tolerance; such windows score 0 in `zncc`. For the unfolded windows
    ``u`` it equals ``u.amax((-2, -1)) == u.amin((-2, -1))``. One that contains a NaN is not flat.

    Parameters
    ----------
    $windowed
    $window
    $ndim
    $mode
    $stride
    $channels
    $padding

    Returns
    -------
    Tensor
        ``(*lead, *positions)``, boolean. The input is float64, float32, float16, bfloat16, uint8,
        int8, int16, uint16 or int32.

    Raises
    ------
    $errors_of_windows

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
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, _ = normal_input(input, window, arguments)
    var: Tensor = _contract.window_moments(x.detach(), sizes, arguments.stride)[1]
    return var == 0
