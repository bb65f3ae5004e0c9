"""Weights of elements in normal form: masks, missing data, and what surrounds an input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._arguments import Arguments, Window, normal_input
from ._definition.traced import is_traced
from ._definition.transforms import bordered
from ._plan.dtypes import HALVES
from ._plan.shapes import Ints, pads_around


def _has_nan(x: Tensor) -> bool:
    """Whether x has a NaN; assumed where its values must not be looked at."""
    if not x.is_floating_point() or is_traced() or x.is_cuda:
        return x.is_floating_point()
    # A sum that is no NaN says so without a tensor of flags.
    return bool(x.sum().isnan()) and bool(x.isnan().any())


class Weights(NamedTuple):
    """What users say of the weights of elements."""

    input_mask: Tensor | None = None
    template_mask: Tensor | None = None
    nan: str = "propagate"
    min_overlap: float = 0.3

    def check(self, input: Tensor, template: Tensor) -> None:
        _checks.one_of(self.nan, _checks.NANS, "nan")
        _checks.share(self.min_overlap, "min_overlap")
        for mask, of, name in (
            (self.input_mask, input, "input"),
            (self.template_mask, template, "template"),
        ):
            if mask is not None:
                _checks.mask(mask, of, name, values=not (is_traced() or mask.is_cuda))

    def are_absent(self) -> bool:
        """Whether these say nothing, in valid arguments, whatever tensors contain."""
        if self.input_mask is not None or self.template_mask is not None:
            return False
        share = self.min_overlap
        return self.nan == "propagate" and type(share) is float and 0 <= share <= 1

    def are_needed(self, input: Tensor, template: Tensor, arguments: Arguments) -> bool:
        if self.input_mask is not None or self.template_mask is not None:
            return True
        if arguments.pad_mode == "ignore" and arguments.mode != "valid":
            return True
        return self.nan == "ignore" and (_has_nan(input) or _has_nan(template))

    def of_input(
        self, input: Tensor, arguments: Arguments, window: Ints, dtype: torch.dtype
    ) -> Tensor | None:
        """Weights that broadcast to the padded input in normal form; None for 1 everywhere."""
        surrounded = arguments.mode != "valid" and arguments.pad_mode in ("constant", "ignore")
        ignored = surrounded and arguments.pad_mode == "ignore"
        weight = _normal(self.input_mask, input, arguments, dtype)
        outside = 0.0 if ignored or weight is not None else 1.0
        if self.nan == "ignore" and _has_nan(input):
            there = (~arguments.normal(input).isnan()).to(dtype)
            weight = there if weight is None else weight * there
        if weight is None:
            if not ignored:
                return None
            weight = torch.ones((1, *input.shape[-arguments.ndim :]), dtype=dtype).to(input.device)
        if not surrounded:
            return arguments.padded(weight, window, "template")
        return bordered(weight, pads_around(arguments.mode, window), outside)

    def of_template(
        self, template: Tensor, arguments: Arguments, dtype: torch.dtype
    ) -> Tensor | None:
        weight = _normal(self.template_mask, template, arguments, dtype)
        if self.nan == "ignore" and _has_nan(template):
            there = (~arguments.normal(template).isnan()).to(dtype)
            weight = there if weight is None else weight * there
        return weight


class WeightedInput(NamedTuple):
    """An input in normal form, its weights and those of windows; None for 1 everywhere."""

    input: Tensor
    input_weight: Tensor | None
    weight: Tensor | None
    window: Ints
    result: torch.dtype
    pads: Ints = ()  # what surrounds the input, where that is left to the operator

    def is_plain(self) -> bool:
        return self.input_weight is None and self.weight is None

    def detached(self) -> WeightedInput:
        weights = (self.input_weight, self.weight)
        of_input, of_window = (None if x is None else x.detach() for x in weights)
        return self._replace(input=self.input.detach(), input_weight=of_input, weight=of_window)

    @classmethod
    def parse(
        cls,
        input: Tensor,
        window: Window | Tensor,
        arguments: Arguments,
        input_mask: Tensor | None,
        *,
        padded: bool = True,
    ) -> WeightedInput:
        """With `padded` false, a plain input is left without constant padding."""
        ndim, given = arguments.ndim, isinstance(window, Tensor)
        if isinstance(window, Tensor):
            _checks.tensor(input, "input")
            values = not (is_traced() or window.is_cuda)
            _checks.window_weights(window, input, ndim, values=values)
        sizes: Window = tuple(window.shape[-ndim:]) if isinstance(window, Tensor) else window
        padded = padded or given or input_mask is not None
        x, sizes, result = normal_input(input, sizes, arguments, padded=padded)
        weights = Weights(input_mask)
        weights.check(input, input)
        if not given and not weights.are_needed(input, input, arguments):
            pads = () if padded else arguments.pads_of(sizes)
            return cls(x, None, None, sizes, result, pads)
        x = x.float() if x.dtype in HALVES else x
        weight = None
        if isinstance(window, Tensor):
            weight = window.to(x.dtype)
            if not (arguments.joint and weight.dim() > ndim):
                weight = weight.unsqueeze(-ndim - 1)
            elif weight.shape[-ndim - 1] != 1:
                names = ("input", "window")
                _checks.channels_match(x.shape[-ndim - 1], weight.shape[-ndim - 1], names)
            _checks.leads_broadcast(
                x.shape[: -ndim - 1], weight.shape[: -ndim - 1], ("input", "window")
            )
        there = weights.of_input(input, arguments, sizes, x.dtype)
        return cls(x, there, weight, sizes, result)


def _normal(
    mask: Tensor | None, of: Tensor, arguments: Arguments, dtype: torch.dtype
) -> Tensor | None:
    """A mask that broadcasts to a tensor, with all its window axes and a channel axis."""
    if mask is None:
        return None
    ndim = arguments.ndim
    size = of.shape[-ndim:]
    mask = mask.to(dtype).expand(*mask.shape[: max(0, mask.dim() - ndim)], *size)
    has_channels = arguments.joint and mask.dim() > ndim
    return mask if has_channels else mask.unsqueeze(-ndim - 1)
