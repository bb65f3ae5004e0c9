"""Convolution layers as PyTorch has them, quicker where kernels are large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _contract
from ._docstrings import shared
from ._plan.conv import Layer, way_of
from ._plan.shapes import Ints
from ._prepared import PreparedWeight

Sizes = int | Sequence[int]
Function = Callable[..., Tensor]
# Taps of a weight from which on a compiled function leaves the choice to the operator.
_COMPILED_TAPS = 49
_PLAIN = (Tensor, torch.nn.Parameter)


@shared
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv1d` returns, in less time for large kernels.

    $conv

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.conv1d(torch.arange(4.0)[None], torch.tensor([[[1.0, 2.0]]]))
    tensor([[2., 5., 8.]])
    """
    return call_layer(F.conv1d, 1, input, weight, bias, (stride, padding, dilation, groups))


@shared
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv2d` returns, in less time for large kernels.

    $conv

    Examples
    --------
    >>> import torch, torchcorr
    >>> x, w = torch.rand(2, 8, 64, 64), torch.rand(8, 1, 31, 31)
    >>> torchcorr.conv2d(x, w, padding="same", groups=8).shape
    torch.Size([2, 8, 64, 64])
    """
    return call_layer(F.conv2d, 2, input, weight, bias, (stride, padding, dilation, groups))


@shared
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv3d` returns, in less time for large kernels.

    $conv

    Examples
    --------
    >>> import torch, torchcorr
    >>> x, w = torch.rand(1, 2, 16, 16, 16), torch.rand(4, 2, 7, 7, 7)
    >>> torchcorr.conv3d(x, w, stride=2).shape
    torch.Size([1, 4, 5, 5, 5])
    """
    return call_layer(F.conv3d, 3, input, weight, bias, (stride, padding, dilation, groups))


@shared
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv_transpose1d` returns: the transpose of `conv1d`.

    $conv_transpose

    Examples
    --------
    >>> import torch, torchcorr
    >>> torchcorr.conv_transpose1d(torch.tensor([[0.0, 1, 0]]), torch.tensor([[[3.0, 2, 1]]]))
    tensor([[0., 3., 2., 1., 0.]])
    """
    how = (stride, padding, output_padding, groups, dilation)
    return call_layer(F.conv_transpose1d, 1, input, weight, bias, how)


