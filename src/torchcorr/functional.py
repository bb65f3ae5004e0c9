"""Correlation and its normalised scores: check, then call one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _contract
from ._arguments import Arguments, Window, normal_pair
from ._definition.traced import is_traced
from ._docstrings import shared
from ._plan.dtypes import HALVES, MAYBE_BYTES
from ._prepared import PreparedTemplate
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


def sums(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    *,
    name: str = "template",
    flip: bool = False,
    prepared: PreparedTemplate | None = None,
    pads: Sequence[int] | None = None,
) -> Tensor:
    """`correlate`, or `convolve` with `flip`, of arguments that are parsed.

    With `pads`, so many zeros are before and behind the input along each axis in turn, instead of
    the padding of the mode.
    """
    # Spectra are prepared for the tiles of a padded input.
    zeros = prepared is None and arguments.surrounds and arguments.pad_value == 0
    padded = pads is None and not zeros
    x, w, result = normal_pair(
        input, template, arguments, name=name, complex_allowed=True, padded=padded
    )
    if pads is None:
        pads = () if padded else arguments.pads_of(tuple(w.shape[-arguments.ndim :]))
    if flip:
        w = w.flip(tuple(range(-arguments.ndim, 0)))
    elif w.is_complex():
        w = w.conj().resolve_conj()
    how = (arguments.stride, arguments.method)
    spectra = None
    if prepared is not None:
        spectra = prepared.spectra_for(x, w, *how, normalised=False)
    out: Tensor = _contract.correlate(x, w, *how, spectra, pads)
    if _checks.is_integral(input.dtype) and arguments.pads_with_whole_numbers():
        return out.round()
    return out if out.dtype == result else out.to(result)


def scores(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    eps: float,
    weights: Weights,
    *,
    zero_mean: bool,
    prepared: PreparedTemplate | None = None,
) -> Tensor:
    _checks.not_negative(eps, "eps")
    _checks.tensor(input, "input")
    _checks.tensor(template, "template")
    weights.check(input, template)
    own_means = zero_mean and arguments.joint and not arguments.pooled
    if own_means:
        own_means = input.dim() > arguments.ndim and input.shape[-arguments.ndim - 1] > 1
    if own_means or weights.are_needed(input, template, arguments):
        return _weighted_scores(input, template, arguments, eps, weights, zero_mean)
    x, whole, result = normal_pair(
        input, template, arguments, name="template", complex_allowed=False, bytes_kept=True
    )
    w = whole
    if whole.is_floating_point():
        w = _contract.standardise(whole, arguments.ndim, zero_mean)
    stride, method = arguments.stride, arguments.method
    spectra = None
    # Those of bytes are of other numbers, and made in each call.
    if prepared is not None and x.is_floating_point():
        spectra = prepared.spectra_for(x, w, stride, method, normalised=True)
    given = whole.detach() if whole.dtype in MAYBE_BYTES else None
    out: Tensor = _contract.ncc(x, w, stride, zero_mean, float(eps), method, spectra, given)
    return out if out.dtype == result else out.to(result)


def _weighted_scores(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    eps: float,
    weights: Weights,
    zero_mean: bool,
) -> Tensor:
    x, w, result = normal_pair(input, template, arguments, name="template", complex_allowed=False)
    if x.dtype in HALVES:
        x, w = x.float(), w.float()
    if zero_mean and input.dtype == template.dtype == torch.int8:
        # From 0 on, as bytes are scored exactly: a level of either changes no coefficient.
        x, w = x + 128, w + 128
    window = tuple(w.shape[-arguments.ndim :])
    of_input = weights.of_input(input, arguments, window, x.dtype)
    of_template = weights.of_template(template, arguments, x.dtype)
    how = (zero_mean, arguments.pooled, float(eps), float(weights.min_overlap), arguments.method)
    out: Tensor = _contract.weighted_ncc(x, w, of_input, of_template, arguments.stride, *how)
    return out.to(result)
