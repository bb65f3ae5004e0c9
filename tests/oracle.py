"""Every public function from its definition, in NumPy; shares no code with the package.

Windows are cut out one by one (`sliding_window_view`), widened to extended precision and reduced
in two passes. Positions of `same` are those of SciPy: the centred part of `full`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

NUMPY_PAD = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.clongdouble if np.iscomplexobj(x) else np.longdouble)


def padded(
    x: np.ndarray, window: Sequence[int], mode: str, pad_mode: str, pad_value: float
) -> np.ndarray:
    if mode == "valid":
        return x
    if mode == "same":
        pads = [(k // 2, (k - 1) // 2) for k in window]
    else:
        pads = [(k - 1, k - 1) for k in window]
    pads = [(0, 0)] * (x.ndim - len(window)) + pads
    extra = {"constant_values": pad_value} if pad_mode == "constant" else {}
    return np.pad(x, pads, mode=NUMPY_PAD[pad_mode], **extra)


def windows(
    x: np.ndarray,
    window: int | Sequence[int],
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: int | Sequence[int] = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
) -> np.ndarray:
    """All windows as (*lead, *output, N): the last axis runs over one window's elements."""
    size, steps = per_axis(window, ndim), per_axis(stride, ndim)
    x = padded(wide(np.asarray(x)), size, mode, pad_mode, pad_value)
    axes = tuple(range(-ndim, 0))
    seen = sliding_window_view(x, size, axis=axes)
    seen = seen[(..., *(slice(None, None, s) for s in steps), *(slice(None),) * ndim)]
    if channels != "independent":
        seen = np.moveaxis(seen, -2 * ndim - 1, -ndim - 1)
        return seen.reshape(*seen.shape[: -ndim - 1], -1)
    return seen.reshape(*seen.shape[:-ndim], -1)


def elements(template: np.ndarray, ndim: int, channels: str) -> np.ndarray:
    """A template as (*lead, 1 for each window axis, N), to be multiplied with `windows`."""
    axes = ndim + (channels != "independent")
    lead = template.shape[: template.ndim - axes]
    return wide(np.asarray(template)).reshape(*lead, *(1,) * ndim, -1)


