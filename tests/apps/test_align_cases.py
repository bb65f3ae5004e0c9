"""Inputs on which tools for aligning were reported to fail, with right answers, and laws."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import array, normal, tensor
from skimage import data
from test_overlap_scores import score_at

from torchcorr import Shift, estimate_shift

CAMERA = data.camera().astype(np.float64)
ROWS, COLUMNS = np.mgrid[:33, :33]
TIME = np.arange(128)
ALIKE = {
    "grid": ((ROWS % 8 == 0) | (COLUMNS % 8 == 0)) * 1.0,
    "stripes": (COLUMNS % 5 < 2) * 1.0,
    "ramp of an image": ROWS + 2.0 * COLUMNS,
    "ramp": TIME * 1.0,
    "sawtooth": TIME[:120] % 20 * 1.0,
    "noisy sawtooth": TIME[:120] % 20 / 20 + 0.02 * np.random.default_rng(0).normal(size=120),
    "square wave": TIME // 8 % 2 * 1.0,
    "decay": np.exp(-TIME[:100] / 10),
    "impulses": (TIME % 17 == 3) * 1.0,
    "sine": np.sin(TIME / 5.0),
    "pair": np.array([1.0, 2.0]),
}


@pytest.mark.parametrize("min_overlap", [None, 0.3])
@pytest.mark.parametrize("name", ALIKE)
def test_identical_recordings(name, min_overlap):
    x = tensor(ALIKE[name])
    result = estimate_shift(x, x, ndim=x.dim(), min_overlap=min_overlap)
    assert result.shift.tolist() == [0.0] * x.dim()
    assert result.score.item() == pytest.approx(1, abs=1e-12)
    assert result.found and not result.at_limit


@pytest.mark.parametrize("row", [-350, -90, 120, 350])
def test_sixteen_pairs_of_tiles(row):
    """Tiles of 450 pixels a side, at a quarter of their resolution."""
    picture = np.pad(CAMERA, 200, mode="reflect")[::4, ::4]
    for column in (-350, -30, 200, 350):
        lag = tuple(round(k / 4) for k in (row, column))
        first, second = (
            picture[max(0, s * lag[0]) :, max(0, s * lag[1]) :][:112, :112] for s in (-1, 1)
        )
        result = estimate_shift(tensor(first), tensor(second))
        assert result.shift.tolist() == list(lag)


def test_tiles_that_share_a_fifth():
    first, second = CAMERA[100:164, 100:164], CAMERA[102:166, 152:216]
    result = estimate_shift(tensor(first), tensor(second))
    assert result.shift.tolist() == [2.0, 52.0]
    assert result.overlap.item() == 62 * 12
    assert result.runner_up_score.item() < 0.9
    assert result.false_alarm.item() < 0.05


def test_volumes_that_share_less_than_half():
    volume = normal(30, 30, 30, seed=4)
    result = estimate_shift(volume[:24, :24, :24], volume[6:, 6:, 6:], ndim=3)
    assert result.shift.tolist() == [6.0, 6.0, 6.0]
    assert result.score.item() == pytest.approx(1)


@pytest.mark.parametrize("lag", [10, 50, 90, -90])
def test_a_hundred_samples_that_share_few(lag):
    source = normal(190, seed=5)
    first, second = source[max(0, -lag) :][:100], source[max(0, lag) :][:100]
    result = estimate_shift(first, second, ndim=1)
    assert result.shift.item() == lag
    assert result.overlap.item() == 100 - abs(lag)
    assert result.false_alarm.item() < 1e-6


@pytest.mark.parametrize("spike", [1e6, 1e7])
def test_a_spike_outside_the_overlap(spike):
    source = normal(700, seed=6)
    first, second = source[:500].clone(), source[100:600]
    first[7] = spike
    result = estimate_shift(first, second, ndim=1)
    assert result.shift.item() == 100
    assert result.score.item() == pytest.approx(1)


def test_an_inverted_copy():
    source = normal(400, seed=7)
    either = estimate_shift(source[:300], -source[7:307], ndim=1, polarity="either")
    assert either.shift.item() == 7
    assert either.score.item() == pytest.approx(-1)
    assert either.significance.item() < -10
    same = estimate_shift(source[:300], -source[7:307], ndim=1)
    assert 0 < same.score.item() < 0.5 < same.false_alarm.item()


@pytest.mark.parametrize(
    ("first", "second", "lag"),
    [
        ([1, 2, 3], [0, 0, 1, 2, 3], -2),
        ([0, 0, 0, 1, 2, 3], [0.02, 0.12, 1.08, 2.21, 2.95, -0.09], 1),
        ([0, 1, 2, 3], [1, 2, 3, 0, 0, 0, 0, 1, 2, 3, 0, 0], 1),
    ],
)
def test_what_finddelay_answers(first, second, lag):
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (first, second))
    assert estimate_shift(x, y, ndim=1).shift.item() == lag
    assert estimate_shift(y, x, ndim=1).shift.item() == -lag


@pytest.mark.parametrize("polarity", ["same", "either"])
def test_no_common_pattern(polarity):
    noise = normal(60, seed=8)
    for silent in (torch.zeros(40), torch.full((40,), 0.1), torch.zeros(1)):
        result = estimate_shift(silent.double(), noise, ndim=1, polarity=polarity)
        assert not result.found
        assert result.shift.tolist() == [0.0] and result.score.item() == 0
        assert result.overlap.item() == 0 and result.false_alarm.item() == 1
    assert estimate_shift(noise, noise, ndim=1).found


def test_noise_is_doubted_and_scores_are_never_ranked_wrongly():
    certain = 0
    for seed in range(100):
        x, y = array(normal(64, seed=seed)), array(normal(64, seed=seed + 1000))
        scores = {lag: score_at(x, y, (lag,)) for lag in range(-32, 33)}
        best = max(scores, key=lambda lag: scores[lag])
        result = estimate_shift(tensor(x), tensor(y), ndim=1, min_overlap=0.5, subpixel=False)
        assert result.shift.item() == best
        assert result.score.item() == pytest.approx(scores[best])
        certain += estimate_shift(tensor(x), tensor(y), ndim=1).false_alarm.item() < 0.01
    assert certain <= 3


def test_false_alarms_are_as_frequent_as_they_say():
    for smooth in (0, 3):
        chances = []
        for seed in range(300):
            x, y = normal(200, seed=seed), normal(200, seed=seed + 5000)
            for _ in range(smooth):
                x, y = (v[:-1] + v[1:] for v in (x, y))
            chances.append(estimate_shift(x, y, ndim=1, max_shift=40).false_alarm.item())
        assert np.mean(np.array(chances) < 0.05) < 0.1
        assert np.mean(np.array(chances) < 0.5) < 0.75


@st.composite
def pairs(draw):
    ndim = draw(st.integers(1, 2))
    sizes = st.tuples(*[st.integers(2, (30, 7)[ndim - 1])] * ndim)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, y = (rng.normal(size=draw(sizes)) for _ in range(2))
    if draw(st.booleans()):
        x, y = np.round(x), np.round(y)
    return (
        tensor(x),
        tensor(y),
        draw(st.sampled_from((None, 0.25))),
        draw(st.sampled_from(("same", "either"))),
    )


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_exchanged_recordings_give_the_negated_shift(pair):
    x, y, min_overlap, polarity = pair
    options = {"ndim": x.dim(), "min_overlap": min_overlap, "polarity": polarity}
    there = estimate_shift(x, y, score_map=True, **options)
    back = estimate_shift(y, x, score_map=True, **options)
    assert torch.equal(back.shift, -there.shift)
    torch.testing.assert_close(back.runner_up, -there.runner_up, rtol=0, atol=0, equal_nan=True)
    for name in ("score", "found", "overlap", "at_limit", "significance", "false_alarm"):
        assert torch.equal(getattr(there, name), getattr(back, name)), name
    assert torch.equal(back.score_map, there.score_map.flip(tuple(range(x.dim()))))


def exact_score(a: list[int], b: list[int]) -> Fraction:
    """Pearson's r times its own size, without rounding; 0 where either is flat."""
    n = len(a)
    sums = n * sum(x * y for x, y in zip(a, b, strict=True)) - sum(a) * sum(b)
    energies = [n * sum(x * x for x in v) - sum(v) ** 2 for v in (a, b)]
    return Fraction(sums * abs(sums), energies[0] * energies[1]) if all(energies) else Fraction(0)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(6, 24), st.integers(6, 24), st.integers(2, 4))
