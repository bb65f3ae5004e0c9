"""correlate and convolve against the oracle and against SciPy."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from inputs import CASES, INTEGERS, METHODS, MODES, PAD_MODES, Case, array, draw, pair, result_dtype
from scipy import signal
from tolerances import sum_bound

import torchcorr

FUNCTIONS = ("correlate", "convolve")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)


def check(name, image, template, ndim, *, method="auto", **options):
    """One function on one pair: dtype, shape and every value within the derived bound."""
    got = getattr(torchcorr, name)(image, template, ndim=ndim, method=method, **options)
    exact = getattr(oracle, name)(array(image), array(template), ndim=ndim, **options)
    assert got.dtype == result_dtype(image.dtype)
    assert tuple(got.shape) == exact.shape
    norms = [float(np.sqrt((np.abs(array(x)) ** 2).sum())) + 1e-30 for x in (image, template)]
    pad = abs(options.get("pad_value", 0.0)) * np.sqrt(image.numel())
    bound = sum_bound(got.dtype, exact, 3 * norms[0] + 3 * pad, norms[1], image.numel())
    assert (np.abs(array(got) - exact) <= bound).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_matches_the_definition(name, case, mode, method):
    options = {"mode": mode, "channels": case.channels, "method": method}
    check(name, *pair(case), case.ndim, **options)


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [2, 3, (1, 3), (4, 2)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_strides(name, stride, mode, method):
    case = Case((2, 9, 11), (4, 3), 2)
    check(name, *pair(case), 2, stride=stride, mode=mode, method=method)


@pytest.mark.parametrize(
    ("case", "stride"),
    [
        (Case((3, 17), (5,), 1), 3),
        (Case((3, 17), (3, 4), 1, "joint"), (2,)),
        (Case((7, 6, 8), (2, 3, 2), 3), (2, 1, 3)),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_strides_in_other_dimensions(case, stride, mode):
    check("correlate", *pair(case), case.ndim, stride=stride, mode=mode, channels=case.channels)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("mode", ["same", "full"])
@pytest.mark.parametrize("case", ["1d-joint", "2d-paired", "2d-joint", "3d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_pad_modes(name, case, mode, pad_mode):
    case = CASES[case]
    options = {"mode": mode, "pad_mode": pad_mode, "channels": case.channels}
    check(name, *pair(case), case.ndim, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["same", "full"])
def test_pad_value(mode, method):
    check("correlate", *pair(CASES["2d"]), 2, mode=mode, pad_value=2.5, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *COMPLEX], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes(name, dtype, method):
    image, template = draw((2, 12, 13), dtype), draw((5, 4), dtype, 1)
    check(name, image, template, 2, method=method)
    check(name, image, template, 2, method=method, mode="same", stride=2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_are_promoted_and_exact(dtype, method):
    image, template = draw((30, 31), dtype), draw((6, 5), dtype, 1)
    exact = oracle.correlate(array(image), array(template))
    assert np.abs(exact).max() < 2**24
    assert (array(torchcorr.correlate(image, template, method=method)) == exact).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "size", [((9,), (4,)), ((8, 9), (4, 3)), ((7, 8), (3, 6)), ((5, 6, 4), (2, 3, 4))]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_agrees_with_scipy(dtype, size, mode):
    image, template = (draw(shape, dtype, seed) for seed, shape in enumerate(size))
    for name in FUNCTIONS:
        got = getattr(torchcorr, name)(image, template, ndim=len(size[0]), mode=mode)
        expected = getattr(signal, name)(array(image), array(template), mode=mode)
        np.testing.assert_allclose(array(got), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["same", "full"])
def test_template_larger_than_input_when_padded(mode):
    image, template = draw((3, 4)), draw((5, 6), seed=1)
    if mode == "same":
        check("correlate", image, template, 2, mode=mode)
    expected = signal.correlate(array(image), array(template), mode=mode)
    got = torchcorr.correlate(image, template, mode=mode)
    np.testing.assert_allclose(array(got), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "template", "output"),
    [
        ((2, 3, 8, 9), (2, 3, 4, 4), (2, 3, 5, 6)),
        ((8, 9), (5, 4, 4), (5, 5, 6)),
        ((2, 1, 8, 9), (5, 4, 4), (2, 5, 5, 6)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_leading_axes_broadcast(image, template, output, method):
    a, b = draw(image), draw(template, seed=1)
    for name in ("correlate", "convolve", "zncc", "ncc"):
        got = getattr(torchcorr, name)(a, b, method=method)
        assert tuple(got.shape) == output
        np.testing.assert_allclose(
            array(got), getattr(oracle, name)(array(a), array(b)), atol=1e-12, rtol=1e-12
        )


@pytest.mark.parametrize("method", METHODS)
def test_views_and_empty_batches(method):
    image, template = draw((9, 10)), draw((4, 3), seed=1)
    expected = torchcorr.correlate(image.t().contiguous(), template.t().contiguous(), method=method)
    assert torch.allclose(torchcorr.correlate(image.t(), template.t(), method=method), expected)
    flipped = torchcorr.correlate(draw((18, 20))[::2, ::2], template.expand(2, 4, 3), method=method)
    once = torchcorr.correlate(draw((18, 20))[::2, ::2].contiguous(), template, method=method)
    assert torch.allclose(flipped, once.expand(2, -1, -1))
    for function in (torchcorr.correlate, torchcorr.convolve, torchcorr.zncc, torchcorr.ncc):
        assert function(image.new_ones(0, 9, 10), template, method=method).shape == (0, 6, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_bad_pixel_touches_only_its_windows(name, value, method):
    image, template = draw((14, 15)), draw((4, 3), seed=1) + 0.5
    clean = array(getattr(torchcorr, name)(image, template, method=method))
    image[0, 0] = value
    got = array(getattr(torchcorr, name)(image, template, method=method))
    assert np.array_equal(got[0, 0], value, equal_nan=True)
    got[0, 0] = clean[0, 0]
    np.testing.assert_allclose(got, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_infinity_times_zero_is_nan(method):
    image, template = draw((9, 9)), draw((3, 3), seed=1)
    image[4, 4] = float("inf")
    template[1, 1] = 0.0
    template[0, 0] = -1.0
    with np.errstate(invalid="ignore"):
        expected = oracle.correlate(array(image), array(template)).astype(float)
    got = array(torchcorr.correlate(image, template, method=method))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert np.isnan(got[3, 3])
    assert got[4, 4] == -np.inf
