"""Moments of every window: check, call one operator."""

from __future__ import annotations

import math

from torch import Tensor

from . import _checks
from ._frame import Frame, Window, normal_input
from ._geometry import Ints
from ._ops import ops


def _count(x: Tensor, window: Ints) -> int:
    return int(x.shape[-len(window) - 1]) * math.prod(window)


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
    costs the same for every window. An element reaches only the windows that hold it.

    Parameters
    ----------
    input : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    window : int or sequence of int
        Elements of the window, along all axes or along each.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window;
        ``"independent"`` leaves it a leading axis.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        summed in a wider type and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32.

    Raises
    ------
    ValueError
        If the window is below 1 or, in valid mode, larger than the input; a name or a size is
        not one of those above; or a reflected or circular padding reaches beyond the input.
    TypeError
        If the dtype is not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    References
    ----------
    M. van Herk, A fast algorithm for local minimum and maximum filters on rectangular and
    octagonal kernels, Pattern Recognition Letters 13, 1992; J. Gil, M. Werman, Computing 2-D min,
    median, and max filters, IEEE TPAMI 15, 1993: one cost for any window.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_sum(torch.tensor([1.0, 2, 3, 4]), 2, ndim=1)
    tensor([3., 5., 7.])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = normal_input(input, window, frame)
    out: Tensor = ops.window_sum(x, sizes, frame.stride)
    return out.to(result)


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
    input : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    window : int or sequence of int
        Elements of the window, along all axes or along each.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window;
        ``"independent"`` leaves it a leading axis.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        summed in a wider type and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32.

    Raises
    ------
    ValueError
        If the window is below 1 or, in valid mode, larger than the input; a name or a size is
        not one of those above; or a reflected or circular padding reaches beyond the input.
    TypeError
        If the dtype is not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    References
    ----------
    M. van Herk, A fast algorithm for local minimum and maximum filters on rectangular and
    octagonal kernels, Pattern Recognition Letters 13, 1992; J. Gil, M. Werman, Computing 2-D min,
    median, and max filters, IEEE TPAMI 15, 1993: one cost for any window.

    T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, The
    American Statistician 37, 1983: merging variances without cancellation.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_mean(torch.tensor([1.0, 2, 3, 4]), 2, ndim=1)
    tensor([1.5000, 2.5000, 3.5000])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = normal_input(input, window, frame)
    mean: Tensor = ops.window_moments(x, sizes, frame.stride)[0]
    return mean.to(result)


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
    input : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    window : int or sequence of int
        Elements of the window, along all axes or along each.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window;
        ``"independent"`` leaves it a leading axis.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.
    correction : float
        The sum of squares is divided by the window's elements less this; 1 is Bessel's.
    eps : float
        Added to the variance, in squared units of the input.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        summed in a wider type and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32.

    Raises
    ------
    ValueError
        If the window is below 1 or, in valid mode, larger than the input; a name or a size is
        not one of those above; a reflected or circular padding reaches beyond the input; `eps` or
        `correction` is negative, or `correction` not below the number of window elements.
    TypeError
        If the dtype is not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    Notes
    -----
    Squares are summed about means, part by part, and never subtracted: no offset costs digits.

    References
    ----------
    M. van Herk, A fast algorithm for local minimum and maximum filters on rectangular and
    octagonal kernels, Pattern Recognition Letters 13, 1992; J. Gil, M. Werman, Computing 2-D min,
    median, and max filters, IEEE TPAMI 15, 1993: one cost for any window.

    T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, The
    American Statistician 37, 1983: merging variances without cancellation.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_var(torch.tensor([1.0, 3, 3, 9]), 2, ndim=1)
    tensor([1., 0., 9.])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = normal_input(input, window, frame)
    _checks.not_negative(eps, "eps")
    count = _count(x, sizes)
    _checks.correction_fits(correction, count)
    var: Tensor = ops.window_moments(x, sizes, frame.stride)[1]
    return (var * (count / (count - correction)) + eps).to(result)


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
    input : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    window : int or sequence of int
        Elements of the window, along all axes or along each.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window;
        ``"independent"`` leaves it a leading axis.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.
    correction : float
        The sum of squares is divided by the window's elements less this; 1 is Bessel's.
    eps : float
        Added to the variance under the root, in squared units of the input.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        summed in a wider type and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32.

    Raises
    ------
    ValueError
        If the window is below 1 or, in valid mode, larger than the input; a name or a size is
        not one of those above; a reflected or circular padding reaches beyond the input; `eps` or
        `correction` is negative, or `correction` not below the number of window elements.
    TypeError
        If the dtype is not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    References
    ----------
    M. van Herk, A fast algorithm for local minimum and maximum filters on rectangular and
    octagonal kernels, Pattern Recognition Letters 13, 1992; J. Gil, M. Werman, Computing 2-D min,
    median, and max filters, IEEE TPAMI 15, 1993: one cost for any window.

    T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, The
    American Statistician 37, 1983: merging variances without cancellation.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.local_std(torch.tensor([1.0, 3, 3, 9]), 2, ndim=1)
    tensor([1., 0., 3.])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = normal_input(input, window, frame)
    _checks.not_negative(eps, "eps")
    _checks.correction_fits(correction, _count(x, sizes))
    out: Tensor = ops.local_std(x, sizes, frame.stride, float(correction), float(eps))
    return out.to(result)


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
    ``u`` it equals ``u.amax((-2, -1)) == u.amin((-2, -1))``. One that holds a NaN is not flat.

    Parameters
    ----------
    input : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    window : int or sequence of int
        Elements of the window, along all axes or along each.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window;
        ``"independent"`` leaves it a leading axis.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``, boolean. The input is float64, float32, float16, bfloat16, uint8,
        int8, int16, uint16 or int32.

    Raises
    ------
    ValueError
        If the window is below 1 or, in valid mode, larger than the input; a name or a size is
        not one of those above; or a reflected or circular padding reaches beyond the input.
    TypeError
        If the dtype is not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    References
    ----------
    M. van Herk, A fast algorithm for local minimum and maximum filters on rectangular and
    octagonal kernels, Pattern Recognition Letters 13, 1992; J. Gil, M. Werman, Computing 2-D min,
    median, and max filters, IEEE TPAMI 15, 1993: one cost for any window.

    T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, The
    American Statistician 37, 1983: merging variances without cancellation.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.flat_windows(torch.tensor([1e6, 1e6, 1e6 + 0.5]), 2, ndim=1)
    tensor([ True, False])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, _ = normal_input(input, window, frame)
    var: Tensor = ops.window_moments(x.detach(), sizes, frame.stride)[1]
    return var == 0
