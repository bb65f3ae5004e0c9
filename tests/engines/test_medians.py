"""Medians of rows by C++, bit by bit those of PyTorch, which sorts by selection."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from inputs import array, draw, normal
from torch import Tensor

import torchcorr
from torchcorr import _contract
from torchcorr._cpu import steps
from torchcorr._definition.medians import medians as definition

SIZES = (1, 2, 3, 1023, 1024, 1025, 8191, 8192, 8193, 50_000, 200_001)
DTYPES = (torch.float32, torch.float64)


def rows(size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Noise, noise beside zeros, one value, few values, and those on which a sample of every so
    many elements is wrong.
    """
    noise = normal(3, size, seed=size, dtype=dtype)
    yield 0.05 * noise
    half = noise.clone()
    half[:, : size // 2 + 1] = 0
    yield half
    yield torch.full_like(noise, 0.25)
    yield noise.sign()
    yield noise.sort(1).values
    step = max(1, size // (1 << 13))
    wrong = noise.clone()
    wrong[:, ::step] = 10 + noise[:, ::step]
    yield wrong
    yield noise * 1e30
    yield (noise * 1e-40).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_medians_are_those_of_pytorch(size: int, dtype: torch.dtype) -> None:
    for x in rows(size, dtype):
        got, want = steps.medians(x), definition(x)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_medians_of_a_sorted_list() -> None:
    x = draw((2, 9001), torch.float64)
    middle, deviation = (array(v) for v in _contract.medians(x))
    for row, m, d in zip(array(x), middle, deviation, strict=True):
        assert m == sorted(row)[4500]
        assert d == sorted(abs(v - m) for v in row)[4500]


@pytest.mark.parametrize("place", (0, 7, 20_000))
def test_a_row_that_contains_nan_has_no_median(place: int) -> None:
    x = normal(2, 20_001, seed=3)
    x[1, place] = math.nan
    for got, want in zip(steps.medians(x), definition(x), strict=True):
        assert torch.equal(got[0], want[0])
        assert got[1].isnan()


def test_threads_do_not_matter() -> None:
    x = normal(5, 30_000, seed=4, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(torch.stack(steps.medians(x)))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_the_threshold_of_a_search_is_that_of_the_whole_correlogram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    kernel = steps.medians
    monkeypatch.setattr(steps, "medians", lambda x: called.append(x.shape) or kernel(x))
    record = normal(2, 30_000, seed=5, dtype=torch.float32)
    templates = torch.stack([record[:, 1000:1100], record[:, 20_000:20_100]])
    found = torchcorr.match_filter(record, templates, keep_stack=True)
    assert called == [(2, 29_901)]
    middle, deviation = definition(found.stack)
    want = (middle + 8.0 * deviation)[found.templates]
    assert torch.equal(found.thresholds, want)
    assert found.positions.tolist() == [1000, 20_000]
