"""How a call will be computed, for those who want to know before they wait."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import Arguments, Window, normal_pair
from ._definition.transposes import Transpose
from ._docstrings import shared
from ._plan.choose import arrange
from ._plan.conv import (
    Layer,
    LayerPlan,
    LayerWay,
    arrangement,
    sums_method,
    tiles_of,
    way_of,
)
from ._plan.costs import family
from ._plan.plan import Plan
from ._plan.strided import arrange_sums, on_lattices
from .convolution import Sizes, hashable, is_supported, parse


@shared
def plan(
    input: Tensor,
    template: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
    normalised: bool = True,
    device: str | None = None,
) -> Plan:
    """Return how `zncc`, or `correlate`, would compute these two tensors.

    Made from shapes, dtype and kind of device alone: nothing is computed, and tensors on
    the ``"meta"`` device, which have no data, suffice.

    Parameters
    ----------
    $input
    $template
    $ndim
    $mode
    $stride
    $channels
    $method
    normalised : bool
        Whether for a score, `zncc` or `ncc`, or for a plain sum, `correlate` or `convolve`.
    device : str, optional
        Kind of device that is planned for, ``"cpu"`` or ``"cuda"``; by default that of the input,
        and ``"cpu"`` for one without data. Families of GPUs whose costs were measured by
        ``python -m benchmarks.fit --device cuda`` have separate names, such as ``"cuda 9.0"``; the
        costs of ``"cuda"`` are estimates: bytes and operations of a large card.

    Returns
    -------
    Plan
        Method, tile and transform lengths, tiles and templates at once, bytes of scratch, and the
        predicted time in milliseconds of the two cores that the model was fitted on.

    Raises
    ------
    ValueError
        As `zncc` raises it.
    TypeError
        As `zncc` raises it.

    References
    ----------
    A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, Prentice Hall, 1989, section
    8.7 (overlap-save).

    Examples
    --------
    >>> import torch, torchcorr
    >>> image, template = torch.empty(4096, 4096, device="meta"), torch.empty(64, 64, device="meta")
    >>> plan = torchcorr.plan(image, template)
    >>> plan.method, plan.bytes < 64 * 2**20
    ('fft', True)
    """
    arguments = Arguments.parse(ndim, mode, stride, channels, "constant", 0.0, method)
    x, w, _ = normal_pair(
        input,
        template,
        arguments,
        name="template",
        complex_allowed=not normalised,
        bytes_kept=normalised,
        data=False,
    )
    kind = device if device is not None else family(input.device)
    sizes = (x.shape, w.shape, arguments.stride)
    if normalised:
        call = arrange(*sizes, method, normalised=True, dtype=x.dtype, device=kind)
    else:
        call = arrange_sums(*sizes, method, dtype=x.dtype, device=kind)
    if not normalised and call.plan.method == "fft" and call.problem.costs.pairs:
        call = on_lattices(*sizes, dtype=x.dtype, device=kind) or call
    return call.plan


@shared
def plan_layer(
    input: Tensor,
    weight: Tensor,
    *,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Sizes = 0,
    device: str | None = None,
) -> LayerPlan:
    """Return how `conv1d`, `conv2d`, `conv3d` or their transposes would compute these two tensors.

    Made from shapes, dtype and kind of device alone, as `plan`: nothing is computed, and tensors on
    the ``"meta"`` device suffice. Under autocast, give tensors of its dtype.

    Parameters
    ----------
    input : Tensor
        ``(N, C, *size)`` or ``(C, *size)``.
    weight : Tensor
        ``(O, C / groups, *window)``, or ``(C, O / groups, *window)`` of a transposed layer: its
        axes say in how many dimensions.
    stride, padding, dilation : int or sequence of int
        As `conv2d` takes them; `padding` may be ``"same"`` or ``"valid"``.
    groups : int
        As `conv2d` takes it.
    transposed : bool
        Whether for `conv_transpose2d` and its like.
    output_padding : int or sequence of int
        As `conv_transpose2d` takes it.
    device : str, optional
        Kind of device that is planned for; by default that of the input, and ``"cpu"`` for one
        without data. Devices other than the CPU always use PyTorch's convolution.

    Returns
    -------
    LayerPlan
        The method, the costs of all methods compared, and tiles and scratch, for the output and for
        both gradients. A complex layer is computed as three real ones, of which costs are the sum.

    Raises
    ------
    ValueError
        If the weight does not have 3 to 5 axes.
    RuntimeError
        As PyTorch's function raises it for these shapes.

    References
    ----------
    M. Mathieu, M. Henaff, Y. LeCun, Fast training of convolutional networks through FFTs, ICLR,
    2014.

    Examples
    --------
    >>> import torch, torchcorr
    >>> x, w = torch.empty(1, 64, 256, 256, device="meta"), torch.empty(64, 64, 31, 31)
    >>> way = torchcorr.plan_layer(x, w).output
    >>> way.method, min(way.costs, key=way.costs.get), way.plan.bytes < 2**28
    ('spectra', 'spectra', True)
    >>> torchcorr.plan_layer(x, torch.empty(64, 64, 3, 3)).output.method
    'torch'
    """
    ndim = weight.dim() - 2
    if ndim not in (1, 2, 3):
        raise ValueError(f"weight must have 3 to 5 axes: got {weight.dim()}")
    if not transposed:
        given = hashable((stride, padding, dilation, groups))
    else:
        given = hashable((stride, padding, output_padding, groups, dilation))
    call = parse(ndim, tuple(input.shape), tuple(weight.shape), given)
    if call is None:
        # PyTorch judges it, asked for no items, and will compute it if it is valid.
        name = f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d"
        lead = (0,) if input.dim() == ndim + 1 else ()
        shape = (*lead, *input.shape) if input.dim() != ndim + 2 else (0, *input.shape[1:])
        zero = torch.zeros((), dtype=input.dtype)
        getattr(F, name)(zero.expand(shape), zero.expand(weight.shape), None, *given)
    kind = device if device is not None else input.device.type
    fitting = is_supported(input.dtype) and input.dtype == weight.dtype
    if call is None or not fitting or kind not in ("cpu", "meta"):
        return LayerPlan(*(LayerWay("torch", {}, None) for _ in range(3)))
    layer, calls = call.layer(input.dtype), 3 if input.is_complex() else 1
    return LayerPlan(*(_planned(layer, form, calls) for form in call.forms))


def _planned(layer: Layer, form: str, calls: int) -> LayerWay:
    way = way_of(layer, form)
    costs = {method: calls * cost for method, cost in way.costs}
    plan = None
    if way.method == "spectra":
        dense = layer.dense_of(form)
        plan = tiles_of(dense)[0].plan(dense, costs["spectra"])
    elif way.method == "sums":
        plan = replace(_sums_plan(layer, form), cost=costs["sums"])
    return LayerWay(way.method, costs, plan)


def _sums_plan(layer: Layer, form: str) -> Plan:
    """Of `correlate`, or of its transposes, on the sub-lattices of a layer."""
    dense, size = layer.dense, layer.lattices.dense
    plan = arrangement(dense, size, sums_method(layer, form))
    if form == "output" or plan.method == "direct":
        return plan
    lead, ones = (dense.items, dense.groups), (1,) * len(size)
    input = (*lead, 1, dense.channels, *size)
    template = (dense.groups, dense.outputs, dense.channels, *dense.window)
    dtype = torch.float64 if dense.itemsize == 8 else torch.float32
    grad = torch.empty((*lead, dense.outputs, *dense.positions), dtype=dtype, device="meta")
    other = torch.empty(template if form == "input" else input, dtype=dtype, device="meta")
    if form == "input":
        return Transpose.into_input(grad, other, input, ones, "cpu", dense.itemsize).plan
    return Transpose.into_template(grad, other, template, ones, "cpu", dense.itemsize).plan
