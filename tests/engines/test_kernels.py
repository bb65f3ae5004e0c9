"""The C++ window kernels against two-pass definitions in NumPy, and the promises they must keep."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from window_definitions import moments, rand, spread, surrounded, windows

import torchcorr  # noqa: F401  (registers the operators)

ops = torch.ops.torchcorr
NAMES = (
    "window_sum",
    "window_spread",
    "window_moments",
    "window_combine",
    "local_std",
    "local_std_prepare_grads",
    "lncc",
    "lncc_grads",
    "weighted_lncc",
    "weighted_lncc_grads",
    "standardise",
    "standardise_grad",
)
DTYPES = (torch.float32, torch.float64)
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
# input (*lead, C, *S), window, stride
GEOMETRIES = {
    "1d": ((1, 41), (7,), (1,)),
    "1d-long": ((2, 1, 5003), (13,), (1,)),
    "1d-long-window": ((1, 4001), (1009,), (3,)),
    "1d-pieces": ((1, 17_003), (331,), (1,)),
    "1d-pieces-stride": ((2, 1, 18_011), (509,), (3,)),
    "1d-blocks-of-long-windows": ((2, 1, 30_011), (8209,), (61,)),
    "1d-long-windows-of-channels": ((3, 11_003), (8193,), (307,)),
    "1d-many-lines": ((3, 13, 1, 29), (5,), (2,)),
    "2d": ((1, 33, 35), (16, 16), (1, 1)),
    "2d-one-past-a-block": ((1, 17, 33), (16, 32), (1, 1)),
    "2d-strips": ((1, 20, 3001), (5, 3), (1, 1)),
    "2d-primes": ((2, 3, 37, 41), (11, 7), (1, 1)),
    "2d-stride": ((2, 3, 37, 41), (5, 6), (2, 3)),
    "2d-stride-past-window": ((1, 19, 23), (2, 3), (3, 5)),
    "2d-window-is-input": ((2, 1, 13, 17), (13, 17), (1, 1)),
    "2d-window-one": ((2, 1, 7, 9), (1, 1), (1, 1)),
    "2d-tall": ((1, 40, 12), (31, 2), (1, 1)),
    "2d-leads": ((2, 3, 1, 9, 10), (3, 4), (1, 2)),
    "3d": ((2, 7, 9, 11), (3, 4, 5), (1, 1, 1)),
    "3d-leads": ((2, 2, 1, 9, 7, 8), (3, 2, 3), (1, 1, 1)),
    "3d-stride": ((3, 11, 22, 13), (4, 5, 3), (3, 2, 1)),
    "3d-window-is-input": ((1, 5, 6, 7), (5, 6, 7), (1, 1, 1)),
}
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def summed(window: tuple[int, ...]) -> float:
    """What sums of so many numbers may err by, relative to those of their sizes: one element after
    the other rounds a running sum once, and all roundings of equal elements have one sign."""
    return max(64.0, math.prod(window) / 64) * UNIT[torch.float64]


def close(got: Tensor, want: np.ndarray, bound: float | np.ndarray) -> None:
    assert tuple(got.shape) == want.shape
    error = np.abs(got.numpy().astype(np.longdouble) - want)
    assert np.all(error <= bound), float(np.nanmax(error))


def check_moments(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Errors are those of the elements' deviation, plus the rounding of their mean."""
    mean, var = ops.window_moments(x, window, stride)
    want_mean, want_var = moments(x, window, stride)
    assert mean.dtype == var.dtype == torch.float64
    unit = summed(window)
    peak = np.abs(windows(x, window, stride)).max(-1)
    close(mean, want_mean, unit * peak)
    noise = unit * peak
    close(var, want_var, unit * want_var + noise * np.sqrt(want_var) + noise**2)


