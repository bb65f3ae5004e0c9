"""Distance profiles and detections against their definitions in NumPy, and against stumpy."""

import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inputs import array, draw, normal, tensor

from torchcorr import closest_windows, distance_profile, match_filter
from torchcorr.align import detection


def distances(x: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Euclidean distances of standardised windows, one by one."""
    m = len(query)
    result = []
    for start in range(len(x) - m + 1):
        window = x[start : start + m]
        if not np.isfinite(window).all():
            result.append(np.inf)
            continue
        flat = [np.ptp(v) == 0 for v in (window, query)]
        a, b = (
            np.zeros(m) if f else (v - v.mean()) / v.std()
            for v, f in zip((window, query), flat, strict=True)
        )
        result.append(np.linalg.norm(a - b))
    return np.array(result)


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("kind", ["plain", "offset", "steps", "flat query", "gap"])
def test_profile_is_its_definition(kind, method):
    x = array(normal(300, seed=1))
    query = array(normal(25, seed=2))
    if kind == "offset":
        x = 1e-3 * x + 1e5
    elif kind == "steps":
        x, query = np.round(0.4 * x), np.round(0.4 * query)
    elif kind == "flat query":
        x[50:100], query = 0.3, np.full(25, 7.0)
    elif kind == "gap":
        x[120], x[200], x[40:90] = np.nan, np.inf, 2.5
    got = distance_profile(tensor(x), tensor(query), method=method)
    np.testing.assert_allclose(array(got), distances(x, query), rtol=0, atol=1e-4)
    assert torch.equal(got.isinf(), tensor(np.isinf(distances(x, query))))


def test_profile_of_a_copy_and_gradient():
    x = normal(200, seed=3)
    profile = distance_profile(x, 3 * x[70:90] - 5)
    assert profile[70] < 1e-6 and int(profile.argmin()) == 70
    x, query = x[:30].clone().requires_grad_(), normal(8, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(distance_profile, (x, query))


def test_gradient_of_a_profile_with_gaps_and_a_copy():
    """A gap and a distance of 0 contribute nothing; the rest is what is computed without them."""
    x = draw((60,), seed=1)
    query = x[30:38].clone().requires_grad_()
    x[12] = torch.nan
    x.requires_grad_()
    upstream = draw((53,), seed=2)
    profile = distance_profile(x, query)
    there = profile.isfinite() & (profile > 0)
    assert int((~there).sum()) == 8 + 1
    reached = torch.where(profile.isfinite(), profile, 0.0)
    grads = torch.autograd.grad((reached * upstream).sum(), (x, query))
    parts = []
    for at in there.nonzero().flatten().tolist():
        one = distance_profile(x[at : at + 8], query)[0] * upstream[at]
        parts.append(torch.autograd.grad(one, (x, query)))
    for got, want in zip(grads, (sum(part) for part in zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 12), st.integers(0, 9), st.integers(1, 6))
def test_closest_windows_are_taken_greedily(seed, m, zone, count):
    rng = np.random.default_rng(seed)
    x, query = rng.normal(size=60), rng.normal(size=m)
    profile = distances(x, query)
    wanted = []
    for at in np.argsort(profile):
        if len(wanted) < count and all(abs(at - other) > zone for other in wanted):
            wanted.append(int(at))
    got = closest_windows(tensor(x), tensor(query), max_matches=count, exclusion=zone)
    assert got.positions.tolist() == wanted
    np.testing.assert_allclose(array(got.distances), profile[wanted], rtol=0, atol=1e-7)
    near = closest_windows(tensor(x), tensor(query), exclusion=zone, max_distance=2.0)
    assert bool((near.distances <= 2).all())


@pytest.mark.parametrize("count", [16, 17, 40, None])
@pytest.mark.parametrize("zone", [0, 3])
def test_many_closest_windows_are_taken_greedily(zone, count):
    """Ties too: of equal distances the first window is taken."""
    x, query = normal(400, seed=1).round(), normal(3, seed=2).round()
    profile = array(distance_profile(x, query))
    wanted = []
    for at in np.argsort(profile, kind="stable"):
        if len(wanted) != count and all(abs(at - other) > zone for other in wanted):
            wanted.append(int(at))
    got = closest_windows(x, query, max_matches=count, exclusion=zone)
    assert got.positions.tolist() == wanted
    near = closest_windows(x, query, max_matches=count, exclusion=zone, max_distance=2.0)
    assert near.positions.tolist() == [at for at in wanted if profile[at] <= 2]


def test_closest_windows_of_a_long_record_are_not_scanned_for_each():
    """100000 windows: seconds if all of them are looked at for each."""
    x = normal(100_000, seed=1)
    start = time.process_time()
    assert len(closest_windows(x, x[:20], exclusion=0)) == 99_981
    assert time.process_time() - start < 3


def test_profile_is_that_of_stumpy():
    stumpy = pytest.importorskip("stumpy")
    x, query = array(normal(2000, seed=5).cumsum(0)), array(normal(2000, seed=6).cumsum(0))[:60]
    got = distance_profile(tensor(x), tensor(query))
    np.testing.assert_allclose(array(got), stumpy.mass(query, x), rtol=0, atol=1e-6)
    wanted = stumpy.match(query, x, max_distance=np.inf, max_matches=5)
    found = closest_windows(tensor(x), tensor(query), max_matches=5)
    assert found.positions.tolist() == [int(at) for _, at in wanted]


def stacked(record, templates, moveouts, weights, at):
    """The stack of one position from its definition."""
    result = np.zeros(len(templates))
    for t, template in enumerate(templates):
        for c, wave in enumerate(template):
            start = at + moveouts[t, c]
            window = record[c, start : start + len(wave)]
            if np.isfinite(window).all() and np.ptp(window) > 0 and np.ptp(wave) > 0:
                share = weights[t, c] / weights[t].sum()
                result[t] += share * np.corrcoef(window, wave)[0, 1]
    return result


@settings(max_examples=60, deadline=None)
@example(5768141, 7, False)
@given(st.integers(0, 2**32), st.integers(7, 400), st.booleans())
def test_stack_is_its_definition(seed, block, gaps):
    rng = np.random.default_rng(seed)
    channels, count, window = rng.integers(1, 4), rng.integers(1, 4), rng.integers(3, 12)
    record, templates = rng.normal(size=(channels, 120)), rng.normal(size=(count, channels, window))
    moveouts = rng.integers(-9, 10, (count, channels))
    weights = rng.uniform(0.1, 1, (count, channels))
    if gaps:
        record[0, 40:60], record[-1, 70] = np.nan, np.nan
    options = {"moveouts": tensor(moveouts), "weights": tensor(weights), "block": block}
    found = match_filter(
        tensor(record), tensor(templates), keep_stack=True, threshold=0.5, **options
    )
    first, last = max(0, -moveouts.min()), max(0, moveouts.max())
    assert found.stack.shape == (count, 120 - window - first - last + 1)
    wanted = np.stack(
        [
            stacked(record, templates, moveouts, weights, first + i)
            for i in range(found.stack.shape[1])
        ],
        1,
    )
    np.testing.assert_allclose(array(found.stack), wanted, rtol=0, atol=1e-9)
    for t in range(count):
        left, taken = wanted[t].copy(), []
        while left.max() >= 0.5:
            at = int(left.argmax())
            taken.append(at + first)
            left[max(0, at - window + 1) : at + window] = -1
        assert found.positions[found.templates == t].tolist() == sorted(taken)


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[list[int]]]:
    """A record of three channels with events of two templates, weaker than its noise."""
    rng = np.random.default_rng(seed)
    record = rng.normal(size=(3, 60_000))
    templates = rng.normal(size=(2, 3, 200))
    moveouts = rng.integers(0, 300, (2, 3))
    places = [sorted(rng.choice(119, 12, replace=False) * 490) for _ in range(2)]
    for t, starts in enumerate(places):
        for start in starts:
            for c in range(3):
                begin = start + moveouts[t, c]
                record[c, begin : begin + 200] += 0.8 * templates[t, c]
    return tensor(record, torch.float32), tensor(templates, torch.float32), tensor(moveouts), places


@pytest.mark.parametrize("block", [1 << 20, 9000])
def test_events_in_noise_and_gaps(block):
    record, templates, moveouts, places = scene(7)
    record[1, 20_000:30_000] = torch.nan
    found = match_filter(record, templates, moveouts=moveouts, block=block)
    for t in range(2):
        assert found.positions[found.templates == t].tolist() == [int(p) for p in places[t]]
    assert found.stack is None
    assert bool((found.scores >= found.thresholds).all())


@pytest.mark.parametrize("deviations", [5.0, 8.0])
def test_the_threshold_is_that_of_medians(deviations):
    """So many times the median absolute deviation above the median of each template's scores."""
    record, templates, moveouts, _ = scene(3)
    found = match_filter(
        record, templates, moveouts=moveouts, deviations=deviations, keep_stack=True
    )
    scores = array(found.stack).astype(np.float64)
    middle = np.median(scores, 1, keepdims=True)
    limits = (middle + deviations * np.median(np.abs(scores - middle), 1, keepdims=True))[:, 0]
    assert {0, 1} == set(found.templates.tolist())
    np.testing.assert_allclose(
        array(found.thresholds), limits[found.templates.tolist()], rtol=0, atol=1e-6
    )
    for t in range(2):
        left, taken = scores[t].copy(), []
        while left.max() > limits[t]:
            at = int(left.argmax())
            taken.append(at)
            left[max(0, at - 199) : at + 200] = -1
        assert found.positions[found.templates == t].tolist() == sorted(taken)


@pytest.mark.parametrize("distance", [1, 3, 500])
def test_detections_are_a_trigger_distance_apart(distance):
    record, templates, moveouts, _ = scene(3)
    found = match_filter(
        record, templates, moveouts=moveouts, threshold=0.2, min_distance=distance, keep_stack=True
    )
    for t in range(2):
        left, taken = array(found.stack[t]).copy(), []
        while left.max() >= np.float32(0.2):
            at = int(left.argmax())
            taken.append(at)
            left[max(0, at - distance + 1) : at + distance] = -1
        assert found.positions[found.templates == t].tolist() == sorted(taken)


def test_no_more_scores_than_a_block_are_in_memory(monkeypatch):
    record, templates, moveouts, _ = scene(3)
    seen = []
    scored = detection.scores_beside_gaps

    def spy(line, *rest):
        scores = scored(line, *rest)
        seen.append(tuple(scores.shape))
        return scores

    monkeypatch.setattr(detection, "scores_beside_gaps", spy)
    match_filter(record, templates, moveouts=moveouts, threshold=0.5, block=5000)
    spread = int(moveouts.max() - moveouts.min())
    assert len(seen) == 3 * 12
    assert all(count == 2 and length <= 5000 + spread for count, length in seen)


@pytest.mark.parametrize("silence", ["gap", "flat", "template"])
def test_silence_is_no_detection(silence):
    """Where all of a block is silent, its median and deviation would be 0, and any score exceed
    them."""
    record, templates = normal(2, 4000, seed=1), normal(1, 2, 50, seed=2)
    if silence == "template":
        templates = torch.ones_like(templates)
    else:
        record[:, 900:3900] = torch.nan if silence == "gap" else 3.0
        record[:, 300:350] += templates[0]
    found = match_filter(record, templates)
    assert found.positions.tolist() == ([] if silence == "template" else [300])
    everything = match_filter(record.fill_(torch.nan), templates)
    assert len(everything) == 0


def test_the_end_of_a_record_is_no_block_of_its_own():
    """Of two positions one always exceeds the median."""
    record, templates = normal(2, 4000, seed=1), normal(1, 2, 50, seed=2)
    found = match_filter(record, templates, block=3949)
    assert len(found) == 0


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16])
def test_filter_refuses_other_dtypes(dtype):
    record, templates = draw((2, 40), dtype), draw((1, 2, 5), dtype)
    with pytest.raises(TypeError, match="record must be of float32 or float64: got torch"):
        match_filter(record, templates)