@shared
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv_transpose2d` returns: the transpose of `conv2d`.

    $conv_transpose

    Examples
    --------
    >>> import torch, torchcorr
    >>> x, w = torch.rand(1, 4, 8, 8), torch.rand(4, 2, 3, 3)
    >>> torchcorr.conv_transpose2d(x, w, stride=2, output_padding=1).shape
    torch.Size([1, 2, 18, 18])
    """
    how = (stride, padding, output_padding, groups, dilation)
    return call_layer(F.conv_transpose2d, 2, input, weight, bias, how)


@shared
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv_transpose3d` returns: the transpose of `conv3d`.

    $conv_transpose

    Examples
    --------
    >>> import torch, torchcorr
    >>> x, w = torch.rand(1, 2, 4, 4, 4), torch.rand(2, 1, 5, 5, 5)
    >>> torchcorr.conv_transpose3d(x, w, padding=2).shape
    torch.Size([1, 1, 4, 4, 4])
    """
    how = (stride, padding, output_padding, groups, dilation)
    return call_layer(F.conv_transpose3d, 3, input, weight, bias, how)


# --- a call that PyTorch would accept, as one of an operator --------------------------------------


class LayerCall(NamedTuple):
    """A layer as the operators take it; a transposed one is the gradient of an input."""

    shape: Ints | None  # of the result, of a transposed layer
    input: Ints
    weight: Ints
    how: tuple[Ints, Ints, Ints, int]  # stride, padding, dilation, groups
    behind: Ints  # zeros that padding has behind the input beyond those in front of it
    outputs: int

    def fits(self, bias: Any, input: Tensor) -> bool:
        """Whether there is no bias, or a valid one."""
        if bias is None:
            return True
        alike = isinstance(bias, Tensor) and bias.dtype == input.dtype
        return alike and bias.shape == (self.outputs,) and bias.device == input.device

    def layer(self, dtype: torch.dtype) -> Layer:
        """The convolution, of real numbers, of which each form of this one is a form."""
        real = dtype.to_real() if dtype.is_complex else dtype
        size = self.input if self.shape is None else self.shape
        return Layer.of(size, self.weight, *self.how, real)

    @property
    def forms(self) -> tuple[str, str, str]:
        """What the output and the gradients of input and weight are of that convolution."""
        return (
            ("output", "input", "weight") if self.shape is None else ("input", "output", "weight")
        )

    def form(self, input: Tensor, weight: Tensor, spectra: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = (
            list(x) if isinstance(x, tuple) else x for x in self.how
        )
        how = (stride, padding, dilation, groups, "auto", spectra)
        if self.shape is None:
            return _contract.conv(input, weight, *how)
        return _contract.conv_input_grad(input, weight, list(self.shape), *how)

    def __call__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spectra: Tensor | None = None,
    ) -> Tensor:
        ndim = len(self.behind)
        single = input.dim() == ndim + 1
        x = input.unsqueeze(0) if single else input
        if any(self.behind):
            x = F.pad(x, [n for m in reversed(self.behind) for n in (0, m)])
        if x.is_complex():
            real, imag = (
                self.form(*pair, None) for pair in ((x.real, weight.real), (x.imag, weight.imag))
            )
            both = self.form(x.real + x.imag, weight.real + weight.imag, None)
            out = torch.complex(real - imag, both - real - imag)
        else:
            out = self.form(x, weight, spectra)
        if bias is not None:
            out = out + bias.reshape(-1, *(1,) * ndim)
        return out.squeeze(0) if single else out


def call_layer(
    theirs: Function,
    ndim: int,
    input: Any,
    weight: Any,
    bias: Any,
    how: tuple[Any, ...],
    prepared: PreparedWeight | None = None,
) -> Tensor:
    """Through an operator where that is quicker. All else, and what is invalid, is PyTorch's.

    Most calls of small layers end up in PyTorch, so deciding it costs little. A module may keep
    the spectra of its weight, which needs no gradient then.
    """
    if torch.compiler.is_compiling():
        return _compiled(theirs, ndim, input, weight, bias, how)
    if type(input) not in _PLAIN or type(weight) not in _PLAIN:
        return theirs(input, weight, bias, *how)
    if not (input.is_cpu and weight.is_cpu):
        return theirs(input, weight, bias, *how)
    if torch._C._is_any_autocast_enabled():
        input, weight, bias = _autocast(input, weight, bias)
    recorded = torch.is_grad_enabled()
    needs = (recorded and input.requires_grad, recorded and weight.requires_grad)
    kinds = (input.dtype, weight.dtype)
    try:
        call = _chosen(ndim, input.shape, weight.shape, how, kinds, needs)
    except TypeError:  # lists of numbers are not hashable
        call = _chosen(ndim, input.shape, weight.shape, hashable(how), kinds, needs)
    if call is None or not call.fits(bias, input):
        return theirs(input, weight, bias, *how)
    if prepared is None:
        return call(input, weight, bias)
    layer = call.layer(input.dtype)
    return call(input, weight, bias, prepared.spectra_for(layer, call.forms[0], weight))


def _compiled(
    theirs: Function, ndim: int, input: Any, weight: Any, bias: Any, how: tuple[Any, ...]
) -> Tensor:
    """With shapes that may be symbols: from some taps on, an operator chooses when it runs."""
    how = hashable(how)
    if input.device.type == "cpu" and is_supported(input.dtype) and weight.dtype == input.dtype:
        input, weight, bias = _autocast(input, weight, bias)
        call = parse(ndim, tuple(input.shape), tuple(weight.shape), how)
        taps = weight[0, 0].numel() if call is not None else 0
        if call is not None and taps >= _COMPILED_TAPS and call.fits(bias, input):
            return call(input, weight, bias)
    return theirs(input, weight, bias, *how)


def hashable(how: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(tuple(x) if isinstance(x, list) else x for x in how)


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """Tensors in the type that autocast on the CPU gives them; a bias may be none."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")

    def cast(x: Any) -> Any:
        narrow = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if narrow else x

    return tuple(cast(x) for x in tensors)


