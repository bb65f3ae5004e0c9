"""The Triton kernels of LNCC: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import other_of
from interpreter import DEVICE, run
from tolerances import GRADIENT_OF_FLOAT32, ROUNDING, SCORE
from torch import Tensor
from window_definitions import rand

from torchcorr._definition import lncc as definition
from torchcorr._definition import windows as windows_definition
from torchcorr._triton.windows import launch

# NumPy, which the interpreter computes with, warns where a device would not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# An interpreted launch costs some milliseconds for each program and each element of a window.
SHAPES = {
    "1d": ((1, 41), (7,), (1,)),
    "1d-sliding": ((2, 1, 301), (31,), (1,)),
    "1d-many-lines": ((3, 5, 2, 49), (19,), (2,)),
    "2d": ((1, 16, 15), (7, 5), (1, 1)),
    "2d-stride": ((2, 12, 16), (6, 7), (1, 2)),
    "2d-stride-direct": ((1, 3, 13, 14), (5, 6), (2, 3)),
    "2d-stride-past-window": ((1, 19, 23), (2, 3), (3, 5)),
    "2d-window-one": ((2, 1, 7, 9), (1, 1), (1, 1)),
    "2d-past-a-block": ((1, 6, 140), (4, 7), (1, 1)),
    "2d-window-past-a-block": ((1, 4, 143), (3, 137), (1, 1)),
    "2d-window-is-input": ((1, 11, 13), (11, 13), (1, 1)),
    "2d-short-axis": ((1, 1, 40), (1, 19), (1, 1)),
    "3d": ((2, 2, 3, 5, 6), (2, 4, 5), (1, 1, 1)),
    "3d-march": ((1, 7, 4, 5), (2, 3, 3), (1, 1, 1)),
    "3d-stride": ((1, 7, 6, 8), (4, 5, 3), (2, 1, 3)),
}
IN_FLOAT64 = ("1d", "1d-sliding", "2d", "2d-stride-past-window")
WITH_EPS = ("1d-many-lines", "2d-stride", "3d-stride")
every_shape = pytest.mark.parametrize("name", SHAPES)
MAPS = 64 * ROUNDING[torch.float64]


@pytest.fixture(autouse=True)
def _long_marches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs, as on a small device: each marches over many blocks."""
    monkeypatch.setattr(launch, "PROGRAMS", 1)


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    shape = SHAPES[name][0]
    a, b = rand(shape), rand(shape, seed=1)
    return a.to(dtype), (0.3 * a - b).to(dtype)


def dtypes_of(name: str) -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.float64) if name in IN_FLOAT64 else (torch.float32,)


def score_of(a: Tensor, b: Tensor, window: Any, stride: Any, eps: float = 0.0) -> np.ndarray:
    options = {"ndim": len(window), "stride": stride, "channels": "joint", "eps": eps}
    options["border"] = "valid"
    return oracle.lncc(a.double().numpy(), b.double().numpy(), window, **options)


def upstream_of(name: str) -> Tensor:
    shape, window, stride = SHAPES[name]
    return rand(score_of(torch.zeros(shape), torch.zeros(shape), window, stride).shape) - 0.5


def grads_of(grad: Tensor, a: Tensor, b: Tensor, *place: Any) -> tuple[Tensor, Tensor]:
    """The definition's gradients in float64."""
    return definition.lncc_grads(grad.double(), a.double(), b.double(), *place, True, True)


def near(got: Tensor, want: Tensor | np.ndarray, bound: float) -> None:
    """Within a bound everywhere, which NaN is not."""
    assert tuple(got.shape) == tuple(want.shape)
    error = np.abs(got.double().numpy() - np.asarray(want, dtype=np.longdouble))
    assert (error <= bound).all(), float(np.nanmax(error))


def check_grads(grad: Tensor, a: Tensor, b: Tensor, *place: Any, bound: float) -> None:
    """Both gradients, relative to the largest value of each."""
    grads = run("lncc_grads", grad, a, b, *place, True, True)
    for got, want in zip(grads, grads_of(grad, a, b, *place), strict=True):
        assert got.dtype == a.dtype
        near(got, want, bound * float(want.abs().max()))


