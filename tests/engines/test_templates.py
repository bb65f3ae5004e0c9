"""What a score does with its templates once: standardising them, and their spectra for tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from inputs import array, draw, normal

from torchcorr import _contract
from torchcorr._cpu import steps
from torchcorr._definition import scores as definition
from torchcorr._plan.tiling import Tiling

# Of a standardised element, whose mean square is 1.
ROUNDINGS = 32 * 2.0**-53


def standard(values: np.ndarray, zero_mean: bool) -> np.ndarray:
    """In extended precision, scaled first so that no square leaves its range."""
    x = values.astype(np.longdouble)
    x = x - x.mean() if zero_mean else x
    x = x / np.abs(x).max()
    result: np.ndarray = x / np.sqrt((x**2).mean())
    return result


@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("size", (2, 31, 33, 4097))
def test_standardised(size: int, dtype: torch.dtype, zero_mean: bool) -> None:
    small = 1e-30 if dtype == torch.float32 else 1e-170  # squares are 0 in the same dtype
    for scale in (1.0, small, 1 / small):
        x = normal(1, 1, size, seed=size, dtype=dtype) * scale
        got = array(_contract.standardise(x, 1, zero_mean)).ravel()
        wanted = standard(array(x).ravel(), zero_mean)
        assert np.abs(got - wanted).max() <= ROUNDINGS * np.abs(wanted).max()


def test_an_offset_is_rounded_away_twice() -> None:
    x = normal(1, 1, 4096, seed=1) + 1e6
    got = array(_contract.standardise(x, 1, True)).ravel()
    assert np.abs(got - standard(array(x).ravel(), True)).max() <= 16 * 1e6 * 2.0**-53 / 8
    assert abs(got.sum()) <= 4096 * 2.0**-52


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_the_mean_of_many_numbers_with_few_digits(dtype: torch.dtype) -> None:
    """Less a mean they are all rounded in one direction; a window that is far from the level of
    its tile multiplies what is left of their mean by that."""
    x = normal(1, 1, 600_000, seed=2, dtype=torch.float32).to(dtype)
    got = array(_contract.standardise(x, 1, True)).ravel()
    assert abs(math.fsum(got)) <= 2.0**-53 * len(got)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_flat_and_not_finite(dtype: torch.dtype) -> None:
    for value in (0.0, 0.1, -3e30):
        flat = torch.full((1, 1, 50), value, dtype=dtype)
        assert not _contract.standardise(flat, 1, True).any()
        got = array(_contract.standardise(flat, 1, False))
        assert np.abs(got - np.sign(value)).max() <= ROUNDINGS
    for bad in (math.nan, math.inf):
        x = normal(1, 1, 50, seed=1, dtype=dtype)
        x[..., 49] = bad
        assert _contract.standardise(x, 1, True).isnan().all()


def test_finite_elements_whose_sum_is_not() -> None:
    x = (draw((1, 1, 50), seed=1) + 1) * 0.8e308
    got = array(_contract.standardise(x, 1, False)).ravel()
    wanted = standard(array(x).ravel(), False)
    assert np.abs(got - wanted).max() <= ROUNDINGS * np.abs(wanted).max()


def through(values: np.ndarray, grad: np.ndarray, zero_mean: bool) -> np.ndarray:
    """The gradient behind `standard`, by central differences of its product with `grad`."""
    x, step = values.astype(np.longdouble), 1e-6 * np.abs(values - values.mean()).max()
    result = np.zeros(x.size, np.longdouble)
    for i in range(x.size):
        there = np.eye(x.size, dtype=np.longdouble)[i] * step
        ahead, behind = (standard(x + sign * there, zero_mean) for sign in (1, -1))
        result[i] = ((ahead - behind) * grad).sum() / (2 * step)
    return result


@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("offset", (0.0, 300.0))
def test_gradient_of_standardised(offset: float, dtype: torch.dtype, zero_mean: bool) -> None:
    x, grad = normal(3, 1, 43, seed=1, dtype=dtype) + offset, normal(3, 1, 43, seed=2)
    got = torch.ops.torchcorr.standardise_grad(x, grad, 1, zero_mean)
    assert got.dtype == dtype
    for i in range(3):
        wanted = through(array(x[i, 0]), array(grad[i, 0]), zero_mean)
        allowed = (1e-9 + 2.0 ** (-24 if dtype == torch.float32 else -53)) * np.abs(wanted).max()
        assert np.abs(array(got[i, 0]) - wanted).max() <= allowed
    torch.testing.assert_close(got, definition.standardise_grad(x, grad, 1, zero_mean))


def test_gradient_of_flat_and_not_finite() -> None:
    x, grad = normal(3, 1, 43, seed=1), normal(3, 1, 43, seed=2)
    x[1], x[2, 0, 5] = 0.1, torch.nan
    got = torch.ops.torchcorr.standardise_grad(x, grad, 1, True)
    assert bool(got[0].isfinite().all()) and not got[1].any() and bool(got[2].isnan().all())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_gradient_of_channels(dtype: torch.dtype) -> None:
    """Each channel has a mean, all have one deviation: autograd of the formula in float64."""
    x, grad = normal(5, 3, 31, seed=1, dtype=dtype) + 20, normal(5, 3, 31, seed=2)
    x[3] = 0.6
    leaf = x.double().requires_grad_()
    rest = leaf - leaf.mean(-1, keepdim=True)
    scaled = rest / rest.square().mean((1, 2), keepdim=True).sqrt()
    (wanted,) = torch.autograd.grad((scaled * grad).sum(), leaf)
    got = steps.standardise_channels_grad(x, grad)
    assert got.dtype == dtype and not got[3].any()
    live = [0, 1, 2, 4]
    unit = 2.0 ** (-24 if dtype == torch.float32 else -49)
    error = (got.double() - wanted)[live].abs().amax((1, 2))
    assert bool((error <= unit * wanted[live].abs().amax((1, 2))).all())


@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("weights", ("none", "shared", "own"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("size", (1, 31, 4097))
def test_weighed(size: int, dtype: torch.dtype, weights: str, zero_mean: bool) -> None:
    """Of three templates with two means each, one of which is that of equal elements."""
    x = normal(3, 2, size, seed=size, dtype=dtype) + 300
    x[1, 0] = 0.1
    m = None
    if weights != "none":
        m = draw((3 if weights == "own" else 1, 2, size), dtype, 1)
        m[..., ::3] = 0
        x[..., ::3] = torch.nan  # hidden, but for templates without elements
        m[:, 1] = 0 if size == 1 else m[:, 1]
    products, energies = steps.weigh_templates(x, m, zero_mean)
    there = np.ones((3, 2, size)) if m is None else array(m.expand(3, -1, -1))
    w, t = there.astype(np.longdouble), np.where(there > 0, array(x), 0).astype(np.longdouble)
    t = np.ldexp(t, -np.frexp(np.abs(t).max((1, 2), keepdims=True))[1])
    scale = np.abs(t).max()
    if zero_mean:
        total = w.sum(2, keepdims=True)
        t = np.where(w > 0, t - (w * t).sum(2, keepdims=True) / np.where(total > 0, total, 1), 0)
        t[1, 0] = 0
    assert np.abs(array(products) - w * t).max() <= ROUNDINGS * scale
    assert np.abs(array(energies) - w * t**2).max() <= ROUNDINGS * scale
    if zero_mean:
        assert not products[1, 0].any() and not energies[1, 0].any()


@pytest.mark.parametrize("wide", (False, True))
@pytest.mark.parametrize(
    ("window", "length"),
    (
        ((5,), (16,)),
        ((700,), (4100,)),
        ((3, 5), (8, 12)),
        ((8, 12), (8, 12)),
        ((2, 3, 4), (6, 5, 8)),
        ((5, 3, 4), (6, 5, 8)),
    ),
    ids=str,
)
def test_spectra(window: tuple[int, ...], length: tuple[int, ...], wide: bool) -> None:
    one = (1,) * len(window)
    tiling = Tiling.cut(length, window, one, one, positions=one, fast=False)
    tiling = Tiling(**{**vars(tiling), "length": length})
    lines = 1 if length == (4100,) else 3
    templates = draw((1, lines, 2, *window)) if lines > 1 else draw((1, 1, 1, *window))
    spectra = steps.spectra_of_templates(templates, tiling, wide)
    assert spectra.dtype == (torch.complex128 if wide else torch.complex64)
    assert spectra.is_contiguous()
    got = array(spectra)
    channels = templates.shape[2]
    assert got.shape == (lines, channels, *length)
    for line in range(lines):
        for c in range(channels):
            padded = np.zeros(length)
            padded[tuple(slice(0, n) for n in window)] = array(templates)[0, line, c]
            wanted = np.fft.fftn(padded).conj() / math.prod(length)
            error = np.abs(got[line, c] - wanted).max()
            bound = 2.0 ** (-52 if wide else -23) * np.abs(wanted).max()
            assert error <= 4 * bound, (line, c)
