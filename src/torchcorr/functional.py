"""Correlation and its normalised scores, as users call them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._arguments import Arguments, Window
from ._definition.traced import is_traced
from ._docstrings import shared
from ._pairs import scores, sums
from ._weights import Weights


@shared
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
    $input
    $template
    $ndim
    $mode
    $stride
    $channels
    $method
    $padding

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_sums

    Raises
    ------
    $errors_of_pairs

    Notes
    -----
    Gradients are exact, of any order and also in forward mode, and made of the same operations:
    for the input a full convolution, for the template a valid correlation. A float32 value is
    within a few roundings of the sum of absolute products in its window; in float64 that holds for
    the direct method, and by transforms a value has the rounding of its tile.

    References
    ----------
    R. N. Bracewell, The Fourier Transform and Its Applications, McGraw-Hill, 2000, chapter 3.

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.correlate(torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, 2]), ndim=1)
    tensor([2., 5., 8.])
    """
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value, method)
    return sums(input, template, arguments)


@shared
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
    $input
    $kernel
    $ndim
    $mode
    $stride
    $channels
    $method
    $padding

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_sums

    Raises
    ------
    $errors_of_pairs

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
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value, method)
    return sums(input, kernel, arguments, name="kernel", flip=True)


@shared
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
    input_mask: Tensor | None = None,
    template_mask: Tensor | None = None,
    nan: str = "propagate",
    min_overlap: float = 0.3,
) -> Tensor:
    """Return the zero-normalised cross-correlation coefficient at every position.

    Pearson's correlation of the template with each window, in [-1, 1]: unchanged by a brightness
    and a positive contrast of either. For one image and one template, with
    ``u = input.unfold(-2, h, 1).unfold(-2, w, 1)`` and ``standard(v)`` for ``(v - mean) / std``, it
    equals ``(standard(u) * standard(template)).mean((-2, -1))``.

    Parameters
    ----------
    $input
    $template
    $ndim
    $mode
    $stride
    $channels_of_scores
    $method
    $padding_of_scores
    eps : float
        Added to the window's variance under the root, in squared units of the input.
    $weights

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_scores

    Raises
    ------
    $errors_of_pairs
    $errors_of_weights

    Notes
    -----
    A flat window or template (all elements equal) scores exactly 0, with exactly 0 gradient. A NaN
    makes the scores of the windows that contain it NaN, and no others. Padding counts as data. The
    variance is merged from parts, never a difference of large sums: an offset costs no digits.

    References
    ----------
    J. P. Lewis, Fast normalized cross-correlation, Vision Interface, 1995.

    K. Briechle, U. D. Hanebeck, Template matching using fast normalized cross correlation, Proc.
    SPIE 4387, 2001.

    Examples
    --------
    A window of the template's shape scores 1 at any brightness and contrast, its negative -1.

    >>> import torch, torchcorr
    >>> signal = torch.tensor([0.0, 1, 3, 1, 0, 50, 40, 20, 40, 50])
    >>> template = torch.tensor([1.0, 3, 1])
    >>> scores = torchcorr.zncc(signal, template, ndim=1)
    >>> scores[1].item(), scores[6].item()
    (1.0, -1.0)
    """
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, method, ignore_allowed=True
    )
    weights = Weights(input_mask, template_mask, nan, min_overlap)
    return scores(input, template, arguments, eps, weights, zero_mean=True)


@shared
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
    input_mask: Tensor | None = None,
    template_mask: Tensor | None = None,
    nan: str = "propagate",
    min_overlap: float = 0.3,
) -> Tensor:
    """Return the normalised cross-correlation at every position, means not subtracted.

    The cosine between the template and each window, in [-1, 1]: unchanged by a positive scale of
    either. For one image and one template, ``u`` being the unfolded windows, it equals
    ``torch.nn.functional.cosine_similarity(u.flatten(-2), template.flatten(), dim=-1)``.

    Parameters
    ----------
    $input
    $template
    $ndim
    $mode
    $stride
    $channels_of_scores
    $method
    $padding_of_scores
    eps : float
        Added to the window's mean square under the root, in squared units of the input.
    $weights

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_scores

    Raises
    ------
    $errors_of_pairs
    $errors_of_weights

    Notes
    -----
    A window or a template of zeros scores exactly 0, with exactly 0 gradient. A NaN makes the
    scores of the windows that contain it NaN, and no others. Padding counts as data.

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
    arguments = Arguments.parse(
        ndim, mode, stride, channels, pad_mode, pad_value, method, ignore_allowed=True
    )
    weights = Weights(input_mask, template_mask, nan, min_overlap)
    return scores(input, template, arguments, eps, weights, zero_mean=False)


@shared
def coverage(
    input_mask: Tensor,
    template_mask: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
) -> Tensor:
    """Return the share of a template's weight that lies on valid elements of an input.

    What `min_overlap` of `zncc` and `ncc` is compared with: the weights of the input's elements
    under the template, weighted by its own, relative to their sum.

    Parameters
    ----------
    input_mask : Tensor
        ``(*lead, *size)``: weights in [0, 1], or which elements are valid. Outside the input,
        in modes ``"same"`` and ``"full"``, nothing is.
    template_mask : Tensor
        ``(*lead, *window)``: weights of a template's elements, not negative; ones for all of them.
    $ndim
    $mode
    $stride
    $channels
    $method

    Returns
    -------
    Tensor
        ``(*lead, *positions)``, in [0, 1]: float64 for weights in float64, otherwise float32.

    Raises
    ------
    $errors_of_weights

    References
    ----------
    D. Padfield, Masked object registration in the Fourier domain, IEEE Transactions on Image
    Processing 21, 2012: the overlap of two masks as their correlation.

    Examples
    --------
    >>> import torch, torchcorr
    >>> valid = torch.tensor([True, True, False, True])
    >>> torchcorr.coverage(valid, torch.tensor([1.0, 3.0]), ndim=1)
    tensor([1.0000, 0.2500, 0.7500])
    """
    arguments = Arguments.parse(ndim, mode, stride, channels, "constant", 0.0, method)
    weights = []
    for name, mask in (("input", input_mask), ("template", template_mask)):
        _checks.tensor(mask, f"{name}_mask")
        _checks.mask(mask, mask, name, values=not (is_traced() or mask.is_cuda))
        weights.append(mask if mask.dtype == torch.float64 else mask.float())
    if weights[0].dtype != weights[1].dtype:
        weights = [x.double() for x in weights]
    x, w = weights
    axes = tuple(range(-ndim - arguments.joint, 0))
    total = w.sum(axes)[(..., *(None,) * ndim)]
    return (sums(x, w, arguments) / torch.where(total > 0, total, 1.0)).clamp(0, 1)
