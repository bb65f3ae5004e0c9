"""Checks of tensors: their kind, dtype, axes and elements."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .._definition.correlate import all_finite
from .._definition.traced import is_traced
from .._plan.dtypes import HALVES
from .numbers import CHANNELS, input_not_empty, leads_broadcast, window_not_empty

_FLOATS = (torch.float64, torch.float32)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32)
_COMPLEX = (torch.complex64, torch.complex128)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor: got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor: got {kind.removeprefix('_')}")


def real_tensor(value: object, name: str) -> None:
    tensor(value, name)
    if isinstance(value, Tensor) and value.dtype in _COMPLEX:
        raise TypeError(f"{name} must be real: got {_name(value.dtype)}")


def rank(x: Tensor, ndim: int, joint: bool, name: str) -> None:
    needed = ndim + joint
    if x.dim() < needed:
        axes = "a channel axis and " if joint else ""
        raise ValueError(f"{name} must have {axes}{ndim} window axes: got shape {tuple(x.shape)}")


def working_dtype(tensors: dict[str, Tensor], complex_allowed: bool) -> torch.dtype:
    """The dtype in which the operator runs; the inputs must share one dtype and one device."""
    (first, x), *others = tensors.items()
    for name, y in others:
        if y.device != x.device:
            raise ValueError(
                f"{first} and {name} must be on one device: got {x.device} and {y.device}"
            )
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if autocast and all(
        y.is_floating_point() and y.dtype != torch.float64 for y in tensors.values()
    ):
        return torch.float32
    for name, y in others:
        if y.dtype != x.dtype:
            raise TypeError(
                f"{first} and {name} must share one dtype: got {_name(x.dtype)} and "
                f"{_name(y.dtype)}"
            )
    if x.dtype in _FLOATS or (complex_allowed and x.dtype in _COMPLEX):
        return x.dtype
    if x.dtype in HALVES or x.dtype in _INTEGERS:
        return torch.float32
    if x.dtype in _COMPLEX:
        raise TypeError(
            f"{first} must be real for this function: got {_name(x.dtype)}; "
            "correlate and convolve take complex tensors"
        )
    supported = _FLOATS + HALVES + _INTEGERS + (_COMPLEX if complex_allowed else ())
    raise TypeError(
        f"{first} must have one of the dtypes {', '.join(map(_name, supported))}: "
        f"got {_name(x.dtype)}"
    )


def result_dtype(dtype: torch.dtype, working: torch.dtype) -> torch.dtype:
    """The dtype of the result: that of a floating-point input, float32 for integers."""
    return dtype if dtype in HALVES else working


def is_integral(dtype: torch.dtype) -> bool:
    return dtype in _INTEGERS


def single(x: Tensor, ndim: int, joint: bool, name: str) -> None:
    """One item: no axes but the window axes and joint channels."""
    expected = ndim + joint
    if x.dim() == expected:
        return
    rule = f"{name} must have {expected} axes with ndim={ndim} and channels={CHANNELS[joint]!r}"
    hint = ""
    if x.dim() > expected:
        hint = "; match the items of a batch one by one"
        if not joint:
            hint += ", or pass channels='joint' if the first axis is the channel axis"
    raise ValueError(f"{rule}: got shape {tuple(x.shape)}{hint}")


def axes(x: Tensor, count: int, name: str) -> None:
    if x.dim() != count:
        raise ValueError(f"{name} must have {count} axes: got shape {tuple(x.shape)}")
    input_not_empty(tuple(x.shape), name)


def shape(x: object, expected: tuple[int, ...], name: str) -> None:
    real_tensor(x, name)
    if isinstance(x, Tensor) and tuple(x.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}: got {tuple(x.shape)}")


def integral(x: Tensor, name: str) -> None:
    if x.dtype.is_floating_point or x.dtype == torch.bool:
        raise TypeError(f"{name} must contain integers: got {_name(x.dtype)}")


def shares(x: Tensor, name: str) -> None:
    """Weights along the last axis that can be divided by their sum."""
    finite(x, name)
    if bool((x < 0).any()) or not bool((x.sum(-1) > 0).all()):
        raise ValueError(f"{name} must not be negative, nor all be 0: got {x.tolist()}")


def finite(x: Tensor, name: str) -> None:
    """Every element, where values may be looked at."""
    if not is_traced() and not all_finite(x):
        raise ValueError(f"{name} must be finite: got NaN or infinity")


def same_dtype(tensors: dict[str, Tensor]) -> None:
    (first, x), (second, y) = tensors.items()
    if x.dtype != y.dtype:
        raise TypeError(
            f"{first} and {second} must share one dtype: got {_name(x.dtype)} and {_name(y.dtype)}"
        )


def recordings(tensors: dict[str, Tensor], ndim: int) -> None:
    """Two real, finite tensors of one dtype, with `ndim` axes that are not empty."""
    for name, x in tensors.items():
        real_tensor(x, name)
        rank(x, ndim, False, name)
        input_not_empty(tuple(x.shape[-ndim:]), name)
        finite(x, name)
    same_dtype(tensors)
    first, second = (x.shape[:-ndim] for x in tensors.values())
    leads_broadcast(first, second, tuple(tensors))


def memory_fits(x: Tensor) -> None:
    """The sums of x, in float64, fit into the machine; asked only where it is in doubt."""
    needed = 8 * x.numel()
    if needed < 1 << 32 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise MemoryError(
            f"input of shape {tuple(x.shape)} needs at least {needed} bytes of working memory, "
            f"this machine has {memory}: cut the input into tiles that overlap by the window less "
            "one element and call once for each"
        )


def _finite_and_not_negative(weights: Tensor, name: str) -> Tensor:
    """The largest of weights."""
    lowest, highest = weights.aminmax()  # either is NaN if one of them is
    if not bool((lowest >= 0) & (highest < float("inf"))):
        raise ValueError(f"{name} must be finite and not negative")
    return highest


def mask(value: object, of: Tensor, name: str, *, values: bool) -> None:
    """Weights that broadcast to a tensor; their values are looked at only if asked for."""
    tensor(value, f"{name}_mask")
    if not isinstance(value, Tensor):
        return
    if value.dtype != torch.bool and not value.is_floating_point():
        raise TypeError(
            f"{name}_mask must be boolean or of floating-point numbers: got {_name(value.dtype)}"
        )
    if value.device != of.device:
        raise ValueError(
            f"{name}_mask and {name} must be on one device: got {value.device} and {of.device}"
        )
    sizes = zip(reversed(value.shape), reversed(of.shape), strict=False)
    if value.dim() > of.dim() or any(n not in (1, m) for n, m in sizes):
        raise ValueError(
            f"{name}_mask must broadcast to {name}: got shapes {tuple(value.shape)} and "
            f"{tuple(of.shape)}"
        )
    if not values or value.numel() == 0:
        return
    if value.dtype == torch.bool:
        largest = value.view(torch.uint8).amax()  # of bytes, since `any` looks at flags one by one
    else:
        largest = _finite_and_not_negative(value, f"{name}_mask")
    if not bool(largest):
        raise ValueError(f"{name}_mask must not be zero everywhere")


def window_weights(value: Tensor, of: Tensor, ndim: int, *, values: bool) -> None:
    """Weights of a window's elements, with leading axes or without."""
    tensor(value, "window")
    if value.dtype != torch.bool and not value.is_floating_point():
        raise TypeError(
            f"window must be boolean or of floating-point numbers: got {_name(value.dtype)}"
        )
    if value.device != of.device:
        raise ValueError(
            f"window and input must be on one device: got {value.device} and {of.device}"
        )
    rank(value, ndim, False, "window")
    window_not_empty(value.shape[-ndim:], "window")
    if not values or value.numel() == 0:
        return
    _finite_and_not_negative(value, "window")
    if not bool(value.flatten(-ndim).any(-1).all()):
        raise ValueError("window must not be zero everywhere")


def window_mask(value: object, input: Tensor, core: int, name: str) -> None:
    """Weights of elements that broadcast with the input: real, finite and not negative."""
    real_tensor(value, name)
    if not isinstance(value, Tensor):
        return
    if value.device != input.device:
        raise ValueError(f"{name} must be on the input's device: got {value.device}")
    missing = max(0, core - value.dim())
    shape = (*(1,) * missing, *value.shape)
    size, expected = shape[len(shape) - core :], input.shape[-core:]
    if any(n not in (1, m) for n, m in zip(size, expected, strict=True)):
        raise ValueError(
            f"{name} must broadcast with the input: got {tuple(value.shape)}, the input has "
            f"{tuple(input.shape)}"
        )
    leads_broadcast(input.shape[:-core], shape[: len(shape) - core], ("the input", name))
    if value.device.type == "meta" or is_traced() or value.dtype == torch.bool:
        return
    if value.numel() > 0:
        _finite_and_not_negative(value, name)
