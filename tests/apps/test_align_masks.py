"""Masks, weights and missing data of estimate_shift, against NumPy loops and scikit-image."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import array, normal, tensor
from skimage import data
from skimage.registration import phase_cross_correlation

from torchcorr import estimate_shift

CAMERA = data.camera().astype(np.float64)[::4, ::4]


def weighted_score(x, y, w) -> float:
    """Pearson's r with weights; 0 where either is flat or nothing overlaps."""
    x, y, w = x[w > 0], y[w > 0], w[w > 0]
    if w.size == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    return float((w * x * y).sum() / np.sqrt((w * x * x).sum()) / np.sqrt((w * y * y).sum()))


def oracle(x, y, wx, wy, lags):
    scores, counts = (np.zeros([len(axis) for axis in lags]) for _ in range(2))
    for index in np.ndindex(*scores.shape):
        of_x, of_y = [], []
        for n, m, axis, i in zip(x.shape, y.shape, lags, index, strict=True):
            k = int(axis[i])
            start, stop = max(k, 0), min(n, k + m)
            of_x.append(slice(start, stop))
            of_y.append(slice(start - k, stop - k))
        w = (wx[tuple(of_x)] * wy[tuple(of_y)]).ravel()
        counts[index] = w.sum()
        scores[index] = weighted_score(x[tuple(of_x)].ravel(), y[tuple(of_y)].ravel(), w)
    return scores, counts


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    sizes = st.tuples(*[st.integers(2, (30, 8, 4)[ndim - 1])] * ndim)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pair = [rng.normal(size=draw(sizes)) * 3 + 50 for _ in range(2)]
    masks = []
    for x in pair:
        kind = draw(st.sampled_from(("none", "boolean", "weights")))
        mask = rng.random(x.shape) if kind == "weights" else rng.random(x.shape) < 0.7
        mask.ravel()[0] = 1
        masks.append(None if kind == "none" else mask)
    return pair, masks, draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(cases())
def test_scores_are_those_of_the_definition(case):
    (x, y), masks, as_nan = case
    weights = [
        np.ones(v.shape) if mask is None else mask.astype(float)
        for v, mask in zip((x, y), masks, strict=True)
    ]
    options = {"ndim": x.ndim, "score_map": True, "subpixel": False}
    if as_nan and all(mask is None or mask.dtype == bool for mask in masks):
        given = [
            v if mask is None else np.where(mask, v, np.nan)
            for v, mask in zip((x, y), masks, strict=True)
        ]
        result = estimate_shift(*map(tensor, given), nan="ignore", **options)
    else:
        tensors = [None if mask is None else tensor(mask) for mask in masks]
        result = estimate_shift(
            tensor(x), tensor(y), reference_mask=tensors[0], moving_mask=tensors[1], **options
        )
    lags = [array(axis) for axis in result.lags]
    scores, counts = oracle(x, y, *weights, lags)
    np.testing.assert_allclose(array(result.score_map), scores, rtol=0, atol=1e-7)
    if bool(result.found):
        winner = zip(array(result.shift), lags, strict=True)
        index = tuple(int(k - axis[0]) for k, axis in winner)
        assert result.overlap.item() == int(counts[index] + 1e-6)
        assert result.score.item() == pytest.approx(scores[index], abs=1e-7)
        if all(mask is None or mask.dtype == bool for mask in masks):
            ranks = np.arctanh(scores.clip(1e-9 - 1, 1 - 1e-9)) * (counts - 3).clip(0) ** 0.5
            assert ranks[index] >= ranks.max() - 1e-3 or scores[index] > 1 - 1e-3


@pytest.mark.parametrize("shift", [(-7, 12), (20, -23), (0, 0)])
def test_random_masks_of_the_tests_of_scikit_image(shift):
    rng = np.random.default_rng(0)
    mask = rng.random(CAMERA.shape) < 0.75
    spoiled = np.where(mask, CAMERA, 255 * rng.normal(size=CAMERA.shape))
    moved, mask_of_moved = (np.roll(v, shift, (0, 1)) for v in (CAMERA, mask))
    result = estimate_shift(
        tensor(spoiled),
        tensor(np.where(mask_of_moved, moved, 1e3)),
        reference_mask=tensor(mask),
        moving_mask=tensor(mask_of_moved),
    )
    assert result.shift.tolist() == [-float(k) for k in shift]
    theirs = phase_cross_correlation(
        spoiled, moved, reference_mask=mask, moving_mask=mask_of_moved, overlap_ratio=0.3
    )[0]
    assert result.shift.tolist() == theirs.tolist()


def test_masks_of_ones_are_no_masks():
    first, second = tensor(CAMERA[20:90, 10:100]), tensor(CAMERA[23:80, 4:90])
    plain = estimate_shift(first, second, score_map=True)
    masked = estimate_shift(
        first,
        second,
        reference_mask=torch.ones_like(first),
        moving_mask=torch.ones_like(second),
        score_map=True,
    )
    torch.testing.assert_close(masked.score_map, plain.score_map, rtol=0, atol=1e-7)
    assert torch.equal(masked.shift, plain.shift)
    assert torch.equal(masked.overlap, plain.overlap)
    torch.testing.assert_close(masked.runner_up, plain.runner_up, rtol=0, atol=0)


