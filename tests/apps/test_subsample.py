"""Places between samples: particle images, pictures shifted by Fourier transform, gradients."""

import numpy as np
import pytest
import torch
from inputs import array, normal, tensor
from scipy import ndimage
from skimage import data
from skimage.registration import phase_cross_correlation

from torchcorr import estimate_shift


def particles(shift: tuple[float, float], seed: int, diameter: float = 2.8) -> torch.Tensor:
    """Gaussian particles, each drawn at its place, as seen by a camera of 64 x 64 pixels."""
    rng = np.random.default_rng(seed)
    places, brightness = rng.uniform(-8, 72, (150, 2)), rng.uniform(0.5, 1, 150)
    rows, columns = np.mgrid[:64, :64]
    image = np.zeros((64, 64))
    for (row, column), bright in zip(places, brightness, strict=True):
        square = (rows - row - shift[0]) ** 2 + (columns - column - shift[1]) ** 2
        image += bright * np.exp(-8 * square / diameter**2)
    return tensor(image)


@pytest.mark.parametrize("diameter", [2.8, 4.0])
def test_particle_images_are_not_drawn_to_whole_pixels(diameter):
    for tenth in range(11):
        true = (tenth / 10, 3 + 0.07 * tenth)
        still, moved = particles((0, 0), tenth, diameter), particles(true, tenth, diameter)
        shift = estimate_shift(moved, still).shift
        np.testing.assert_allclose(array(shift), true, atol=0.002)


def test_the_default_is_the_best():
    worst = dict.fromkeys(("fourier", "gauss", "parabola"), 0.0)
    for tenth in range(1, 10):
        true = (tenth / 10, -0.3)
        images = particles(true, tenth), particles((0, 0), tenth)
        for how in worst:
            shift = array(estimate_shift(*images, subsample=how).shift)
            worst[how] = max(worst[how], np.abs(shift - true).max())
    assert worst["fourier"] < 0.01 < worst["gauss"] < worst["parabola"] < 0.1


@pytest.mark.parametrize("true", [(-2.4, 1.32), (0.3, -0.7), (5.5, 10.25), (-0.02, 0.5)])
def test_pictures_of_the_tests_of_scikit_image(true):
    picture = data.camera().astype(np.float64)[::2, ::2]
    spectrum = ndimage.fourier_shift(np.fft.fftn(picture), true)
    moved = np.fft.ifftn(spectrum).real
    shift = array(estimate_shift(tensor(picture), tensor(moved)).shift)
    np.testing.assert_allclose(shift, np.negative(true), atol=0.01)
    theirs = phase_cross_correlation(picture, moved, upsample_factor=100)[0]
    np.testing.assert_allclose(shift, theirs, atol=0.01)


def moved_by(values: np.ndarray, shift: tuple[float, ...]) -> np.ndarray:
    return np.fft.ifftn(ndimage.fourier_shift(np.fft.fftn(values), shift)).real


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("case", "true"),
    [
        ("whole pixels", (-7.0, 12.0)),
        ("real input", (-2.4, 1.32)),
        ("one column", (-2.4, 0.0)),
        ("line", (-2.4,)),
        ("volume, whole", (-2.0, 1.0, 5.0)),
        ("volume", (-2.3, 1.7, 5.4)),
    ],
)
def test_the_tests_of_scikit_image(case, true, dtype):
    """Theirs allow 0.05 pixels and upsample 20 to 100 times."""
    values = {
        "one column": data.camera()[:, 15:16],
        "line": data.camera()[:, 15],
        "volume": data.binary_blobs(length=32, n_dim=3, rng=0),
        "volume, whole": data.binary_blobs(length=32, n_dim=3, rng=0),
    }.get(case, data.camera())
    reference = values.astype(np.float64)
    pair = (tensor(v, dtype) for v in (reference, moved_by(reference, true)))
    shift = array(estimate_shift(*pair, ndim=len(true)).shift)
    np.testing.assert_allclose(shift, np.negative(true), rtol=0, atol=0.01)


@pytest.mark.parametrize("subsample", ["fourier", "gauss", "parabola"])
@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_never_past_a_neighbour(subsample, noise):
    for seed in range(20):
        source = normal(80, seed=seed).cumsum(0)
        first = source[:60] + noise * normal(60, seed=seed + 100)
        for lag in (0, 7, 19):
            options = {"ndim": 1, "subsample": subsample}
            whole = estimate_shift(first, source[lag : lag + 60], subpixel=False, **options)
            result = estimate_shift(first, source[lag : lag + 60], **options)
            assert (result.shift - whole.shift).abs().item() < 1


@pytest.mark.parametrize("limit", [3, 4])
def test_a_peak_at_the_limit_of_the_search_is_refined_too(limit):
    time = torch.arange(200, dtype=torch.float64)

    def pulse(at: float) -> torch.Tensor:
        return (-0.5 * ((time - at) / 4) ** 2).exp()

    result = estimate_shift(pulse(103.3), pulse(100.0), ndim=1, lags=(-limit, limit))
    assert result.shift.item() == pytest.approx(3.3, abs=1e-3)
    assert result.at_limit.item() == (limit == 3)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradient_of_the_place_of_the_peak(ndim):
    size = {1: (40,), 2: (14, 15), 3: (11, 10, 12)}[ndim]
    source = normal(*(n + 6 for n in size), seed=ndim)
    for _ in range(2):
        for axis in range(ndim):
            source = (source + source.roll(1, axis) + source.roll(-1, axis)) / 3
    first = source[tuple(slice(2, n + 2) for n in size)].clone().requires_grad_()
    second = source[tuple(slice(4, n + 4) for n in size)] + 0.02 * normal(*size, seed=9)
    second = second.requires_grad_()

    def place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return estimate_shift(x, y, ndim=ndim, max_shift=4).shift

    assert place(first, second).detach().sub(2).abs().max() < 0.5
    assert torch.autograd.gradcheck(place, (first, second), fast_mode=ndim > 1)
