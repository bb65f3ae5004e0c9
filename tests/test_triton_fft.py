"""Tiles and transforms for GPUs against the definition: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from inputs import CASES, draw
from interpreter import DEVICE
from tolerances import SCORE
from torch import Tensor

from torchcorr import _choose, _reference
from torchcorr._choose import Costs, Problem
from torchcorr._geometry import Tiling, output_size
from torchcorr._triton import fft_scores, fft_sums, tiles

DTYPES = (torch.float32, torch.float64)
SEVERAL = ("1d-joint", "2d-paired", "2d-joint-templates", "3d-joint")
TIGHT = {torch.float32: 2e-6, torch.float64: 1e-13}
# Tiles an axis, and bytes at once: the whole, several tiles, a few of an item at a time.
CUTS = {"whole": (1, 1 << 30), "tiles": (3, 1 << 30), "parts": (3, 1 << 10)}


@pytest.fixture
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    most, cache = CUTS[request.param]
    costs = {**vars(_choose._COSTS["cuda"]), "cache": cache, "near_cache": cache}

    def grids(problem: Problem) -> Iterator[tuple[int, ...]]:
        total = output_size(problem.size, problem.window, problem.stride)
        yield tuple(min(n, most) for n in total)

    monkeypatch.setitem(_choose._COSTS, "cuda", Costs(**costs))
    monkeypatch.setattr(_choose, "_grids", grids)
    _choose._arranged.cache_clear()
    yield request.param
    monkeypatch.undo()
    _choose._arranged.cache_clear()


def on_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(DEVICE) for x in tensors)


def pair_of(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    case = CASES[name]
    input, template = draw(case.input, dtype, 1) - 0.5, draw(case.template, dtype, 2) - 0.5
    if case.channels != "joint":
        input, template = (x.unsqueeze(-case.ndim - 1) for x in (input, template))
    return *on_device(input, template), [1] * case.ndim


def close(got: Tensor, want: Tensor, scale: float = 1.0) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    bound = TIGHT[want.dtype] * scale
    torch.testing.assert_close(got, want, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_gather(ndim: int, dtype: torch.dtype) -> None:
    size, window = (61, 23, 11)[:ndim], (5, 4, 3)[:ndim]
    tiling = Tiling.cut(size, window, (1,) * ndim, (3, 2, 2)[:ndim], powers=True)
    x = draw((2, 2, *size), dtype, 3) + 100
    x[1, 0].view(-1)[7] = math.inf
    x[0] *= 1e-12
    (x,) = on_device(x)
    found, stats = tiles.gather(x, tiling, dtype, centred=True)
    ids = list(range(2 * tiling.tiles))
    want, exact = _reference.widen(x), None
    from torchcorr import _reference_tiles

    _, exact = _reference_tiles.gather_tiles(x, ids, tiling.numbers, True, False, False)
    raw, there = _reference_tiles._cut(x, ids, tiling.numbers)
    column = (slice(None), *(None,) * (ndim + 1))
    level, scale = stats[:, 0][column], stats[:, 1][column]
    want = torch.where(there & raw.isfinite(), (raw.double() - level) * scale, 0.0)
    torch.testing.assert_close(found, want.to(dtype), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats[:, 0], exact[:, 0], rtol=1e-6, atol=0)
    assert torch.equal((stats[:, 3] == 0).double(), exact[:, 3])
    assert torch.equal(stats[:, 1].log2().frac(), torch.zeros_like(stats[:, 1]))
    finite = there & raw.isfinite()
    power = want.square().flatten(1).sum(1) / finite.flatten(1).sum(1)
    torch.testing.assert_close(stats[:, 2], power, rtol=1e-6, atol=0)
    assert bool((power < 1).all()) and bool((power > 0.2).all())


@pytest.mark.parametrize("cut", CUTS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sums(name: str, dtype: torch.dtype, cut: str) -> None:
    input, template, ones = pair_of(name, dtype)
    for stride in {tuple(ones), tuple(2 for _ in ones)}:
        want = _reference.correlate(input, template, stride)
        close(fft_sums.correlate_fft(input, template, stride), want)
        grad = draw(tuple(want.shape), dtype, 4).to(DEVICE) - 0.5
        args = (grad, template, list(input.shape), list(stride))
        close(
            fft_sums.correlate_fft_input_grad(*args),
            _reference.correlate_input_grad(*args),
            8,
        )
        args = (grad, input, list(template.shape), list(stride))
        close(
            fft_sums.correlate_fft_template_grad(*args),
            _reference.correlate_template_grad(*args),
            8,
        )


def score_pair(name: str, dtype: torch.dtype, zero_mean: bool) -> tuple[Tensor, Tensor, int]:
    input, template, ones = pair_of(name, dtype)
    return input, _reference.standardise(template, len(ones), zero_mean), len(ones)


@pytest.mark.parametrize("cut", ("tiles", "parts"), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SEVERAL)
def test_scores(name: str, dtype: torch.dtype, cut: str) -> None:
    for zero_mean, step in ((True, 1), (False, 2)):
        input, template, ndim = score_pair(name, dtype, zero_mean)
        args = (input, template, [step] * ndim, zero_mean, 0.01)
        got, want = fft_scores.ncc_fft(*args), _reference.ncc(*args)
        assert got.shape == want.shape and got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=SCORE[dtype])
