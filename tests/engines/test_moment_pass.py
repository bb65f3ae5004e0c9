"""Moments with weights in tiles: sums along runs and transforms give what the definition does."""

from __future__ import annotations

import math

import pytest
import torch
from inputs import draw, normal

import torchcorr
from torchcorr._cpu import counters
from torchcorr._definition.weighted_moments import ALLOWED, ALLOWED_OF_MEAN, weighted_moments

DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)


def soft(shape, dtype, seed=5):
    """Weights, a quarter of them 0."""
    weights = draw(shape, dtype, seed)
    return torch.where(weights < 0.25, 0.0, weights)


def disk(size, dtype):
    """Weights of 0 and 1 in long runs."""
    squares = torch.zeros(())
    for axis, n in enumerate(size):
        along = (torch.arange(n) - (n - 1) / 2) / (n / 2)
        squares = squares + along.square()[(..., *(None,) * (len(size) - axis - 1))]
    return (squares <= 1).to(dtype)[None]


def check(x, there, window, weights=None, stride=(1, 1)):
    """Moments of tensors in normal form against their definition; and the way tiles took."""
    size = tuple(window.shape[-len(stride) :]) if weights is None else weights
    args = (there, None if weights is not None else window, size, stride)
    counters.take()
    got = torch.ops.torchcorr.weighted_moments(x, *args)
    ways = counters.take()
    wide = (None if y is None else y.double() for y in args[:2])
    want = weighted_moments(x.double(), *wide, *args[2:])
    count, mean, var = want
    root = (mean.square() + var).sqrt()
    is_wide = x.dtype == torch.float64
    unit = 2.0**-45
    bounds = (
        (ALLOWED[is_wide] + unit) * count,
        (ALLOWED_OF_MEAN[is_wide] + unit) * root,
        (ALLOWED[is_wide] + unit) * var,
    )
    for g, w, bound in zip(got, want, bounds, strict=True):
        assert g.dtype == torch.float64 and g.shape == w.shape
        assert bool(((g - w).abs() <= 2 * bound).all())
    assert bool(((got[2] == 0) == (var == 0)).all())
    return ways


@DTYPES
@pytest.mark.parametrize("stride", ((1, 1), (2, 3)), ids=str)
@pytest.mark.parametrize("kind", ("disk", "soft", "small", "box"))
@pytest.mark.parametrize("masked", (False, True))
def test_tiles_of_noise(kind, masked, stride, dtype):
    """Long runs, and so few single elements, are summed; many are transformed."""
    x = normal(1, 150, 163, seed=0).to(dtype) + 3
    size = (5, 7) if kind == "small" else (33, 40)
    window = disk(size, dtype) if kind == "disk" else soft((1, *size), dtype, 6)
    there = soft((1, 150, 163), dtype) if masked else None
    ways = check(x, there, window, size if kind == "box" else None, stride)
    assert ways.float64 > 0 and ways.exact_windows == 0


@pytest.mark.parametrize("kind", ("disk", "soft"))
@pytest.mark.parametrize("masked", (False, True))
def test_faint_windows_are_computed_from_their_elements(kind, masked):
    """Beside noise, and with an offset, in one tile."""
    x = normal(1, 90, 95, seed=0).float()
    x[:, :, :60] = x[:, :, :60] * 1e-5 + 0.5
    x[:, 10:60, 5:50] = 0.1
    window = disk((20, 21), x.dtype) if kind == "disk" else soft((1, 20, 21), x.dtype, 6)
    there = soft((1, 90, 95), x.dtype) if masked else None
    ways = check(x, there, window)
    assert 0 < ways.exact_windows < 71 * 75


@pytest.mark.parametrize("scale", (0.0, 1e-6))
def test_windows_of_a_dark_half_need_no_recomputation(scale):
    """Rounding is bounded row by row, and each tile has a level of its own."""
    x = normal(1, 400, 200, seed=0).float()
    x[:, :200] *= scale
    ways = check(x, None, disk((12, 12), x.dtype))
    assert ways.exact_windows < 0.3 * 389 * 189
    if scale == 0:
        assert ways.exact_windows == 0