@every_shape
def test_matches_the_definition(name: str) -> None:
    _, window, stride = SHAPES[name]
    for dtype in dtypes_of(name):
        a, b = pair(name, dtype)
        for eps in (0.0, 0.1) if name in WITH_EPS else (0.0,):
            got = run("lncc", a, b, window, stride, eps)
            assert got.dtype == dtype and float(got.abs().max()) <= 1
            bound = 1e-6 if dtype == torch.float32 else SCORE[dtype]
            near(got, score_of(a, b, window, stride, eps), bound)


@every_shape
def test_gradients_match_the_definition(name: str) -> None:
    _, window, stride = SHAPES[name]
    for dtype in dtypes_of(name):
        a, b = pair(name, dtype)
        grad = upstream_of(name).to(dtype)
        eps = 0.1 if name in WITH_EPS else 0.0
        # To its rounding a gradient adds that of maps that nearly cancel.
        check_grads(grad, a, b, window, stride, eps, bound=2 * ROUNDING[dtype] + MAPS)


@pytest.mark.parametrize("name", ("2d-stride", "2d-stride-direct"))
def test_one_gradient_alone(name: str) -> None:
    _, window, stride = SHAPES[name]
    a, b = pair(name)
    args = (upstream_of(name), a, b, window, stride, 0.0)
    for_a, for_b = grads_of(*args)
    bound = 2 * ROUNDING[torch.float32]
    alone, none = run("lncc_grads", *args, True, False)
    near(alone, for_a, bound * float(for_a.abs().max()))
    assert none.shape == (0,)
    none, alone = run("lncc_grads", *args, False, True)
    near(alone, for_b, bound * float(for_b.abs().max()))
    assert none.shape == (0,)
    assert all(x.shape == (0,) for x in run("lncc_grads", *args, False, False))


@pytest.mark.parametrize(
    ("name", "dtype"), (("1d-many-lines", torch.bfloat16), ("2d-stride", torch.float16)), ids=str
)
def test_half_types(name: str, dtype: torch.dtype) -> None:
    _, window, stride = SHAPES[name]
    a, b = pair(name, dtype)
    # The interpreter cuts bfloat16 off where a device rounds.
    unit = ROUNDING[dtype] * (2 if DEVICE == "cpu" and dtype == torch.bfloat16 else 1.01)
    got = run("lncc", a, b, window, stride, 0.0)
    assert got.dtype == dtype
    near(got, score_of(a, b, window, stride), unit)
    check_grads(upstream_of(name).to(dtype), a, b, window, stride, 0.0, bound=unit)


CASES = {case.name: case for case in torture.cases(np.float64)}
HARD = (
    "offset 1e+06",
    "one pixel 1e+06",
    "flat patch",
    "faint patch 1e-06",
    "steep ramp 1e6",
    "scale 1e-10",
)


PART, WINDOW = (slice(21, 42), slice(30, 52)), (6, 7)


