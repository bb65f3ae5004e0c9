"""Moments of windows whose elements have weights: those of a window, of the input, or of both."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import array, draw, normal, tensor
from tolerances import GRADIENT_OF_FLOAT32, ROUNDING

import torchcorr

NAMES = ("local_sum", "local_mean", "local_var", "local_std", "flat_windows")
# Input, window, number of window axes and channels.
SHAPES = {
    "1d": ((2, 13), (4,), 1, "independent"),
    "1d-joint": ((2, 3, 13), (3, 5), 1, "joint"),
    "2d": ((2, 9, 8), (3, 4), 2, "independent"),
    "2d-windows": ((9, 8), (5, 3, 4), 2, "independent"),
    "2d-joint": ((2, 3, 9, 8), (4, 3), 2, "joint"),
    "2d-joint-weights": ((2, 3, 9, 8), (3, 4, 3), 2, "joint"),
    "2d-whole": ((5, 6), (5, 6), 2, "independent"),
    "3d": ((6, 5, 7), (2, 3, 4), 3, "independent"),
}
KINDS = ("window", "mask", "both")


def soft(shape, dtype=torch.float64, seed=5):
    """Weights, a quarter of them 0."""
    weights = draw(shape, dtype, seed)
    return torch.where(weights < 0.25, 0.0, weights)


def check(x, window, names=NAMES, **options):
    """Means are right relative to the window's root mean square, deviations to themselves."""
    plain = {k: array(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    weights = array(window) if isinstance(window, torch.Tensor) else window
    exact = oracle.weighted_moments(array(x), weights, **plain)
    unit = ROUNDING[torch.float64]
    std, var = exact["local_std"], exact["local_var"]
    root = np.sqrt(var + exact["local_mean"] ** 2)
    bounds = {
        "local_sum": exact["count"] * root,
        "local_mean": root,
        "local_var": var + root * std * unit / 1e-10,
        "local_std": std + root * unit / 1e-10,
        "flat_windows": 0.0,
    }
    share = 1e-10 if x.dtype == torch.float64 else 8 * ROUNDING[x.dtype]
    for name in names:
        got = getattr(torchcorr, name)(x, window, **options)
        assert tuple(got.shape) == exact[name].shape
        assert got.dtype == (torch.bool if name == "flat_windows" else x.dtype)
        error = np.abs(array(got).astype(np.longdouble) - exact[name])
        assert (error <= share * bounds[name]).all(), name


def weights_of(kind, x, window, ndim, channels):
    core = ndim + (channels == "joint")
    options = {"input_mask": soft(tuple(x.shape[-core:]), x.dtype)} if kind != "window" else {}
    return (window[-ndim:] if kind == "mask" else soft(window, x.dtype, 6)), options


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ("valid", "same", "full"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, mode, kind):
    size, window, ndim, channels = shape
    x = draw(size) + 1
    weights, options = weights_of(kind, x, window, ndim, channels)
    for stride in (1, tuple(range(1, ndim + 1))):
        how = {"ndim": ndim, "mode": mode, "stride": stride, "channels": channels, **options}
        check(x, weights, **how)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_large_windows(dtype, kind):
    """So many elements that their sums are transforms."""
    x = draw((70, 73), dtype) + 3
    weights, options = weights_of(kind, x, (30, 31), 2, "independent")
    check(x, weights, **options)


def test_equal_weights_are_those_of_a_box():
    x = draw((20, 21)) * 3 + 100
    for name in NAMES:
        want = getattr(torchcorr, name)(x, (4, 5))
        got = getattr(torchcorr, name)(x, torch.full((4, 5), 0.5))
        there = getattr(torchcorr, name)(x, (4, 5), input_mask=torch.ones(21, dtype=torch.bool))
        scale = 0.5 if name == "local_sum" else 1.0
        torch.testing.assert_close(got.double(), scale * want.double(), rtol=1e-12, atol=0)
        torch.testing.assert_close(there.double(), want.double(), rtol=1e-12, atol=0)


def test_corrections_are_taken_from_the_weight():
    x, there = draw((12, 13)), draw((12, 13), seed=1) > 0.5
    exact = oracle.weighted_moments(array(x), (3, 3), input_mask=array(there))
    count, var = exact["count"], exact["local_var"]
    enough = count > 1
    want = np.where(enough, var * count / np.where(enough, count - 1, 1), 0)
    got = torchcorr.local_var(x, 3, input_mask=there, correction=1, eps=0.5)
    assert np.allclose(array(got), (want + 0.5).astype(float), rtol=1e-12)
    got = torchcorr.local_std(x, 3, input_mask=there, correction=1, eps=0.5)
    assert np.allclose(array(got), np.sqrt(want + 0.5).astype(float), rtol=1e-12)


@pytest.mark.parametrize("kind", ("mask", "both"))
@pytest.mark.parametrize("dtype", (np.float32, np.float64), ids=lambda d: d.__name__)
def test_survives_the_torture(dtype, kind):
    for case in torture.cases(dtype):
        x, window = tensor(case.image), case.template.shape
        weights, options = weights_of(kind, x, window, 2, "independent")
        check(x, weights, ("local_mean", "local_std", "flat_windows"), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", (math.nan, math.inf, 1e30))
def test_what_has_no_weight_may_be_anything(kind, hidden):
    x = normal(40, 41, seed=1).float()
    weights, options = weights_of("both" if kind == "window" else kind, x, (9, 8), 2, "")
    there = options["input_mask"]
    if kind == "window":
        weights = torch.ones(9, 8)
        weights[4, 3] = 0
        options, there = {}, torch.ones_like(x)
        there[20, 20] = 0
    spoilt = torch.where(there > 0, x, hidden)
    untouched = torch.ones(32, 34, dtype=torch.bool)
    if kind == "window":
        untouched[12:21, 13:21] = False
        untouched[16, 17] = True
    for name in NAMES:
        want = getattr(torchcorr, name)(x, weights, **options)
        got = getattr(torchcorr, name)(spoilt, weights, **options)
        torch.testing.assert_close(got[untouched], want[untouched], rtol=1e-6, atol=1e-6)
        if kind == "window" and name in ("local_mean", "local_std") and hidden != 1e30:
            assert bool(got[~untouched].isnan().all())


def test_windows_without_weight_are_empty():
    x, there = normal(30, 31, seed=1), torch.ones(30, 31)
    there[5:20, 5:20] = 0
    for window in (4, torch.ones(4, 4), draw((4, 4), seed=2)):
        for name in ("local_sum", "local_mean", "local_var", "local_std"):
            got = getattr(torchcorr, name)(x, window, input_mask=there)
            assert bool((got[5:17, 5:17] == 0).all()) and bool((got != 0).any())
        assert bool(torchcorr.flat_windows(x, window, input_mask=there)[5:17, 5:17].all())


@pytest.mark.parametrize("kind", KINDS)
def test_flat_windows_have_no_gradient(kind):
    """Of many that are flat, none is computed from its elements."""
    x = torch.full((300, 301), 0.1, dtype=torch.float64)
    x[:40] = normal(40, 301, seed=1)
    weights, options = weights_of(kind, x, (64, 64), 2, "independent")
    x.requires_grad_()
    std = torchcorr.local_std(x, weights, **options)
    flat = torchcorr.flat_windows(x, weights, **options)
    assert bool(flat[40:].all()) and not bool(flat[:40].any())
    assert bool(((std == 0) == flat).all())
    (grad,) = torch.autograd.grad(std[40:].sum(), x)
    assert bool((grad == 0).all())
    mean = torchcorr.local_mean(x, weights, **options)[40:]
    torch.testing.assert_close(mean, torch.full_like(mean, 0.1), rtol=1e-12, atol=0)


def moments(x, window, there=None, **options):
    """A sum of moments, by which each has a gradient of its own."""
    options = {"pad_mode": "ignore", "input_mask": there, **options}
    mean, total = (getattr(torchcorr, name)(x, window, **options) for name in NAMES[:2])
    return mean + 2 * total + 3 * torchcorr.local_std(x, window, correction=0.5, **options)


@pytest.mark.parametrize("channels", ("independent", "joint"))
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, channels):
    shape, window = ((2, 3, 4), (2, 2, 2)) if channels == "joint" else ((4, 4), (2, 1, 2, 2))
    tensors = [draw(s, seed=i + 1).requires_grad_() for i, s in enumerate((shape, window, shape))]
    x, w, there = tensors
    how = {"channels": channels, "stride": (1, 2), "mode": "same"}
    call, given = {
        "window": (lambda x, w: moments(x, w + 0.1, **how), (x, w)),
        "mask": (lambda x, g: moments(x, (2, 2), g + 0.1, **how), (x, there)),
        "both": (lambda x, w, g: moments(x, w + 0.1, g + 0.1, **how), (x, w, there)),
    }[kind]
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_are_those_of_float64(kind):
    image, there, window = normal(60, 64, seed=1) + 1000, soft((60, 64)), soft((12, 13), seed=6)
    grads = []
    for dtype in (torch.float64, torch.float32):
        x, g, w = (y.float().to(dtype).requires_grad_() for y in (image, there, window))
        how = {"input_mask": g} if kind != "window" else {}
        taken = (12, 13) if kind == "mask" else w
        out = sum(getattr(torchcorr, name)(x, taken, **how).sum() for name in NAMES[1:4])
        wanted = [y for y, used in ((x, True), (g, how), (w, kind != "mask")) if used]
        grads.append(torch.autograd.grad(out, wanted))
    for wide, narrow in zip(*grads, strict=True):
        error = (wide - narrow.double()).abs().max()
        assert float(error) <= GRADIENT_OF_FLOAT32 * float(wide.abs().max())


def test_vmap_and_jacrev():
    x, w, g = draw((3, 8, 9)), draw((3, 3, 2), seed=1), draw((8, 9), seed=2)
    got = torch.func.vmap(lambda x, w: torchcorr.local_std(x, w, input_mask=g))(x, w)
    want = [torchcorr.local_std(a, b, input_mask=g) for a, b in zip(x, w, strict=True)]
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-12)
    jacobian = torch.func.jacrev(lambda w: torchcorr.local_mean(x[0], w))(w[0])
    assert jacobian.shape == (6, 8, 3, 2)


@pytest.mark.parametrize(
    "dtype", (torch.float16, torch.bfloat16, torch.uint8, torch.int16), ids=str
)
def test_other_dtypes(dtype):
    x = (draw((12, 11)) * 200).to(dtype)
    want = torchcorr.local_std(x.double(), draw((5, 4), seed=1).float().double())
    got = torchcorr.local_std(x, draw((5, 4), seed=1))
    assert got.dtype == (dtype if dtype.is_floating_point else torch.float32)
    unit = ROUNDING[got.dtype]
    assert bool(((got.double() - want).abs() <= 4 * max(unit, 2.0**-24) * want).all())


def test_empty_batch():
    assert torchcorr.local_std(torch.ones(0, 5, 6), torch.ones(3, 3)).shape == (0, 3, 4)
    mask = torch.ones(5, 6)
    assert torchcorr.local_mean(torch.ones(0, 5, 6), 3, input_mask=mask).shape == (0, 3, 4)


def test_weights_are_checked():
    x = draw((20, 21))
    negative = torch.ones(4, 4)
    negative[1, 1] = -1
    for name in NAMES:
        call = getattr(torchcorr, name)
        with pytest.raises(ValueError, match="window must be finite and not negative"):
            call(x, negative)
        with pytest.raises(ValueError, match="window must not be zero everywhere"):
            call(x, torch.zeros(4, 4))
        with pytest.raises(TypeError, match="window must be boolean or of floating-point"):
            call(x, torch.ones(4, 4, dtype=torch.int32))
        with pytest.raises(ValueError, match="window must have 2 window axes"):
            call(x, torch.ones(4))
        with pytest.raises(ValueError, match="window is larger than input along axis -1"):
            call(x, torch.ones(4, 30))
        with pytest.raises(ValueError, match="leading axes of input and window must broadcast"):
            call(draw((3, 20, 21)), torch.ones(2, 4, 4))
        with pytest.raises(ValueError, match="input and window must have the same number of"):
            call(draw((3, 20, 21)), torch.ones(2, 4, 4), channels="joint")
        with pytest.raises(ValueError, match="input_mask must broadcast to input"):
            call(x, 4, input_mask=torch.ones(3, 21))
