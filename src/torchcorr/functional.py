"""Correlation and its normalised scores: check, choose a method, call one operator."""

from __future__ import annotations

from torch import Tensor

from . import _checks, _choose
from ._frame import Frame, Window, normal_pair
from ._ops import ops


def _method(method: str, input: Tensor, template: Tensor, frame: Frame, *, normalised: bool) -> str:
    _checks.one_of(method, _checks.METHODS, "method")
    return _choose.resolve(input, template, frame.stride, method, normalised)


def _correlate(
    input: Tensor, kernel: Tensor, frame: Frame, method: str, *, name: str, flip: bool
) -> Tensor:
    integral = isinstance(input, Tensor) and _checks.is_integral(input.dtype)
    x, w, result = normal_pair(input, kernel, frame, name=name, complex_allowed=True)
    w = w.flip(tuple(range(-frame.ndim, 0))) if flip else w.conj().resolve_conj()
    operator = getattr(ops, f"correlate_{_method(method, x, w, frame, normalised=False)}")
    out = operator(x, w, frame.stride)
    return out.round() if integral else out.to(result)


def correlate(
    input: Tensor,
    template: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    """Return the sliding sum of products of an input and a template.

    ``sum_v input[u * stride + v] * conj(template[v])``. For ``(H, W)`` and ``(h, w)`` it equals
    ``torch.nn.functional.conv2d(input[None, None], template[None, None])[0, 0]``.

    Parameters
    ----------
    input : Tensor
        What is searched, ``(*lead, *size)``. The last `ndim` axes are the window axes.
    template : Tensor
        What slides over it, ``(*lead, *window)``. Leading axes broadcast with those of
        the input; nothing is expanded in memory.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each. What lies between is
        not computed.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window, which is summed
        over; ``"independent"`` leaves it a leading axis.
    method : str
        ``"direct"`` (the loop), ``"fft"``, or ``"auto"``: what `plan` finds cheaper.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64, float32, complex128 and complex64 keep their dtype;
        float16 and bfloat16 are summed in float32 and come back as themselves; uint8, int8,
        int16, uint16 and int32 become float32, their sums whole numbers, exact up to 2**24.

    Raises
    ------
    ValueError
        If the template is empty, or in valid mode larger than the input; a name or a size is not
        one of those above; leading axes do not broadcast, or joint channels differ in number;
        a reflected or circular padding reaches beyond the input; or devices differ.
    TypeError
        If dtypes differ or are not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    Notes
    -----
    Gradients are exact, of any order, and made of the same operations: for the input a full
    convolution, for the template a valid correlation. A value is within a few roundings of the sum
    of absolute products of its own window, by any method.

    References
    ----------
    R. N. Bracewell, The Fourier Transform and Its Applications, McGraw-Hill, 2000, chapter 3.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.correlate(torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, 2]), ndim=1)
    tensor([2., 5., 8.])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _correlate(input, template, frame, method, name="template", flip=False)


def convolve(
    input: Tensor,
    kernel: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    """Return the convolution of an input and a kernel.

    `correlate` with the kernel reversed along the window axes and not conjugated. In mode
    ``"full"`` it equals ``scipy.signal.convolve(input, kernel)``.

    Parameters
    ----------
    input : Tensor
        What is searched, ``(*lead, *size)``. The last `ndim` axes are the window axes.
    kernel : Tensor
        What the input is convolved with, ``(*lead, *window)``. Leading axes broadcast with those of
        the input; nothing is expanded in memory.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each. What lies between is
        not computed.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window, which is summed
        over; ``"independent"`` leaves it a leading axis.
    method : str
        ``"direct"`` (the loop), ``"fft"``, or ``"auto"``: what `plan` finds cheaper.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64, float32, complex128 and complex64 keep their dtype;
        float16 and bfloat16 are summed in float32 and come back as themselves; uint8, int8,
        int16, uint16 and int32 become float32, their sums whole numbers, exact up to 2**24.

    Raises
    ------
    ValueError
        If the kernel is empty, or in valid mode larger than the input; a name or a size is not
        one of those above; leading axes do not broadcast, or joint channels differ in number;
        a reflected or circular padding reaches beyond the input; or devices differ.
    TypeError
        If dtypes differ or are not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    Notes
    -----
    In PyTorch, mode ``"valid"`` of one image and one kernel is
    ``torch.nn.functional.conv2d(input[None, None], kernel.flip(-2, -1)[None, None])[0, 0]``.

    References
    ----------
    R. N. Bracewell, The Fourier Transform and Its Applications, McGraw-Hill, 2000, chapter 3.

    Examples
    --------
    >>> import torch, torchcorr
    >>> hits, effect = torch.tensor([0.0, 0, 1, 1, 0, 0]), torch.tensor([3.0, 2, 1])
    >>> torchcorr.convolve(hits, effect, ndim=1, mode="full")
    tensor([0., 0., 3., 5., 3., 1., 0., 0.])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _correlate(input, kernel, frame, method, name="kernel", flip=True)


def _score(
    input: Tensor, template: Tensor, frame: Frame, method: str, eps: float, *, zero_mean: bool
) -> Tensor:
    _checks.not_negative(eps, "eps")
    x, w, result = normal_pair(input, template, frame, name="template", complex_allowed=False)
    w = ops.standardise(w, frame.ndim, zero_mean)
    operator = getattr(ops, f"ncc_{_method(method, x, w, frame, normalised=True)}")
    out: Tensor = operator(x, w, frame.stride, zero_mean, float(eps))
    return out.to(result)


def zncc(
    input: Tensor,
    template: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    eps: float = 0.0,
) -> Tensor:
    """Return the zero-normalised cross-correlation coefficient at every position.

    Pearson's correlation of the template with each window, in [-1, 1]: unchanged by a brightness
    and a positive contrast of either. For one image and one template, with
    ``u = input.unfold(-2, h, 1).unfold(-2, w, 1)`` and ``standard(v)`` for ``(v - mean) / std``, it
    equals ``(standard(u) * standard(template)).mean((-2, -1))``.

    Parameters
    ----------
    input : Tensor
        What is searched, ``(*lead, *size)``. The last `ndim` axes are the window axes.
    template : Tensor
        What slides over it, ``(*lead, *window)``. Leading axes broadcast with those of
        the input; nothing is expanded in memory.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each. What lies between is
        not computed.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window, which is summed
        over; ``"independent"`` leaves it a leading axis.
    method : str
        ``"direct"`` (the loop), ``"fft"``, or ``"auto"``: what `plan` finds cheaper.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.
    eps : float
        Added to the window's variance under the root, in squared units of the input.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        computed in float32 and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32; complex tensors are refused.

    Raises
    ------
    ValueError
        If the template is empty, or in valid mode larger than the input; a name or a size is not
        one of those above; leading axes do not broadcast, or joint channels differ in number;
        a reflected or circular padding reaches beyond the input; `eps` is negative or not finite;
        or devices differ.
    TypeError
        If dtypes differ or are not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    Notes
    -----
    A flat window or template (all elements equal) scores exactly 0, with exactly 0 gradient. A NaN
    makes the scores of the windows that hold it NaN, and no others. Padding counts as data. The
    variance is merged from parts, never a difference of large sums: an offset costs no digits.

    References
    ----------
    J. P. Lewis, Fast normalized cross-correlation, Vision Interface, 1995.

    K. Briechle, U. D. Hanebeck, Template matching using fast normalized cross correlation, Proc.
    SPIE 4387, 2001.

    Examples
    --------
    >>> import torch, torchcorr
    >>> image = torch.arange(20.0).sin().reshape(4, 5)
    >>> scores = torchcorr.zncc(100 - 3 * image, image[1:3, 2:4])
    >>> scores.shape, round(float(scores[1, 2]), 5)
    (torch.Size([3, 4]), -1.0)
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _score(input, template, frame, method, eps, zero_mean=True)


def ncc(
    input: Tensor,
    template: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    eps: float = 0.0,
) -> Tensor:
    """Return the normalised cross-correlation at every position, means not subtracted.

    The cosine between the template and each window, in [-1, 1]: unchanged by a positive scale of
    either. For one image and one template, ``u`` being the unfolded windows, it equals
    ``torch.nn.functional.cosine_similarity(u.flatten(-2), template.flatten(), dim=-1)``.

    Parameters
    ----------
    input : Tensor
        What is searched, ``(*lead, *size)``. The last `ndim` axes are the window axes.
    template : Tensor
        What slides over it, ``(*lead, *window)``. Leading axes broadcast with those of
        the input; nothing is expanded in memory.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each. What lies between is
        not computed.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window, which is summed
        over; ``"independent"`` leaves it a leading axis.
    method : str
        ``"direct"`` (the loop), ``"fft"``, or ``"auto"``: what `plan` finds cheaper.
    pad_mode : str
        What lies outside the input in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside the input, in its units.
    eps : float
        Added to the window's mean square under the root, in squared units of the input.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        computed in float32 and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32; complex tensors are refused.

    Raises
    ------
    ValueError
        If the template is empty, or in valid mode larger than the input; a name or a size is not
        one of those above; leading axes do not broadcast, or joint channels differ in number;
        a reflected or circular padding reaches beyond the input; `eps` is negative or not finite;
        or devices differ.
    TypeError
        If dtypes differ or are not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    Notes
    -----
    A window or a template of zeros scores exactly 0, with exactly 0 gradient. A NaN makes the
    scores of the windows that hold it NaN, and no others. Padding counts as data.

    References
    ----------
    J. P. Lewis, Fast normalized cross-correlation, Vision Interface, 1995.

    K. Briechle, U. D. Hanebeck, Template matching using fast normalized cross correlation, Proc.
    SPIE 4387, 2001.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.ncc(torch.tensor([3.0, 4, 0, 0]), torch.tensor([3.0, 4]), ndim=1)
    tensor([1.0000, 0.6000, 0.0000])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _score(input, template, frame, method, eps, zero_mean=False)
