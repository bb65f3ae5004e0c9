"""Float64 windows on CUDA: one pass along each axis, and what only these passes promise.

`test_triton_windows.py` compares their results with the definition, as those of other types.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from interpreter import run
from torch import Tensor
from triton_windows import (
    SHAPES,
    VARIANCE,
    WIDE,
    check_bad_elements,
    check_moments,
    close,
    map_of,
)
from window_definitions import moments, rand, spread, windows

axis_passes = importlib.import_module("torchcorr._triton.windows.axis_passes")
# NumPy, which the interpreter computes with, warns where a device would not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("value", (0.1, 1e6 + 0.3, -1e-30))
@pytest.mark.parametrize("name", ("1d-sliding", "2d-channels", "3d"))
def test_one_rounding_apart_is_not_flat_in_float64(value: float, name: str) -> None:
    shape, window, stride = SHAPES[name]
    x = torch.full(shape, value, dtype=torch.float64)
    flat = x.flatten()
    flat[flat.numel() // 2] = torch.nextafter(flat[0], torch.tensor(math.inf, dtype=x.dtype))
    seen = windows(x, window, stride)
    same = seen.max(-1) == seen.min(-1)
    mean, var = run("window_moments", x, window, stride)
    want = moments(x - value, window, stride)[1]
    close(var, want, VARIANCE[x.dtype] * want)
    assert not same.all() and ((var.numpy() == 0) == same).all()
    assert (mean.numpy()[same] == seen[same][:, 0]).all()


def test_float64_goes_axis_by_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums do not slide and its windows are not read whole: the other kernels are removed."""
    for module, name in (
        ("windows.windows", "window_kernel"),
        ("windows.windows", "local_std_combine_grads_kernel"),
        ("windows.local_std", "local_std_forward_kernel"),
    ):
        monkeypatch.setattr(importlib.import_module(f"torchcorr._triton.{module}"), name, None)
    shape, window, stride = SHAPES["2d-channels"]
    x, grad = rand(shape), map_of("2d-channels")
    run("window_sum", x, window, stride)
    run("window_moments", x, window, stride)
    run("local_std", x, window, stride, 0.0, 0.0)
    run("window_spread", grad, window, shape, stride)
    run("window_combine", grad, grad, x, window, stride)


def test_passes_cover_images_wider_than_a_strip() -> None:
    shape, window, stride = (2, 20, 560), (4, 5), (1, 1)
    x = rand(shape)
    check_moments(x, window, stride, VARIANCE[x.dtype])
    grad = rand((17, 556))
    want = spread(grad.numpy(), window, shape, stride)
    close(run("window_spread", grad, window, shape, stride), want, WIDE * want)


def test_the_pass_that_shrinks_most_is_first() -> None:
    steps = axis_passes.passes(2, 3, (20, 30), (5, 28), (1, 1))
    assert [(p.outer, p.n, p.m, p.inner) for p in steps] == [
        (2 * 3 * 20, 30, 3, 1),
        (2, 3, 1, 20 * 3),
        (2, 20, 16, 3),
    ]
    # A window of one element along an axis needs no pass, and of equals the outer is the first.
    steps = axis_passes.passes(1, 1, (9, 40, 40), (1, 7, 7), (1, 1, 1))
    assert [(p.n, p.inner) for p in steps] == [(40, 40), (40, 1)]


@pytest.mark.parametrize("size", ((60000, 70000), (3, 1, 2**31), (2**33,)), ids=str)
def test_passes_over_more_elements_than_int32_counts(size: tuple[int, ...]) -> None:
    ndim = len(size)
    window = tuple(min(n, 31) for n in size)
    for step in axis_passes.passes(5, 2, size, window, (1,) * ndim):
        for places in (step.n, step.m):
            launch = step.launch(places)
            block = launch.options["R"] * launch.options["B"]
            written = step.outer * places * step.inner
            assert written <= launch.programs * block < 4 * written + 4 * block
            assert launch.programs < 2**31


@pytest.mark.parametrize("bad", (math.nan, math.inf))
@pytest.mark.parametrize("name", ("1d-sliding", "2d-thinned", "2d-channels", "3d", "3d-channels"))
def test_bad_elements_stay_in_their_windows_of_float64(bad: float, name: str) -> None:
    check_bad_elements(bad, name, torch.float64)


@pytest.mark.parametrize("bad", (math.nan, 1e300))
@pytest.mark.parametrize("name", ("1d-sliding", "2d-thinned", "2d-channels", "3d"))
def test_float64_elements_change_no_bit_elsewhere(bad: float, name: str) -> None:
    shape, window, stride = SHAPES[name]
    x, grad = rand(shape), map_of(name)
    bad_x, bad_grad = x.clone(), grad.clone()
    bad_x.flatten()[x.numel() // 2 + 3] = bad
    bad_grad.flatten()[grad.numel() // 2] = bad

    def results(x: Tensor, grad: Tensor) -> list[Tensor]:
        one = run("window_spread", grad, window, shape, stride)
        both = run("window_combine", grad, grad, torch.ones(shape).double(), window, stride)
        total = run("window_sum", x, window, stride)
        std = run("local_std", x, window, stride, 0.0, 0.0)
        return [one, both, total, std, *run("window_moments", x, window, stride)]

    affected = torch.from_numpy((windows(bad_x != x, window, stride) != 0).any(-1))
    hit = torch.from_numpy(spread((bad_grad != grad).numpy(), window, shape, stride) > 0)
    pairs = zip(results(x, grad), results(bad_x, bad_grad), strict=True)
    for (clean, got), away in zip(pairs, (~hit, ~hit, *(~affected,) * 4), strict=True):
        assert away.any() and torch.equal(clean[away], got[away])
        assert (clean[~away] != got[~away]).all()
