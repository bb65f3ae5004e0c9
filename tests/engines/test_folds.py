"""Scores of a stride by spectra that are folded: the promises hold, and the plan says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torture
from inputs import array, draw, tensor
from tolerances import GRADIENT_OF_FLOAT32, SCORE

import torchcorr
from torchcorr._cpu.rules import ScoreRule
from torchcorr._definition import scores as definition
from torchcorr._definition.spectra import template_spectra
from torchcorr._plan import choose, rounding
from torchcorr._plan.tiling import Block, Tiling

STRIDES = ((2, 2), (3, 3), (2, 1))


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Spectra are folded, whatever that costs."""
    caches = (choose._arranged, choose._arranged_gradients)
    for cache in caches:
        cache.cache_clear()
        request.addfinalizer(cache.cache_clear)
    monkeypatch.setattr(choose, "folds_of", lambda problem: [problem.stride])


@pytest.mark.parametrize("dtype", (np.float32, np.float64), ids=lambda t: t.__name__)
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_scores_of_torture(stride: tuple[int, int], dtype: type, folded: None) -> None:
    for case in torture.cases(dtype):
        image, template = tensor(case.image), tensor(case.template)
        assert torchcorr.plan(image, template, stride=stride, method="fft").folds == stride
        got = torchcorr.zncc(image, template, stride=stride, method="fft")
        exact = torchcorr.zncc(image.double(), template.double(), stride=stride, method="direct")
        assert torture.error(array(got), array(exact)) <= SCORE[got.dtype], case.name


def test_positions_that_are_left_out_count_as_noise() -> None:
    """Large sums at odd rows alone: their rounding reaches the faint windows of even ones."""
    wave = tensor([1.0, 0.0, -1.0, 0.0]).repeat(64)[:, None] * (draw((1, 256), seed=5) + 0.5)
    image = draw((1, 1, 256, 256), torch.float32).sub(0.5) * 1e-2
    image[..., :160, :] += wave[:160]
    template = wave.roll(1, 0)[:48, :48] + draw((48, 48), seed=1) * 1e-3
    coefficients = definition.standardise(template[None, None, None], 2, True)
    tiling = Tiling.cut((256, 256), (48, 48), (2, 1), (1, 1), folds=(2, 1))
    noise = rounding.transform_noise(torch.float32, torch.float32)
    # What is doubtful is left to what the numerators contain.
    rules = [ScoreRule(True, 0.0, 0.0, False, 1e-8, noise, math.inf).numbers] * 2
    spectra = template_spectra(coefficients, tiling.length, torch.float32).flatten(0, 1)
    out = torch.full((1, 1, *tiling.positions), math.nan)
    numbers = (tiling.batch_numbers, Block(slice(0, 1), slice(0, 1), 2).numbers, *rules)
    torch.ops.torchcorr_cpu.score_tiles(
        image, coefficients, spectra.contiguous(), *numbers, None, [], out
    )
    exact = definition.ncc(image.double(), coefficients, (2, 1), True, 0.0, "direct")
    # They are recomputed, and thus rounded once.
    assert float((out - exact).abs().max()) <= 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("zero_mean", (True, False), ids=("zncc", "ncc"))
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_gradients(stride: tuple[int, int], zero_mean: bool, folded: None) -> None:
    image = draw((2, 3, 90, 95), torch.float32) + 3
    image[1, :, 40:] *= 1e-2
    pair = (image, draw((4, 1, 3, 17, 12), torch.float32, 1))
    score = torchcorr.zncc if zero_mean else torchcorr.ncc
    found = []
    for dtype, method in ((torch.float32, "fft"), (torch.float64, "direct")):
        leaves = [x.to(dtype).requires_grad_() for x in pair]
        scores = score(*leaves, stride=stride, channels="joint", method=method)
        grad = draw(tuple(scores.shape), torch.float32, 2).sub(0.5).to(dtype)
        found.append(torch.autograd.grad(scores, leaves, grad))
    for got, want in zip(*found, strict=True):
        bound = GRADIENT_OF_FLOAT32 * float(want.abs().max())
        assert float((got - want).abs().max()) <= bound


def test_what_is_not_finite_stays_in_its_windows(folded: None) -> None:
    image, template = draw((200, 210), torch.float32), draw((30, 31), torch.float32, 1)
    image[77, 78], image[150, 20] = math.nan, math.inf
    got = torchcorr.zncc(image, template, stride=3, method="fft")
    exact = torchcorr.zncc(image, template, stride=3, method="direct")
    torch.testing.assert_close(got, exact, rtol=0, atol=SCORE[torch.float32], equal_nan=True)


def test_the_plan_chooses_by_cost() -> None:
    image, template = (torch.empty(n, n, device="meta") for n in (1024, 96))
    every, second = (torchcorr.plan(image, template, stride=s, method="fft") for s in (1, 2))
    assert every.folds == (1, 1) and second.folds == (2, 2) and second.cost < every.cost
    # A stride with a large prime factor makes transforms slow.
    assert torchcorr.plan(image, template, stride=(11, 2), method="fft").folds == (1, 2)
    call = choose.arrange_gradients(
        (1, 1024, 1024), (1, 96, 96), (2, 2), dtype=torch.float32, device="cpu"
    )
    assert call.tiling.folds == (2, 2)
