"""match_template and find_peaks against plain loops and templates put into images."""

import itertools

import numpy as np
import pytest
import torch
from inputs import array, draw, normal

from torchcorr import find_peaks, match_template


def noise(*shape: int) -> torch.Tensor:
    return normal(*shape, seed=3)


def greedy_peaks(values: np.ndarray, threshold: float, distance: tuple[int, ...]) -> list[tuple]:
    """Best first, in plain loops: local maxima (of equals the first), then suppression."""
    maxima = []
    for point in np.ndindex(*values.shape):
        value = values[point]
        if np.isnan(value) or value < threshold:
            continue
        wins = True
        for step in itertools.product((-1, 0, 1), repeat=values.ndim):
            other = tuple(p + s for p, s in zip(point, step, strict=True))
            if other == point or any(
                o < 0 or o >= n for o, n in zip(other, values.shape, strict=True)
            ):
                continue
            rival = values[other]
            wins &= bool(np.isnan(rival) or (value > rival if other < point else value >= rival))
        if wins:
            maxima.append((-value, point))
    kept: list[tuple] = []
    for _, point in sorted(maxima):
        if all(
            any(abs(p - q) >= d for p, q, d in zip(point, other, distance, strict=True))
            for other in kept
        ):
            kept.append(point)
    return kept


@pytest.mark.parametrize("shape", [(200,), (31, 37), (9, 11, 13)])
@pytest.mark.parametrize("spacing", [1, 2, 5])
@pytest.mark.parametrize("levels", [None, 4])
def test_peaks_equal_plain_loops(shape, spacing, levels):
    values = noise(*shape)
    if levels is not None:
        values = (values * levels / 3).round()
    values.view(-1)[::17] = torch.nan
    expected = greedy_peaks(array(values), 0.5, (spacing,) * len(shape))
    peaks = find_peaks(values, ndim=len(shape), threshold=0.5, min_distance=spacing, subpixel=False)
    assert [tuple(map(int, p)) for p in peaks.positions.tolist()] == expected
    assert peaks.scores.tolist() == [values[p].item() for p in expected]


@pytest.mark.parametrize("spacing", [1, 3])
@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("lead", [(), (3,), (2, 0), (2, 3)])
def test_a_batch_is_its_maps_one_by_one(lead, limit, spacing):
    maps = noise(*lead, 12, 15)
    options = {"threshold": 0.1, "max_peaks": limit, "min_distance": spacing}
    got = find_peaks(maps, **options)
    assert got.items.dtype == torch.int64 and got.items.shape == (len(got), len(lead))
    place = 0
    for item in np.ndindex(*lead):
        want = find_peaks(maps[item], **options)
        of_item = slice(place, place + len(want))
        assert torch.equal(got.positions[of_item], want.positions)
        assert torch.equal(got.scores[of_item], want.scores)
        assert got.items[of_item].tolist() == [list(item)] * len(want)
        place += len(want)
    assert place == len(got)


def test_three_axes_are_a_batch_of_images_unless_they_are_said_to_be_a_volume():
    maps = noise(4, 30, 30)
    images, volume = find_peaks(maps), find_peaks(maps, ndim=3)
    assert images.positions.shape == (len(images), 2) and images.items.shape == (len(images), 1)
    assert set(images.items.flatten().tolist()) == {0, 1, 2, 3}
    assert volume.positions.shape == (len(volume), 3) and volume.items.shape == (len(volume), 0)


def test_level_top_counts_once_at_its_first_element():
    values = torch.zeros(8, 9)
    values[2:4, 3:6] = 1.0
    peaks = find_peaks(values, threshold=0.5, subpixel=False)
    assert peaks.positions.tolist() == [[2.0, 3.0]]


def test_equal_scores_come_in_raster_order_and_limit_keeps_the_first():
    values = torch.zeros(40)
    values[[30, 5, 18]] = 1.0
    assert find_peaks(values, ndim=1, threshold=0.5).positions.flatten().tolist() == [5, 18, 30]
    for distance in (1, 4):
        some = find_peaks(values, ndim=1, threshold=0.5, max_peaks=2, min_distance=distance)
        assert some.positions.flatten().tolist() == [5, 18]


def test_parabola_is_exact_on_a_parabola_and_clamped():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    values = 1 - 0.01 * (y - 7.3).square() - 0.02 * (x - 12.8).square()
    peaks = find_peaks(values.double())
    torch.testing.assert_close(
        peaks.positions, torch.tensor([[7.3, 12.8]], dtype=torch.float64), rtol=0, atol=1e-4
    )
    at_border = find_peaks(torch.tensor([3.0, 2.0, 1.0]), ndim=1)
    assert at_border.positions.tolist() == [[0.0]]
    next_to_nan = find_peaks(torch.tensor([0.0, 3.0, torch.nan, 1.0]), ndim=1)
    assert next_to_nan.positions[0].tolist() == [1.0]


def test_positions_and_scores_carry_gradients():
    values = noise(12, 14).requires_grad_()

    def top(v):
        peaks = find_peaks(v, max_peaks=3, min_distance=3)
        return peaks.positions, peaks.scores

    assert torch.autograd.gradcheck(top, (values,))