def test_masks_of_ones_are_no_masks_for_small_images_either():
    """Between samples too: the filter leaves 64 elements of 14 x 13 that overlap."""
    source = normal(20, 20, seed=3)
    moving = source[3:17, 2:15] + 0.3 * normal(14, 13, seed=4)
    plain = estimate_shift(source[:14, :13], moving, max_shift=5)
    ones = torch.ones(14, 13, dtype=torch.bool)
    masked = estimate_shift(source[:14, :13], moving, max_shift=5, reference_mask=ones)
    torch.testing.assert_close(masked.shift, plain.shift, rtol=0, atol=1e-6)


def test_unequal_sizes_of_the_tests_of_scikit_image():
    """The middle of a moved picture, half of which is covered by a mask."""
    moved = np.roll(CAMERA, (-5, 7), (0, 1))[24:-24, 20:-20].copy()
    mask = np.ones(moved.shape, dtype=bool)
    mask[:30, :50] = False
    moved[~mask] = 0
    result = estimate_shift(tensor(CAMERA), tensor(moved), moving_mask=tensor(mask))
    assert result.shift.tolist() == [24.0 + 5, 20.0 - 7]


def test_volumes():
    volume = normal(22, 20, 24, seed=1)
    first, second = volume[:18, :16, :20].clone(), volume[3:, 2:, 1:].clone()
    mask = normal(*first.shape, seed=2) > -0.5
    first[~mask] = 1e6
    result = estimate_shift(first, second, ndim=3, reference_mask=mask)
    assert result.shift.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("spike", [1e6, 1e9])
def test_a_spike_outside_the_overlap(spike):
    source = normal(400, seed=3)
    first, second = source[:300].clone(), source[90:390]
    first[5] = spike
    mask = normal(300, seed=4) > -1.0
    result = estimate_shift(first, second, ndim=1, reference_mask=mask)
    assert result.shift.item() == 90
    assert result.score.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("spike", [1e7, 1e10])
@pytest.mark.parametrize("size", [(20_000,), (120, 130)])
def test_spikes_change_only_the_lags_that_contain_them(size, spike):
    """On inputs that are too large for their overlaps to be computed one by one."""
    x, y = (array(normal(*size, seed=seed)) for seed in (5, 6))
    masks = [array(normal(*size, seed=seed)) > -1.0 for seed in (7, 8)]
    for values, mask, place in ((x, masks[0], 3), (x, masks[0], 10), (y, masks[1], -2)):
        values.ravel()[place] = spike
        mask.ravel()[place] = True
    pair = [tensor(v) for v in (x, y, *masks)]
    result = estimate_shift(
        *pair[:2], ndim=len(size), reference_mask=pair[2], moving_mask=pair[3], score_map=True
    )
    axes = [array(axis) for axis in result.lags]
    rng = np.random.default_rng(9)
    near = [(0,) * len(size), (2,) * len(size), (-3,) * len(size), (5,) * len(size)]
    for lag in (*near, *(tuple(int(rng.choice(axis // 2)) for axis in axes) for _ in range(40))):
        place = tuple(k - int(axis[0]) for k, axis in zip(lag, axes, strict=True))
        alone = [np.array([k]) for k in lag]
        want = oracle(x, y, *(m.astype(float) for m in masks), alone)[0].item()
        assert result.score_map[place].item() == pytest.approx(want, rel=0, abs=1e-7)


def test_between_samples_only_what_is_surrounded_counts():
    time = torch.arange(400, dtype=torch.float64)

    def waves(at: float) -> torch.Tensor:
        return sum(((time - at) / p).sin() for p in (5.0, 7.3, 11.9))

    first, second = waves(3.3), waves(0.0)
    mask = torch.ones(400)
    mask[150:220] = 0
    first[150:220] = -40
    result = estimate_shift(first, second, ndim=1, max_shift=20, reference_mask=mask)
    assert result.shift.item() == pytest.approx(3.3, abs=1e-3)


def test_exchanged_recordings_and_batches():
    first, second = normal(2, 1, 50, seed=5), normal(3, 40, seed=6)
    first[0, 0, 5:45] = second[1]
    masks = normal(2, 1, 50, seed=7) > -1, normal(3, 40, seed=8) > -1
    there = estimate_shift(
        first, second, ndim=1, reference_mask=masks[0], moving_mask=masks[1], score_map=True
    )
    back = estimate_shift(
        second, first, ndim=1, reference_mask=masks[1], moving_mask=masks[0], score_map=True
    )
    assert there.shift.shape == (2, 3, 1)
    assert torch.equal(back.shift, -there.shift)
    assert torch.equal(back.score_map, there.score_map.flip(-1))
    for i, j in itertools.product(range(2), range(3)):
        single = estimate_shift(
            first[i, 0], second[j], ndim=1, reference_mask=masks[0][i, 0], moving_mask=masks[1][j]
        )
        assert torch.equal(single.shift, there.shift[i, j])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nan": "skip"}, ValueError, "nan must be one of refuse, ignore: got 'skip'"),
        ({"reference_mask": -1.0}, ValueError, "reference_mask must"),
        ({"moving_mask": 0.0}, ValueError, "moving_mask must not be zero everywhere"),
    ],
)
def test_refuses_options(options, error, message):
    given = {
        name: torch.full((20,), value) if name.endswith("mask") else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=message):
        estimate_shift(torch.rand(20), torch.rand(20), ndim=1, **given)


def test_refuses_recordings_without_data():
    good = torch.rand(20)
    with pytest.raises(ValueError, match="moving must have an element that is not missing"):
        estimate_shift(good, torch.full((20,), torch.nan), ndim=1, nan="ignore")
    with pytest.raises(ValueError, match="reference must be finite"):
        estimate_shift(good / 0, good, ndim=1, nan="ignore")