def test_the_best_lag_and_the_nearest_of_equals_by_exact_arithmetic(seed, n, m, levels):
    """Few levels make many equal scores, which rounding must not decide."""
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(0, levels, size).tolist() for size in (n, m))
    least = 0.4 * min(n, m)
    scores = {}
    for lag in range(1 - m, n):
        start, stop = max(lag, 0), min(n, lag + m)
        if stop - start >= least:
            a, b = x[start:stop], y[start - lag : stop - lag]
            scores[lag] = exact_score(a, b), a == b
    best = max(score for score, _ in scores.values())
    result = estimate_shift(
        tensor(np.float64(x)), tensor(np.float64(y)), ndim=1, min_overlap=0.4, subpixel=False
    )
    assert result.found.item() == (best > 0)
    if best > 0:
        assert result.score.item() == pytest.approx(float(best) ** 0.5, abs=1e-12)
        # Of perfect ones those with equal samples are better.
        ties = [k for k, (score, same) in scores.items() if score == best and same]
        ties = ties or [k for k, (score, _) in scores.items() if score == best]
        assert result.shift.item() in ties
        assert abs(result.shift.item()) == min(map(abs, ties))


def test_a_score_of_nothing_but_rounding_is_no_agreement():
    """At no lag is the covariance positive; at lag 0 it is 0, but thirds are rounded."""
    x, y = tensor(np.float64([1, 1, 0, 0, 0, 0])), tensor(np.float64([0, 1, 0, 0, 1, 1]))
    result = estimate_shift(x, y, ndim=1, min_overlap=0.4)
    assert not result.found
    assert result.score == 0 and result.shift == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 6), min_size=1, max_size=2), st.booleans())