def map_of(name: str, seed: int = 1) -> Tensor:
    shape, window, stride = GEOMETRIES[name]
    ndim = len(window)
    sizes = zip(shape[-ndim:], window, stride, strict=True)
    return rand((*shape[: -ndim - 1], *((n - k) // s + 1 for n, k, s in sizes)), seed=seed)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_registered(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchcorr::{name}", "CPU")


@every_geometry
@every_dtype
def test_window_sum(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = GEOMETRIES[name]
    x = rand(shape, dtype)
    got = ops.window_sum(x, window, stride)
    want = windows(x, window, stride).sum(-1)
    assert got.dtype == dtype
    close(got, want, (UNIT[dtype] + summed(window)) * want)


@every_geometry
@every_dtype
def test_window_moments(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = GEOMETRIES[name]
    check_moments(rand(shape, dtype), window, stride)


@every_geometry
@every_dtype
def test_window_spread(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = GEOMETRIES[name]
    grad = map_of(name).to(dtype)
    got = ops.window_spread(grad, window, shape, stride)
    want = spread(grad.numpy().astype(np.float64), window, shape, stride)
    assert got.dtype == dtype
    close(got, want, (UNIT[dtype] + summed(window)) * want)


@every_geometry
@every_dtype
def test_window_combine(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = GEOMETRIES[name]
    first, second, x = map_of(name), map_of(name, 2), rand(shape, dtype)
    got = ops.window_combine(first, second, x, window, stride)
    want = spread(first.numpy(), window, shape, stride)
    want = want + 2 * x.numpy() * spread(second.numpy(), window, shape, stride)
    assert got.dtype == dtype
    close(got, want, (UNIT[dtype] + summed(window)) * want)


@every_geometry
@every_dtype
def test_local_std(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = GEOMETRIES[name]
    x = rand(shape, dtype)
    count = shape[-len(window) - 1] * math.prod(window)
    correction = 1.0 if count > 1 else 0.0
    got = ops.local_std(x, window, stride, correction, 1e-3)
    want = np.sqrt(moments(x, window, stride)[1] * count / (count - correction) + 1e-3)
    assert got.dtype == dtype
    close(got, want, (2 * UNIT[dtype] + summed(window)) * want)


@every_geometry
@every_dtype
def test_local_std_of_an_input_with_a_border(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = GEOMETRIES[name]
    x, value = rand(shape, dtype), 1.25
    pads = tuple(n for axis, k in enumerate(window) for n in (k // 2 + axis, max(0, k - 2)))
    got = ops.local_std(x, window, stride, 0.0, 1e-3, pads, value)
    want = np.sqrt(moments(surrounded(x, pads, value), window, stride)[1] + 1e-3)
    assert got.dtype == dtype
    close(got, want, (2 * UNIT[dtype] + summed(window)) * want)


@every_dtype
@pytest.mark.parametrize("leads", (1, 3))
def test_long_windows_at_every_element_are_differences_of_totals(
    dtype: torch.dtype, leads: int
) -> None:
    """In extended precision differences of totals are exact enough; blocks and pieces have ends."""
    size, window = 41_003, 8192
    x, grad = rand((leads, 1, size), dtype), rand((leads, size - window + 1), dtype, seed=1)

    def sums(values: np.ndarray) -> np.ndarray:
        totals = np.pad(values.astype(np.longdouble).cumsum(-1), ((0, 0), (1, 0)))
        return totals[:, window:] - totals[:, :-window]

    image = x[:, 0].numpy()
    unit = summed((window,))
    mean, var = ops.window_moments(x, (window,), (1,))
    about = image - np.longdouble(0.5)
    want_var = sums(about**2) / window - (sums(about) / window) ** 2
    close(mean, sums(image) / window, unit)
    close(var, want_var, unit)
    close(ops.window_sum(x, (window,), (1,)), sums(image), (UNIT[dtype] + unit) * window)
    around = np.pad(grad.numpy(), ((0, 0), (window - 1, window - 1)))
    spread_over = sums(around)[:, None]
    bound = (UNIT[dtype] + unit) * window
    close(ops.window_spread(grad, (window,), x.shape, (1,)), spread_over, bound)
    both = ops.window_combine(grad.double(), grad.double(), x, (window,), (1,))
    close(both, spread_over * (1 + 2 * x.numpy()), 3 * bound)


@every_dtype
@pytest.mark.parametrize("value", (0.0, -2.5, math.nan, math.inf))
@pytest.mark.parametrize("large", (False, True))
def test_windows_that_leave_the_input_are_flat_or_not_finite_as_their_elements_are(
    dtype: torch.dtype, value: float, large: bool
) -> None:
    """Those in even parts are recomputed from the definition, and all beside large elements."""
    x = rand((2, 30, 700), dtype)
    x[:, :12, :300] = -2.5
    x[:, :12, 150:300] += 1e-5 * rand((2, 12, 150), dtype)
    if large:
        x[:, 20, 680:] = 1e9
    pads, window = (4, 4, 6, 2), (7, 9)
    seen = windows(surrounded(x, pads, value), window, (1, 1))
    got = ops.local_std(x, window, (1, 1), 0.0, 0.0, pads, value).numpy()
    finite = np.isfinite(seen).all(-1)
    assert (np.isfinite(got) == finite).all()
    assert ((got == 0) == ((seen.max(-1) == seen.min(-1)) & finite)).all()
    want = seen[finite].astype(np.longdouble).std(-1)
    level = 64 * UNIT[torch.float64] * np.abs(seen[finite]).max(-1)
    assert (np.abs(got[finite] - want) <= 4 * UNIT[dtype] * want + level).all()


@every_dtype
@pytest.mark.parametrize("eps", (0.0, 0.1))
def test_local_std_prepare_grads(dtype: torch.dtype, eps: float) -> None:
    grad, mean, var = rand((3, 7, 9), dtype) - 0.5, rand((3, 7, 9), seed=1), rand((3, 7, 9), seed=2)
    var[:, 2] = 0
    s1, s2 = ops.local_std_prepare_grads(grad, mean, var, 12.0, 1.0, eps)
    ratio = 12 / 11
    std = torch.sqrt(var * ratio + eps)
    want = torch.where(var == 0, 0, grad.double() * ratio / (2 * std) / 12)
    assert s1.dtype == s2.dtype == torch.float64
    torch.testing.assert_close(s2, want, rtol=1e-14, atol=0)
    torch.testing.assert_close(s1, -2 * mean * want, rtol=1e-14, atol=0)
    assert (s1[:, 2] == 0).all() and (s2[:, 2] == 0).all()


def _hard() -> Iterator[tuple[str, Tensor]]:
    base = rand((1, 40, 44))
    yield "offset", base + 1e6
    hot = base.clone()
    hot[0, 20, 21] = 1e6
    yield "hot pixel", hot
    plateau = base.clone()
    plateau[..., 22:] += 1e6
    yield "plateau", plateau
    yield "faint", 0.5 + 1e-6 * base
    yield "tiny", base * 1e-30


@pytest.mark.parametrize(("name", "x"), list(_hard()), ids=[name for name, _ in _hard()])
@every_dtype
@pytest.mark.parametrize("window", ((7, 9), (16, 16), (31, 5)))
def test_moments_of_hard_inputs(
    name: str, x: Tensor, dtype: torch.dtype, window: tuple[int, int]
) -> None:
    check_moments(x.to(dtype), window, (1, 1))


@every_dtype
@pytest.mark.parametrize("value", (0.1, 1e6 + 0.3, 1e-30, -3.7, 0.0))
@pytest.mark.parametrize(
    "name",
    ("1d", "1d-blocks-of-long-windows", "2d-primes", "2d-stride", "3d", "3d-stride"),
)
def test_variance_is_zero_if_and_only_if_all_are_equal(
    dtype: torch.dtype, value: float, name: str
) -> None:
    shape, window, stride = GEOMETRIES[name]
    x = torch.full(shape, value, dtype=dtype)
    mean, var = ops.window_moments(x, window, stride)
    assert (var == 0).all() and (mean == x.flatten()[0].double()).all()
    assert (ops.local_std(x, window, stride, 0.0, 0.0) == 0).all()
    flat = x.flatten()
    middle = flat.numel() // 2
    flat[middle] = torch.nextafter(flat[middle], torch.tensor(math.inf, dtype=dtype))
    seen = windows(x, window, stride)
    if value != 0:
        same = seen.max(-1) == seen.min(-1)
        assert ((ops.window_moments(x, window, stride)[1].numpy() == 0) == same).all()


@every_dtype
@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize(
    "name",
    ("1d-long", "1d-blocks-of-long-windows", "2d-primes", "2d-stride", "3d", "2d-window-one"),
)
def test_bad_elements_stay_in_their_windows(dtype: torch.dtype, bad: float, name: str) -> None:
    shape, window, stride = GEOMETRIES[name]
    x = rand(shape, dtype)
    clean = ops.window_moments(x, window, stride)
    x.flatten()[x.numel() // 2 + 3] = bad
    covered = torch.from_numpy(~np.isfinite(windows(x, window, stride)).all(-1))
    mean, var = ops.window_moments(x, window, stride)
    std, total = ops.local_std(x, window, stride, 0.0, 0.0), ops.window_sum(x, window, stride)
    assert covered.any()
    assert (~torch.isfinite(mean) == covered).all() and (var.isnan() == covered).all()
    assert (std.isnan() == covered).all() and (~torch.isfinite(total) == covered).all()
    assert torch.equal(mean[~covered], clean[0][~covered]) and torch.equal(
        var[~covered], clean[1][~covered]
    )


@every_dtype
@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("at", (0, 8191, 8192, 12_000, 24_575))
def test_a_bad_element_at_either_end_of_a_long_window(
    dtype: torch.dtype, bad: float, at: int
) -> None:
    x = rand((1, 24_576), dtype)
    x[0, at] = bad
    starts = torch.arange(24_576 - 8192 + 1)
    covered = (starts <= at) & (at < starts + 8192)
    mean, var = ops.window_moments(x, (8192,), (1,))
    assert (~mean.isfinite() == covered).all() and (var.isnan() == covered).all()


@pytest.mark.parametrize("name", ("1d-long", "2d-primes", "2d-stride", "3d-stride"))
def test_a_zero_gradient_spreads_zero(name: str) -> None:
    shape, window, stride = GEOMETRIES[name]
    zero = torch.zeros_like(map_of(name))
    assert (ops.window_spread(zero, window, shape, stride) == 0).all()
    assert (ops.window_combine(zero, zero, rand(shape), window, stride) == 0).all()


def _results(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> list[Tensor]:
    mean, var = ops.window_moments(x, window, stride)
    std = ops.local_std(x, window, stride, 0.0, 0.0)
    total = ops.window_sum(x, window, stride)
    back = ops.window_spread(mean, window, x.shape, stride)
    both = ops.window_combine(mean, var, x, window, stride)
    grads = ops.local_std_prepare_grads(std, mean, var, 9.0, 1.0, 0.1)
    return [mean, var, std, total, back, both, *grads]


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    (
        ((1, 1, 300, 700), (31, 17), (1, 1)),
        ((2, 1, 90000), (64,), (2,)),
        ((2, 1, 90000), (9001,), (1,)),
        ((1, 2, 40, 50, 60), (5, 6, 7), (1, 2, 1)),
    ),
    ids=("2d", "1d", "1d-long-windows", "3d"),
)
def test_threads_change_no_bit(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    x = rand(shape, torch.float32)
    torch.set_num_threads(1)
    one = _results(x, window, stride)
    torch.set_num_threads(2)
    two = _results(x, window, stride)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@every_dtype
def test_strides_of_the_input_do_not_matter(dtype: torch.dtype) -> None:
    room = rand((3, 44, 2, 80), dtype)
    views = (room[..., ::2].permute(2, 0, 1, 3), room[:, :, :1].expand(3, 44, 5, 80).movedim(2, 1))
    for x in views:
        assert not x.is_contiguous()
        packed = x.contiguous()
        for got, want in zip(
            _results(x, (5, 6), (1, 2)), _results(packed, (5, 6), (1, 2)), strict=True
        ):
            assert torch.equal(got, want)


@pytest.mark.parametrize("shape", ((0, 1, 9, 9), (2, 0, 3, 9, 9)))
def test_empty_leads(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    lead = shape[:-3]
    mean, var = ops.window_moments(x, (3, 4), (1, 1))
    assert mean.shape == var.shape == (*lead, 7, 6)
    assert ops.window_sum(x, (3, 4), (1, 1)).shape == (*lead, 7, 6)
    assert ops.local_std(x, (3, 4), (1, 1), 0.0, 0.0).shape == (*lead, 7, 6)
    assert ops.window_spread(mean, (3, 4), shape, (1, 1)).shape == shape
    assert ops.window_combine(mean, var, x, (3, 4), (1, 1)).shape == shape


def test_other_types_are_refused() -> None:
    with pytest.raises(RuntimeError, match="float32 or float64"):
        ops.window_sum(torch.ones(1, 4, 4, dtype=torch.int32), (2, 2), (1, 1))