def test_gradients_of_scores_beside_gaps():
    """A gap has none, and leaves those of the templates and of the other windows as they are."""
    record, templates = normal(2, 40, seed=1), normal(2, 2, 5, seed=2)
    record[0, 12:15] = record[1, 30] = torch.nan
    moveouts = tensor([[0, 3], [2, 0]], torch.long)

    def stack(record, templates):
        how = {"moveouts": moveouts, "threshold": 2.0, "keep_stack": True, "block": 20}
        return match_filter(record, templates, **how).stack

    with torch.no_grad():
        expected = stack(record, templates)
    record.requires_grad_()
    templates.requires_grad_()
    got = stack(record, templates)
    torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-12)
    of_record, of_templates = torch.autograd.grad(got.square().sum(), (record, templates))
    assert (of_record[record.isnan()] == 0).all() and of_record.isfinite().all()
    with torch.no_grad():
        steps = record.nan_to_num().cos(), templates.sin()
        ends = (
            stack(record + h * steps[0], templates + h * steps[1]).square().sum()
            for h in (1e-6, -1e-6)
        )
        change = (next(ends) - next(ends)) / 2e-6
        along = (of_record * steps[0]).sum() + (of_templates * steps[1]).sum()
    torch.testing.assert_close(along, change, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moveouts": [[0.0, 0.0]] * 2}, "moveouts must contain integers: got float32"),
        ({"moveouts": [[0, 0]] * 3}, r"moveouts must have shape \(2, 2\)"),
        ({"moveouts": [[99, 99]] * 2}, "record must be longer than a template with its"),
        ({"weights": [[-1.0, -1.0]] * 2}, "weights must not be negative, nor all be 0"),
        ({"weights": [[0.0, 0.0]] * 2}, "weights must not be negative, nor all be 0"),
        ({"block": 0}, "block must be at least 1"),
        ({"min_distance": 0}, "min_distance must be at least 1: got 0"),
    ],
)
def test_filter_refuses(options, message):
    options = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in options.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        match_filter(torch.rand(2, 50), torch.rand(2, 2, 8), **options)
