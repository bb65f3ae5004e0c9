"""The functions of torchcorr: check what was passed, choose a method, call one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as torch_pad

from . import _checks, _choose, _reference
from ._geometry import Ints, padding
from ._ops import ops

Window = int | Sequence[int]


@dataclass(frozen=True)
class _Frame:
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
    ) -> _Frame:
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
            return torch_pad(x, amounts, value=self.pad_value)
        flat = x.reshape(math.prod(x.shape[: -self.ndim]), 1, *size)
        if flat.shape[0] == 0:
            return torch_pad(x, amounts)
        wide = torch_pad(flat, amounts, mode=self.pad_mode)
        return wide.reshape(*x.shape[: -self.ndim], *wide.shape[-self.ndim :])


def _pair(
    input: Tensor, template: Tensor, frame: _Frame, *, name: str, complex_allowed: bool
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both tensors in normal form, padded and in their working dtype; and the result's dtype."""
    _checks.tensor(input, "input")
    _checks.tensor(template, name)
    _checks.rank(input, frame.ndim, frame.joint, "input")
    _checks.rank(template, frame.ndim, frame.joint, name)
    working = _checks.working_dtype({"input": input, name: template}, complex_allowed)
    result = _checks.result_dtype(input.dtype, working)
    window = tuple(template.shape[-frame.ndim :])
    _checks.window_not_empty(window, name)
    x, w = frame.normal(input), frame.normal(template)
    if frame.joint:
        _checks.channels_match(x.shape[-frame.ndim - 1], w.shape[-frame.ndim - 1])
    _checks.leads_broadcast(x.shape[: -frame.ndim - 1], w.shape[: -frame.ndim - 1])
    return frame.padded(x.to(working), window, name), w.to(working), result


def _method(method: str, input: Tensor, template: Tensor, frame: _Frame) -> str:
    _checks.one_of(method, _checks.METHODS, "method")
    lead = torch.broadcast_shapes(input.shape[: -frame.ndim - 1], template.shape[: -frame.ndim - 1])
    return _choose.resolve(
        method,
        input_shape=input.shape,
        template_shape=template.shape,
        lead=lead,
        stride=frame.stride,
    )


def _correlate(
    input: Tensor, kernel: Tensor, frame: _Frame, method: str, *, name: str, flip: bool
) -> Tensor:
    integral = isinstance(input, Tensor) and _checks.is_integral(input.dtype)
    x, w, result = _pair(input, kernel, frame, name=name, complex_allowed=True)
    w = w.flip(tuple(range(-frame.ndim, 0))) if flip else w.conj().resolve_conj()
    operator = getattr(ops, f"correlate_{_method(method, x, w, frame)}")
    out = operator(x, w, frame.stride)
    return out.round() if integral else out.to(result)


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
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _correlate(input, template, frame, method, name="template", flip=False)


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
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _correlate(input, kernel, frame, method, name="kernel", flip=True)


def _standardised(template: Tensor, ndim: int, zero_mean: bool) -> Tensor:
    """The template in float64, scaled to a mean square of 1, centred if asked; a flat one is 0."""
    axes = tuple(range(-ndim - 1, 0))
    wide = _reference.widen(template)
    flat = torch.zeros_like(wide[(..., *(slice(0, 1),) * (ndim + 1))], dtype=torch.bool)
    if zero_mean:
        flat = wide.amax(axes, keepdim=True) == wide.amin(axes, keepdim=True)
        # Twice: the first mean is rounded in units of the offset, the second of the contrast.
        wide = wide - wide.mean(axes, keepdim=True)
        wide = wide - wide.mean(axes, keepdim=True)
    # Dividing by the peak first keeps squares in range; the result does not depend on it.
    peak = wide.detach().abs().amax(axes, keepdim=True)
    flat = flat | (peak == 0)
    wide = torch.where(flat, 1.0, wide / torch.where(flat, 1.0, peak))
    scaled = wide * wide.square().mean(axes, keepdim=True).rsqrt()
    return torch.where(flat, 0.0, scaled)


def _score(
    input: Tensor, template: Tensor, frame: _Frame, method: str, eps: float, *, zero_mean: bool
) -> Tensor:
    _checks.not_negative(eps, "eps")
    x, w, result = _pair(input, template, frame, name="template", complex_allowed=False)
    w = _standardised(w, frame.ndim, zero_mean)
    operator = getattr(ops, f"ncc_{_method(method, x, w, frame)}")
    out: Tensor = operator(x, w, frame.stride, zero_mean, float(eps))
    return out.to(result)


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
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _score(input, template, frame, method, eps, zero_mean=True)


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
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    return _score(input, template, frame, method, eps, zero_mean=False)


def _windowed(input: Tensor, window: Window, frame: _Frame) -> tuple[Tensor, Ints, torch.dtype]:
    """The input in normal form, padded and in its working dtype; its window; the result's dtype."""
    sizes = _checks.per_axis(window, frame.ndim, "window")
    _checks.tensor(input, "input")
    _checks.rank(input, frame.ndim, frame.joint, "input")
    working = _checks.working_dtype({"input": input}, False)
    x = frame.normal(input)
    if frame.joint:
        _checks.channels_match(x.shape[-frame.ndim - 1], x.shape[-frame.ndim - 1])
    result = _checks.result_dtype(input.dtype, working)
    return frame.padded(x.to(working), sizes, "window"), sizes, result


def _count(x: Tensor, window: Ints) -> int:
    return int(x.shape[-len(window) - 1]) * math.prod(window)


def local_sum(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = _windowed(input, window, frame)
    out: Tensor = ops.window_sum(x, sizes, frame.stride)
    return out.to(result)


def local_mean(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = _windowed(input, window, frame)
    mean: Tensor = ops.window_moments(x, sizes, frame.stride)[0]
    return mean.to(result)


def local_var(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    correction: float = 0,
    eps: float = 0.0,
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = _windowed(input, window, frame)
    _checks.not_negative(eps, "eps")
    count = _count(x, sizes)
    _checks.correction_fits(correction, count)
    var: Tensor = ops.window_moments(x, sizes, frame.stride)[1]
    return (var * (count / (count - correction)) + eps).to(result)


def local_std(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    correction: float = 0,
    eps: float = 0.0,
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, result = _windowed(input, window, frame)
    _checks.not_negative(eps, "eps")
    _checks.correction_fits(correction, _count(x, sizes))
    out: Tensor = ops.local_std(x, sizes, frame.stride, float(correction), float(eps))
    return out.to(result)


def flat_windows(
    input: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> Tensor:
    frame = _Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    x, sizes, _ = _windowed(input, window, frame)
    var: Tensor = ops.window_moments(x.detach(), sizes, frame.stride)[1]
    return var == 0
