"""Checks of what users pass, and every message they can see."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ._definition.correlate import all_finite
from ._plan.dtypes import HALVES

MODES = ("valid", "same", "full")
PAD_MODES = ("constant", "reflect", "replicate", "circular")
CHANNELS = ("independent", "joint", "pooled")
NANS = ("propagate", "ignore")
BORDERS = ("renormalize", "valid", "zeros")
WINDOW_WEIGHTS = ("box", "triangle", "gaussian")
METHODS = ("auto", "direct", "fft")

_FLOATS = (torch.float64, torch.float32)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32)
_COMPLEX = (torch.complex64, torch.complex128)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_of(value: object, allowed: Sequence[str], name: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}: got {value!r}")


def dimension(ndim: object) -> None:
    if not isinstance(ndim, int) or isinstance(ndim, bool):
        raise TypeError(f"ndim must be an int: got {type(ndim).__name__}")
    if not 1 <= ndim <= 3:
        raise ValueError(f"ndim must be 1, 2 or 3: got {ndim}")


def per_axis(value: object, ndim: int, name: str, least: int = 1) -> tuple[int, ...]:
    """value as one int, at least `least`, for each window axis."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int or a sequence of ints: got a tensor")
    items = (value,) * ndim if isinstance(value, int) else value
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise TypeError(f"{name} must be an int or a sequence of ints: got {type(value).__name__}")
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool):
            raise TypeError(f"{name} must contain ints: got {item!r}")
    if len(items) != ndim:
        raise ValueError(f"{name} must have one value for each of {ndim} axes: got {tuple(items)}")
    if any(item < least for item in items):
        raise ValueError(f"{name} must be at least {least} along every axis: got {value}")
    return tuple(items)


def whole_per_axis(value: object, ndim: int, name: str) -> tuple[int, ...]:
    """value as one int, of any sign, for each window axis."""
    items = (value,) * ndim if isinstance(value, int) else value
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise TypeError(f"{name} must be an int or a sequence of ints: got {type(value).__name__}")
    if any(not isinstance(item, int) or isinstance(item, bool) for item in items):
        raise TypeError(f"{name} must contain ints: got {tuple(items)}")
    if len(items) != ndim:
        raise ValueError(f"{name} must have one value for each of {ndim} axes: got {tuple(items)}")
    return tuple(items)