def test_periodic_recordings_take_the_smallest_shift(seed, periods, noisy):
    """Of all the lags at which they agree, whatever the pattern that repeats."""
    rng = np.random.default_rng(seed)
    pattern = rng.normal(size=periods)
    pattern.flat[0] += 4
    size = len(periods) * [(40, 18)[len(periods) - 1]]
    source = np.tile(pattern, [n // p + 2 for n, p in zip(size, periods, strict=True)])
    starts = [int(rng.integers(p)) for p in periods]
    x, y = (
        1e-14 * noisy * rng.normal(size=size)
        + source[tuple(slice(k, k + n) for k, n in zip(begin, size, strict=True))]
        for begin in ([0] * len(periods), starts)
    )
    nearest = [min(k, p - k) for k, p in zip(starts, periods, strict=True)]
    shift = array(estimate_shift(tensor(x), tensor(y), ndim=len(periods)).shift)
    if pattern.size > 1:
        np.testing.assert_allclose(np.abs(shift), nearest, atol=1e-6)


@pytest.mark.parametrize("lags", [(0, 30), (25, None), (None, 26), (25, 25)])
def test_one_sided_lags(lags):
    source = normal(200, seed=9)
    result = estimate_shift(source[:150], source[25:175], ndim=1, lags=lags)
    assert result.shift.item() == 25
    assert result.at_limit.item() == (lags == (25, None))
    low, high = (
        end if end is not None else edge for end, edge in zip(lags, (-149, 149), strict=True)
    )
    assert result.lags[0].tolist() == list(range(low, high + 1))


def test_a_centre_moves_the_search_and_the_ties():
    wave = tensor(np.arange(400) % 20 * 1.0)
    assert estimate_shift(wave, wave, ndim=1, centre=42).shift.item() == 40
    near = estimate_shift(wave, wave, ndim=1, centre=(-61,), max_shift=9)
    assert near.shift.item() == -60
    assert near.lags[0].tolist() == list(range(-70, -51))
    image = tensor(CAMERA[::4, ::4])
    result = estimate_shift(image[:90, :90], image[20:, 9:99], lags=((15, 25), (5, None)))
    assert result.shift.tolist() == [20.0, 9.0]


def test_the_runner_up_is_outside_the_peak():
    source = normal(300, seed=10)
    echo = source[:260].clone()
    echo[40:] += 0.6 * source[:220]
    result = estimate_shift(echo, source[:260], ndim=1, subpixel=False)
    assert result.shift.item() == 0
    assert result.runner_up.tolist() == [40.0]
    assert result.runner_up_score.item() == pytest.approx(
        score_at(array(echo), array(source[:260]), (40,))
    )


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.float16,
              torch.bfloat16, torch.float32]
)  # fmt: skip
def test_every_dtype_is_computed_in_float64(dtype):
    values = (20 * normal(140, seed=14)).round().clamp(0, 99)
    first, second = values[:100], values[17:117]
    wide = estimate_shift(first, second, ndim=1, polarity="either", score_map=True)
    result = estimate_shift(
        first.to(dtype), second.to(dtype), ndim=1, polarity="either", score_map=True
    )
    assert result.shift.item() == 17
    torch.testing.assert_close(result.score_map, wide.score_map, rtol=0, atol=1e-12)


