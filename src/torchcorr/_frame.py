"""How windows lie on an input: the arguments that all functions share, parsed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as torch_pad

from . import _checks
from ._geometry import Ints, padding
from ._ops import READ_HALF_TYPES, nothing_to_record
from ._tile_ops import new_map

Window = int | Sequence[int]


@dataclass(frozen=True)
class Frame:
    """How windows lie on an input: the parsed keyword arguments of a call."""

    ndim: int
    stride: Ints
    joint: bool
    mode: str
    pad_mode: str
    pad_value: float

    @classmethod
    def parse(
        cls, ndim: int, mode: str, stride: Window, channels: str, pad_mode: str, pad_value: float
    ) -> Frame:
        _checks.dimension(ndim)
        _checks.one_of(mode, _checks.MODES, "mode")
        _checks.one_of(channels, _checks.CHANNELS, "channels")
        _checks.one_of(pad_mode, _checks.PAD_MODES, "pad_mode")
        strides = _checks.per_axis(stride, ndim, "stride")
        return cls(ndim, strides, channels == "joint", mode, pad_mode, pad_value)

    def normal(self, x: Tensor) -> Tensor:
        """x with a channel axis: its own when joint, otherwise one of length 1."""
        _checks.memory_fits(x)
        return x if self.joint else x.unsqueeze(-self.ndim - 1)

    def padded(self, x: Tensor, window: Ints, name: str) -> Tensor:
        """x extended so that valid positions are the positions of the mode."""
        size = tuple(x.shape[-self.ndim :])
        _checks.input_not_empty(size)
        if self.mode == "valid":
            _checks.window_fits(window, size, name)
            return x
        pads = padding(self.mode, window)
        _checks.pad_fits(self.pad_mode, pads, size)
        amounts = [amount for pair in reversed(pads) for amount in pair]
        if self.pad_mode == "constant":
            if nothing_to_record(x):
                return _surrounded(x, pads, self.pad_value)
            return torch_pad(x, amounts, value=self.pad_value)
        flat = x.reshape(math.prod(x.shape[: -self.ndim]), 1, *size)
        if flat.shape[0] == 0:
            return torch_pad(x, amounts)
        wide = torch_pad(flat, amounts, mode=self.pad_mode)
        return wide.reshape(*x.shape[: -self.ndim], *wide.shape[-self.ndim :])


def _surrounded(x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    """x with `value` around it, as torch's pad, which takes small pages however large it is."""
    first = x.dim() - len(pads)
    shape = list(x.shape)
    for axis, pair in enumerate(pads, first):
        shape[axis] += sum(pair)
    out = new_map(x, shape)
    inner = out
    for axis, (before, after) in enumerate(pads, first):
        size = shape[axis] - before - after
        inner.narrow(axis, 0, before).fill_(value)
        inner.narrow(axis, before + size, after).fill_(value)
        inner = inner.narrow(axis, before, size)
    inner.copy_(x)
    return out


def in_working_dtype(working: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors as operators take them: widened, or as they are where kernels read half types so.

    A gradient is taken from what the forward pass keeps, so that is not rounded to a half type.
    """
    first = tensors[0]
    as_stored = first.dtype in _checks.HALVES and first.device.type in READ_HALF_TYPES
    if as_stored and all(x.dtype == first.dtype and nothing_to_record(x) for x in tensors):
        return tensors
    return tuple(x.to(working) for x in tensors)


def normal_pair(
    input: Tensor,
    template: Tensor,
    frame: Frame,
    *,
    name: str,
    complex_allowed: bool,
    data: bool = True,
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both tensors in normal form, padded and in their working dtype; and the result's dtype.

    Without `data` they are only shapes, and nothing is computed.
    """
    _checks.tensor(input, "input")
    _checks.tensor(template, name)
    _checks.rank(input, frame.ndim, frame.joint, "input")
    _checks.rank(template, frame.ndim, frame.joint, name)
    working = _checks.working_dtype({"input": input, name: template}, complex_allowed)
    result = _checks.result_dtype(input.dtype, working)
    if not data:
        input, template = input.to("meta"), template.to("meta")
    window = tuple(template.shape[-frame.ndim :])
    _checks.window_not_empty(window, name)
    x, w = frame.normal(input), frame.normal(template)
    if frame.joint:
        _checks.channels_match(x.shape[-frame.ndim - 1], w.shape[-frame.ndim - 1])
    _checks.leads_broadcast(x.shape[: -frame.ndim - 1], w.shape[: -frame.ndim - 1])
    x, w = in_working_dtype(working, x, w)
    return frame.padded(x, window, name), w, result


def normal_inputs(
    inputs: dict[str, Tensor], window: Window, frame: Frame
) -> tuple[tuple[Tensor, ...], Ints, torch.dtype]:
    """One input, or two of the same size whose leading axes broadcast, in normal form, padded and
    in their working dtype; their window; the result's dtype.
    """
    sizes = _checks.per_axis(window, frame.ndim, "window")
    for name, x in inputs.items():
        _checks.tensor(x, name)
        _checks.rank(x, frame.ndim, frame.joint, name)
    tensors = tuple(inputs.values())
    if len(tensors) == 2:
        core = frame.ndim + frame.joint
        a, b = (x.shape for x in tensors)
        _checks.sizes_match(a[-core:], b[-core:])
        _checks.leads_broadcast(a[:-core], b[:-core], tuple(inputs))
    working = _checks.working_dtype(inputs, False)
    result = _checks.result_dtype(tensors[0].dtype, working)
    if len(tensors) == 2:
        tensors = tuple(torch.broadcast_tensors(*tensors))
    normal = tuple(frame.normal(x) for x in tensors)
    if frame.joint:
        channels = normal[0].shape[-frame.ndim - 1]
        _checks.channels_match(channels, channels)
    normal = in_working_dtype(working, *normal)
    return tuple(frame.padded(x, sizes, "window") for x in normal), sizes, result


def normal_input(input: Tensor, window: Window, frame: Frame) -> tuple[Tensor, Ints, torch.dtype]:
    """The same of a single input."""
    (x,), sizes, result = normal_inputs({"input": input}, window, frame)
    return x, sizes, result
