"""Local coefficients in windows with weights by Triton kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import array, draw, normal, other_of, tensor
from interpreter import run
from tolerances import SCORE
from torch import Tensor

from torchcorr._definition import weighted_lncc as definition
from torchcorr._plan.taps import window_taps
from torchcorr._triton.lncc import weighted

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BORDERS = ("renormalize", "valid", "zeros")
# Inputs, windows and strides; an even and an odd window, and one of a single element.
SHAPES = (
    ((2, 2, 12, 13), [4, 5], [1, 2]),
    ((1, 40), [9], [3]),
    ((1, 6, 7, 8), [3, 4, 1], [1, 1, 2]),
)


def soft(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Weights, a quarter of them 0."""
    weights = draw(shape, dtype, 5)
    return torch.where(weights < 0.25, 0.0, weights)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_are_those_of_the_definition(shape: Any, border: str) -> None:
    size, window, stride = shape
    for dtype, weights, masked in (
        (torch.float64, "gaussian", True),
        (torch.float32, "triangle", False),
    ):
        a, b = normal(*size, seed=0).to(dtype) + 9, normal(*size, seed=1).to(dtype)
        weight = soft(size, dtype) if masked else None
        taps = list(window_taps(weights, window))
        args = (a, b, weight, taps, window, stride, border, 0.1)
        want = definition.weighted_lncc(*args)
        got = run("weighted_lncc", *args)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=0, atol=SCORE[dtype] / 10)
        grad, needed = normal(*want.shape, seed=3).to(dtype), [True, True, masked]
        for x, y in zip(
            run("weighted_lncc_grads", grad, *args, needed),
            definition.weighted_lncc_grads(grad, *args, needed),
            strict=True,
        ):
            bound = (1e-10 if masked else 1e-6) * float(y.abs().max()) if y.numel() else 0.0
            torch.testing.assert_close(x, y, rtol=0, atol=bound)


@pytest.mark.parametrize("weights", ("triangle", "gaussian"))
def test_coefficients_survive_the_torture(weights: str) -> None:
    for number, case in enumerate(torture.cases(np.float32)):
        image = case.image[26:53, 20:49]
        if image.size < 100:
            continue
        a, b = tensor(image.copy())[None], tensor(other_of(image))[None]
        weight = soft(tuple(a.shape), a.dtype) if number % 2 else None
        border = BORDERS[number % 3]
        place = (list(window_taps(weights, [5, 4])), [5, 4], [1, 1], border, 0.0)
        got = run("weighted_lncc", a, b, weight, *place)
        how = {"mask": None if weight is None else array(weight), "weights": weights}
        exact = oracle.lncc(array(a), array(b), (5, 4), border=border, **how)
        assert torture.error(array(got)[None], exact) <= SCORE[torch.float32], case.name


def test_flat_windows_score_0_and_a_nan_stays_in_its_windows() -> None:
    a, b = normal(1, 14, 15, seed=0), normal(1, 14, 15, seed=1)
    a[:, :, :8] = 0.1
    weight = soft((1, 14, 15)) + 0.1
    place = (list(window_taps("gaussian", [3, 4])), [3, 4], [1, 1], "valid", 0.0)
    want = run("weighted_lncc", a, b, weight, *place)
    assert bool((want[:, :5] == 0).all()) and bool((want[:, 5:] != 0).all())
    grad = torch.ones_like(want)
    grad[:, 5:] = 0
    for g in run("weighted_lncc_grads", grad, a, b, weight, *place, [True] * 3):
        assert bool((g == 0).all())
    b[:, 6, 11] = math.nan
    got = run("weighted_lncc", a, b, weight, *place)
    touched = torch.zeros_like(got, dtype=torch.bool)
    touched[4:7, 8:12] = True
    assert torch.equal(got.isnan(), touched)
    torch.testing.assert_close(got[~touched], want[~touched], rtol=0, atol=1e-12)
    weight[:, 6, 11] = 0
    assert bool(run("weighted_lncc", a, b, weight, *place).isfinite().all())


def test_taps_keep_their_digits() -> None:
    taps = [1 / 3, 1e-300, 1.0, math.pi, 2.0, 5e-324, 7.0, 8.0, 0.1]
    like = torch.ones(1, dtype=torch.float64)
    assert weighted._on_device(taps, like).tolist() == taps
