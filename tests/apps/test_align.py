"""estimate_shift against a loop over lags, SciPy's shift and the sign of scikit-image."""

import numpy as np
import pytest
import torch
from inputs import array, draw, normal, tensor
from scipy import ndimage
from skimage import data
from skimage.registration import phase_cross_correlation

from torchcorr import estimate_shift


def best_lag(x: np.ndarray, y: np.ndarray, min_overlap: float) -> tuple[int, float]:
    """The whole-sample lag with the highest coefficient over the overlap, and the coefficient."""
    best = (0, -2.0)
    for lag in range(-(len(y) - 1), len(x)):
        start, stop = max(lag, 0), min(len(x), lag + len(y))
        if stop - start < min_overlap * min(len(x), len(y)):
            continue
        score = np.corrcoef(x[start:stop], y[start - lag : stop - lag])[0, 1]
        if score > best[1]:
            best = (lag, score)
    return best


@pytest.mark.parametrize("sizes", [(60, 60), (80, 33), (33, 80)])
@pytest.mark.parametrize("method", ["auto", "direct", "fft"])
def test_whole_shift_and_score_equal_a_loop_over_lags(sizes, method):
    generator = np.random.default_rng(5)
    source = generator.normal(size=120).cumsum()
    x = source[20 : 20 + sizes[0]] + 1000.0
    y = 0.2 * source[31 : 31 + sizes[1]] - 7 + 0.05 * generator.normal(size=sizes[1])
    lag, score = best_lag(x, y, 0.5)
    result = estimate_shift(tensor(x), tensor(y), ndim=1, subpixel=False, method=method)
    assert result.shift.tolist() == [lag]
    assert result.score.item() == pytest.approx(score, abs=1e-9)
    assert result.shift.dtype == result.score.dtype == torch.float64


@pytest.mark.parametrize("period", [100.0, 37.3, 64.0, 21.0])
@pytest.mark.parametrize("lengths", [(1000, 1000), (1000, 800), (500, 900)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sine_and_cosine_of_one_source_are_a_quarter_period_apart(period, lengths, dtype):
    first, second = (
        torch.arange(n, dtype=torch.float64) * (2 * torch.pi / period) for n in lengths
    )
    result = estimate_shift((3.0 * first.sin()).to(dtype), (0.4 * second.cos()).to(dtype), ndim=1)
    assert result.shift.item() == pytest.approx(period / 4, abs=0.02)
    assert result.score.item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("true", [(-7.3, 12.6), (4.5, 0.2), (0.0, -20.0)])
def test_images_sign_of_scikit_image_and_scipy(true):
    reference = data.camera()[100:260, 150:330].astype(np.float64)
    moving = ndimage.shift(data.camera().astype(np.float64), true, order=3)[100:260, 150:330]
    shift = array(estimate_shift(tensor(reference), tensor(moving)).shift)
    np.testing.assert_allclose(shift, np.negative(true), atol=0.15)
    theirs = phase_cross_correlation(reference, moving, upsample_factor=10)[0]
    np.testing.assert_allclose(shift, theirs, atol=0.5)
    laid = ndimage.shift(moving, shift, order=3)
    inner = (slice(25, -25), slice(25, -25))
    assert np.corrcoef(laid[inner].ravel(), reference[inner].ravel())[0, 1] > 0.99


def test_a_crop_is_found_where_it_was_cut():
    image = tensor(data.coins(), torch.float32)
    result = estimate_shift(image, image[90:180, 200:330])
    torch.testing.assert_close(
        result.shift, torch.tensor([90.0, 200.0], dtype=torch.float64), rtol=0, atol=0.02
    )
    back = estimate_shift(image[90:180, 200:330], image)
    torch.testing.assert_close(back.shift, -result.shift, rtol=0, atol=1e-6)


def test_volumes():
    volume = draw((20, 22, 24), torch.float32)
    result = estimate_shift(volume[:16, :18, :], volume[3:, 1:, 2:], ndim=3)
    torch.testing.assert_close(
        result.shift, torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64), rtol=0, atol=0.05
    )


def test_leading_axes_broadcast():
    source = normal(200, seed=1, dtype=torch.float32)
    starts = (0, 7, 31)
    moving = torch.stack([source[s : s + 120] for s in starts])
    result = estimate_shift(source[20:180], moving, ndim=1, subpixel=False)
    assert result.shift.flatten().tolist() == [s - 20 for s in starts]
    assert result.score.shape == (3,)


def test_scale_and_offset_do_not_matter():
    source = normal(300, seed=2)
    plain = estimate_shift(source[:250], source[40:], ndim=1)
    for gain, offset in [(1e-200, 0.0), (1e200, 0.0), (2.0, 1e6)]:
        other = estimate_shift(source[:250], gain * source[40:] + offset, ndim=1)
        torch.testing.assert_close(other.shift, plain.shift, rtol=0, atol=1e-6)
        torch.testing.assert_close(other.score, plain.score, rtol=0, atol=1e-6)


def test_small_overlaps_cannot_win_and_max_shift_limits():
    source = normal(100, seed=3, dtype=torch.float32)
    far = estimate_shift(source[:60], source[45:], ndim=1, min_overlap=0.2, subpixel=False)
    assert far.shift.item() == 45
    near = estimate_shift(source[:60], source[45:], ndim=1, max_shift=10, subpixel=False)
    assert abs(near.shift.item()) <= 10
    strict = estimate_shift(source[:60], source[45:], ndim=1, min_overlap=0.9, subpixel=False)
    assert abs(strict.shift.item()) <= 6


def test_flat_recordings_score_zero():
    result = estimate_shift(torch.full((30,), 0.1), torch.arange(30.0), ndim=1)
    assert result.score.item() == 0.0
    assert torch.isfinite(result.shift).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ndim": 2}, ValueError, "reference must have 2 window axes"),
        ({"ndim": 0}, ValueError, "ndim must be 1, 2 or 3: got 0"),
        ({"min_overlap": 0.0}, ValueError, r"min_overlap must lie in \(0, 1\]: got 0.0"),
        ({"max_shift": -1}, ValueError, "max_shift must be at least 0 along every axis: got -1"),
        ({"max_shift": (1, 2)}, ValueError, "max_shift must have one value for each of 1 axes"),
        ({"max_shift": (1.5,)}, TypeError, "max_shift must contain ints: got 1.5"),
    ],
)
def test_refuses_options(options, error, message):
    with pytest.raises(error, match=message):
        estimate_shift(torch.rand(20), torch.rand(20), **{"ndim": 1, **options})


def test_refuses_recordings():
    good = torch.rand(20)
    with pytest.raises(ValueError, match="moving must be finite: got NaN or infinity"):
        estimate_shift(good, torch.full((20,), torch.nan), ndim=1)
    with pytest.raises(TypeError, match="share one dtype: got float32 and float64"):
        estimate_shift(good, good.double(), ndim=1)
    with pytest.raises(TypeError, match="reference must be a torch.Tensor: got ndarray"):
        estimate_shift(array(good), good, ndim=1)
    with pytest.raises(TypeError, match="moving must be real: got complex64"):
        estimate_shift(good, good.to(torch.complex64), ndim=1)
    with pytest.raises(ValueError, match="moving must not be empty"):
        estimate_shift(good, good[:0], ndim=1)
