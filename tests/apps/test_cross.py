"""Cross-correlation over lags against NumPy and SciPy, and weighed spectra under echoes."""

import numpy as np
import pytest
import torch
from inputs import array, draw, normal, tensor
from scipy import signal
from skimage import data

from torchcorr import correlation_lags, cross_correlation, estimate_shift, phase_correlation


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
@pytest.mark.parametrize(
    "sizes", [((30,), (30,)), ((40,), (17,)), ((17,), (40,)), ((6, 7), (4, 9))]
)
def test_all_lags_are_those_of_scipy(sizes, dtype):
    a, b = draw(sizes[0], dtype), draw(sizes[1], dtype, seed=1)
    got = cross_correlation(a, b, ndim=len(sizes[0]))
    bound = 1e-4 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(array(got), signal.correlate(array(a), array(b)), rtol=0, atol=bound)


@pytest.mark.parametrize("sizes", [(30, 30), (40, 17), (17, 40)])
@pytest.mark.parametrize("lags", [(-5, 5), (3, 12), (-16, -2), (0, None), (None, -4)])
def test_a_range_of_lags_is_that_of_all(sizes, lags):
    a, b = (draw((n,), seed=n) for n in sizes)
    every = correlation_lags(*sizes)
    low, high = (
        end if end is not None else edge for end, edge in zip(lags, (-99, 99), strict=True)
    )
    wanted = cross_correlation(a, b, ndim=1)[(every >= low) & (every <= high)]
    got = cross_correlation(a, b, ndim=1, lags=lags)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_scales_by_their_definition():
    a, b = array(normal(20, seed=1)), array(normal(20, seed=2))
    plain = np.array(
        [sum(a[i + k] * b[i] for i in range(20) if 0 <= i + k < 20) for k in range(-6, 7)]
    )
    counts = 20 - np.abs(np.arange(-6, 7))
    wanted = {
        "none": plain,
        "biased": plain / 20,
        "unbiased": plain / counts,
        "coeff": plain / np.sqrt((a @ a) * (b @ b)),
    }
    for scale, values in wanted.items():
        got = cross_correlation(tensor(a), tensor(b), ndim=1, max_shift=6, scale=scale)
        np.testing.assert_allclose(array(got), values, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="must have the same window axes"):
        cross_correlation(tensor(a), tensor(b[1:]), ndim=1, scale="biased")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_coefficients_of_integers(dtype):
    a, b = draw((40,), dtype), draw((30,), dtype, seed=1)
    got = cross_correlation(a, b, ndim=1, scale="coeff")
    first, second = array(a).astype(float), array(b).astype(float)
    wanted = signal.correlate(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(array(got), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 1e-4),
        (torch.float16, 2e4),
        (torch.float32, 1e-30),
        (torch.float32, 1e30),
        (torch.float64, 1e-200),
        (torch.complex64, 1e-30),
    ],
)
def test_coefficients_do_not_depend_on_the_unit(dtype, size):
    """Products of such elements are no numbers of their dtype."""
    kind = torch.complex128 if dtype.is_complex else torch.float64
    a, b = draw((40,), kind), draw((30,), kind, seed=1)
    got = cross_correlation((size * a).to(dtype), (size * b).to(dtype), ndim=1, scale="coeff")
    wanted = cross_correlation(a, b, ndim=1, scale="coeff").to(dtype)
    bound = 4e-3 if dtype == torch.float16 else 1e-6
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=0, atol=bound)


def test_coefficients_with_silence_are_zero():
    a = normal(2, 9, seed=1)
    silent = torch.zeros_like(a).requires_grad_()
    got = cross_correlation(a, silent, ndim=1, scale="coeff")
    assert torch.equal(got, torch.zeros_like(got))
    (gradient,) = torch.autograd.grad(got.sum(), silent)
    assert bool(gradient.isfinite().all())


# What `correlate(a, b, 15)` of obspy gives for the signals below, as its own tests have it, cut
# after eight digits.
OBSPY = (
    0.53555336, 0.60748967, 0.67493495, 0.73707491, 0.79313226, 0.84237607, 0.88413089, 0.91778536,
    0.94280034, 0.95871645, 0.96516076, 0.96363672, 0.95043933, 0.92590109, 0.89047807, 0.84474328,
    0.78377236, 0.71629895, 0.64316805, 0.56526677, 0.48351386, 0.39884904, 0.31222231, 0.22458339,
    0.13687123, 0.05000401, -0.03513057, -0.11768441, -0.19685756, -0.27190599, -0.34214866,
)  # fmt: skip


