"""Window moments against the oracle; integer sums and flat windows are exact."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import INTEGERS, MODES, PAD_MODES, array, draw, result_dtype, tensor
from tolerances import moment_bound

import torchcorr

MOMENTS = ("local_sum", "local_mean", "local_var", "local_std", "flat_windows")
SHAPES = {
    "1d": ((2, 13), 4, 1, "independent"),
    "1d-joint": ((2, 3, 13), 5, 1, "joint"),
    "2d": ((2, 9, 8), (3, 4), 2, "independent"),
    "2d-joint": ((2, 3, 9, 8), (4, 3), 2, "joint"),
    "2d-one": ((5, 6), 1, 2, "independent"),
    "2d-whole": ((5, 6), (5, 6), 2, "independent"),
    "3d": ((6, 5, 7), (2, 3, 4), 3, "independent"),
    "3d-joint": ((2, 5, 4, 6), 3, 3, "joint"),
}


def check(name, x, window, **options):
    got = getattr(torchcorr, name)(x, window, **options)
    exact = getattr(oracle, name)(array(x), window, **options)
    assert tuple(got.shape) == exact.shape
    if name == "flat_windows":
        assert got.dtype == torch.bool
        assert (array(got) == exact).all()
        return
    assert got.dtype == result_dtype(x.dtype)
    per_axis = oracle.per_axis(window, options.get("ndim", 2))
    count = np.prod(per_axis) * (x.shape[-len(per_axis) - 1] if "joint" in options.values() else 1)
    peak = max(np.abs(array(x)).max(), abs(options.get("pad_value", 0.0)))
    bound = moment_bound(name, got.dtype, exact, float(peak), float(count))
    assert (np.abs(array(got) - exact) <= bound).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MOMENTS)
def test_matches_the_definition(name, shape, mode):
    size, window, ndim, channels = shape
    for stride in (1, 3, tuple(range(1, ndim + 1))):
        options = {"ndim": ndim, "mode": mode, "stride": stride, "channels": channels}
        check(name, draw(size), window, **options)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("mode", ["same", "full"])
@pytest.mark.parametrize("name", MOMENTS)
def test_padding(name, mode, pad_mode):
    check(name, draw((2, 9, 8)), (4, 3), mode=mode, pad_mode=pad_mode)
    if pad_mode == "constant":
        check(name, draw((2, 9, 8)), (4, 3), mode=mode, pad_value=-1.5)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, *INTEGERS], ids=str
)
@pytest.mark.parametrize("name", MOMENTS)
def test_dtypes(name, dtype):
    check(name, draw((2, 12, 11), dtype), (5, 4))


@pytest.mark.parametrize("correction", [0, 1, 2.5])
def test_correction_and_eps(correction):
    x = draw((9, 10))
    check("local_var", x, (3, 4), correction=correction)
    check("local_std", x, (3, 4), correction=correction)
    check("local_std", x, (3, 4), correction=correction, eps=0.25)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_sums_of_integers_are_exact(dtype):
    x = draw((60, 61), dtype)
    got = torchcorr.local_sum(x, (31, 29))
    assert (array(got) == oracle.local_sum(array(x), (31, 29))).all()


@pytest.mark.parametrize("case", list(torture.cases(np.float32)), ids=lambda c: c.name)
def test_float32_survives_the_torture(case):
    """Deviations keep their digits at any offset, next to a spot, on a ramp; flat is exactly 0."""
    x = tensor(case.image)
    window = case.template.shape
    std, exact = array(torchcorr.local_std(x, window)), oracle.local_std(case.image, window)
    assert (np.abs(std - exact) <= 4 * 2.0**-24 * exact).all()
    flat = oracle.flat_windows(case.image, window)
    assert (array(torchcorr.flat_windows(x, window)) == flat).all()
    assert ((std == 0) == flat).all()


@pytest.mark.parametrize("case", list(torture.cases(np.float64)), ids=lambda c: c.name)
def test_float64_survives_the_torture(case):
    window = case.template.shape
    std = array(torchcorr.local_std(tensor(case.image), window))
    exact = oracle.local_std(case.image, window)
    assert (np.abs(std - exact) <= 1e-10 * exact).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e19, 1e30])
def test_deviations_whose_squares_leave_float32(scale):
    x = draw((40, 41), torch.float32) * scale
    x[7:20, 9:30] *= 1e-3
    x.requires_grad_()
    std = torchcorr.local_std(x, 5)
    exact = oracle.local_std(array(x), 5)
    assert (np.abs(array(std) - exact) <= 4 * 2.0**-24 * exact).all()
    (grad,) = torch.autograd.grad(std.sum(), x)
    wide = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(torchcorr.local_std(wide, 5).sum(), wide)
    assert float((grad - want).abs().max()) <= 1e-4 * float(want.abs().max())


@pytest.mark.parametrize("value", [0.1, 1e-30, 3.3e7, -0.7, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_flat_input(value, dtype):
    x = torch.full((2, 19, 23), value, dtype=dtype, requires_grad=True)
    for name in ("local_var", "local_std"):
        got = getattr(torchcorr, name)(x, (7, 5))
        assert (got == 0).all()
        (grad,) = torch.autograd.grad(got.sum(), x)
        assert (grad == 0).all()
    assert torchcorr.flat_windows(x, (7, 5)).all()
    mean = torchcorr.local_mean(x, (7, 5))
    assert torch.allclose(mean, x[:, 6:, 4:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (6, 9), (12, 14)])
def test_a_bad_pixel_touches_only_its_windows(value, place):
    x = draw((13, 15))
    window = (4, 3)
    clean = {name: getattr(torchcorr, name)(x, window) for name in MOMENTS}
    x[place] = value
    hit = ~np.isfinite(oracle.local_sum(array(x), window).astype(float))
    for name in MOMENTS:
        got = getattr(torchcorr, name)(x, window)
        assert array(got == clean[name])[~hit].all()
        inside = array(got)[hit]
        if name == "flat_windows":
            assert not inside.any()
        elif name in ("local_var", "local_std"):
            assert np.isnan(inside).all()
        else:
            assert not np.isfinite(inside).any()


def test_an_infinite_window_is_not_flat():
    assert not torchcorr.flat_windows(torch.full((4, 4), float("inf")), 2).any()


def test_empty_batch_and_views():
    for name in MOMENTS:
        function = getattr(torchcorr, name)
        assert function(torch.ones(0, 5, 6), 3).shape == (0, 3, 4)
        view = draw((14, 12)).t()[::2]
        torch.testing.assert_close(function(view, (2, 3)), function(view.contiguous(), (2, 3)))
