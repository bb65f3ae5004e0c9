"""Parameters that many functions share, described once and filled into their docstrings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=Callable[..., Any])

# What convolution layers and their transposes share.
_LAYER = """\
Returns
-------
Tensor
    ``(N, O, *positions)``, or without N if the input has none. Dtypes are PyTorch's: the result
    has that of the tensors; under autocast that of autocast. Half types are computed in float32
    where PyTorch's own convolution is not called, and complex ones as three real convolutions.

Raises
------
RuntimeError, ValueError, TypeError
    PyTorch's own errors: its function is called with all that it would refuse.

Notes
-----
On the CPU the output and the gradients of `input` and `weight` are each computed in the way
that is predicted to be quickest: PyTorch's own convolution, the sliding sums of `correlate`, or
spectra of tiles with a matrix product over the channels for each frequency. A stride and a
dilation divide the tensors into sub-lattices, so nothing is computed and thrown away. On other
devices PyTorch's convolution is called. Where transforms are used the error of a value is a few
roundings of the norm of the weight times that of the part of the input in its tile, not of each
product. Gradients are exact, of any order, also in forward mode.

References
----------
M. Mathieu, M. Henaff, Y. LeCun, Fast training of convolutional networks through FFTs, ICLR,
2014.

V. Dumoulin, F. Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285,
2016."""

_DTYPES_OF_SCORES = """\
float64 and float32 keep their dtype; float16 and bfloat16 are computed in float32 and come back
as themselves; uint8, int8, int16, uint16 and int32 become float32; complex tensors are refused.
uint8 and int8 are scored on the CPU from exact sums with one rounding: a copy scores exactly 1."""

SHARED = {
    "input": """\
input : Tensor
    What is searched, ``(*lead, *size)``. The last `ndim` axes are the window axes.""",
    "template": """\
template : Tensor
    What slides over it, ``(*lead, *window)``. Leading axes broadcast with those of the input;
    nothing is expanded in memory.""",
    "kernel": """\
kernel : Tensor
    What the input is convolved with, ``(*lead, *window)``. Leading axes broadcast with those of
    the input; nothing is expanded in memory.""",
    "windowed": """\
input : Tensor
    ``(*lead, *size)``. The last `ndim` axes are the window axes.""",
    "window": """\
window : int or sequence of int
    Elements of the window, along all axes or along each.""",
    "weighted_window": """\
window : int, sequence of int or Tensor
    Elements of the window, along all axes or along each; or the weights of its elements,
    ``(*lead, *window)``, boolean or of floating-point numbers that are not negative. Their leading
    axes broadcast with those of the input; joint channels may have one window for all.""",
    "input_mask": """\
input_mask : Tensor, optional
    Weights of the input's elements, or which of them are valid, as in `zncc`: an element counts
    with its own weight times that of the window's element above it. Elements without weight may
    hold anything. With a mask a constant outside the input has no weight.""",
    "padding_of_moments": """\
pad_mode : str
    What surrounds the input in modes ``"same"`` and ``"full"``: ``"constant"``, ``"reflect"``,
    ``"replicate"``, ``"circular"``, or ``"ignore"``: nothing, so that windows at the border have
    only the elements that are there.
pad_value : float
    The constant outside the input, in its units; without weight if there is an `input_mask`.""",
    "errors_of_weighted_windows": """\
ValueError
    If weights do not broadcast, are negative, not finite or zero everywhere, or are on another
    device. Values are looked at on the CPU, and not under ``torch.compile`` and ``torch.func``.
TypeError
    If weights are neither boolean nor of floating-point numbers.""",
    "ndim": """\
ndim : int
    Number of window axes, 1 to 3.""",
    "mode": """\
mode : str
    ``"valid"``: windows inside the input, ``size - window + 1`` positions an axis. ``"full"``:
    every overlap. ``"same"``: the centre of ``"full"``, as many positions as the input has.""",
    "stride": """\
stride : int or sequence of int
    Elements from one position to the next, for all axes or for each. Positions between are not
    computed.""",
    "channels": """\
channels : str
    ``"joint"`` makes the axis before the window axes a part of the window; ``"independent"``
    leaves it a leading axis.""",
    "channels_of_scores": """\
channels : str
    ``"joint"`` makes the axis before the window axes a part of the window, with a mean for each
    channel and one deviation for all, as for colours; ``"pooled"`` has one mean for all, as if the
    axis were a window axis; ``"independent"`` leaves it a leading axis.""",
    "method": """\
method : str
    ``"direct"`` (the loop), ``"fft"``, or ``"auto"``: what `plan` finds cheaper.""",
    "padding": """\
pad_mode : str
    What surrounds the input in modes ``"same"`` and ``"full"``: ``"constant"``, ``"reflect"``,
    ``"replicate"`` or ``"circular"``.
pad_value : float
    The constant outside the input, in its units.""",
    "padding_of_scores": """\
