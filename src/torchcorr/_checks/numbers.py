"""Checks of numbers, names, sizes and lags."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

MODES = ("valid", "same", "full")
PAD_MODES = ("constant", "reflect", "replicate", "circular")
CHANNELS = ("independent", "joint", "pooled")
NANS = ("propagate", "ignore")
BORDERS = ("renormalize", "valid", "zeros")
WINDOW_WEIGHTS = ("box", "triangle", "gaussian")
METHODS = ("auto", "direct", "fft")


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
