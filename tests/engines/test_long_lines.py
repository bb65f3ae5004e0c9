"""Few lags of long lines by C++, in one pass over both, against NumPy in extended precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from inputs import array, normal, tensor

import torchcorr
from torchcorr import _contract
from torchcorr._cpu import overlap, steps

# Sizes of x and y, the lowest and the highest lag.
GEOMETRIES = {
    "equal": (3000, 3000, -20, 30),
    "one lag": (900, 900, 0, 0),
    "longer": (3100, 3000, -7, 105),
    "shorter": (3000, 3100, -130, 3),
    "far": (5000, 3000, 2100, 2160),
    "far back": (3000, 5000, -2160, -2100),
    "one side": (2049, 2049, 3, 9),
    "one more than a block": (1025, 1025, -8, 8),
    "parts": (70_001, 69_990, -50, 50),
}
KINDS = ("plain", "offset", "float32", "spike", "spike at an end", "flat", "flat part", "tiny")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the kernel returned, call by call."""
    found: list[bool] = []
    kernel = steps.score_long_lines

    def spy(*arguments: object) -> bool:
        found.append(kernel(*arguments))
        return found[-1]

    monkeypatch.setattr(steps, "score_long_lines", spy)
    return found


def pair(kind: str, size: int, moved: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = array(normal(size, seed=1)), array(normal(moved, seed=2))
    x[: min(size, moved)] += 0.3 * y[: min(size, moved)]
    if kind == "offset":
        x, y = 1e-3 * x + 1e4, 1e3 * y - 1e6
    elif kind == "float32":
        x, y = x.astype(np.float32) + np.float32(1e3), y.astype(np.float32)
    elif kind == "spike":
        x[size // 2] = 1e7
    elif kind == "spike at an end":
        x[0], y[-1] = 1e7, -1e9
    elif kind == "flat":
        x[:] = 0.1
    elif kind == "flat part":
        x[20:-20] = 0.1
    elif kind == "tiny":
        x, y = 1e-50 * x, 1e50 * y
    return x, y


def exact(x: np.ndarray, y: np.ndarray, lag: int) -> float:
    start, stop = max(lag, 0), min(len(x), lag + len(y))
    a, b = (v.astype(np.longdouble) for v in (x[start:stop], y[start - lag : stop - lag]))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / np.sqrt(a @ a) / np.sqrt(b @ b))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_scores_are_exact(name: str, kind: str, calls: list[bool]) -> None:
    size, moved, low, high = GEOMETRIES[name]
    x, y = pair(kind, size, moved)
    got = _contract.overlap_scores(tensor(x), tensor(y), [low], [high], "auto")
    assert calls == [True]
    # All lags of short lines, and some of long ones.
    for lag in range(low, high + 1, max(1, size // 5000)):
        assert got[lag - low].item() == pytest.approx(exact(x, y, lag), rel=0, abs=1e-11)


@pytest.mark.parametrize("scale", (1e-160, 1e150))
def test_energies_that_have_no_product(scale: float, calls: list[bool]) -> None:
    x, y = (tensor(v) for v in pair("plain", 3000, 3000))
    want = _contract.overlap_scores(x, y, [-9], [9], "auto")
    got = _contract.overlap_scores(scale * x, scale * y, [-9], [9], "auto")
    assert calls == [True, False]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_threads_do_not_matter() -> None:
    x, y = normal(200_000, seed=1), normal(200_000, seed=2)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(_contract.overlap_scores(x, y, [-20], [20], "auto"))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_identical_lines(dtype: torch.dtype, calls: list[bool]) -> None:
    time = np.arange(2000)
    for values in (time % 8 == 0, time * 1.0, time % 20, np.exp(-time / 10), time == 1000):
        x = tensor(values.astype(np.float64), dtype)
        result = torchcorr.estimate_shift(x, x, ndim=1, max_shift=50)
        assert result.shift.item() == 0
        assert result.score.item() == pytest.approx(1, abs=1e-12)
    assert len(calls) == 5


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("size", (4099, 90_001))
def test_few_positions_of_a_long_template(
    size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same sums, which are within 8 roundings of their terms."""
    counted = []
    kernel = steps.overlap_sums
    monkeypatch.setattr(steps, "overlap_sums", lambda *a: counted.append(1) or kernel(*a))
    x, y = (normal(n, seed=n, dtype=dtype) + 2 for n in (size + 30, size))
    got = array(torchcorr.correlate(x, y, ndim=1)).astype(np.longdouble)
    assert counted == [1]
    a, b = (array(v).astype(np.longdouble) for v in (x, y))
    for k in range(31):
        window = a[k : k + size]
        assert abs(got[k] - window @ b) <= 4 * torch.finfo(dtype).eps * np.abs(window * b).sum()


@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_what_is_no_number_is_in_its_windows_only(bad: float) -> None:
    """Around the ends of blocks and of the template, whose last elements fill no vector."""
    size, positions = 4099, 31
    x, y = normal(size + positions - 1, seed=1), normal(size, seed=2)
    plain = array(torchcorr.correlate(x, y, ndim=1))
    for place in (0, 5, 1023, 1024, 1030, size - 1, size, size + 3, size + positions - 2):
        spoiled = x.clone()
        spoiled[place] = bad
        got = array(torchcorr.correlate(spoiled, y, ndim=1))
        seen = np.arange(positions)
        inside = (seen <= place) & (place < seen + size)
        assert not np.isfinite(got[inside]).any()
        np.testing.assert_array_equal(got[~inside], plain[~inside])


def test_a_gradient_of_few_positions() -> None:
    x, y = (normal(n, seed=n).requires_grad_() for n in (70, 64))
    assert overlap.is_long(overlap.AxisLags(70, 64, 0, 6))
    assert torch.autograd.gradcheck(lambda a, b: torchcorr.correlate(a, b, ndim=1), (x, y))
