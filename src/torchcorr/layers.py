"""PyTorch's modules of convolution layers over the functions of `convolution`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._definition.traced import is_traced
from ._prepared import PreparedWeight
from .convolution import call_layer

Documented = TypeVar("Documented", bound=type[nn.Module])

_TEXT = """{0}, computed by `torchcorr.{1}`: a subclass that differs in nothing else.

Parameters, state dict, attributes and dtypes are PyTorch's, so a state dict of one loads into the
other. Inputs are ``(N, C, *size)`` or ``(C, *size)``.

After ``eval()`` the spectra of the weight are kept from call to call, on the CPU where transforms
are the quickest way, while gradients of the weight are not recorded: as under ``torch.no_grad()``.
They are made anew when the weight changes, in whatever way. Beside them the layer keeps a copy of
the weight to compare with, 96 MiB and the copy at most, until ``train()``.

Parameters
----------
in_channels, out_channels, kernel_size, ...
    As `{0}` takes them.

Examples
--------
>>> import torch, torchcorr
>>> layer = torchcorr.nn.{2}(4, 4, 31, padding=15, groups=4)
>>> layer(torch.rand(1, 4, {3})).shape == (1, 4, {3})
True
"""


def _described(function: str) -> Callable[[Documented], Documented]:
    def fill(module: Documented) -> Documented:
        size = ", ".join(["40"] * int(module.__name__[-2]))
        parent = f"torch.nn.{module.__name__}"
        module.__doc__ = _TEXT.format(parent, function, module.__name__, size)
        return module

    return fill


def _padded(layer: Any, input: Tensor) -> tuple[Tensor, Any]:
    """The input with a border that is not zero, and the padding that is left to the function."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    border = layer._reversed_padding_repeated_twice
    return F.pad(input, border, mode=layer.padding_mode), 0


def _place(layer: Any, padding: Any) -> tuple[Any, ...]:
    return layer.stride, padding, layer.dilation, layer.groups


def _transposed_place(layer: Any, input: Tensor, output_size: list[int] | None) -> tuple[Any, ...]:
    sizes = (layer.stride, layer.padding, layer.kernel_size, len(layer.stride), layer.dilation)
    more = layer._output_padding(input, output_size, *sizes)
    return layer.stride, layer.padding, more, layer.groups, layer.dilation


class _Layer:
    """What the modules share: a weight whose spectra are kept while it does not learn."""

    weight: Tensor
    bias: Tensor | None
    training: bool
    # Not set before there is something to keep, as convert makes modules without __init__.
    _prepared: PreparedWeight | None = None

    def _call(self, function: Callable[..., Tensor], input: Tensor, how: tuple[Any, ...]) -> Tensor:
        kept, ndim = self._kept(), self.weight.dim() - 2
        return call_layer(function, ndim, input, self.weight, self.bias, how, kept)

    def _kept(self) -> PreparedWeight | None:
        if is_traced():
            return None
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if self.training or learns:
            if self._prepared is not None:
                self._prepared = None
            return None
        if self._prepared is None:
            self._prepared = PreparedWeight()
        return self._prepared

    def train(self, mode: bool = True) -> Any:
        if mode:
            self._prepared = None
        return super().train(mode)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}


@_described("conv1d")
class Conv1d(_Layer, nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        x, padding = _padded(self, input)
        return self._call(F.conv1d, x, _place(self, padding))


@_described("conv2d")
class Conv2d(_Layer, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        x, padding = _padded(self, input)
        return self._call(F.conv2d, x, _place(self, padding))


@_described("conv3d")
class Conv3d(_Layer, nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        x, padding = _padded(self, input)
        return self._call(F.conv3d, x, _place(self, padding))


@_described("conv_transpose1d")
class ConvTranspose1d(_Layer, nn.ConvTranspose1d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        place = _transposed_place(self, input, output_size)
        return self._call(F.conv_transpose1d, input, place)


@_described("conv_transpose2d")
class ConvTranspose2d(_Layer, nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        place = _transposed_place(self, input, output_size)
        return self._call(F.conv_transpose2d, input, place)


@_described("conv_transpose3d")
class ConvTranspose3d(_Layer, nn.ConvTranspose3d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        place = _transposed_place(self, input, output_size)
        return self._call(F.conv_transpose3d, input, place)


_IN_PLACE_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
}


def convert(module: nn.Module, *, least_taps: int = 25) -> nn.Module:
    """Replace the convolution layers of a network that have large kernels by those of this package.

    Outputs, gradients, parameters and the state dict stay the same, within rounding; parameters,
    buffers and hooks are shared, not copied, so an optimiser keeps working.

    Parameters
    ----------
    module : torch.nn.Module
        A network, changed in place, or a layer ``(N, C, *size)`` of any dtype.
    least_taps : int
        Elements of a kernel, the product of its sides, from which on its layer is replaced. Below
        25 PyTorch's convolution is hardly ever slower than the others.

    Returns
    -------
    torch.nn.Module
        The network itself, or the layer in the place of one. Only layers whose type is one of
        PyTorch's six are replaced; subclasses of them, which may compute something else, are not.

    Raises
    ------
    TypeError
        If `module` is no ``torch.nn.Module``.

    References
    ----------
    X. Ding, X. Zhang, J. Han, G. Ding, Scaling up your kernels to 31x31: revisiting large kernel
    design in CNNs, CVPR, 2022.

    Examples
    --------
    >>> import torch, torchcorr
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 31, groups=8), torch.nn.ReLU())
    >>> torchcorr.nn.convert(block)
    Sequential(
      (0): Conv2d(8, 8, kernel_size=(31, 31), stride=(1, 1), groups=8)
      (1): ReLU()
    )
    >>> type(block[0]) is torchcorr.nn.Conv2d
    True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module: got {type(module).__name__}")
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = _converted(child, least_taps, replaced)
    return _converted(module, least_taps, replaced)


def _converted(
    layer: nn.Module, least_taps: int, replaced: dict[nn.Module, nn.Module]
) -> nn.Module:
    """The layer in the place of another, the same one wherever that is used; or itself."""
    kind: Any = _IN_PLACE_OF.get(type(layer))
    if kind is None or layer.weight[0, 0].numel() < least_taps:
        return layer
    if layer not in replaced:
        other = kind.__new__(kind)
        other.__dict__ = layer.__dict__
        replaced[layer] = other
    return replaced[layer]
