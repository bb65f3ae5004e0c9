"""Tiles and transforms for GPUs against the definition: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torture
from inputs import CASES, draw
from interpreter import DEVICE
from tolerances import SCORE
from torch import Tensor

from torchcorr import _choose, _reference, _reference_tiles
from torchcorr._choose import Costs, Problem
from torchcorr._geometry import Tiling, output_size
from torchcorr._triton import fft_scores, fft_sums, tiles

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
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


SUMS = [(name, torch.float64, "whole", 1) for name in CASES]
SUMS += [(name, torch.float32, "tiles", 2) for name in SEVERAL]
SUMS += [(name, torch.float32, "parts", 1) for name in ("1d-joint", "2d-joint-templates")]


@pytest.mark.parametrize(("name", "dtype", "cut", "step"), SUMS, indirect=["cut"])
def test_sums(name: str, dtype: torch.dtype, cut: str, step: int) -> None:
    input, template, ones = pair_of(name, dtype)
    stride = [step for _ in ones]
    want = _reference.correlate(input, template, stride)
    close(fft_sums.correlate_fft(input, template, stride), want)
    grad = draw(tuple(want.shape), dtype, 4).to(DEVICE) - 0.5
    args = (grad, template, list(input.shape), stride)
    got, want = fft_sums.correlate_fft_input_grad(*args), _reference.correlate_input_grad(*args)
    close(got, want, 8)
    args = (grad, input, list(template.shape), stride)
    got = fft_sums.correlate_fft_template_grad(*args)
    close(got, _reference.correlate_template_grad(*args), 8)


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_local(dtype: torch.dtype, cut: str) -> None:
    """A pixel that drowns all others, a NaN, an Inf and zeros stay in their own windows."""
    image, template = draw((1, 40, 34), dtype, 1) - 0.5, draw((1, 5, 4), dtype, 2) - 0.5
    image[0, 30, 28] = 1e12
    image[0, 5, 6], image[0, 6, 30] = math.nan, math.inf
    image[0, 14:24, 10:22] = 0
    image, template = on_device(image, template)
    got = fft_sums.correlate_fft(image, template, [1, 1])
    want = _reference.correlate(image, template, [1, 1])
    sizes = _reference.correlate(image.double().abs(), template.double().abs(), [1, 1])
    live = sizes.isfinite()
    assert torch.equal(got[~live].isfinite(), want[~live].isfinite())
    bound = 32 * torch.finfo(dtype).eps / 2
    assert bool(((got - want).abs()[live] <= bound * sizes[live]).all())
    assert bool((got[live & (sizes == 0)] == 0).all())
    args = (torch.where(live, want, torch.nan).to(dtype), template, list(image.shape), [1, 1])
    got, want = fft_sums.correlate_fft_input_grad(*args), _reference.correlate_input_grad(*args)
    assert torch.equal(got.isnan(), want.isnan())


def score_pair(name: str, dtype: torch.dtype, zero_mean: bool) -> tuple[Tensor, Tensor, int]:
    input, template, ones = pair_of(name, dtype)
    return input, _reference.standardise(template, len(ones), zero_mean), len(ones)


SCORES = [(name, torch.float32, "tiles") for name in SEVERAL]
SCORES += [("2d-batch-templates", torch.float64, "parts"), ("3d", torch.float64, "whole")]


@pytest.mark.parametrize(("name", "dtype", "cut"), SCORES, indirect=["cut"])
def test_scores(name: str, dtype: torch.dtype, cut: str) -> None:
    for zero_mean, step in ((True, 1), (False, 2)):
        input, template, ndim = score_pair(name, dtype, zero_mean)
        args = (input, template, [step] * ndim, zero_mean, 0.01)
        got, want = fft_scores.ncc_fft(*args), _reference.ncc(*args)
        assert got.shape == want.shape and got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=SCORE[dtype])


HARD = ("offset 1e+06", "one pixel 1e+06", "flat patch", "faint patch 1e-06", "steep ramp 1e6")


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
@pytest.mark.parametrize(
    "case", [c for c in torture.cases() if c.name in HARD], ids=lambda c: c.name
)
def test_scores_of_torture(case: torture.Torture, cut: str) -> None:
    small = case._replace(image=case.image[16:58, 16:58], template=case.template[3:12, :7])
    image, template = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in small[1:])
    image, template = on_device(image, _reference.standardise(template, 2, True))
    got = fft_scores.ncc_fft(image, template, [1, 1], True, 0.0)
    assert torture.error(got.cpu().numpy(), torture.exact(small)) <= SCORE[torch.float32]


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
def test_scores_keep_a_nan_in_its_windows(cut: str) -> None:
    image, template = draw((1, 30, 26), torch.float32, 1), draw((1, 5, 4), torch.float32, 2)
    image[0, 12, 9], image[0, 3, 20] = math.nan, math.inf
    image, template = on_device(image, _reference.standardise(template, 2, True))
    got = fft_scores.ncc_fft(image, template, [1, 1], True, 0.0)
    want = _reference.ncc(image, template, [1, 1], True, 0.0)
    assert torch.equal(got.isnan(), want.isnan())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5, equal_nan=True)


def test_half_types_are_read_as_they_are() -> None:
    for dtype, bound in ((torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-7)):
        image, template = draw((1, 14, 12), dtype, 1), draw((1, 5, 4), dtype, 2)
        image, template = on_device(image, _reference.standardise(template, 2, True))
        got = fft_scores.ncc_fft(image, template, [1, 1], True, 0.0)
        want = _reference.ncc(image.double(), template, [1, 1], True, 0.0)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)


def test_gradients_of_scores() -> None:
    """Made of operators: those of the CPU, or those of a GPU, here."""
    input, template, ndim = score_pair("2d-joint-templates", torch.float32, True)
    stride = [1] * ndim
    score = _reference.ncc(input, template, stride, True, 0.0)
    grad = draw(tuple(score.shape), torch.float32, 5).to(DEVICE)
    args = (grad, input, template, score, stride, True, 0.0)
    want = _reference.ncc_grads(*args, True, True)
    for got, exact in zip(fft_scores.ncc_fft_grads(*args, True, True), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))
    assert fft_scores.ncc_fft_grads(*args, False, True)[0].numel() == 0
