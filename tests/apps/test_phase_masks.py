"""Weighed spectra of recordings with masks and missing data, against a definition in NumPy."""

import math

import numpy as np
import pytest
import torch
from inputs import array, draw, normal, tensor
from scipy import ndimage, signal
from skimage import data

from torchcorr import estimate_shift, phase_correlation

WEIGHTINGS = ("phat", "scot", "roth", "ml")
# Both sizes, whose transforms are as long as there are lags, and a lag, by the number of axes.
PLACES = {
    1: ((50,), (41,), (9,)),
    2: ((13, 11), (12, 6), (2, -1)),
    3: ((6, 7, 8), (5, 6, 5), (1, 0, 2)),
}


def definition(x, y, of_x, of_y, weighting, lag):
    """Knapp and Carter's weightings of the spectra of centred recordings times their weights."""
    axes = range(x.ndim)
    lengths = [n + m - 1 for n, m in zip(x.shape, y.shape, strict=True)]
    first, second = (
        np.fft.fftn(w * (v - np.average(v, weights=w)), lengths, axes)
        for v, w in ((x, of_x), (y, of_y))
    )
    cross = first * second.conj()
    # The means are zero: this frequency tells nothing.
    cross.flat[0] = 0
    size = np.where(cross == 0, 1.0, np.abs(cross))

    def averaged(values):
        return ndimage.uniform_filter(values, 3, mode="wrap")

    power, other = averaged(np.abs(first) ** 2), averaged(np.abs(second) ** 2)
    if weighting == "phat":
        weight = 1 / size
    elif weighting == "scot":
        weight = 1 / np.sqrt(power * other)
    elif weighting == "roth":
        weight = 1 / power
    else:
        straight = cross * np.exp(
            2j
            * np.pi
            * sum(k * at / n for k, at, n in zip(lag, np.indices(lengths), lengths, strict=True))
        )
        mean = averaged(straight.real) + 1j * averaged(straight.imag)
        coherence = np.abs(mean) ** 2 / (power * other)
        weight = coherence / (size * (1 - coherence))
    circle = np.fft.ifftn(cross * weight).real * size.size / (weight * np.abs(cross)).sum()
    return np.roll(circle, [m - 1 for m in y.shape], axes)


def weighted_pair(ndim):
    """A recording, a noisy part of another that overlaps it at a lag, and the weights of both."""
    size, moved, lag = PLACES[ndim]
    ends = [1 + max(n, k + m) for n, m, k in zip(size, moved, lag, strict=True)]
    source = 2 * array(normal(*ends, seed=ndim)) + 30
    x = source[tuple(slice(1, 1 + n) for n in size)]
    y = source[tuple(slice(1 + k, 1 + k + m) for m, k in zip(moved, lag, strict=True))]
    y = y + 0.3 * array(normal(*y.shape, seed=7))
    weights = [array(draw(v.shape, seed=i)) for i, v in enumerate((x, y), 8)]
    return x, y, *(np.where(w < 0.15, 0.0, w + 0.5) for w in weights), lag