def test_finds_planted_templates_under_changed_light():
    template = noise(9, 12)
    image = 0.3 * draw((80, 90))
    places = [(3, 5), (40, 60), (70, 20), (71, 78)]
    for gain, (y, x) in zip((1.0, 0.4, 5.0, 2.0), places, strict=True):
        image[y : y + 9, x : x + 12] = gain * template + 10 * gain
    matches = match_template(image, template, threshold=0.95)
    assert matches.size == (9, 12)
    assert len(matches) == 4
    assert sorted(map(tuple, matches.positions.round().int().tolist())) == places
    assert torch.all(matches.scores.diff() <= 0)
    torch.testing.assert_close(matches.scores, torch.ones(4, dtype=torch.float64))


def test_subpixel_position_of_a_band_limited_blob():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def blob(cy: float, cx: float) -> torch.Tensor:
        return torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 3.0**2))

    template = blob(32, 32)[20:45, 20:45]
    for dy, dx in [(0.25, -0.4), (-0.1, 0.45), (0.0, 0.0)]:
        matches = match_template(blob(32 + dy, 30 + dx), template, max_matches=1)
        expected = torch.tensor([[20 + dy, 18 + dx]], dtype=torch.float64)
        torch.testing.assert_close(matches.positions, expected, rtol=0, atol=0.02)


def test_boxes_do_not_overlap_unless_asked():
    image = torch.zeros(20, 200)
    image[:, ::4] = 1.0
    template = image[:8, :16]
    apart = match_template(image, template, threshold=0.9, subpixel=False)
    for a, b in itertools.combinations(apart.positions.tolist(), 2):
        assert abs(a[0] - b[0]) >= 8 or abs(a[1] - b[1]) >= 16
    close = match_template(image, template, threshold=0.9, min_distance=(8, 4), subpixel=False)
    assert len(close) > len(apart)


def test_nan_never_wins_and_no_match_is_empty():
    image = noise(40, 40)
    template = image[10:18, 10:18].clone()
    image[12, 12] = torch.nan
    matches = match_template(image, template, threshold=0.99)
    assert matches.positions.shape == (0, 2)
    assert matches.scores.shape == (0,)


def test_joint_channels_one_and_three_axes():
    colour = noise(3, 40, 50)
    matches = match_template(colour, 2 * colour[:, 7:19, 30:41] + 1, channels="joint")
    assert matches.positions.round().tolist() == [[7, 30]]
    signal = noise(300)
    assert match_template(signal, signal[77:120], ndim=1).positions.round().tolist() == [[77]]
    volume = noise(14, 15, 16)
    matches = match_template(volume, volume[3:9, 4:9, 5:9], ndim=3)
    assert matches.positions.round().tolist() == [[3, 4, 5]]
    assert matches.size == (6, 5, 4)


def test_records_are_frozen():
    peaks = find_peaks(torch.tensor([0.0, 1.0, 0.0]), ndim=1)
    with pytest.raises(AttributeError):
        peaks.scores = peaks.scores


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_peaks": 0}, ValueError, "max_peaks must be at least 1: got 0"),
        ({"max_peaks": 1.5}, TypeError, "max_peaks must be an int or None: got float"),
        (
            {"min_distance": 0},
            ValueError,
            "min_distance must be at least 1 along every axis: got 0",
        ),
        (
            {"min_distance": (1, 2, 3)},
            ValueError,
            "min_distance must have one value for each of 2 axes",
        ),
        ({"threshold": "high"}, TypeError, "threshold must be a number: got str"),
        ({"threshold": float("nan")}, ValueError, "threshold must not be NaN"),
    ],
)
def test_find_peaks_refuses(options, error, message):
    with pytest.raises(error, match=message):
        find_peaks(torch.zeros(4, 4), **options)


def test_find_peaks_refuses_other_maps():
    with pytest.raises(ValueError, match="score_map must have 2 window axes: got shape"):
        find_peaks(torch.zeros(4))
    with pytest.raises(TypeError, match="score_map must be real: got complex64"):
        find_peaks(torch.zeros(4, dtype=torch.complex64))
    with pytest.raises(TypeError, match="score_map must be a torch.Tensor: got list"):
        find_peaks([0.0, 1.0])


def test_match_template_refuses():
    image, template = torch.zeros(10, 12), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="image must have 2 axes .* one by one"):
        match_template(image.expand(5, 10, 12), template)
    with pytest.raises(ValueError, match="template must have 3 axes with ndim=2"):
        match_template(image.expand(3, 10, 12), template, channels="joint")
    with pytest.raises(ValueError, match="larger than input along axis -1: got 13, input has 12"):
        match_template(image, torch.zeros(3, 13))
    with pytest.raises(ValueError, match="score must be one of zncc, ncc: got 'ssd'"):
        match_template(image, template, score="ssd")
    with pytest.raises(ValueError, match="channels must be one of independent, joint"):
        match_template(image, template, channels="all")
    with pytest.raises(ValueError, match="ndim must be 1, 2 or 3: got 4"):
        match_template(image, template, ndim=4)
    with pytest.raises(ValueError, match="max_matches must be at least 1: got 0"):
        match_template(image, template, max_matches=0)