def lag_ranges(value: object, ndim: int) -> list[tuple[int | None, int | None]]:
    """value as one pair (low, high) for each window axis; None leaves an end open."""
    rule = "lags must be a pair (low, high) or one pair for each axis"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{rule}: got {type(value).__name__}")
    pairs = value if value and isinstance(value[0], Sequence) else [value] * ndim
    if len(pairs) != ndim or any(not isinstance(p, Sequence) or len(p) != 2 for p in pairs):
        raise ValueError(f"{rule}: got {value!r} for {ndim} axes")
    for low, high in pairs:
        for end in (low, high):
            if end is not None and (not isinstance(end, int) or isinstance(end, bool)):
                raise TypeError(f"lags must contain ints or None: got {value!r}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"lags must rise from low to high: got {(low, high)}")
    return [(low, high) for low, high in pairs]


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
    if not all_finite(x):
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


def window_not_empty(window: Sequence[int], name: str) -> None:
    if any(k == 0 for k in window):
        raise ValueError(f"{name} must not be empty: got window {tuple(window)}")


def window_fits(window: Sequence[int], size: Sequence[int], name: str) -> None:
    """In valid mode the window fits inside the input along every axis."""
    for axis, (k, n) in enumerate(zip(window, size, strict=True)):
        if k > n:
            raise ValueError(
                f"{name} is larger than input along axis {axis - len(window)}: "
                f"got {k}, input has {n}"
            )


def input_not_empty(size: Sequence[int], name: str = "input") -> None:
    if any(n == 0 for n in size):
        raise ValueError(f"{name} must not be empty along a window axis: got {tuple(size)}")


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


def channels_match(
    input_channels: int, template_channels: int, names: Sequence[str] = ("input", "template")
) -> None:
    if input_channels != template_channels:
        raise ValueError(
            f"{' and '.join(names)} must have the same number of channels with channels='joint': "
            f"got {input_channels} and {template_channels}"
        )
    if input_channels == 0:
        raise ValueError("input must have at least one channel with channels='joint': got 0")


def leads_broadcast(
    input_lead: Sequence[int],
    template_lead: Sequence[int],
    names: Sequence[str] = ("input", "template"),
) -> None:
    for n, m in zip(reversed(input_lead), reversed(template_lead), strict=False):
        if n != m and n != 1 and m != 1:
            raise ValueError(
                f"leading axes of {' and '.join(names)} must broadcast: got "
                f"{tuple(input_lead)} and {tuple(template_lead)}; to pair each {names[0]} with "
                f"each {names[1]}, give {names[0]} one more leading axis of size 1 behind its own"
            )


def sizes_match(a: Sequence[int], b: Sequence[int], names: Sequence[str] = ("a", "b")) -> None:
    if tuple(a) != tuple(b):
        raise ValueError(
            f"{' and '.join(names)} must have the same window axes (and channels, with "
            f"channels='joint'): got {tuple(a)} and {tuple(b)}"
        )


def pad_fits(pad_mode: str, pads: Sequence[tuple[int, int]], size: Sequence[int]) -> None:
    """Reflection reaches at most size - 1 elements, a circle at most size."""
    reach = {"reflect": 1, "circular": 0}.get(pad_mode)
    if reach is None:
        return
    for axis, (pad, n) in enumerate(zip(pads, size, strict=True)):
        if max(pad) > n - reach:
            raise ValueError(
                f"pad_mode={pad_mode!r} can add at most {n - reach} elements along axis "
                f"{axis - len(size)}: the window needs {max(pad)}"
            )


def number(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number: got {type(value).__name__}")


def within(value: float, least: float, most: float, name: str) -> None:
    number(value, name)
    if not least <= value <= most or value == math.inf:
        raise ValueError(f"{name} must lie in [{least:g}, {most:g}]: got {value}")


def numbers(values: Sequence[float], count: int, name: str) -> None:
    if len(values) != count:
        raise ValueError(f"{name} must have {count} numbers: got {len(values)}")
    for value in values:
        number(value, name)
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite: got {value}")


def sides(size: Sequence[int], least: int, name: str) -> None:
    if min(size) < least:
        raise ValueError(f"{name} must have at least {least} pixels a side: got {tuple(size)}")


def not_negative(value: float, name: str) -> None:
    number(value, name)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and not negative: got {value}")


def positive(value: float, name: str) -> None:
    number(value, name)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite: got {value}")


def margin_fits(margin: Sequence[int], size: Sequence[int], name: str) -> None:
    if any(n - 2 * r < 1 for r, n in zip(margin, size, strict=True)):
        raise ValueError(
            f"{name} must leave a middle along every axis: got {tuple(margin)} for {tuple(size)}"
        )


def threshold(value: float | None) -> None:
    if value is None:
        return
    number(value, "threshold")
    if value != value:
        raise ValueError(f"threshold must not be NaN: got {value}")


def share(value: float, name: str) -> None:
    number(value, name)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1]: got {value}")


def _finite_and_not_negative(weights: Tensor, name: str) -> None:
    if weights.numel() == 0:
        return
    lowest, highest = weights.aminmax()  # either is NaN if one of them is
    if not bool((lowest >= 0) & (highest < float("inf"))):
        raise ValueError(f"{name} must be finite and not negative")


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
    if not values or value.dtype == torch.bool and bool(value.any()):
        return
    _finite_and_not_negative(value, f"{name}_mask")
    if value.numel() > 0 and not bool(value.any()):
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
    if not values:
        return
    _finite_and_not_negative(value, "window")
    if value.numel() > 0 and not bool(value.flatten(-ndim).any(-1).all()):
        raise ValueError("window must not be zero everywhere")


def fraction(value: float, name: str) -> None:
    number(value, name)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must lie in (0, 1]: got {value}")


def count(value: int | None, name: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None: got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1: got {value}")


def correction_fits(correction: float, count: int) -> None:
    if correction >= count:
        raise ValueError(
            f"correction must be smaller than the number of window elements: got {correction}, "
            f"the window has {count}"
        )


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
    if value.device.type == "meta" or torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active() or value.dtype == torch.bool:
        return
    _finite_and_not_negative(value, name)
