"""Shapes, bounds and checks that the tests of the Triton window kernels share."""

from __future__ import annotations

import numpy as np
import torch
from interpreter import run
from tolerances import ROUNDING
from torch import Tensor
from window_definitions import moments, rand, windows

WIDE = 64 * ROUNDING[torch.float64]
# An interpreted launch costs some milliseconds for each program and each element of a window.
SHAPES = {
    "1d": ((1, 41), (7,), (1,)),
    "1d-sliding": ((2, 1, 903), (31,), (1,)),
    "1d-many-lines": ((3, 13, 1, 49), (19,), (2,)),
    "2d": ((1, 25, 35), (8, 13), (1, 1)),
    "2d-stride": ((2, 3, 27, 29), (5, 6), (2, 3)),
    "2d-stride-past-window": ((1, 19, 23), (2, 3), (3, 5)),
    "2d-window-one": ((2, 1, 7, 9), (1, 1), (1, 1)),
    "2d-leads": ((2, 3, 1, 9, 10), (5, 4), (1, 2)),
    "2d-past-a-block": ((1, 23, 140), (5, 7), (1, 1)),
    "2d-window-past-a-block": ((1, 39, 151), (35, 137), (1, 1)),
    "2d-window-is-input": ((2, 1, 13, 17), (13, 17), (1, 1)),
    "2d-short-axis": ((1, 1, 40), (1, 19), (1, 1)),
    "2d-thinned": ((4, 9, 40), (1, 31), (5, 1)),
    "2d-channels": ((2, 3, 14, 17), (5, 8), (1, 2)),
    "3d": ((1, 2, 4, 5, 7), (2, 3, 4), (1, 1, 1)),
    "3d-stride": ((1, 7, 6, 8), (4, 5, 3), (2, 1, 3)),
    "3d-channels": ((2, 6, 6, 7), (4, 5, 3), (2, 1, 1)),
}
FLOATS = (torch.float32, torch.float64)
# Relative errors of a variance on any input.
VARIANCE = {torch.float32: 2e-7, torch.float64: 1e-13}


def map_of(name: str, seed: int = 1) -> Tensor:
    shape, window, stride = SHAPES[name]
    ndim = len(window)
    sizes = zip(shape[-ndim:], window, stride, strict=True)
    return rand((*shape[: -ndim - 1], *((n - k) // s + 1 for n, k, s in sizes)), seed=seed)


def close(got: Tensor, want: np.ndarray, bound: float | np.ndarray) -> None:
    """Within a bound everywhere, which NaN is not."""
    assert tuple(got.shape) == want.shape
    error = np.abs(got.double().numpy().astype(np.longdouble) - want)
    assert np.all(error <= bound), float(np.nanmax(error - bound))


def check_moments(
    x: Tensor, window: tuple[int, ...], stride: tuple[int, ...], error: float
) -> None:
    mean, var = run("window_moments", x, window, stride)
    want_mean, want_var = moments(x, window, stride)
    assert mean.dtype == var.dtype == torch.float64
    close(mean, want_mean, WIDE * np.abs(want_mean) + 1e-9 * np.sqrt(want_var))
    close(var, want_var, error * want_var)
    assert ((var.numpy() == 0) == (want_var == 0)).all()


def check_bad_elements(bad: float, name: str, dtype: torch.dtype) -> None:
    shape, window, stride = SHAPES[name]
    x = rand(shape).to(dtype)
    want_mean, want_var = moments(x, window, stride)
    x.flatten()[x.numel() // 2 + 3] = bad
    affected = ~np.isfinite(windows(x, window, stride)).all(-1)
    assert affected.any()
    mean, var = run("window_moments", x, window, stride)
    std = run("local_std", x, window, stride, 0.0, 0.0)
    total = run("window_sum", x, window, stride)
    assert (~torch.isfinite(mean).numpy() == affected).all() and (
        var.isnan().numpy() == affected
    ).all()
    assert (std.isnan().numpy() == affected).all()
    assert (~torch.isfinite(total).numpy() == affected).all()
    close(mean[~affected], want_mean[~affected], 1e-12)
    close(var[~affected], want_var[~affected], 1e-9 * want_var[~affected])