def weight_of_overlap(of_x, of_y, lag):
    total = 0.0
    for place in np.ndindex(*of_y.shape):
        at = tuple(i + k for i, k in zip(place, lag, strict=True))
        if all(0 <= i < n for i, n in zip(at, of_x.shape, strict=True)):
            total += of_x[at] * of_y[place]
    return total


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_scores_are_those_of_the_definition(ndim, weighting):
    x, y, of_x, of_y, lag = weighted_pair(ndim)
    wanted = definition(x, y, of_x, of_y, weighting, lag)
    x, y = np.where(of_x > 0, x, np.nan), np.where(of_y > 0, y, -np.inf)
    options = {
        "ndim": ndim,
        "weighting": weighting,
        "reference_mask": tensor(of_x),
        "moving_mask": tensor(of_y),
    }
    got = phase_correlation(tensor(x), tensor(y), **options)
    np.testing.assert_allclose(array(got), wanted, rtol=0, atol=1e-9)
    found = estimate_shift(tensor(x), tensor(y), subpixel=False, score_map=True, **options)
    np.testing.assert_allclose(array(found.score_map), wanted, rtol=0, atol=1e-9)
    assert tuple(found.shift.tolist()) == lag
    assert found.score.item() == pytest.approx(wanted.max(), abs=1e-9)
    assert found.overlap.item() == math.floor(weight_of_overlap(of_x, of_y, lag))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_masks_of_ones_are_no_masks(weighting):
    first, second = normal(40, 37, seed=1), normal(35, 50, seed=2)
    second[:20, :20] += first[10:30, 5:25]
    ones = {"reference_mask": torch.ones(40, 37), "moving_mask": torch.ones(50, dtype=torch.bool)}
    options = {"weighting": weighting, "score_map": True}
    plain = estimate_shift(first, second, **options)
    masked = estimate_shift(first, second, **options, **ones)
    for name in ("shift", "score", "overlap", "runner_up", "significance", "score_map"):
        got, wanted = getattr(masked, name), getattr(plain, name)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-7, msg=name)
    got, wanted = (
        phase_correlation(first, second, weighting=weighting, **masks) for masks in (ones, {})
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 7.0, 1e200])
def test_weights_have_no_unit(scale):
    x, y, of_x, of_y, _ = weighted_pair(2)
    pair = tensor(x), tensor(y)
    for weighting in WEIGHTINGS:
        wanted, got = (
            phase_correlation(
                *pair,
                weighting=weighting,
                reference_mask=tensor(of_x) * s,
                moving_mask=tensor(of_y),
            )
            for s in (1.0, scale)
        )
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_exchanged_recordings_have_the_negated_shift(weighting):
    x, y, of_x, of_y, lag = weighted_pair(2)
    x, y, of_x, of_y = map(tensor, (x, y, of_x, of_y))
    options = {"weighting": weighting, "score_map": True}
    there = estimate_shift(x, y, reference_mask=of_x, moving_mask=of_y, **options)
    back = estimate_shift(y, x, reference_mask=of_y, moving_mask=of_x, **options)
    assert torch.equal(back.shift, -there.shift)
    assert torch.equal(back.score_map, there.score_map.flip(0, 1))
    assert there.shift.round().tolist() == list(lag)


def test_batches():
    """Leading axes broadcast, and an item of which everything is missing scores nothing."""
    first, second = normal(2, 1, 30, seed=1), normal(3, 25, seed=2)
    masks = normal(2, 1, 30, seed=3) > -1, normal(3, 25, seed=4).abs()
    masks[0][1] = False
    first = first.masked_fill(~masks[0], torch.nan)
    for weighting in WEIGHTINGS:
        options = {"ndim": 1, "weighting": weighting}
        names = ("reference_mask", "moving_mask")
        scores = phase_correlation(first, second, **options, **dict(zip(names, masks, strict=True)))
        assert scores.shape == (2, 3, 54) and (scores[1] == 0).all()
        found = estimate_shift(first, second, **options, **dict(zip(names, masks, strict=True)))
        assert found.found.tolist() == [[True] * 3, [False] * 3]
        for j in range(3):
            own = dict(zip(names, (masks[0][0, 0], masks[1][j]), strict=True))
            single = phase_correlation(first[0, 0], second[j], **options, **own)
            torch.testing.assert_close(scores[0, j], single, rtol=0, atol=1e-10)
            shift = estimate_shift(first[0, 0], second[j], **options, **own).shift
            torch.testing.assert_close(shift, found.shift[0, j], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int16])