def _pair(
    x: np.ndarray, template: np.ndarray, ndim: int, channels: str, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    seen = windows(x, template.shape[-ndim:], ndim=ndim, channels=channels, **options)
    return seen, elements(template, ndim, channels)


def correlate(
    x: np.ndarray,
    template: np.ndarray,
    *,
    ndim: int = 2,
    channels: str = "independent",
    **options: Any,
) -> np.ndarray:
    seen, values = _pair(x, template, ndim, channels, **options)
    return (seen * np.conj(values)).sum(-1)


def convolve(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    ndim: int = 2,
    channels: str = "independent",
    **options: Any,
) -> np.ndarray:
    flipped = np.flip(kernel, tuple(range(-ndim, 0)))
    seen, values = _pair(x, flipped, ndim, channels, **options)
    return (seen * values).sum(-1)


def is_flat(elements: np.ndarray) -> np.ndarray:
    highest, lowest = elements.max(-1), elements.min(-1)
    return (highest == lowest) & np.isfinite(highest)


def _divide(numerator: np.ndarray, denominator: np.ndarray, none: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.clip(numerator / denominator, -1, 1)
    return np.where(np.broadcast_to(none, score.shape), 0, score)


def weighted_windows(
    x: np.ndarray,
    template: np.ndarray,
    input_mask: np.ndarray | None,
    template_mask: np.ndarray | None,
    *,
    ndim: int,
    channels: str,
    pad_mode: str = "constant",
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows, the template, the products of weights and the template's, over one last axis."""
    window = template.shape[-ndim:]
    there = np.ones(x.shape) if input_mask is None else np.broadcast_to(input_mask, x.shape)
    seen = there > 0
    x = np.where(seen, x, 0)
    how = {"ndim": ndim, "channels": channels, **options}
    outside = "constant" if pad_mode == "ignore" else pad_mode
    no_weight = pad_mode == "ignore" or (input_mask is not None and outside == "constant")
    value = 0.0 if no_weight else 1.0
    weights = windows(
        there,
        window,
        **{**how, "pad_mode": outside, "pad_value": value if outside == "constant" else 0.0},
    )
    values = windows(x, window, **{**how, "pad_mode": outside})
    mask = np.ones(template.shape) if template_mask is None else template_mask
    mask = elements(np.broadcast_to(mask, template.shape), ndim, channels)
    pattern = elements(
        np.where(np.broadcast_to(mask.reshape(template.shape), template.shape) > 0, template, 0),
        ndim,
        channels,
    )
    return values, pattern, weights * mask, mask


def zncc(
    x: np.ndarray,
    template: np.ndarray,
    *,
    ndim: int = 2,
    channels: str = "independent",
    eps: float = 0.0,
    zero_mean: bool = True,
    input_mask: np.ndarray | None = None,
    template_mask: np.ndarray | None = None,
    min_overlap: float = 0.3,
    **options: Any,
) -> np.ndarray:
    """Pearson's coefficient with weights, each channel with its own mean if they are joint."""
    seen, values, weights, mask = weighted_windows(
        x, template, input_mask, template_mask, ndim=ndim, channels=channels, **options
    )
    groups = template.shape[-ndim - 1] if channels == "joint" and zero_mean else 1
    shape = np.broadcast_shapes(seen.shape, values.shape, weights.shape)
    seen, values, p = (
        np.broadcast_to(y, shape).reshape(*shape[:-1], groups, -1) for y in (seen, values, weights)
    )
    total = p.sum(-1, keepdims=True)
    flat = []
    with np.errstate(invalid="ignore", divide="ignore"):
        deviations = []
        for y in (seen, values):
            mean = (p * y).sum(-1, keepdims=True) / np.where(total > 0, total, 1)
            deviations.append(y - mean * zero_mean)
            highest, lowest = (np.where(p > 0, y, edge) for edge in (-np.inf, np.inf))
            edges = highest.max(-1), lowest.min(-1)
            same = (edges[0] <= edges[1]) & ~np.isposinf(edges[0])
            if not zero_mean:
                same &= (edges[0] == 0) | np.isneginf(edges[0])
            flat.append(same.all(-1))
        dx, dt = deviations
        energy, other = ((p * d * d).sum((-1, -2)) for d in (dx, dt))
        spread = np.sqrt(energy + eps * p.sum((-1, -2))) * np.sqrt(other)
        product = (p * dx * dt).sum((-1, -2))
    few = p.sum((-1, -2)) < max(min_overlap, 1e-9) * (1 - 1e-9) * mask.sum(-1)
    return _divide(product, spread, flat[0] | flat[1] | few)


def ncc(x: np.ndarray, template: np.ndarray, **options: Any) -> np.ndarray:
    return zncc(x, template, zero_mean=False, **options)


def local_sum(x: np.ndarray, window: Any, **options: Any) -> np.ndarray:
    return windows(x, window, **options).sum(-1)


def local_mean(x: np.ndarray, window: Any, **options: Any) -> np.ndarray:
    return windows(x, window, **options).mean(-1)


def local_var(x: np.ndarray, window: Any, *, correction: float = 0, **options: Any) -> np.ndarray:
    seen = windows(x, window, **options)
    with np.errstate(invalid="ignore"):
        deviations = seen - seen.mean(-1, keepdims=True)
    var = (deviations**2).sum(-1) / (seen.shape[-1] - correction)
    return np.where(is_flat(seen), 0, var)


def local_std(
    x: np.ndarray, window: Any, *, correction: float = 0, eps: float = 0.0, **options: Any
) -> np.ndarray:
    return np.sqrt(local_var(x, window, correction=correction, **options) + eps)


def flat_windows(x: np.ndarray, window: Any, **options: Any) -> np.ndarray:
    return is_flat(windows(x, window, **options))


def weighted_moments(
    x: np.ndarray,
    window: np.ndarray | Sequence[int],
    *,
    ndim: int = 2,
    channels: str = "independent",
    input_mask: np.ndarray | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Weight, sum, mean, variance of windows, and whether all elements with weight are equal."""
    if not isinstance(window, np.ndarray):
        window = np.ones(per_axis(window, ndim))
    joint = channels != "independent"
    if joint and window.ndim == ndim:
        window = np.broadcast_to(window, (x.shape[-ndim - 1], *window.shape))
    weights = np.where(window > 0, window, 0)
    seen, _, p, _ = weighted_windows(
        x, weights, input_mask, weights, ndim=ndim, channels=channels, **options
    )
    seen = np.where(p > 0, seen, 0)
    seen, p = np.broadcast_arrays(seen, p)
    count = p.sum(-1)
    none = count == 0
    divisor = np.where(none, 1, count)
    with np.errstate(invalid="ignore"):
        total = (p * seen).sum(-1)
        mean = total / divisor
        var = (p * (seen - mean[..., None]) ** 2).sum(-1) / divisor
        highest = np.where(p > 0, seen, -np.inf).max(-1)
        lowest = np.where(p > 0, seen, np.inf).min(-1)
    flat = none | ((highest == lowest) & np.isfinite(highest))
    return {
        "count": count,
        "local_sum": total,
        "local_mean": mean,
        "local_var": np.where(flat, 0, var),
        "local_std": np.sqrt(np.where(flat, 0, var)),
        "flat_windows": flat,
    }


def zncc_input_gradient(x: np.ndarray, template: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """DESIGN section 4 in loops: sum over u of d(u)/(N s_u) (T^(k-u) - Z(u) I^_u(k-u))."""
    window = template.shape
    count = template.size
    standard = (template - template.mean()) / template.std()
    total = np.zeros(x.shape, np.longdouble)
    for u in itertools.product(*(range(n) for n in delta.shape)):
        at = tuple(slice(p, p + k) for p, k in zip(u, window, strict=True))
        seen = wide(x[at])
        deviation = seen.std()
        if deviation == 0:
            continue
        shown = (seen - seen.mean()) / deviation
        score = (shown * standard).sum() / count
        for v in itertools.product(*(range(k) for k in window)):
            k = tuple(p + q for p, q in zip(u, v, strict=True))
            total[k] += delta[u] / (count * deviation) * (standard[v] - score * shown[v])
    return total


def zncc_template_gradient(x: np.ndarray, template: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """DESIGN section 4 in loops: G(v), then through the standardisation of the template."""
    window = template.shape
    count = template.size
    standard = (template - template.mean()) / template.std()
    direct = np.zeros(window, np.longdouble)
    for u in itertools.product(*(range(n) for n in delta.shape)):
        seen = wide(x[tuple(slice(p, p + k) for p, k in zip(u, window, strict=True))])
        if seen.std() == 0:
            continue
        shown = (seen - seen.mean()) / seen.std()
        for v in itertools.product(*(range(k) for k in window)):
            direct[v] += delta[u] * shown[v] / count
    along = (direct * standard).mean()
    return (direct - direct.mean() - standard * along) / template.std()


def window_weights(weights: str, size: Sequence[int]) -> np.ndarray:
    """Weights of a window's elements, in the order of `windows`."""
    result = np.ones((), np.longdouble)
    for k in size:
        at = np.arange(k, dtype=np.longdouble) - np.longdouble(k - 1) / 2
        line = {
            "box": np.ones(k, np.longdouble),
            "triangle": np.longdouble(k + 1) / 2 - np.abs(at),
            "gaussian": np.exp(-((3 * at / k) ** 2) / 2),
        }[weights]
        result = np.multiply.outer(result, line)
    return result.reshape(-1)


def lncc(
    a: np.ndarray,
    b: np.ndarray,
    window: int | Sequence[int],
    *,
    border: str = "renormalize",
    weights: str = "box",
    mask: np.ndarray | None = None,
    eps: float = 0.0,
    **options: Any,
) -> np.ndarray:
    """Pearson's coefficient with the weights of mask and window; no element without weight."""
    ndim = options.get("ndim", 2)
    joint = options.get("channels") == "joint"
    options["mode"] = "valid" if border == "valid" else "same"
    mask = np.ones(a.shape) if mask is None else np.broadcast_to(mask, a.shape)
    outside = 1.0 if border == "zeros" else 0.0
    weight = windows(mask, window, **options, pad_value=outside)
    live = weight > 0
    one, other = (windows(np.where(mask > 0, x, 0), window, **options) for x in (a, b))
    own = window_weights(weights, per_axis(window, ndim))
    weight = weight * np.tile(own, a.shape[-ndim - 1] if joint else 1)
    total = weight.sum(-1, keepdims=True)
    share = weight / np.where(total > 0, total, 1)
    none = ~live.any(-1)
    for x in (one, other):
        first = np.take_along_axis(x, live.argmax(-1)[..., None], -1)
        none |= ((x == first) | ~live).all(-1) & np.isfinite(first[..., 0])
    with np.errstate(invalid="ignore"):
        x, y = (v - (share * v).sum(-1, keepdims=True) for v in (one, other))
        roots = [np.sqrt((share * d * d).sum(-1) + eps) for d in (x, y)]
        return _divide((share * x * y).sum(-1), roots[0] * roots[1], none)
