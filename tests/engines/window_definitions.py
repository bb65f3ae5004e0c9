"""Window sums, moments and their transposes from their definitions, in NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor


def rand(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).random(shape)).to(dtype)


def windows(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """(*lead, *O, N) in extended precision, one row for each window."""
    ndim = len(window)
    view = sliding_window_view(x.numpy().astype(np.longdouble), window, tuple(range(-ndim, 0)))
    view = view[(..., *(slice(None, None, s) for s in stride), *(slice(None),) * ndim)]
    view = np.moveaxis(view, -2 * ndim - 1, -ndim - 1)
    return view.reshape(*view.shape[: -ndim - 1], -1)


def moments(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Mean and uncorrected variance of each window."""
    rows = windows(x, window, stride)
    mean = rows.mean(-1, keepdims=True)
    return mean[..., 0], ((rows - mean) ** 2).mean(-1)


def spread(
    grad: np.ndarray, window: tuple[int, ...], shape: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    """The sum of a map over the windows that contain each element of (*lead, C, *S)."""
    ndim = len(window)
    total = np.zeros(shape, np.longdouble)
    for v in itertools.product(*map(range, window)):
        at = tuple(
            slice(f, f + (o - 1) * s + 1, s)
            for f, o, s in zip(v, grad.shape[-ndim:], stride, strict=True)
        )
        total[(..., *at)] += np.expand_dims(grad, -ndim - 1)
    return total


def surrounded(x: Tensor, pads: tuple[int, ...], value: float) -> Tensor:
    """x with elements of one value before and behind each of its last axes in turn."""
    width = [(0, 0)] * (x.dim() - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))
    return torch.from_numpy(np.pad(x.numpy(), width, constant_values=value))