def hard_pair(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The part of the image with the patch, the pixel and the steps."""
    image = CASES[name].image[PART]
    return tuple(torch.from_numpy(x)[None].to(dtype) for x in (image, other_of(image)))


def hard_grad() -> Tensor:
    return rand((16, 16)) - 0.5


@pytest.mark.parametrize("name", HARD)
def test_survives_the_torture(name: str) -> None:
    place = (WINDOW, (1, 1), 0.0)
    a, b = hard_pair(name, torch.float32)
    near(run("lncc", b, a, *place), score_of(b, a, *place), SCORE[torch.float32])
    check_grads(hard_grad().float(), a, b, *place, bound=GRADIENT_OF_FLOAT32)


@pytest.mark.parametrize("name", ("offset 1e+06", "faint patch 1e-06"))
def test_float64_on_hard_inputs(name: str) -> None:
    a, b = hard_pair(name, torch.float64)
    place = (WINDOW, (1, 1), 0.0)
    near(run("lncc", a, b, *place), score_of(a, b, *place), SCORE[torch.float64])
    grads = run("lncc_grads", hard_grad(), a, b, *place, True, True)
    # In the definition, what the inputs have in common would cancel.
    exact = grads_of(hard_grad(), a - a.flatten()[0], b - b.flatten()[0], *place)
    for got, want in zip(grads, exact, strict=True):
        near(got, want, 1e-9 * float(want.abs().max()))


def test_one_large_element_is_not_taken_as_a_common_level() -> None:
    """Nor is rounding multiplied by it."""
    name = "1d-sliding"
    _, window, stride = SHAPES[name]
    a, b = pair(name, torch.float64)
    a = 0.5 + 1e-6 * a
    where = a.shape[-1] // 4
    a[..., where] = 1e6
    a, b = a.float(), b.float() + 1e4
    grad = upstream_of(name).float()
    grads = run("lncc_grads", grad, a, b, window, stride, 0.0, True, True)
    for got, want in zip(grads, grads_of(grad, a, b, window, stride, 0.0), strict=True):
        near(got, want, GRADIENT_OF_FLOAT32 / 10 * float(want.abs().max()))


def test_a_volume_with_all_that_is_hard() -> None:
    """A flat part, a faint one, a hot pixel and a NaN."""
    shape, window, stride = (1, 3, 5, 11), (2, 3, 3), (1, 1, 1)
    a, b = rand(shape), rand(shape, seed=1)
    a[..., 6:] = 0.5 + 1e-6 * a[..., 6:]
    a[0, 0, 0, 6], b[..., 3:7] = 1e6, 0.7
    a, b = a.float(), b.float()
    b[0, 2, 4, 10] = math.nan
    want = score_of(a, b, window, stride)
    hit = np.isnan(want)
    assert hit.any() and (want == 0).any()
    got = run("lncc", a, b, window, stride, 0.0)
    assert (got.isnan().numpy() == hit).all() and ((got == 0).numpy() == (want == 0)).all()
    near(got[~hit], want[~hit], 1e-6)


@pytest.mark.parametrize("name", ("2d-stride", "2d-stride-past-window"))
def test_flat_windows_have_score_0_and_gradient_0(name: str) -> None:
    shape, window, stride = SHAPES[name]
    a, b = pair(name)
    a[..., : shape[-1] * 2 // 3] = 0.7
    b[..., -(shape[-1] // 4) :] = -1e6
    want = score_of(a, b, window, stride)
    assert (want == 0).any() and (want != 0).any()
    got = run("lncc", a, b, window, stride, 0.0)
    assert ((got == 0).numpy() == (want == 0)).all()
    near(got, want, 1e-6)
    grads = run("lncc_grads", upstream_of(name), a, b, window, stride, 0.0, True, True)
    exact = grads_of(upstream_of(name), a, b, window, stride, 0.0)
    for grad, truth in zip(grads, exact, strict=True):
        assert ((grad == 0) == (truth == 0)).all()
        near(grad, truth, 1e-6 * float(truth.abs().max()))
    a[:] = 1e6 + 0.3
    assert (run("lncc", b, a, window, stride, 0.0) == 0).all()


def test_channels_that_differ_make_no_flat_window() -> None:
    a = torch.ones(2, 20, 30)
    a[1] = 1 + 2.0**-23
    near(run("lncc", a, -a, (6, 7), (1, 1), 0.0), np.full((15, 24), -1.0), 1e-6)


def test_padded_images_are_flat_without_a_look_at_each_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if DEVICE != "cpu":
        pytest.skip("the interpreter's functions can be replaced, a GPU's cannot")
    a, b = torch.zeros(1, 22, 26), torch.zeros(1, 22, 26)
    a[0, 8:15, 9:17], b[0, 5:12, 12:20] = rand((7, 8)).float(), rand((7, 8), seed=1).float()

    def refuse(*_: Any) -> None:
        raise AssertionError("read window by window")

    module = importlib.import_module("torchcorr._triton.lncc.scores")
    monkeypatch.setattr(module.by_definition, "rewrite", lambda: refuse, raising=False)
    near(run("lncc", a, b, (6, 7), (1, 1), 0.0), score_of(a, b, (6, 7), (1, 1)), 1e-6)


@pytest.mark.parametrize(
    ("bad", "name"),
    (
        (math.nan, "1d-sliding"),
        (math.inf, "2d-stride"),
        (math.nan, "2d-stride-direct"),
    ),
)
def test_bad_elements_stay_in_their_windows(bad: float, name: str) -> None:
    shape, window, stride = SHAPES[name]
    a, b = pair(name)
    a[..., : shape[-1] // 2] = 0.5
    grad = upstream_of(name)
    clean = run("lncc", a, b, window, stride, 0.0)
    spoiled = b.clone()
    spoiled.flatten()[b.numel() // 2 + 3] = bad
    hit = np.isnan(score_of(spoiled, spoiled, window, stride))
    # Elements of the windows that contain it.
    affected = (
        windows_definition.window_spread(torch.from_numpy(hit * 1.0), window, shape, stride) > 0
    )
    exact = grads_of(grad * torch.from_numpy(~hit), a, b, window, stride, 0.0)
    got = run("lncc", a, spoiled, window, stride, 0.0)
    assert (got.isnan().numpy() == hit).all()
    near(got[~hit], clean[~hit], 1e-6)
    grads = run("lncc_grads", grad, spoiled, a, window, stride, 0.0, True, True)
    for mine, truth in zip(grads, exact[::-1], strict=True):
        assert (mine.isnan() == affected).all()
        near(mine[~affected], truth[~affected], 1e-6 * float(truth.abs().max()))


@pytest.mark.parametrize("name", ("1d-sliding", "2d", "2d-stride-direct"))
def test_bad_upstream_gradients_stay_in_their_windows(name: str) -> None:
    shape, window, stride = SHAPES[name]
    a, b = pair(name)
    grad = upstream_of(name)
    where = grad.numel() // 2
    grad.flatten()[where] = 0
    exact = grads_of(grad, a, b, window, stride, 0.0)
    mark = torch.zeros_like(grad)
    mark.flatten()[where] = 1
    affected = windows_definition.window_spread(mark, window, shape, stride) > 0
    grad.flatten()[where] = math.nan
    grads = run("lncc_grads", grad, a, b, window, stride, 0.0, True, True)
    for mine, truth in zip(grads, exact, strict=True):
        assert (mine.isnan() == affected).all()
        near(mine[~affected], truth[~affected], 1e-6 * float(truth.abs().max()))


def test_a_zero_gradient_spreads_exact_zeros() -> None:
    name = "2d"
    _, window, stride = SHAPES[name]
    a, b = pair(name)
    grad = torch.zeros_like(upstream_of(name))
    grad.flatten()[1], grad.flatten()[-1] = 0.1, 1e6
    grads = run("lncc_grads", grad, a + 1e4, b, window, stride, 0.0, True, True)
    exact = grads_of(grad, a + 1e4, b, window, stride, 0.0)
    for mine, truth in zip(grads, exact, strict=True):
        assert (truth == 0).any() and ((mine == 0) == (truth == 0)).all()


def test_strides_of_the_inputs_do_not_matter() -> None:
    room = rand((3, 12, 2, 32)).float()
    a = room[..., ::2].permute(2, 0, 1, 3)
    b = room[:, :, :1, 3:19].expand(3, 12, 2, 16).movedim(2, 0)
    assert not a.is_contiguous() and not b.is_contiguous()
    packed = a.contiguous(), b.contiguous()
    place = ((5, 6), (1, 1))
    got, want = run("lncc", a, b, *place, 0.0), run("lncc", *packed, *place, 0.0)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    grad = rand((2, 11, 8)).float().mT
    grads = run("lncc_grads", grad, a, b, *place, 0.0, True, True)
    again = run("lncc_grads", grad.contiguous(), *packed, *place, 0.0, True, True)
    torch.testing.assert_close(grads, again, rtol=0, atol=0)


@pytest.mark.parametrize("shape", ((0, 1, 9, 9), (2, 0, 3, 9, 9)))
def test_empty_leads(shape: tuple[int, ...]) -> None:
    x, lead = torch.empty(shape), shape[:-3]
    score = run("lncc", x, x, (3, 4), (1, 1), 0.0)
    assert score.shape == (*lead, 7, 6)
    for wanted in ((True, True), (True, False), (False, True)):
        grads = run("lncc_grads", score, x, x, (3, 4), (1, 1), 0.0, *wanted)
        assert [g.shape for g in grads] == [shape if need else (0,) for need in wanted]
