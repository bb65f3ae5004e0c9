"""Modules: templates that are learned, or prepared once for many inputs; layers; a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._arguments import Arguments, Window
from ._definition.traced import is_traced
from ._docstrings import shared
from ._pairs import scores, sums
from ._prepared import PreparedTemplate
from ._weights import Weights
from .layers import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    convert,
)
from .similarity import lncc

__all__ = [
    "ZNCC",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Correlate",
    "LNCCLoss",
    "convert",
]


class _Templated(torch.nn.Module):
    """A template, how it slides, and its spectra, kept until the template changes."""

    template: Tensor

    def __init__(self, template: Tensor, arguments: Arguments, learnable: bool) -> None:
        super().__init__()
        _checks.tensor(template, "template")
        values = template.detach().clone()
        if learnable:
            self.template = torch.nn.Parameter(values)
        else:
            self.register_buffer("template", values)
        self.arguments = arguments
        self._prepared: PreparedTemplate | None = None

    def prepared(self) -> PreparedTemplate | None:
        """The template's spectra, new ones if it no longer has the values they were made of."""
        if is_traced():
            return None
        now = self.template.detach()
        if now.is_cuda:
            # Comparing would wait for the device, for what costs about as much as one tile.
            return None
        if self._prepared is None or not self._prepared.is_of(now):
            self._prepared = PreparedTemplate(now.clone())
        return self._prepared

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_prepared": None}

    def extra_repr(self) -> str:
        options = self.arguments
        channels = "independent"
        if options.joint:
            channels = "pooled" if options.pooled else "joint"
        return (
            f"template={tuple(self.template.shape)}, ndim={options.ndim}, mode={options.mode!r}, "
            f"stride={options.stride}, channels={channels!r}, method={options.method!r}"
        )


@shared
class Correlate(_Templated):
    """`correlate` with a template that the module owns and whose spectra are kept between calls.

    $prepared

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
        arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value, method)
        super().__init__(template, arguments, learnable)

    def forward(self, input: Tensor) -> Tensor:
        return sums(input, self.template, self.arguments, prepared=self.prepared())


@shared
class ZNCC(_Templated):
    """`zncc` with a template that the module owns and whose spectra are kept between calls.

    $prepared

    Parameters
    ----------
    template : Tensor
        What slides over the inputs, ``(*lead, *window)``, in their dtype; copied.
    ndim, mode, stride, channels, method, pad_mode, pad_value, eps
        As `zncc` takes them.
    learnable : bool
        Whether the template is a parameter, or a buffer.
    template_mask : Tensor, optional
        Weights of the template's elements, as `zncc` takes them; a buffer.
    nan, min_overlap
        As `zncc` takes them, with the `input_mask` that a call may be given.

    Examples
    --------
    >>> import torch, torchcorr
    >>> match = torchcorr.nn.ZNCC(torch.tensor([1.0, 3, 1]), ndim=1)
    >>> match(torch.tensor([0.0, 1, 3, 1, 0])).detach()
    tensor([-0.1890,  1.0000, -0.1890])
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
        template_mask: Tensor | None = None,
        nan: str = "propagate",
        min_overlap: float = 0.3,
    ) -> None:
        arguments = Arguments.parse(
            ndim, mode, stride, channels, pad_mode, pad_value, method, ignore_allowed=True
        )
        _checks.not_negative(eps, "eps")
        super().__init__(template, arguments, learnable)
        self.eps, self.nan, self.min_overlap = eps, nan, min_overlap
        self.template_mask: Tensor | None
        kept = None if template_mask is None else template_mask.detach().clone()
        self.register_buffer("template_mask", kept)
        Weights(None, kept, nan, min_overlap).check(template, template)

    def forward(self, input: Tensor, input_mask: Tensor | None = None) -> Tensor:
        return scores(
            input,
            self.template,
            self.arguments,
            self.eps,
            Weights(input_mask, self.template_mask, self.nan, self.min_overlap),
            zero_mean=True,
            prepared=self.prepared(),
        )


class LNCCLoss(torch.nn.Module):
    """One less the mean of `lncc`: the loss of image registration, lowest where both agree.

    Called with two tensors ``(*lead, *size)`` of one dtype, float64, float32 or a half type, and if
    need be with the masks of `lncc`, ``loss(input, target, input_mask=..., target_mask=...)``, it
    gives a scalar in [0, 2].

    Parameters
    ----------
    window : int or sequence of int
        Elements of the window, along all axes or along each; 9 is usual in three dimensions.
    ndim, border, weights, stride, channels, eps
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
    A window that is flat in either image, or has no weight, counts as one without agreement and has
    no gradient. To leave windows out altogether, average the map of ``reduction="none"``.

    VoxelMorph's loss is ``LNCCLoss(9, border="zeros", squared=True)`` less 1, and so is that of
    MONAI for the same window; both add a small number to the denominator where this one has the
    rule for flat windows.

    Several scales see both far and near: sum the losses of one window on images pooled by 1, 2
    and 4, ``sum(loss(pool(a, s), pool(b, s)) for s in (1, 2, 4))`` with
    ``torch.nn.functional.avg_pool3d`` as `pool`, or of several windows on one image. Where
    displacements are much larger than the window, descend on the coarsest scale first, and then on
    each finer one from the displacements found.

    Examples
    --------
    >>> import torch, torchcorr
    >>> a = torch.arange(64.0).sin().reshape(8, 8)
    >>> loss = torchcorr.nn.LNCCLoss(3, ndim=2, weights="gaussian")
    >>> round(float(loss(a, 2 * a + 1)), 5), round(float(loss(a, -a)), 5)
    (0.0, 2.0)
    """

    def __init__(
        self,
        window: Window,
        *,
        ndim: int = 3,
        border: str = "renormalize",
        weights: str = "box",
        stride: Window = 1,
        channels: str = "independent",
        eps: float = 0.0,
        squared: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _checks.one_of(border, _checks.BORDERS, "border")
        _checks.one_of(weights, _checks.WINDOW_WEIGHTS, "weights")
        _checks.one_of(reduction, ("mean", "sum", "none"), "reduction")
        self.window, self.ndim, self.border, self.weights = window, ndim, border, weights
        self.stride, self.channels, self.eps = stride, channels, eps
        self.squared, self.reduction = squared, reduction

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        input_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        score = lncc(
            input,
            target,
            self.window,
            ndim=self.ndim,
            border=self.border,
            weights=self.weights,
            mask_a=input_mask,
            mask_b=target_mask,
            stride=self.stride,
            channels=self.channels,
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
            f"window={self.window}, ndim={self.ndim}, border={self.border!r}, "
            f"weights={self.weights!r}, stride={self.stride}, channels={self.channels!r}, "
            f"squared={self.squared}, reduction={self.reduction!r}"
        )