pad_mode : str
    What surrounds the input in modes ``"same"`` and ``"full"``: ``"constant"``, ``"reflect"``,
    ``"replicate"``, ``"circular"``, or ``"ignore"``: nothing, so that windows at the border are
    scored from the elements that they have.
pad_value : float
    The constant outside the input, in its units; without weight if there is an `input_mask`.""",
    "weights": """\
input_mask : Tensor, optional
    Weights of the input's elements, or which of them are valid: not negative, boolean or of
    floating-point numbers, of a shape that broadcasts to the input's.
template_mask : Tensor, optional
    The same of the template. An element of a window counts with the product of its own weight and
    that of the template's element above it: means, covariance and both deviations are weighted
    so. Elements without weight may hold anything.
nan : str
    ``"ignore"``: elements that are NaN have no weight. ``"propagate"``: they make scores NaN.
min_overlap : float
    Windows with a smaller share of the template's weight score 0; see `coverage`.""",
    "errors_of_weights": """\
ValueError
    If a mask does not broadcast, is negative, not finite or zero everywhere, or is on another
    device. Values are looked at on the CPU, and not under ``torch.compile`` and ``torch.func``.
TypeError
    If a mask is neither boolean nor of floating-point numbers.""",
    "prepared": """\
The first input of a size pays for the template's transforms, later ones do not, until the template
changes, in whatever way. Kept spectra take about as much memory as the template padded to a tile,
see `plan`, twice over. On a GPU nothing is kept: finding out whether the template has changed would
wait for the device.""",
    "conv": """\
Parameters
----------
input : Tensor
    ``(N, C, *size)`` or ``(C, *size)``.
weight : Tensor
    ``(O, C / groups, *window)``.
bias : Tensor, optional
    ``(O,)``: added to each output.
stride : int or sequence of int
    Elements from one position to the next, for all axes or for each.
padding : int, sequence of int or str
    Zeros in front of and behind each axis; ``"valid"`` is none, ``"same"`` as many as make the
    output as large as the input at stride 1.
dilation : int or sequence of int
    Elements of the input from one tap of the weight to the next.
groups : int
    Groups of channels with separate weights; each output sees the channels of its own.

"""
    + _LAYER,
    "conv_transpose": """\
Parameters
----------
input : Tensor
    ``(N, C, *size)`` or ``(C, *size)``.
weight : Tensor
    ``(C, O / groups, *window)``.
bias : Tensor, optional
    ``(O,)``: added to each output.
stride, padding, dilation : int or sequence of int
    Those of the convolution whose transpose this is: its input has the shape of the result.
output_padding : int or sequence of int
    Elements added behind the result, of those that the stride leaves open.
groups : int
    Groups of channels with separate weights.

"""
    + _LAYER,
    "dtypes_of_scores": _DTYPES_OF_SCORES,
    "dtypes_of_sums": """\
float64, float32, complex128 and complex64 keep their dtype; float16 and bfloat16 are summed in
float32 and come back as themselves; uint8, int8, int16, uint16 and int32 become float32, their
sums whole numbers if the constant outside is one, exact up to 2**24.""",
    "dtypes_of_moments": """\
float64 and float32 keep their dtype; float16 and bfloat16 are summed in a wider type and come back
as themselves; uint8, int8, int16, uint16 and int32 become float32.""",
    "errors_of_pairs": """\
ValueError
    If the template (or kernel) is empty or, in valid mode, larger than the input; a name or a size
    is not one of those above; leading axes do not broadcast, or joint channels differ in number;
    a reflected or circular padding reaches beyond the input; a number is out of range; or devices
    differ.
TypeError
    If dtypes differ or are not among those above, or an argument has the wrong type.
MemoryError
    If the sums cannot fit into the machine's memory.""",
    "errors_of_windows": """\
ValueError
    If the window is below 1 or, in valid mode, larger than the input; a name or a size is not one
    of those above; a number is out of range; or a reflected or circular padding reaches beyond the
    input.
TypeError
    If the dtype is not among those above, or an argument has the wrong type.
MemoryError
    If the sums cannot fit into the machine's memory.""",
    "box_references": """\
M. van Herk, A fast algorithm for local minimum and maximum filters on rectangular and octagonal
kernels, Pattern Recognition Letters 13, 1992; J. Gil, M. Werman, Computing 2-D min, median, and
max filters, IEEE TPAMI 15, 1993: one cost for any window.""",
    "merge_reference": """\
T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, The American
Statistician 37, 1983: merging variances without cancellation.""",
}


def shared(function: Documented) -> Documented:
    """Replace each line ``$name`` of a docstring by that description, indented as the line is."""
    if function.__doc__ is not None:
        function.__doc__ = re.sub(
            r"^( *)\$(\w+)$",
            lambda line: textwrap.indent(SHARED[line[2]], line[1]),
            function.__doc__,
            flags=re.MULTILINE,
        )
    return function
