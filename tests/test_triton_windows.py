"""The Triton window kernels: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_kernels import GEOMETRIES, moments, rand, spread, windows
from tolerances import ROUNDING
from torch import Tensor

from torchcorr._triton import KERNELS, kernel

pytest.importorskip("triton")
DEVICE = importlib.import_module("interpreter").DEVICE
# NumPy, which the interpreter computes with, warns where a device would not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
WIDE = 64 * ROUNDING[torch.float64]
# An interpreted launch costs some milliseconds for each program and each element of a window.
SHAPES = {
    name: GEOMETRIES[name]
    for name in (
        "1d",
        "1d-long",
        "1d-long-window",
        "1d-many-lines",
        "2d",
        "2d-one-past-a-block",
        "2d-primes",
        "2d-stride",
        "2d-stride-past-window",
        "2d-window-one",
        "2d-tall",
        "2d-leads",
    )
} | {
    "2d-past-a-block": ((1, 23, 140), (5, 7), (1, 1)),
    "2d-window-past-a-block": ((1, 39, 151), (35, 137), (1, 1)),
    "2d-window-is-input": ((2, 1, 13, 17), (13, 17), (1, 1)),
    "2d-short-axis": ((1, 1, 40), (1, 9), (1, 1)),
    "3d": ((1, 2, 6, 7, 9), (3, 4, 5), (1, 1, 1)),
    "3d-stride": ((1, 7, 6, 8), (4, 5, 3), (2, 1, 3)),
    "3d-deep": ((1, 9, 4, 5), (5, 2, 3), (1, 1, 1)),
}
SLOW_IN_FLOAT64 = ("1d-long-window", "2d-window-past-a-block", "2d-one-past-a-block")
every_shape = pytest.mark.parametrize("name", SHAPES)


def run(name: str, *args: Any) -> Any:
    """A kernel's results on the CPU."""
    moved = [x.to(DEVICE) if isinstance(x, Tensor) else x for x in args]
    found = kernel(name)(*moved)
    return tuple(x.cpu() for x in found) if isinstance(found, tuple) else found.cpu()


def dtypes_of(name: str) -> tuple[torch.dtype, ...]:
    return (torch.float32,) if name in SLOW_IN_FLOAT64 else (torch.float32, torch.float64)


def close(got: Tensor, want: np.ndarray, bound: float | np.ndarray) -> None:
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


def test_every_operator_has_its_kernel() -> None:
    for name in KERNELS:
        assert kernel(name).__name__ == name


@every_shape
def test_window_sum(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in dtypes_of(name):
        x = rand(shape, dtype)
        got = run("window_sum", x, window, stride)
        want = windows(x, window, stride).sum(-1)
        assert got.dtype == dtype
        close(got, want, (ROUNDING[dtype] + WIDE) * want)


@every_shape
def test_window_moments(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in dtypes_of(name):
        check_moments(rand(shape, dtype), window, stride, 1e-10)


@every_shape
def test_window_spread(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in dtypes_of(name):
        grad = _map(name).to(dtype)
        got = run("window_spread", grad, window, shape, stride)
        want = spread(grad.numpy().astype(np.float64), window, shape, stride)
        assert got.dtype == dtype
        close(got, want, (ROUNDING[dtype] + WIDE) * want)


def _map(name: str, seed: int = 1) -> Tensor:
    shape, window, stride = SHAPES[name]
    ndim = len(window)
    sizes = zip(shape[-ndim:], window, stride, strict=True)
    return rand((*shape[: -ndim - 1], *((n - k) // s + 1 for n, k, s in sizes)), seed=seed)


@every_shape
def test_window_combine(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in dtypes_of(name):
        first, second, x = _map(name), _map(name, 2), rand(shape, dtype)
        got = run("window_combine", first, second, x, window, stride)
        want = spread(first.numpy(), window, shape, stride)
        want = want + 2 * x.numpy() * spread(second.numpy(), window, shape, stride)
        assert got.dtype == dtype
        close(got, want, ROUNDING[dtype] * want + WIDE * want.max())


@every_shape
@pytest.mark.parametrize("eps", (0.0, 1e-3))
def test_local_std(name: str, eps: float) -> None:
    shape, window, stride = SHAPES[name]
    count = shape[-len(window) - 1] * math.prod(window)
    correction = 1.0 if count > 1 else 0.0
    for dtype in dtypes_of(name):
        x = rand(shape, dtype)
        got = run("local_std", x, window, stride, correction, eps)
        want = np.sqrt(moments(x, window, stride)[1] * count / (count - correction) + eps)
        assert got.dtype == dtype
        close(got, want, (2 * ROUNDING[dtype] + WIDE) * want)