def is_supported(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype in (torch.complex64, torch.complex128)


@lru_cache(maxsize=4096)
def _chosen(
    ndim: int,
    input: Ints,
    weight: Ints,
    how: tuple[Any, ...],
    kinds: tuple[torch.dtype, torch.dtype],
    needs: tuple[bool, bool],
) -> LayerCall | None:
    """The call of an operator if one of the forms it will be asked for is quicker by it."""
    dtype, other = kinds
    if dtype != other or not is_supported(dtype):
        return None
    call = parse(ndim, tuple(input), tuple(weight), how)
    if call is None:
        return None
    layer, (first, *others) = call.layer(dtype), call.forms
    forms = [first, *(f for f, need in zip(others, needs, strict=True) if need)]
    return call if any(way_of(layer, form).method != "torch" for form in forms) else None


def _numbers(x: Any, ndim: int, least: int) -> Ints | None:
    """An argument as one number an axis, None if PyTorch must judge it."""
    if isinstance(x, int) and not isinstance(x, bool):
        x = (x,) * ndim
    if not isinstance(x, tuple) or len(x) not in (1, ndim):
        return None
    if any(not isinstance(n, int) or isinstance(n, bool) or n < least for n in x):
        return None
    return x * ndim if len(x) == 1 and ndim > 1 else tuple(x)


def parse(ndim: int, input: Ints, weight: Ints, how: tuple[Any, ...]) -> LayerCall | None:
    """A valid call but for its bias; None for all that PyTorch must judge."""
    transposed = len(how) == 5
    if transposed:
        stride, padding, more, groups, dilation = how
    else:
        (stride, padding, dilation, groups), more = how, 0
    if len(weight) != ndim + 2 or len(input) not in (ndim + 1, ndim + 2):
        return None
    stride, dilation = _numbers(stride, ndim, 1), _numbers(dilation, ndim, 1)
    if type(groups) is not int or groups < 1 or stride is None or dilation is None:
        return None
    window = weight[2:]
    behind: Ints = (0,) * ndim
    if padding == "valid" and not transposed:
        padding = 0
    elif padding == "same" and not transposed and max(stride) == 1:
        reach = tuple(d * (k - 1) for k, d in zip(window, dilation, strict=True))
        padding, behind = tuple(n // 2 for n in reach), tuple(n % 2 for n in reach)
    padding, more = _numbers(padding, ndim, 0), _numbers(more, ndim, 0)
    if padding is None or more is None:
        return None
    whole = input if len(input) == ndim + 2 else (1, *input)
    items, channels, *size = whole
    fitting = weight[0] == channels if transposed else weight[1] * groups == channels
    outputs = weight[1] * groups if transposed else weight[0]
    if not fitting or weight[0] % groups != 0:
        return None
    if min(*whole, *weight) < 1:
        return None
    axes = list(zip(size, window, stride, padding, dilation, more, behind, strict=True))
    hows = (stride, padding, dilation, groups)
    if transposed:
        if any(m >= s for m, s in zip(more, stride, strict=True)):
            return None
        to = tuple((n - 1) * s - 2 * p + d * (k - 1) + m + 1 for n, k, s, p, d, m, _ in axes)
        if min(to) < 1:
            return None
        return LayerCall((items, outputs, *to), whole, weight, hows, behind, outputs)
    if any(n + 2 * p + e < d * (k - 1) + 1 for n, k, _, p, d, _, e in axes):
        return None
    padded = tuple(n + e for n, e in zip(size, behind, strict=True))
    return LayerCall(None, (items, channels, *padded), weight, hows, behind, outputs)