def test_dtypes(dtype):
    """Any real recordings and any weights give the float64 scores of their values."""
    x, y = (draw((20,), dtype, seed) for seed in (1, 2))
    mask = draw((20,), torch.float32, seed=3) - 0.3
    mask = mask.clamp(min=0)
    got = phase_correlation(x, y, ndim=1, moving_mask=mask)
    wanted = phase_correlation(x.double(), y.double(), ndim=1, moving_mask=mask.double())
    assert got.dtype == torch.float64
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_delays_under_echoes_with_gaps(weighting):
    """Gaps that are filled with zeros are a pattern of their own, at another lag."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        source = signal.lfilter([1], [1, -0.9], rng.normal(size=6000)) + 400
        room = np.zeros(600)
        room[0] = 1
        room[rng.integers(40, 600, 30)] += 0.3 * rng.normal(size=30)
        heard = signal.lfilter(room, 1, source)
        pair = [heard[1000:4000].copy(), source[1037:4037] + 0.05 * rng.normal(size=3000)]
        for x in pair:
            for start in rng.integers(0, 2900, 6):
                x[start : start + 150] = np.nan
        options = {"ndim": 1, "max_shift": 300, "weighting": weighting}
        found = estimate_shift(*map(tensor, pair), nan="ignore", **options)
        assert found.shift.item() == pytest.approx(37, abs=0.5)
        assert found.false_alarm.item() < 1e-3
        there = [~np.isnan(x) for x in pair]
        assert found.overlap.item() == (there[0][37:] & there[1][:-37]).sum()
        filled = estimate_shift(*map(tensor, map(np.nan_to_num, pair)), **options)
        assert abs(filled.shift.item() - 37) > 20


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_pictures_with_a_hole(weighting):
    """The hole stays where it is while the noisy scene moves."""
    picture = data.camera().astype(np.float64)
    first, second = picture[100:300, 100:300].copy(), picture[112:312, 93:293].copy()
    for seed, x in enumerate((first, second)):
        x += 400 + 40 * array(normal(200, 200, seed=seed))
        x[60:130, 80:150] = np.nan
    found = estimate_shift(tensor(first), tensor(second), nan="ignore", weighting=weighting)
    np.testing.assert_allclose(array(found.shift), (12, -7), atol=0.3)
    filled = [tensor(np.nan_to_num(x)) for x in (first, second)]
    assert estimate_shift(*filled, weighting=weighting).shift.abs().max() < 1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_common_pattern(weighting):
    """Constant where it is not missing, and what was there otherwise does not matter."""
    x, mask = normal(60, seed=1), torch.ones(60)
    mask[10:40] = 0
    flat = torch.where(mask > 0, 5.0, x)
    options = {"ndim": 1, "weighting": weighting}
    found = estimate_shift(x, flat, moving_mask=mask, **options)
    assert not found.found and found.shift.item() == 0
    assert (phase_correlation(x, flat, moving_mask=mask, **options) == 0).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_chance_where_little_is_left(weighting):
    """Scores of unrelated recordings are higher where masks leave an eighth of each, and no more
    significant, whether these parts meet at lag 0 or only at a large one.
    """
    x, y = normal(40, 240, seed=1), normal(40, 240, seed=2)
    early, late = torch.zeros(240), torch.zeros(240)
    early[:30] = late[-30:] = 1
    options = {"ndim": 1, "weighting": weighting, "polarity": "either", "subpixel": False}
    plain = estimate_shift(x, y, **options)
    for mask in (early, late):
        masked = estimate_shift(x, y, reference_mask=early, moving_mask=mask, **options)
        assert masked.score.abs().median() > 1.5 * plain.score.abs().median()
        assert masked.significance.abs().median() < 1.1 * plain.significance.abs().median()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradients(weighting):
    x, y = (normal(2, 6, 5, seed=i).requires_grad_() for i in (1, 2))
    weights = [(draw((6, 5), seed=i) + 0.2).requires_grad_() for i in (3, 4)]

    def scores(x, y, of_x, of_y):
        return phase_correlation(
            x, y, weighting=weighting, max_shift=1, reference_mask=of_x, moving_mask=of_y
        )

    assert torch.autograd.gradcheck(scores, (x, y, *weights))


def test_gradients_where_elements_are_missing():
    """Those of what is missing are zero, those of the others of a recording without NaN."""
    x, y = normal(20, seed=1), normal(20, seed=2)
    mask = normal(20, seed=3) > -0.5
    grads = []
    for filling in (torch.nan, 3.0):
        leaf = x.masked_fill(~mask, filling).requires_grad_()
        weights = mask.double().requires_grad_()
        scores = phase_correlation(leaf, y, ndim=1, reference_mask=weights)
        scores.square().mul(torch.arange(39)).sum().backward()
        assert (leaf.grad[~mask] == 0).all() and (weights.grad[~mask] == 0).all()
        assert (leaf.grad[mask] != 0).all()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (-1.0, ValueError, "moving_mask must be finite and not negative"),
        (math.nan, ValueError, "moving_mask must be finite and not negative"),
        (0.0, ValueError, "moving_mask must not be zero everywhere"),
        (1, TypeError, "moving_mask must be boolean or of floating-point numbers: got int64"),
    ],
)
def test_refuses_masks(mask, error, message):
    x, mask = draw((20,)), torch.full((20,), mask)
    for call in (phase_correlation, estimate_shift):
        with pytest.raises(error, match=message):
            call(x, x, ndim=1, weighting="phat", moving_mask=mask)


def test_refuses_what_does_not_fit():
    x = draw((20,))
    with pytest.raises(ValueError, match="reference_mask must broadcast to reference"):
        phase_correlation(x, x, ndim=1, reference_mask=torch.ones(19))
    with pytest.raises(ValueError, match="moving must be finite"):
        phase_correlation(x, x / 0, ndim=1, reference_mask=torch.ones(20))
    with pytest.raises(ValueError, match="reference must be finite"):
        phase_correlation(x / 0, x, ndim=1, reference_mask=torch.ones(20))