def test_the_sine_of_obspy():
    """Its `correlate` removes means and divides by norms."""
    a = np.sin(np.linspace(0, 10, 101))
    b = 5 * np.roll(a, 5)
    a, b = a - a.mean(), b - b.mean()
    got = array(cross_correlation(tensor(a), tensor(b), ndim=1, max_shift=15, scale="coeff"))
    np.testing.assert_allclose(got, OBSPY, rtol=0, atol=1e-8)
    assert np.argmax(got) - 15 == -5
    whole = np.correlate(a, b, "full") / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(got, whole[85:116], rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("size", [100, 101, 1000, 1001])
def test_the_tests_of_scipy_for_lags(size, behind, mode):
    """Their signal begins a tenth of its length later, or earlier."""
    rng = np.random.default_rng(0)
    first, offset = rng.normal(size=size), size // 10
    second = np.concatenate([rng.normal(size=offset), first]) if behind else first[offset:]
    values = signal.correlate(first, second, mode)
    lags = correlation_lags(len(first), len(second), mode=mode)
    assert lags.tolist() == signal.correlation_lags(len(first), len(second), mode).tolist()
    assert lags[int(values.argmax())] == (-offset if behind else offset)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_lags_are_those_of_the_values(mode):
    """SciPy's are as well, but in mode "same" for an odd size and an even template."""
    for size in range(1, 12):
        for moved in range(1, size + 1):
            lags = correlation_lags(size, moved, mode=mode)
            a, b = draw((size,)), draw((moved,), seed=1)
            wanted = [cross_correlation(a, b, ndim=1, lags=(k, k)).item() for k in lags.tolist()]
            values = signal.correlate(array(a), array(b), mode)
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-12)
            theirs = signal.correlation_lags(size, moved, mode)
            if mode != "same" or size % 2 == 0 or moved % 2 == 1:
                assert lags.tolist() == theirs.tolist()


@pytest.mark.parametrize(("moved", "mode"), [(0, "full"), (0, "valid"), (2, "wrap")])
def test_lags_refuse(moved, mode):
    with pytest.raises(ValueError, match="moved|mode"):
        correlation_lags(8, moved, mode=mode)


def test_gradients_of_scaled_sums():
    a, b = (draw((9,), seed=i).requires_grad_() for i in range(2))
    for scale in ("none", "biased", "unbiased", "coeff"):
        assert torch.autograd.gradcheck(
            lambda x, y, s=scale: cross_correlation(x, y, ndim=1, lags=(-2, 4), scale=s), (a, b)
        )


def coloured(count: int, seed: int) -> np.ndarray:
    """Noise with most of its power at low frequencies."""
    return signal.lfilter([1.0], [1.0, -0.95], array(normal(count, seed=seed)))


