"""The Triton window kernels: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import DEVICE, run
from tolerances import ROUNDING
from torch import Tensor
from triton_windows import (
    FLOATS,
    SHAPES,
    VARIANCE,
    WIDE,
    check_bad_elements,
    check_moments,
    close,
    map_of,
)
from window_definitions import moments, rand, spread, surrounded, windows

from torchcorr._definition import windows as definition
from torchcorr._triton import KERNELS, kernel
from torchcorr._triton.windows.launch import NUMBERS, window_launch
from torchcorr._triton.windows.records import SUM, Result

# NumPy, which the interpreter computes with, warns where a device would not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
every_shape = pytest.mark.parametrize("name", SHAPES)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def test_every_operator_has_its_kernel() -> None:
    for name in KERNELS:
        assert kernel(name).__name__ == name


@every_shape
def test_window_sum(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in FLOATS:
        x = rand(shape, dtype)
        got = run("window_sum", x, window, stride)
        want = windows(x, window, stride).sum(-1)
        assert got.dtype == dtype
        close(got, want, (ROUNDING[dtype] + WIDE) * want)


@every_shape
def test_window_moments(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in FLOATS:
        check_moments(rand(shape, dtype), window, stride, 1e-10)


@every_shape
def test_window_spread(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in FLOATS:
        grad = map_of(name).to(dtype)
        got = run("window_spread", grad, window, shape, stride)
        want = spread(grad.numpy().astype(np.float64), window, shape, stride)
        assert got.dtype == dtype
        close(got, want, (ROUNDING[dtype] + WIDE) * want)


@every_shape
def test_window_combine(name: str) -> None:
    shape, window, stride = SHAPES[name]
    for dtype in FLOATS:
        first, second, x = map_of(name), map_of(name, 2), rand(shape, dtype)
        got = run("window_combine", first, second, x, window, stride)
        want = spread(first.numpy(), window, shape, stride)
        want = want + 2 * x.numpy() * spread(second.numpy(), window, shape, stride)
        assert got.dtype == dtype
        close(got, want, ROUNDING[dtype] * want + WIDE * want.max())


@every_shape
def test_local_std(name: str) -> None:
    eps = 1e-3
    shape, window, stride = SHAPES[name]
    count = shape[-len(window) - 1] * math.prod(window)
    correction = 1.0 if count > 1 else 0.0
    for dtype in FLOATS:
        x = rand(shape, dtype)
        got = run("local_std", x, window, stride, correction, eps)
        want = np.sqrt(moments(x, window, stride)[1] * count / (count - correction) + eps)
        assert got.dtype == dtype
        close(got, want, (2 * ROUNDING[dtype] + WIDE) * want)


def test_local_std_of_an_input_with_a_border() -> None:
    x, window, pads = rand((2, 1, 9, 11)), (3, 4), (1, 0, 2, 3)
    got = run("local_std", x, window, (1, 2), 0.0, 0.0, pads, 1.25)
    want = np.sqrt(moments(surrounded(x, pads, 1.25), window, (1, 2))[1])
    close(got, want, (2 * ROUNDING[x.dtype] + WIDE) * want)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", ("1d-many-lines", "2d-stride"))
def test_half_types(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = SHAPES[name]
    x = rand(shape, dtype)
    seen = x.double()
    got = run("window_sum", x, window, stride)
    want = windows(seen, window, stride).sum(-1)
    assert got.dtype == dtype
    # The interpreter cuts bfloat16 off where a device rounds.
    unit = ROUNDING[dtype] * (2 if DEVICE == "cpu" and dtype == torch.bfloat16 else 1.01)
    close(got, want, unit * want)
    _, want_var = moments(seen, window, stride)
    close(run("window_moments", x, window, stride)[1], want_var, 1e-10 * want_var)
    got = run("local_std", x, window, stride, 0.0, 0.0)
    assert got.dtype == dtype
    close(got, np.sqrt(want_var), unit * np.sqrt(want_var))
    grad = map_of(name).to(dtype)
    got = run("window_spread", grad, window, shape, stride)
    want = spread(grad.double().numpy(), window, shape, stride)
    assert got.dtype == dtype
    close(got, want, unit * want)


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("eps", (0.0, 0.1))
def test_local_std_prepare_grads(dtype: torch.dtype, eps: float) -> None:
    grad = rand((3, 37, 19), dtype) - 0.5
    mean, var = rand((3, 37, 19), seed=1), rand((3, 37, 19), seed=2)
    var[:, 2] = 0
    s1, s2 = run("local_std_prepare_grads", grad, mean, var, 12.0, 1.0, eps)
    want = definition.local_std_prepare_grads(grad, mean, var, 12.0, 1.0, eps)
    assert s1.dtype == s2.dtype == torch.float64
    torch.testing.assert_close((s1, s2), want, rtol=1e-14, atol=0)
    assert (s1[:, 2] == 0).all() and (s2[:, 2] == 0).all()


def _hard() -> dict[str, Tensor]:
    base = rand((1, 26, 40))
    hot, faint, steps, spot = (base.clone() for _ in range(4))
    hot[0, 12, 21] = 1e30
    faint[0, 4:22, 12:32] = 0.5 + 1e-6 * rand((18, 20))
    steps[..., 22:] += 1e6
    spot[0, 3:5, 34:36] = 1e6
    return {
        "offset": base + 1e6,
        "hot": hot,
        "spot": spot,
        "faint": faint,
        "plateau": steps,
        "tiny": base * 1e-10,
        "very tiny": base * 1e-30,
        "huge": base * 1e10,
        "very huge": base * 1e30,
        "ramp": base + torch.linspace(0, 1e4, 40),
    }


@every_float
@pytest.mark.parametrize("name", _hard())
def test_hard_inputs(name: str, dtype: torch.dtype) -> None:
    window = (7, 9)
    x = _hard()[name].to(dtype)
    check_moments(x, window, (1, 1), VARIANCE[dtype])
    exact = np.sqrt(moments(x, window, (1, 1))[1])
    unit = 2 * ROUNDING[dtype] + (WIDE if dtype == torch.float64 else 0)
    close(run("local_std", x, window, (1, 1), 0.0, 0.0), exact, unit * exact)
    seen = windows(x, window, (1, 1))
    close(run("window_sum", x, window, (1, 1)), seen.sum(-1), unit * np.abs(seen).sum(-1))


@every_float
@pytest.mark.parametrize("shape", ((1, 500), (1, 5, 4, 19)), ids=("1d", "3d"))
def test_hot_and_faint_on_other_axes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = rand(shape)
    x[..., 5:] = 0.5 + 1e-6 * x[..., 5:]
    x.flatten()[x.numel() // 2] = 1e6
    window = (23,) if len(shape) == 2 else (2, 3, 5)
    check_moments(x.to(dtype), window, (1,) * len(window), VARIANCE[dtype])


@every_float
@pytest.mark.parametrize("value", (1e6 + 0.3, -1e-30, 0.0))
@pytest.mark.parametrize("name", ("1d-many-lines", "2d-stride", "3d"))
def test_variance_is_zero_if_and_only_if_all_are_equal(
    value: float, name: str, dtype: torch.dtype
) -> None:
    shape, window, stride = SHAPES[name]
    x = torch.full(shape, value, dtype=dtype)
    mean, var = run("window_moments", x, window, stride)
    assert (var == 0).all() and (mean == x.flatten()[0].double()).all()
    assert (run("local_std", x, window, stride, 0.0, 0.0) == 0).all()
    total = run("window_sum", x, window, stride).double()
    torch.testing.assert_close(total, mean * count_of(name), rtol=1e-7, atol=0)
    flat = x.flatten()
    flat[flat.numel() // 2] += max(abs(value), 1.0)
    seen = windows(x, window, stride)
    mean, var = run("window_moments", x, window, stride)
    same = seen.max(-1) == seen.min(-1)
    assert ((var.numpy() == 0) == same).all()
    assert (mean.numpy()[same] == seen[same][:, 0]).all()


def count_of(name: str) -> int:
    shape, window, _ = SHAPES[name]
    return shape[-len(window) - 1] * math.prod(window)


def test_channels_that_differ_make_no_flat_window() -> None:
    x = torch.ones(2, 20, 30)
    x[1] = 1 + 2.0**-23
    var = run("window_moments", x, (6, 7), (1, 1))[1]
    close(var, np.full((15, 24), np.longdouble(2.0**-48)), 1e-10 * 2.0**-48)


def test_padded_images_are_flat_without_a_look_at_each_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows of zeros next to a picture are recognised by counting, none is read by itself."""
    if DEVICE != "cpu":
        pytest.skip("the interpreter's functions can be replaced, a GPU's cannot")
    x = torch.zeros(1, 40, 60)
    x[0, 12:30, 20:44] = rand((18, 24)).float()
    want = moments(x, (6, 7), (1, 1))[1]

    def refuse(*_: Any) -> None:
        raise AssertionError("read window by window")

    march = importlib.import_module("torchcorr._triton.windows.march")
    monkeypatch.setattr(march.by_definition, "rewrite", lambda: refuse, raising=False)
    var = run("window_moments", x, (6, 7), (1, 1))[1]
    close(var, want, 1e-6 * want)
    assert ((var.numpy() == 0) == (want == 0)).all()


