"""The promise of `correlate`: the rounding of a value in float32 and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torture
from inputs import array, tensor
from numpy.lib.stride_tricks import sliding_window_view
from tolerances import ROUNDING

import torchcorr

# Roundings of the sum of absolute products: float32 is summed in float64 and rounded once. Those of
# a transform in float64 are relative to the norms of the input and the template.
ROUNDINGS = {torch.float32: 2, torch.float64: 64}


def sums(image: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of products, and of their absolute values, in extended precision."""
    seen = sliding_window_view(image.astype(np.longdouble), template.shape)
    weights = template.astype(np.longdouble)
    flat = seen.reshape(*seen.shape[: image.ndim], -1)
    with np.errstate(invalid="ignore"):
        return flat @ weights.reshape(-1), np.abs(flat) @ np.abs(weights.reshape(-1))


def check(image: np.ndarray, template: np.ndarray, method: str = "fft") -> None:
    result = torchcorr.correlate(tensor(image), tensor(template), ndim=image.ndim, method=method)
    values = array(result)
    exact, size = sums(image, template)
    with np.errstate(invalid="ignore"):
        error = np.abs(values.astype(np.longdouble) - exact)
    finite = np.isfinite(exact)
    same = (values == exact) | (np.isnan(values) & np.isnan(exact))
    assert same[~finite].all()
    if result.dtype == torch.float64:
        seen = image[np.isfinite(image)].astype(np.longdouble)
        norms = np.sqrt(np.square(seen).sum() * np.square(template.astype(np.longdouble)).sum())
        size = np.full_like(size, norms)
    bound = ROUNDINGS[result.dtype] * ROUNDING[result.dtype] * size
    assert (error[finite] <= bound[finite]).all(), float(np.nanmax(error[finite] / size[finite]))


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", [case.name for case in torture.cases()])
def test_values_are_local(name: str, dtype: type) -> None:
    case = next(c for c in torture.cases(dtype) if c.name == name)
    check(case.image, case.template)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("centred", (True, False))
def test_templates_of_both_signs(dtype: type, centred: bool) -> None:
    rng = np.random.default_rng(0)
    image, template = rng.normal(size=(90, 97)), rng.normal(size=(17, 13))
    image[20:60, 30:80] *= 1e-9
    image[70:, :30] = 0
    template[:, 5] = 0
    if centred:
        template -= template.mean()
    check(image.astype(dtype), template.astype(dtype))


def test_sparse_times_sparse_is_exactly_zero(dtype: type = np.float32) -> None:
    """No window has a product other than zero, though neither image nor template is zero."""
    image, template = np.zeros((80, 80), dtype), np.zeros((16, 16), dtype)
    image[::8, ::8] = 3
    template[1::2, 1::2] = 0.7
    check(image, template)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("window", ((8, 8), (5, 7), (16, 16), (21, 56)))
def test_direct_sums_keep_the_promise(window: tuple[int, int], dtype: type) -> None:
    """Terms of one sign and size, whose roundings are alike: the worst for sums in order."""
    rng, size = np.random.default_rng(0), (25, 62)
    ramps = [np.add.outer(np.arange(n), np.arange(m)) + 0.3 for n, m in (size, window)]
    for image, template in (
        (np.full(size, 4076.3), np.full(window, 2035.7)),
        (1e4 + rng.random(size), 1e4 + rng.random(window)),
        (ramps[0], ramps[1]),
    ):
        image, template = image.astype(dtype), template.astype(dtype)
        got = torchcorr.correlate(tensor(image), tensor(template), method="direct")
        exact, absolute = sums(image, template)
        error = np.abs(array(got).astype(np.longdouble) - exact)
        assert (error <= 8 * ROUNDING[got.dtype] * absolute).all()


def hard_images() -> dict[str, np.ndarray]:
    """Where a bound of sums of absolute products may be wrong, or large parts of it are zero."""
    rng = np.random.default_rng(4)
    noise = rng.random((110, 120))
    images = {"noise": noise, "both signs": noise - 0.5, "ones": np.ones_like(noise)}
    for value in (1e2, 1e6):
        images[f"one pixel {value:.0e}"] = noise.copy()
        images[f"one pixel {value:.0e}"][60, 70] = value
    for name, faint in (("zero half", 0.0), ("faint half", 1e-3), ("fainter half", 1e-6)):
        images[name] = noise.copy()
        images[name][:, 60:] *= faint
    images["checkerboard"] = np.indices(noise.shape).sum(0) % 2 + 0.0
    images["spots"] = np.where(rng.random(noise.shape) > 0.99, noise, 0)
    return images


def hard_templates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(64, 60))
    sparse = np.where(rng.random(noise.shape) > 0.98, noise, 0)
    steps = np.where(rng.random(noise.shape) > 0.9, noise, 1e-4 * noise)
    checkerboard = np.indices(noise.shape).sum(0) % 2 + 0.0
    return {"noise": noise, "sparse": sparse, "steps": steps, "checkerboard": checkerboard}