@pytest.mark.parametrize("leads", ("windows", "inputs", "paired", "masks"))
def test_leading_axes(leads):
    shapes = {
        "windows": ((2, 60, 61), (3, 1, 2, 12, 13), (1, 60, 61)),
        "inputs": ((4, 2, 60, 61), (1, 12, 13), (4, 1, 60, 61)),
        "paired": ((3, 2, 60, 61), (3, 2, 12, 13), (3, 2, 60, 61)),
        "masks": ((2, 60, 61), (2, 1, 12, 13), (3, 1, 1, 60, 61)),
    }[leads]
    x = normal(*shapes[0], seed=0).float() + 2
    window, there = (soft(s, torch.float32, i) for i, s in enumerate(shapes[1:]))
    check(x, there, window)
    check(x, None, window)


@pytest.mark.parametrize("ndim", (1, 3))
@pytest.mark.parametrize("kind", ("ball", "soft"))
def test_lines_and_volumes(ndim, kind):
    size, window = ((5000,), (300,)) if ndim == 1 else ((30, 31, 32), (8, 9, 10))
    x, there = normal(1, *size, seed=0).float() + 9, soft((1, *size), torch.float32)
    weights = disk(window, x.dtype) if kind == "ball" else soft((1, *window), x.dtype)
    check(x, None, weights, stride=(1,) * ndim)
    check(x, there, weights, stride=(2,) * ndim)


@pytest.mark.parametrize("power", (-530, -500, 500, 1000))
def test_squares_neither_overflow_nor_vanish(power):
    """Where the result is a number of float64, those of all steps are."""
    scale = 2.0**power
    x, w = normal(80, 90, seed=0), disk((15, 15), torch.float64)[0]
    want, got = torchcorr.local_mean(x, w), torchcorr.local_mean(x * scale, w) / scale
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not bool(torchcorr.flat_windows(x * scale, w).any())
    if abs(power) <= 500:
        std = torchcorr.local_std(x * scale, w) / scale
        torch.testing.assert_close(std, torchcorr.local_std(x, w), rtol=1e-9, atol=0)


def test_what_has_no_weight_and_other_items_do_not_choose_the_scale():
    x, w = normal(3, 40, 50, seed=0), disk((15, 15), torch.float64)[0]
    there = torch.ones_like(x)
    there[1, 5:9, 5:9] = 0
    want = torchcorr.local_std(x, w, input_mask=there)
    scales = torch.tensor((2.0**450, 1.0, 2.0**-450), dtype=torch.float64)[:, None, None]
    scaled = x * scales
    scaled[1, 5:9, 5:9] = torch.finfo(torch.float64).min
    got = torchcorr.local_std(scaled, w, input_mask=there) / scales
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("wrong", (math.nan, math.inf, -math.inf))
def test_what_is_not_finite_stays_in_its_windows(wrong):
    """The others are computed in tiles all the same, faint ones too."""
    x, w = normal(70, 80, seed=0).float(), disk((15, 15), torch.float32)[0]
    x[:40] *= 1e-6
    want = torchcorr.local_std(x, w)
    x[30, 30] = wrong
    counters.take()
    got = torchcorr.local_std(x, w)
    assert counters.take().float64 > 0
    meets = torchcorr.correlate((~torch.isfinite(x)).float(), w) > 0.5
    assert bool((got.isnan() == meets).all())
    torch.testing.assert_close(got[~meets], want[~meets], rtol=1e-6, atol=0)
    hidden = torchcorr.local_std(x, w, input_mask=torch.isfinite(x))
    assert bool(torch.isfinite(hidden).all())


@pytest.mark.parametrize("kind", ("disk", "soft"))
def test_threads_give_the_same_bits(kind):
    x, there = normal(1, 300, 310, seed=0).float(), soft((1, 300, 310), torch.float32)
    window = disk((40, 41), x.dtype) if kind == "disk" else soft((1, 40, 41), x.dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            args = (x, there, window, (40, 41), (1, 1))
            found.append(torch.ops.torchcorr.weighted_moments(*args))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