def test_flat_windows_may_have_different_values() -> None:
    """Next to texture and in one block."""
    x = rand((1, 24, 40)).float()
    x[0, :12, 2:18], x[0, 4:20, 22:34], x[0, 14:, :16] = 0.7, 3.0, -1e-3
    want = moments(x, (6, 7), (1, 1))[1]
    var = run("window_moments", x, (6, 7), (1, 1))[1]
    assert (want == 0).sum() > 20
    close(var, want, 1e-6 * want)
    assert ((var.numpy() == 0) == (want == 0)).all()


@pytest.mark.parametrize("bad", (math.nan, math.inf))
@pytest.mark.parametrize("name", ("1d-sliding", "2d", "2d-stride", "3d", "2d-window-one"))
def test_bad_elements_stay_in_their_windows(bad: float, name: str) -> None:
    check_bad_elements(bad, name, torch.float32)


@every_float
@pytest.mark.parametrize("name", ("1d-sliding", "2d", "3d"))
def test_bad_gradients_stay_in_their_windows(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = SHAPES[name]
    grad = map_of(name)
    where = grad.numel() // 2
    grad.flatten()[where] = 0
    want = spread(grad.numpy(), window, shape, stride)
    mark = torch.zeros_like(grad)
    mark.flatten()[where] = 1
    hit = spread(mark.numpy(), window, shape, stride) > 0
    grad.flatten()[where] = math.nan
    one = run("window_spread", grad.to(dtype), window, shape, stride)
    both = run("window_combine", grad, grad, torch.ones(shape, dtype=dtype), window, stride)
    unit = 3 * ROUNDING[dtype] + WIDE
    for got, scale in ((one, 1), (both, 3)):
        assert (got.isnan().numpy() == hit).all()
        close(got[~hit], scale * want[~hit], unit * scale * want.max())


@every_float
@pytest.mark.parametrize("name", ("1d-sliding", "2d", "2d-stride", "2d-thinned"))
def test_a_zero_gradient_spreads_exact_zeros(name: str, dtype: torch.dtype) -> None:
    shape, window, stride = SHAPES[name]
    grad = torch.zeros_like(map_of(name))
    grad.flatten()[1], grad.flatten()[-1] = 0.1, 1e6
    none = spread(grad.numpy(), window, shape, stride) == 0
    assert (
        none.any()
        and (run("window_spread", grad.to(dtype), window, shape, stride)[none] == 0).all()
    )
    both = run("window_combine", grad, grad, torch.ones(shape, dtype=dtype), window, stride)
    assert (both[none] == 0).all() and (both[~none] != 0).all()


def test_strides_of_the_input_do_not_matter() -> None:
    room = rand((3, 24, 2, 40)).float()
    for x in (
        room[..., ::2].permute(2, 0, 1, 3),
        room[:, :, :1].expand(3, 24, 5, 40).movedim(2, 1),
    ):
        assert not x.is_contiguous()
        packed = x.contiguous()
        for name in ("window_sum", "window_moments"):
            got, want = run(name, x, (5, 6), (1, 2)), run(name, packed, (5, 6), (1, 2))
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_channels_may_lie_far_apart() -> None:
    """A channel times their pitch exceeds int32, though both fit."""
    launch = window_launch(1, 3, (4, 20), (2, 3), (1, 1))
    apart = {"pitch_c": 1 << 30, "pitch_l": 3 << 30}
    far = [apart.get(name, n) for name, n in zip(NUMBERS, launch.numbers, strict=True)]
    # Only what is touched takes memory.
    source = torch.from_numpy(np.zeros((2 << 30) + 80, np.int8)).to(DEVICE)
    for c in range(3):
        source[c << 30 : (c << 30) + 80] = c + 1
    grid = (launch.programs,)
    form = launch.options["FORM"]
    for direct in (0, 1):
        out = torch.zeros(3, 18, device=DEVICE)
        options = launch.options | {"FORM": form._replace(direct=type(form.direct)(direct))}
        importlib.import_module("torchcorr._triton.windows.windows").window_kernel[grid](
            source, out, out, *far, RESULT=Result.of(SUM), **options
        )
        assert (out == 36).all()
        importlib.import_module("torchcorr._triton.lncc.scores").lncc_kernel[grid](
            source, source, out, 0.0, *far, **options
        )
        torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("shape", ((0, 1, 9, 9), (2, 0, 3, 9, 9)))
def test_empty_leads(shape: tuple[int, ...]) -> None:
    x, lead = torch.empty(shape), shape[:-3]
    mean, var = run("window_moments", x, (3, 4), (1, 1))
    assert mean.shape == var.shape == (*lead, 7, 6)
    assert run("window_sum", x, (3, 4), (1, 1)).shape == (*lead, 7, 6)
    assert run("local_std", x, (3, 4), (1, 1), 0.0, 0.0).shape == (*lead, 7, 6)
    assert run("window_spread", mean, (3, 4), shape, (1, 1)).shape == shape
    assert run("window_combine", mean, var, x, (3, 4), (1, 1)).shape == shape
    assert run("local_std_prepare_grads", mean, mean, var, 12.0, 0.0, 0.0)[0].shape == mean.shape


def test_a_combination_keeps_small_factors_of_large_elements() -> None:
    """The rounding of large factors is not multiplied by an element far from them."""
    shape, window, stride = SHAPES["1d-sliding"]
    second = map_of("1d-sliding")
    second[..., : second.shape[-1] // 2] *= 1e10
    x = rand(shape, torch.float32)
    x[..., -1] = 1e6
    got = run("window_combine", torch.zeros_like(second), second, x, window, stride)
    want = 2 * x.numpy().astype(np.float64) * spread(second.numpy(), window, shape, stride)
    close(got, want, 1e-6 * np.abs(want))
