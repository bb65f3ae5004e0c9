"""The score over the overlap at each lag, against NumPy loops over the lags."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import array, normal, tensor

from torchcorr import estimate_shift


def score_at(x: np.ndarray, y: np.ndarray, lag: tuple[int, ...]) -> float:
    """Pearson's r of what overlaps at a lag; 0 where either is flat."""
    of_x, of_y = [], []
    for n, m, k in zip(x.shape, y.shape, lag, strict=True):
        start, stop = max(k, 0), min(n, k + m)
        of_x.append(slice(start, stop))
        of_y.append(slice(start - k, stop - k))
    a, b = x[tuple(of_x)].ravel(), y[tuple(of_y)].ravel()
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / np.sqrt(a @ a) / np.sqrt(b @ b))


def oracle(x: np.ndarray, y: np.ndarray, lags: list[np.ndarray]) -> np.ndarray:
    result = np.zeros([len(axis) for axis in lags])
    for index in np.ndindex(*result.shape):
        lag = tuple(int(axis[i]) for axis, i in zip(lags, index, strict=True))
        result[index] = score_at(x, y, lag)
    return result


def check(x: np.ndarray, y: np.ndarray, bound: float = 1e-9, **options: object) -> None:
    result = estimate_shift(tensor(x), tensor(y), ndim=x.ndim, score_map=True, **options)
    lags = [array(axis).astype(int) for axis in result.lags]
    np.testing.assert_allclose(array(result.score_map), oracle(x, y, lags), rtol=0, atol=bound)


@st.composite
def pairs(draw):
    ndim = draw(st.integers(1, 3))
    longest = (40, 9, 5)[ndim - 1]
    sizes = st.tuples(*[st.integers(1, longest)] * ndim)
    first, second = draw(sizes), draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, y = rng.normal(size=first), rng.normal(size=second)
    kind = draw(st.sampled_from(("plain", "steps", "spike", "offset", "flat start")))
    if kind == "steps":
        x, y = np.round(x), np.round(y)
    elif kind == "spike":
        x.ravel()[rng.integers(x.size)] = 1e7
    elif kind == "offset":
        x, y = 1e-3 * x + 1e4, 1e3 * y - 1e6
    elif kind == "flat start":
        x.ravel()[: x.size // 2] = 0.1
    ends = [
        sorted(draw(st.tuples(*[st.integers(1 - m, n - 1)] * 2)))
        for n, m in zip(first, second, strict=True)
    ]
    return x, y, draw(st.sampled_from((None, ends)))


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_every_score_is_that_of_its_overlap(pair):
    x, y, ends = pair
    check(x, y, lags=ends)


@pytest.mark.parametrize("spike", [1e7, 1e12])
@pytest.mark.parametrize("method", ["auto", "direct"])
def test_a_spike_changes_only_the_overlaps_that_contain_it(spike, method):
    x, y = array(normal(300, seed=1)), array(normal(260, seed=2))
    x[3] = spike
    check(x, y, method=method)


def test_a_spike_in_a_long_recording():
    x, y = array(normal(20_000, seed=1)), array(normal(20_000, seed=2))
    x[3] = 1e7
    result = estimate_shift(tensor(x), tensor(y), ndim=1, score_map=True)
    for lag in (-19_000, -500, 4, 1000, 19_000):
        score = result.score_map[int((result.lags[0] == lag).nonzero())].item()
        assert score == pytest.approx(score_at(x, y, (lag,)), abs=1e-7)


def test_trends_do_not_cancel():
    time = np.arange(400.0)
    check(time**2 + np.sin(time), 1e5 - 3 * time[:250] + np.cos(2 * time[:250]), 1e-8)


@pytest.mark.parametrize("sizes", [((50,), (50,)), ((12, 9), (7, 11)), ((5, 6, 4), (6, 3, 5))])
def test_blocks_of_lags_make_the_same_map(sizes, monkeypatch):
    x, y = (normal(*size, seed=i) for i, size in enumerate(sizes))
    options = {"ndim": x.dim(), "score_map": True}
    whole = estimate_shift(x, y, **options)
    monkeypatch.setattr("torchcorr.align.search._LAGS", 7)
    monkeypatch.setattr("torchcorr.align.search._LAGS_PER_ELEMENT", dict.fromkeys((1, 2, 3), 0))
    parts = estimate_shift(x, y, **options)
    torch.testing.assert_close(parts.score_map, whole.score_map, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.shift, whole.shift, rtol=0, atol=1e-9)
    assert torch.equal(parts.overlap, whole.overlap)


@pytest.fixture
def transformed(monkeypatch):
    """Lengths of the transforms of a search."""
    lengths = []
    transform = torch.fft.rfft

    def spy(x, n):
        lengths.append(n)
        return transform(x, n)

    monkeypatch.setattr(torch.fft, "rfft", spy)
    return lengths


def test_only_the_lags_that_are_asked_for_are_computed(transformed):
    x, y = normal(100_000, seed=1), normal(20_000, seed=2)
    result = estimate_shift(x, y, ndim=1, lags=(40_000, 44_000))
    assert result.lags[0].tolist() == list(range(40_000, 44_001))
    assert 0 < max(transformed) < 30_000
    transformed.clear()
    result = estimate_shift(x, x[30:], ndim=1, max_shift=50)
    assert result.shift.item() == 30
    # Those of the refinement between samples, where filters are not direct.
    assert max(transformed, default=0) < 40_000


def test_a_long_record_streams(transformed):
    """The transforms of a search are those of blocks of its lags, not those of the record."""
    x = normal(5_000_000, seed=1, dtype=torch.float32)
    result = estimate_shift(x, x[3_456_789 : 3_456_789 + 500], ndim=1)
    assert result.shift.item() == 3_456_789
    assert result.score.item() == pytest.approx(1, abs=1e-12)
    assert 0 < max(transformed) < 300_000


@pytest.mark.parametrize("sizes", [((5000,), (4700,)), ((40, 50), (45, 38)), ((9, 8, 10),) * 2])
@pytest.mark.parametrize("polarity", ["same", "either"])
def test_no_lag_that_is_left_out_of_the_ranking_is_better(sizes, polarity):
    """Of noise, whose best lags are hardly better than many others."""
    for seed in range(8):
        x, y = (normal(*size, seed=2 * seed + i) for i, size in enumerate(sizes))
        result = estimate_shift(
            x, y, ndim=x.dim(), polarity=polarity, score_map=True, subpixel=False
        )
        scores = array(result.score_map)
        if polarity == "either":
            scores = np.abs(scores)
        lags = [array(axis) for axis in result.lags]
        counts = np.ones(())
        for n, m, axis in zip(*sizes, lags, strict=True):
            counts = counts[..., None] * (np.minimum(n, axis + m) - np.maximum(axis, 0))
        ranks = np.arctanh(scores.clip(1e-9 - 1, 1 - 1e-9)) * np.sqrt((counts - 3).clip(0))
        ranks[counts < 3] = -np.inf
        starts = np.array([axis[0] for axis in lags])
        first, second = (
            tuple((array(lag) - starts).astype(int)) for lag in (result.shift, result.runner_up)
        )
        assert ranks[first] == pytest.approx(ranks.max(), abs=1e-6)
        near = tuple(slice(max(0, i - 6), i + 7) for i in first)
        ranks[near] = -np.inf
        assert result.runner_up_score.abs().item() == pytest.approx(scores[second], abs=1e-9)
        assert ranks[second] >= ranks.max() - 1e-6 or ranks[second] == -np.inf
