"""Modules: templates that are learned, or prepared once for many inputs; a loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import _checks, functional
from ._frame import Window
from ._overlap_save import Store, keeping
from .similarity import lncc

__all__ = ["ZNCC", "Correlate", "LNCCLoss"]


class _Prepared(torch.nn.Module):
    """A template and what was computed from it, kept until it changes."""

    template: Tensor

    def __init__(
        self,
        template: Tensor,
        *,
        ndim: int = 2,
        mode: str = "valid",
        stride: Window = 1,
        channels: str = "independent",
        method: str = "auto",
        pad_mode: str = "constant",
        pad_value: float = 0.0,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(template, Tensor):
            raise TypeError(f"template must be a torch.Tensor: got {type(template).__name__}")
        kept = template.detach().clone()
        if learnable:
            self.template = torch.nn.Parameter(kept)
        else:
            self.register_buffer("template", kept)
        self.ndim, self.mode, self.stride, self.channels = ndim, mode, stride, channels
        self.method, self.pad_mode, self.pad_value = method, pad_mode, pad_value
        self._store: Store = {}
        self._seen: Tensor | None = None

    def _keeping(self) -> AbstractContextManager[None]:
        """The store of spectra, emptied if the template is no longer what they were made of."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return nullcontext()
        now = self.template.detach()
        if now.device.type != "cpu":
            # To compare would be to wait for the device, for what costs about as much as one tile.
            return nullcontext()
        seen = self._seen
        if (
            seen is None
            or seen.dtype != now.dtype
            or seen.device != now.device
            or not torch.equal(seen, now)
        ):
            self._store = {}
            self._seen = now.clone()
        return keeping(self._store)

    def _of(self, function: Callable[..., Tensor], input: Tensor, **more: float) -> Tensor:
        with self._keeping():
            return function(
                input,
                self.template,
                ndim=self.ndim,
                mode=self.mode,
                stride=self.stride,
                channels=self.channels,
                method=self.method,
                pad_mode=self.pad_mode,
                pad_value=self.pad_value,
                **more,
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_store": {}, "_seen": None}

    def extra_repr(self) -> str:
        return (
            f"template={tuple(self.template.shape)}, ndim={self.ndim}, mode={self.mode!r}, "
            f"stride={self.stride}, channels={self.channels!r}, method={self.method!r}"
        )


class Correlate(_Prepared):
    """`correlate` with a template of its own, whose spectra are kept between calls.

    The first input of a size pays for the template's transforms, later ones do not, until the
    template changes, in whatever way. Kept spectra take about as much memory as the template
    padded to a tile, see `plan`, twice over. On a GPU nothing is kept: whether the template has
    changed could not be asked without waiting for it.

    Parameters
    ----------
    template : Tensor
        What slides over the inputs, ``(*lead, *window)``, in their dtype; copied.
    ndim, mode, stride, channels, method, pad_mode, pad_value
        As `correlate` takes them.
    learnable : bool
        Whether the template is a parameter, or a buffer.

    Examples
    --------
    >>> import torch, torchcorr
    >>> layer = torchcorr.nn.Correlate(torch.tensor([1.0, 2.0]), ndim=1)
    >>> layer(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    tensor([2., 5., 8.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._of(functional.correlate, input)


class ZNCC(_Prepared):
    """`zncc` with a template of its own, whose spectra are kept between calls.

    The first input of a size pays for the template's transforms, later ones do not, until the
    template changes, in whatever way. Kept spectra take about as much memory as the template
    padded to a tile, see `plan`, twice over. On a GPU nothing is kept: whether the template has
    changed could not be asked without waiting for it.

    Parameters
    ----------
    template : Tensor
        What slides over the inputs, ``(*lead, *window)``, in their dtype; copied.
    ndim, mode, stride, channels, method, pad_mode, pad_value, eps
        As `zncc` takes them.
    learnable : bool
        Whether the template is a parameter, or a buffer.

    Examples
    --------
    >>> import torch, torchcorr
    >>> image = torch.arange(20.0).sin().reshape(4, 5)
    >>> match = torchcorr.nn.ZNCC(image[1:3, 2:4])
    >>> scores = match(100 - 3 * image)
    >>> round(float(scores[1, 2]), 5)
    -1.0
    """

    def __init__(
        self,
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
        learnable: bool = False,
    ) -> None:
        super().__init__(
            template,
            ndim=ndim,
            mode=mode,
            stride=stride,
            channels=channels,
            method=method,
            pad_mode=pad_mode,
            pad_value=pad_value,
            learnable=learnable,
        )
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        return self._of(functional.zncc, input, eps=self.eps)


class LNCCLoss(torch.nn.Module):
    """One less the mean of `lncc`: the loss of image registration, lowest where both agree.

    Called with two tensors ``(*lead, *size)`` of one dtype, float64, float32 or a half type, it
    gives a scalar in [0, 2].

    Parameters
    ----------
    window : int or sequence of int
        Elements of the window, along all axes or along each; 9 is usual in three dimensions.
    ndim, mode, stride, channels, pad_mode, pad_value, eps
        As `lncc` takes them, but for three dimensions if nothing else is said.
    squared : bool
        Whether the coefficient is squared, so that an inverted contrast counts as agreement: the
        usual form between modalities.
    reduction : str
        ``"mean"`` or ``"sum"`` over all windows, or ``"none"``: the map.

    Raises
    ------
    ValueError
        If `reduction` is none of these; when called, what `lncc` raises.

    Notes
    -----
    A window that is flat in either image counts as one without agreement and has no gradient.
    Padding counts as data, so that with ``mode="same"`` the border tells of the padding; in
    ``"valid"``, the default, every window holds data alone.

    Examples
    --------
    >>> import torch, torchcorr
    >>> a = torch.arange(64.0).sin().reshape(8, 8)
    >>> loss = torchcorr.nn.LNCCLoss(3, ndim=2)
    >>> round(float(loss(a, 2 * a + 1)), 5), round(float(loss(a, -a)), 5)
    (0.0, 2.0)
    """

    def __init__(
        self,
        window: Window,
        *,
        ndim: int = 3,
        mode: str = "valid",
        stride: Window = 1,
        channels: str = "independent",
        pad_mode: str = "constant",
        pad_value: float = 0.0,
        eps: float = 0.0,
        squared: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _checks.one_of(reduction, ("mean", "sum", "none"), "reduction")
        self.window, self.ndim, self.mode, self.stride = window, ndim, mode, stride
        self.channels, self.pad_mode, self.pad_value = channels, pad_mode, pad_value
        self.eps, self.squared, self.reduction = eps, squared, reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        score = lncc(
            input,
            target,
            self.window,
            ndim=self.ndim,
            mode=self.mode,
            stride=self.stride,
            channels=self.channels,
            pad_mode=self.pad_mode,
            pad_value=self.pad_value,
            eps=self.eps,
        )
        if self.reduction == "mean":
            if not self.squared:
                return 1 - score.mean()
            # The mean of squares, whose backward makes one map; that of `square` makes two.
            none = score.new_zeros(()).expand_as(score)
            return 1 - torch.nn.functional.mse_loss(score, none)
        loss = 1 - (score.square() if self.squared else score)
        return loss if self.reduction == "none" else loss.sum()

    def extra_repr(self) -> str:
        return (
            f"window={self.window}, ndim={self.ndim}, mode={self.mode!r}, stride={self.stride}, "
            f"channels={self.channels!r}, squared={self.squared}, reduction={self.reduction!r}"
        )