@pytest.mark.parametrize("image", hard_images())
@pytest.mark.parametrize("template", hard_templates())
def test_float32_transforms_keep_the_promise(image: str, template: str) -> None:
    pair = [x.astype(np.float32) for x in (hard_images()[image], hard_templates()[template])]
    exact, size = sums(*pair)
    values = array(torchcorr.correlate(*map(tensor, pair), method="fft"))
    assert (np.abs(values - exact) <= 8 * ROUNDING[torch.float32] * size).all()


@pytest.mark.parametrize("mode", ("same", "full"))
@pytest.mark.parametrize("template", ("noise", "ramp", "of one sign"))
@pytest.mark.parametrize(
    "shape, window", (((1500,), (300,)), ((66, 60), (24, 21)), ((16, 15, 14), (7, 8, 6)))
)
def test_windows_over_the_border_keep_the_promise(
    shape: tuple[int, ...], window: tuple[int, ...], template: str, mode: str
) -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(size=window)
    ramp = np.logspace(-5, 0, window[-1])
    weights = {"noise": noise, "ramp": noise * ramp, "of one sign": np.abs(noise)}[template]
    fading = rng.normal(size=shape) * np.logspace(-4, 0, shape[-1])
    spike = rng.normal(size=shape)
    spike[(3,) * len(shape)] = 1e5
    sides = [(k // 2, (k - 1) // 2) if mode == "same" else (k - 1, k - 1) for k in window]
    for image in (rng.random(shape), 100 + rng.random(shape), fading, spike):
        pair = [x.astype(np.float32) for x in (image, weights)]
        got = torchcorr.correlate(*map(tensor, pair), ndim=len(shape), mode=mode, method="fft")
        exact, size = sums(np.pad(pair[0], sides), pair[1])
        assert (np.abs(array(got) - exact) <= 8 * ROUNDING[torch.float32] * size).all()


def test_two_long_signals_take_no_quadratic_time() -> None:
    """By the direct loop a call takes minutes; tests of the engines check faint values at ends."""
    n = 200_000
    rng = np.random.default_rng(6)
    for dtype in (np.float32, np.float64):
        for fade in (1.0, np.hanning(n)):
            one, other = ((rng.normal(size=n) * fade).astype(dtype) for _ in range(2))
            got = torchcorr.correlate(tensor(one), tensor(other), ndim=1, mode="full")
            middle = np.dot(one.astype(np.longdouble), other.astype(np.longdouble))
            norms = float(np.linalg.norm(one) * np.linalg.norm(other))
            assert abs(float(got[n - 1]) - middle) <= 64 * ROUNDING[got.dtype] * norms


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("at", ((0, 0), (30, 41), (79, 83), (79, 0)))
def test_a_value_that_is_not_finite_affects_only_its_windows(
    bad: float, at: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    image, template = rng.random((80, 84)), rng.random((15, 14)) - 0.5
    image[at] = bad
    if np.isinf(bad):
        image[10, 10] = -bad
        template[3, 4] = 0
    check(image.astype(np.float32), template.astype(np.float32))
    check(image, template)


@pytest.mark.parametrize("shape, window", (((4000,), (300,)), ((20, 22, 25), (6, 7, 8))))
def test_other_dimensions(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    image, template = rng.normal(size=shape), rng.normal(size=window)
    image[: shape[0] // 3] *= 1e-8
    for dtype in (np.float32, np.float64):
        check(image.astype(dtype), template.astype(dtype))


@pytest.mark.parametrize("scale", (1e-200, 1e-30, 1e30, 1e200))
def test_any_scale(scale: float) -> None:
    rng = np.random.default_rng(3)
    image, template = rng.normal(size=(60, 60)) * scale, rng.normal(size=(14, 15))
    check(image, template)


@pytest.mark.parametrize("method", ("direct", "fft"))
def test_integers_around_which_there_is_a_fraction_are_not_rounded(method: str) -> None:
    image = tensor(np.arange(12).reshape(3, 4), torch.uint8)
    template = tensor(np.array([[3, 2]]), torch.uint8)
    how = {"mode": "full", "method": method}
    values = array(torchcorr.correlate(image, template, pad_value=-3.25, **how))
    around = np.pad(np.arange(12.0).reshape(3, 4), ((0, 0), (1, 1)), constant_values=-3.25)
    np.testing.assert_array_equal(values, 3 * around[:, :-1] + 2 * around[:, 1:])
    whole = array(torchcorr.correlate(image, template, pad_value=-3.0, **how))
    around[:, [0, -1]] = -3
    np.testing.assert_array_equal(whole, 3 * around[:, :-1] + 2 * around[:, 1:])