def test_phat_by_its_definition():
    a, b = array(normal(40, seed=1)), array(normal(25, seed=2))
    a, b = a - a.mean(), b - b.mean()
    length = 64
    spectrum = np.fft.fft(a, length) * np.fft.fft(b, length).conj()
    spectrum /= np.abs(spectrum)
    # The means are zero: this frequency tells nothing.
    spectrum[0] = 0
    circle = np.fft.ifft(spectrum).real * 64 / 63
    wanted = np.concatenate([circle[-24:], circle[:40]])
    got = phase_correlation(tensor(a), tensor(b), ndim=1)
    np.testing.assert_allclose(array(got), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighting", ["scot", "roth", "ml"])
@pytest.mark.parametrize("lag", [0, 9])
def test_other_weightings_by_their_definition(weighting, lag):
    """Knapp and Carter's, from spectra that are averaged over three frequencies."""
    a = array(normal(60, seed=1))
    b = a[lag : lag + 40] + 0.5 * array(normal(40, seed=2))
    a = a[:50]
    length = 90
    first, second = (np.fft.fft(v - v.mean(), length) for v in (a, b))
    # The means are zero: this frequency tells nothing.
    cross = first * second.conj()
    cross[0] = 0
    size = np.where(cross == 0, 1.0, np.abs(cross))

    def averaged(values):
        return np.array([np.mean([values[(i + k) % length] for k in (-1, 0, 1)])
                         for i in range(length)])  # fmt: skip

    power, other = averaged(np.abs(first) ** 2), averaged(np.abs(second) ** 2)
    if weighting == "scot":
        weight = 1 / np.sqrt(power * other)
    elif weighting == "roth":
        weight = 1 / power
    else:
        straight = cross * np.exp(2j * np.pi * np.arange(length) * lag / length)
        coherence = np.abs(averaged(straight)) ** 2 / (power * other)
        weight = coherence / (size * (1 - coherence))
    circle = np.fft.ifft(cross * weight).real * length / (weight * np.abs(cross)).sum()
    wanted = np.concatenate([circle[-39:], circle[:50]])
    got = phase_correlation(tensor(a), tensor(b), ndim=1, weighting=weighting)
    np.testing.assert_allclose(array(got), wanted, rtol=0, atol=1e-9)
    assert wanted.argmax() - 39 == lag


@pytest.mark.parametrize("weighting", ["phat", "scot", "roth", "ml"])
def test_delays_under_echoes(weighting):
    """Two microphones in a room whose echoes are stronger together than the direct sound."""
    for seed in range(5):
        source = coloured(6000, seed)
        rng = np.random.default_rng(seed)
        room = np.zeros(600)
        room[0] = 1
        room[rng.integers(40, 600, 30)] += 0.3 * rng.normal(size=30)
        heard = np.convolve(source, room)[:6000]
        first, second = heard[1000:4000], source[1037:4037] + 0.05 * rng.normal(size=3000)
        result = estimate_shift(
            tensor(first), tensor(second), ndim=1, max_shift=300, weighting=weighting
        )
        assert result.shift.item() == pytest.approx(37, abs=0.5)
        assert result.false_alarm.item() < 1e-3


@pytest.mark.parametrize("weighting", ["phat", "scot", "roth", "ml"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_weighings_find_a_shift_and_stay_within_one(weighting, ndim):
    size = {1: (200,), 2: (40, 37), 3: (14, 15, 16)}[ndim]
    source = normal(*(n + 3 for n in size), seed=ndim)
    first = source[tuple(slice(0, n) for n in size)]
    second = 3 * source[tuple(slice(2, n + 2) for n in size)] + 5
    scores = phase_correlation(first, second, ndim=ndim, weighting=weighting, max_shift=5)
    assert scores.shape == (11,) * ndim and scores.abs().max() <= 1
    peak = [i.item() - 5 for i in torch.unravel_index(scores.argmax(), scores.shape)]
    assert peak == [2] * ndim
    result = estimate_shift(first, second, ndim=ndim, weighting=weighting, subpixel=False)
    assert result.shift.tolist() == [2.0] * ndim
    assert result.score.item() == pytest.approx(scores.max().item(), abs=0.2)


def test_the_coherence_does_not_depend_on_the_delay():
    x = normal(300, seed=1)
    y = x + normal(300, seed=2)
    x, y, none = x - x.mean(), y - y.mean(), torch.zeros(200, dtype=x.dtype)
    x = torch.cat([x, none])
    early, late = torch.cat([y, none]), torch.cat([none, y])
    scores, later = (
        phase_correlation(x, v, ndim=1, weighting="ml", max_shift=300) for v in (early, late)
    )
    torch.testing.assert_close(later[:-200], scores[200:], rtol=0, atol=1e-9)


def test_weighed_silence_is_no_pattern():
    result = estimate_shift(torch.zeros(50), torch.rand(50), ndim=1, weighting="phat")
    assert not result.found


def test_photographs_under_another_light():
    picture = data.camera().astype(np.float64)
    light = 1 + 0.5 * np.sin(np.arange(200) / 60)
    first, second = picture[100:300, 100:300], light * picture[112:312, 93:293]
    result = estimate_shift(tensor(first), tensor(second), weighting="phat")
    np.testing.assert_allclose(array(result.shift), (12, -7), atol=0.1)