def test_batches_are_the_pairs_one_by_one():
    first, second = normal(2, 1, 40, seed=11), normal(3, 50, seed=12)
    first[0, 0, 5:35] = second[1, 15:45]
    result = estimate_shift(first, second, ndim=1, score_map=True)
    assert result.score_map.shape == (2, 3, 89)
    for i, j in itertools.product(range(2), range(3)):
        single = estimate_shift(first[i, 0], second[j], ndim=1, score_map=True)
        for name in Shift.__dataclass_fields__:
            if name != "ranges":
                got, want = getattr(result, name)[i, j], getattr(single, name)
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    empty = estimate_shift(first[:0], second, ndim=1)
    assert empty.shift.shape == (0, 3, 1) and empty.score.shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"lags": 5},
            TypeError,
            r"lags must be a pair \(low, high\) or one pair for each axis: got int",
        ),
        ({"lags": (5, 3)}, ValueError, r"lags must rise from low to high: got \(5, 3\)"),
        ({"lags": (1, 2, 3)}, ValueError, "lags must be a pair"),
        ({"lags": (0.5, 3)}, TypeError, "lags must contain ints or None"),
        ({"lags": (40, 50)}, ValueError, "lags must contain one at which recordings of 20 and 20"),
        ({"lags": (0, 1), "max_shift": 3}, ValueError, "lags and max_shift exclude one another"),
        ({"lags": (15, 19), "min_overlap": 0.5}, ValueError, "lags and min_overlap leave no shift"),
        ({"centre": 0.5}, TypeError, "centre must be an int or a sequence of ints: got float"),
        ({"polarity": "any"}, ValueError, "polarity must be one of same, either: got 'any'"),
        ({"subsample": "sinc"}, ValueError, "subsample must be one of fourier, gauss, parabola"),
    ],
)
def test_refuses_options(options, error, message):
    with pytest.raises(error, match=message):
        estimate_shift(torch.rand(20), torch.rand(20), ndim=1, **options)
