"""Scores of overlaps by C++, merged moments and sums of products, against definition and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inputs import array, normal

import torchcorr
from torchcorr._definition.overlap import overlap_scores as definition

ops = torch.ops.torchcorr_cpu
scores = torch.ops.torchcorr.overlap_scores
# x, y, the lowest and the highest lags
GEOMETRIES = {
    "1d": ((700,), (650,), (-649,), (699,)),
    "1d-windows": ((3000,), (37,), (-36,), (2999,)),
    "1d-short-first": ((37,), (3000,), (-2999,), (36,)),
    "1d-inside": ((3000,), (37,), (100,), (2000,)),
    "1d-one-lag": ((50,), (50,), (3,), (3,)),
    "1d-single": ((1,), (9,), (-8,), (0,)),
    "2d": ((20, 33), (17, 40), (-16, -39), (19, 32)),
    "2d-more-lanes-than-a-block": ((9, 200), (12, 170), (-11, -169), (8, 199)),
    "2d-windows": ((40, 50), (6, 7), (-5, -6), (39, 49)),
    "2d-one-lane": ((40, 5), (6, 5), (-5, 2), (39, 2)),
    "2d-fall": ((30, 30), (30, 30), (5, 7), (29, 20)),
    "3d": ((6, 7, 8), (5, 9, 6), (-4, -8, -5), (5, 6, 7)),
    "3d-windows": ((9, 8, 12), (3, 2, 4), (-2, -1, -3), (8, 7, 11)),
    "3d-one-lane": ((6, 6, 5), (5, 3, 5), (3, 2, -3), (4, 4, -3)),
}


@pytest.mark.parametrize("name", ("overlap_parts", "overlap_sums", "score_overlaps"))
def test_a_step_is_registered(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchcorr_cpu::{name}", "CPU")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("torchcorr::overlap_scores", "CPU")


@pytest.mark.parametrize("method", ("auto", "direct", "fft"))
@pytest.mark.parametrize("name", GEOMETRIES)
def test_scores_are_those_of_the_definition(name: str, method: str) -> None:
    first, second, low, high = GEOMETRIES[name]
    x, y = normal(*first, seed=1), normal(*second, seed=2) + 3.0
    got = scores(x, y, low, high, method)
    want = definition(x, y, low, high, method)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_sums_of_few_lags(name: str) -> None:
    first, second, low, high = GEOMETRIES[name]
    x, y = normal(*first, seed=1), normal(*second, seed=2)
    got = array(ops.overlap_sums(x, y, low, high))
    padded = np.zeros([n + 2 * m for n, m in zip(first, second, strict=True)])
    padded[tuple(slice(m, m + n) for n, m in zip(first, second, strict=True))] = array(x)
    for index in np.ndindex(*got.shape):
        lag = [i + k for i, k in zip(index, low, strict=True)]
        place = tuple(slice(m + k, 2 * m + k) for m, k in zip(second, lag, strict=True))
        window = padded[place]
        bound = 64 * 2.0**-53 * np.abs(window * array(y)).sum()
        assert abs((window * array(y)).sum() - got[index]) <= bound


def test_sums_of_long_lines() -> None:
    """More elements than one partial sum takes, and lags past both ends."""
    x, y = normal(150_001, seed=1), normal(140_003, seed=2)
    for low, high in ((-40, 61), (10_000, 10_000), (-140_002, -140_000)):
        got = ops.overlap_sums(x, y, [low], [high])
        for lag in (low, (low + high) // 2, high):
            start, stop = max(0, lag), min(len(x), lag + len(y))
            want = (x[start:stop] * y[start - lag : stop - lag]).sum()
            torch.testing.assert_close(got[lag - low], want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sizes", (((900,), (70,)), ((40, 300), (11, 20))))
@pytest.mark.parametrize("spike", (1e7, 1e12))
def test_windows_without_a_spike_do_not_see_it(sizes, spike: float) -> None:
    x, y = (normal(*size, seed=i) for i, size in enumerate(sizes))
    low, high = [0] * x.dim(), [n - m for n, m in zip(*sizes, strict=True)]
    plain = scores(x, y, low, high, "direct")
    place = tuple(n // 2 for n in x.shape)
    spoiled = x.clone()
    spoiled[place] = spike
    found = scores(spoiled, y, low, high, "direct")
    for axis, (at, m) in enumerate(zip(place, y.shape, strict=True)):
        for part in (slice(0, at - m + 1), slice(at + 1, None)):
            cut = (slice(None),) * axis + (part,)
            torch.testing.assert_close(found[cut], plain[cut], rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", (1e-160, 1e150))
def test_energies_whose_product_leaves_the_range(scale: float) -> None:
    x, y = normal(60, seed=1), normal(50, seed=2)
    for first, second in ((scale * x, y), (scale * x, scale * y)):
        got = scores(first, second, [-49], [59], "direct")
        torch.testing.assert_close(got, scores(x, y, [-49], [59], "direct"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ("1d", "1d-windows", "2d-more-lanes-than-a-block", "3d-windows"))
@pytest.mark.parametrize("method", ("direct", "fft"))
def test_threads_do_not_matter(name: str, method: str) -> None:
    first, second, low, high = GEOMETRIES[name]
    x, y = normal(*first, seed=1), normal(*second, seed=2)
    torch.set_num_threads(1)
    alone = scores(x, y, low, high, method)
    torch.set_num_threads(2)
    assert torch.equal(scores(x, y, low, high, method), alone)


def test_faint_overlaps_are_summed_term_by_term() -> None:
    """Beside a spike of 1e9 no transform resolves the rest; the sums of its lags do."""
    x, y = normal(500, seed=1), normal(400, seed=2)
    x[3] = 1e9
    got = scores(x, y, [-399], [499], "auto")
    torch.testing.assert_close(got, scores(x, y, [-399], [499], "direct"), rtol=0, atol=1e-9)
    assert torchcorr.estimate_shift(x, x[50:450], ndim=1).shift.item() == 50
