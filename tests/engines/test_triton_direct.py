"""The Triton kernels for small templates against NumPy in extended precision, and their laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import tolerances
import torch
import torture
from inputs import CASES, array, pair
from interpreter import DEVICE, on_device
from torch import Tensor

from torchcorr._definition import correlate as sums_definition
from torchcorr._definition import scores as scores_definition
from torchcorr._definition.windows import windows as windows_of
from torchcorr._triton import standardise
from torchcorr._triton.direct import correlate, scores, template_grad

# NumPy, which the interpreter computes with, warns where a device would not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


EPS = {
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float32: 2.0**-23,
    torch.float64: 2.0**-52,
}
KERNELS = (
    correlate.correlate,
    correlate.correlate_input_grad,
    template_grad.correlate_template_grad,
    scores.ncc,
    standardise.standardise,
)


def call(function: Callable[..., Tensor], *args: object) -> Tensor:
    """A kernel run on the device under test, its result on the CPU."""
    return function(*on_device(*args)).cpu()


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def normal(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """A case of tests/inputs.py in normal form: the axis before the window axes is joint."""
    x, t = pair(CASES[case], dtype)
    ndim = CASES[case].ndim
    if CASES[case].channels == "independent":
        x, t = x.unsqueeze(-ndim - 1), t.unsqueeze(-ndim - 1)
    return x, t, ndim


def steps(case: str, strided: bool) -> list[int]:
    return [2, 3, 2][-CASES[case].ndim :] if strided else [1] * CASES[case].ndim


SHAPES = [
    # input, template, stride
    ((1, 1), (1, 1), (1,)),
    ((1, 208), (1, 17), (1,)),
    ((2, 1, 97), (5, 1, 1, 7), (2,)),
    ((1, 500), (1, 11), (13,)),
    ((3, 13, 37), (3, 5, 5), (1, 1)),
    ((1, 3, 3), (1, 3, 3), (1, 1)),
    ((1, 22, 11), (1, 17, 9), (1, 1)),
    ((1, 23, 13), (1, 9, 2), (2, 3)),
    ((1, 19, 40), (1, 5, 5), (3, 1)),
    ((2, 30, 41), (2, 2, 3), (4, 5)),
    ((4, 1, 9, 20), (4, 1, 3, 3), (1, 1)),
    ((4, 1, 1, 9, 20), (3, 1, 3, 3), (1, 1)),
    ((2, 1, 3, 8, 12), (1, 3, 3, 4, 2), (1, 2)),
    ((1, 5, 9, 31), (1, 2, 3, 4), (1, 1, 1)),
    ((2, 1, 7, 8, 9), (3, 1, 1, 3, 2, 5), (2, 3, 2)),
    ((1, 2, 1), (1, 2, 1), (5, 7)),
]


def correlated(
    input: Tensor, template: Tensor, stride: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The exact correlation, and the sum of absolute products."""
    options = {"ndim": len(stride), "channels": "joint", "stride": stride}
    x, t = array(input), array(template)
    return (
        oracle.correlate(x, t, **options),
        oracle.correlate(np.abs(x), np.abs(t), **options),
    )


def transposed(
    input: Tensor, template: Tensor, grad: Tensor, stride: tuple[int, ...]
) -> list[Tensor]:
    """Both gradients by differentiating the definition in float64."""
    ndim = len(stride)
    x, t = input.double().requires_grad_(), template.double().requires_grad_()
    seen = windows_of(x, t.shape[-ndim:], stride)
    values = t.reshape(*t.shape[: -ndim - 1], *(1,) * ndim, *t.shape[-ndim - 1 :])
    score = (seen * values).flatten(-ndim - 1).sum(-1)
    return list(torch.autograd.grad(score, (x, t), grad.double()))


def check_correlation(input: Tensor, template: Tensor, stride: tuple[int, ...]) -> None:
    """Forward and both transposes, within four roundings of the sum of absolute products."""
    dtype = input.dtype
    score = call(correlate.correlate, input, template, list(stride))
    exact, weight = correlated(input, template, stride)
    assert score.dtype == dtype and score.shape == exact.shape
    assert np.all(np.abs(array(score) - exact) <= 4 * EPS[dtype] * weight)
    grad = rand(*score.shape, dtype=dtype, seed=2)
    got = (
        call(correlate.correlate_input_grad, grad, template, list(input.shape), list(stride)),
        call(
            template_grad.correlate_template_grad, grad, input, list(template.shape), list(stride)
        ),
    )
    want = transposed(input, template, grad, stride)
    sizes = transposed(input.abs(), template.abs(), grad.abs(), stride)
    for g, w, size in zip(got, want, sizes, strict=True):
        assert g.dtype == dtype and g.shape == w.shape
        assert torch.all((g.double() - w).abs() <= 4 * EPS[dtype] * size)


@pytest.mark.parametrize("function", KERNELS)
def test_the_kernel_is_a_launcher(function: Callable[..., Tensor]) -> None:
    assert function.__module__.startswith("torchcorr._triton.")


@pytest.mark.parametrize("shape, window, stride", SHAPES)
def test_definition_and_transposes(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    check_correlation(rand(*shape), rand(*window, seed=1), stride)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("at", [4, 8, 12])
def test_types(at: int, dtype: torch.dtype) -> None:
    shape, window, stride = SHAPES[at]
    check_correlation(rand(*shape, dtype=dtype), rand(*window, dtype=dtype, seed=1), stride)


@pytest.mark.parametrize("case", ["1d-joint", "2d-paired", "2d-batch-templates", "3d-joint"])
@pytest.mark.parametrize("strided", [False, True])
def test_transposes_are_adjoint(case: str, strided: bool) -> None:
    """<A x, y> = <x, A^T y> in both arguments."""
    x, t, _ = normal(case, torch.float64)
    stride = steps(case, strided)
    score = call(correlate.correlate, x, t, stride)
    grad = rand(*score.shape, dtype=torch.float64, seed=9)
    left = (score * grad).sum()
    image = call(correlate.correlate_input_grad, grad, t, list(x.shape), stride)
    elements = call(template_grad.correlate_template_grad, grad, x, list(t.shape), stride)
    assert abs((x * image).sum() - left) <= 1e-13 * abs(left) + 1e-12
    assert abs((t * elements).sum() - left) <= 1e-13 * abs(left) + 1e-12


def test_equal_terms_do_not_drift() -> None:
    input, template = torch.full((1, 27, 16), 0.1), torch.full((1, 24, 16), 0.3)
    check_correlation(input, template, (1, 1))


def test_many_channels_do_not_drift() -> None:
    input, template = torch.full((300, 1, 5), 0.1), torch.full((300, 1, 1), 0.3)
    exact, weight = correlated(input, template, (1, 1))
    got = call(correlate.correlate, input, template, [1, 1])
    assert np.all(np.abs(array(got) - exact) <= 4 * EPS[torch.float32] * weight)


def test_many_positions_do_not_drift() -> None:
    """Every share of the positions is a sum of many equal terms."""
    input, grad = torch.full((40, 1, 24, 24), 0.1), torch.full((40, 24, 24), 0.3)
    got = call(template_grad.correlate_template_grad, grad, input, [1, 1, 1], [1, 1])
    exact = input.double().flatten() @ grad.double().flatten()
    assert abs(got.double().item() - exact.item()) <= 4 * EPS[torch.float32] * exact.item()


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.mT.contiguous().mT,
    lambda x: torch.stack([x, x], dim=-1)[..., 0],
    lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    lambda x: x.movedim(-3, -1).contiguous().movedim(-1, -3),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(layout: Callable[[Tensor], Tensor]) -> None:
    input, template, stride = rand(2, 2, 7, 9), rand(2, 2, 4, 5, seed=1), [1, 1]
    score = call(correlate.correlate, input, template, stride)
    other = correlate.correlate
    moved = [layout(x) for x in on_device(input, template, score[None])]
    moved[2] = moved[2][0]
    assert torch.equal(other(*moved[:2], stride).cpu(), score)
    a = call(correlate.correlate_input_grad, score, template, list(input.shape), stride)
    b = correlate.correlate_input_grad(moved[2], moved[1], list(input.shape), stride)
    assert torch.equal(a, b.cpu())
    c = call(template_grad.correlate_template_grad, score, input, list(template.shape), stride)
    d = template_grad.correlate_template_grad(moved[2], moved[0], list(template.shape), stride)
    assert torch.equal(c, d.cpu())
    standard = standardise.standardise(layout(template.to(DEVICE)), 2, True)
    e = scores.ncc(input.to(DEVICE), standard, stride, True, 0.0)
    f = scores.ncc(moved[0], layout(standard), stride, True, 0.0)
    assert torch.equal(e, f)


def test_expanded_tensors() -> None:
    grad = torch.ones(()).expand(8, 17)
    input = rand(1, 10, 20)
    got = call(template_grad.correlate_template_grad, grad, input, [1, 3, 4], [1, 1])
    want = call(template_grad.correlate_template_grad, grad.contiguous(), input, [1, 3, 4], [1, 1])
    assert torch.equal(got, want)
    wide, template = input.expand(3, 1, 10, 20), rand(4, 1, 1, 3, 3, seed=1)
    want = call(correlate.correlate, wide.contiguous(), template, [1, 1])
    assert torch.equal(call(correlate.correlate, wide, template, [1, 1]), want)


def test_empty_and_complex() -> None:
    score = call(correlate.correlate, rand(0, 1, 9, 9), rand(1, 3, 3), [1, 1])
    assert score.shape == (0, 7, 7)
    elements = call(
        template_grad.correlate_template_grad, score, rand(0, 1, 9, 9), [1, 3, 3], [1, 1]
    )
    assert torch.equal(elements, torch.zeros(1, 3, 3))
    assert call(scores.ncc, rand(0, 1, 9, 9), rand(1, 3, 3), [1, 1], True, 0.0).numel() == 0
    x, t = rand(1, 6, 7, dtype=torch.complex64), rand(1, 2, 3, dtype=torch.complex64, seed=1)
    assert torch.equal(
        call(correlate.correlate, x, t, [1, 1]), sums_definition.correlate(x, t, [1, 1], "direct")
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_a_bad_element_affects_only_the_windows_that_contain_it(
    stride: tuple[int, int], value: float
) -> None:
    shape, window, step = (13, 19), (3, 4), list(stride)
    template = torch.ones(1, *window)
    ones = torch.ones(call(correlate.correlate, torch.ones(1, *shape), template, step).shape)
    for place in ((12, 18), (6, 9)):
        bad = torch.zeros(1, *shape)
        bad[(0, *place)] = 1.0
        affected = sums_definition.correlate(bad, template, step, "direct") > 0
        elements = (
            sums_definition.correlate_template_grad(ones, bad, [1, *window], step, "direct") > 0
        )
        bad[(0, *place)] = value
        assert torch.equal(~call(correlate.correlate, bad, template, step).isfinite(), affected)
        got = call(template_grad.correlate_template_grad, ones, bad, [1, *window], step)
        assert torch.equal(~got.isfinite(), elements)
    for place in ((0, 0), (ones.shape[0] - 1, ones.shape[1] - 1)):
        bad = torch.zeros(ones.shape)
        bad[place] = 1.0
        affected = (
            sums_definition.correlate_input_grad(bad, template, [1, *shape], step, "direct") > 0
        )
        bad[place] = value
        got = call(correlate.correlate_input_grad, bad, template, [1, *shape], step)
        assert torch.equal(~got.isfinite(), affected)


def test_a_bad_coefficient_affects_only_the_products_it_is_in() -> None:
    template = torch.zeros(1, 3, 3)
    template[0, 1, 1] = float("nan")
    got = call(correlate.correlate_input_grad, torch.ones(10, 20), template, [1, 12, 22], [1, 1])
    want = torch.zeros(1, 12, 22, dtype=torch.bool)
    want[0, 1:-1, 1:-1] = True
    assert torch.equal(got.isnan(), want)


# --- scores ---------------------------------------------------------------------------------------


def scored(
    input: Tensor, template: Tensor, ndim: int, zero_mean: bool, **options: object
) -> Tensor:
    stride, eps = options.get("stride", [1] * ndim), options.get("eps", 0.0)
    standard = scores_definition.standardise(template, ndim, zero_mean)
    return call(scores.ncc, input, standard, stride, zero_mean, eps)


def exact_scores(
    input: Tensor, template: Tensor, ndim: int, zero_mean: bool, **options: object
) -> np.ndarray:
    score = oracle.zncc if zero_mean else oracle.ncc
    return score(array(input), array(template), ndim=ndim, channels="pooled", **options)


@pytest.mark.parametrize("zero_mean", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_scores(case: str, zero_mean: bool) -> None:
    for strided, eps in ((False, 0.0), (True, 0.01)):
        x, t, ndim = normal(case, torch.float32)
        options = {"stride": steps(case, strided), "eps": eps}
        got = scored(x, t, ndim, zero_mean, **options)
        exact = exact_scores(x, t, ndim, zero_mean, **options)
        assert got.dtype == x.dtype and got.shape == exact.shape
        assert np.abs(array(got) - exact).max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_scores_of_other_types(dtype: torch.dtype) -> None:
    x, t = rand(2, 3, 17, 12, dtype=dtype), rand(3, 10, 5, dtype=dtype, seed=1)
    for zero_mean in (True, False):
        got = scored(x, t, 2, zero_mean, eps=0.3)
        exact = exact_scores(x, t, 2, zero_mean, eps=0.3)
        assert got.dtype == dtype
        assert np.abs(array(got) - exact).max() <= tolerances.SCORE[dtype]


def smaller(case: torture.Torture) -> torture.Torture:
    """The hardest part of a case, since the interpreter is slow."""
    if case.image.shape != (torture.SIDE, torture.SIDE) or case.template.shape[0] > 16:
        return case
    return case._replace(image=case.image[22:56, 22:56], template=case.template[3:12, :7])


TORTURES = {
    c.name: (smaller(c), smaller(d))
    for c, d in zip(torture.cases(np.float32), torture.cases(np.float64), strict=True)
    if c.name not in ("window is input", "primes")
}


@pytest.mark.parametrize("name", TORTURES)
def test_scores_of_torture(name: str) -> None:
    for case, bound in zip(TORTURES[name], (1e-5, 1e-10), strict=True):
        input, template = torch.from_numpy(case.image)[None], torch.from_numpy(case.template)[None]
        if case.image.dtype == np.float64 and "pixel" not in name and "offset" not in name:
            continue
        got = scored(input, template, 2, True)
        assert torture.error(got.numpy(), torture.exact(case)) <= bound


@pytest.mark.parametrize("step", [1e2, 1e4, 1e6])
def test_scores_next_to_steps_and_hot_pixels(step: float) -> None:
    """Windows far from the level that their lane takes from its neighbours."""
    image, template = rand(1, 24, 20), rand(1, 2, 3, seed=1)
    image[:, 6:14] += step
    image[:, 18:22, 5] -= step
    got, exact = scored(image, template, 2, True), exact_scores(image, template, 2, True)
    assert np.abs(array(got) - exact).max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero_mean", [True, False])
def test_scores_at_the_ends_of_the_range(dtype: torch.dtype, zero_mean: bool) -> None:
    base, template = rand(1, 9, 12, dtype=dtype), rand(1, 4, 3, dtype=dtype, seed=1)
    powers = (-110, -80, 60, 110) if dtype == torch.float32 else (-990, -600, 500, 950)
    want = scored(base, template, 2, zero_mean)
    for power in powers:
        got = scored(base * 2.0**power, template, 2, zero_mean)
        assert torch.allclose(got, want, rtol=0, atol=1e-6)


def test_flat_windows_score_zero() -> None:
    """Flat at the level of their lane, at another, in all channels, and nearly."""
    image = rand(2, 14, 20)
    image[:, 2:10, 3:12] = 0.7
    image[:, 4:7, 13:] = 0.25
    image[0, 9:14, 12:20] = 1e6
    image[1, 9:14, 12:20] = 3.0
    got = scored(image, rand(2, 3, 4, seed=1), 2, True)
    windows = windows_of(image, (3, 4), (1, 1)).flatten(-3)
    flat = windows.amax(-1) == windows.amin(-1)
    assert flat.any() and not flat.all()
    assert torch.equal(got == 0, flat)
    zeros = torch.zeros(1, 9, 9)
    zeros[0, 8, 8] = 1e-30
    got = scored(zeros, rand(1, 3, 4, seed=1), 2, False)
    assert torch.equal(
        got == 0, sums_definition.correlate(zeros, torch.ones(1, 3, 4), (1, 1), "direct") == 0
    )
    assert torch.equal(scored(image, torch.ones(2, 3, 4), 2, True), torch.zeros(12, 17))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("zero_mean", [True, False])
def test_a_bad_element_affects_only_the_scores_of_its_windows(
    zero_mean: bool, value: float
) -> None:
    image, template = rand(1, 16, 20), rand(1, 3, 4, seed=1)
    want = scored(image, template, 2, zero_mean)
    for place in (np.s_[0, 0], np.s_[5, 2], np.s_[15, 19], np.s_[7, :]):
        bad, affected = image.clone(), torch.zeros(1, 16, 20)
        bad[0][place], affected[0][place] = value, 1.0
        expected_nan = (
            sums_definition.correlate(affected, torch.ones(1, 3, 4), (1, 1), "direct") > 0
        )
        got = scored(bad, template, 2, zero_mean)
        assert torch.equal(got.isnan(), expected_nan)
        assert torch.all(((got - want).abs() <= 1e-6) | expected_nan)


# --- templates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("zero_mean", [True, False])
def test_standardise(zero_mean: bool, dtype: torch.dtype) -> None:
    given = rand(5, 2, 11, 13, dtype=dtype) + 3
    given[1] = 0.1
    given[2] = 0
    given[3, 0, 1, 2] = float("nan")
    given[4] *= 1e-4
    got, want = (
        call(standardise.standardise, given, 2, zero_mean),
        scores_definition.standardise(given, 2, zero_mean),
    )
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert torch.equal(got == 0, want == 0)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("zero_mean", [True, False])
def test_standardise_grad(zero_mean: bool, dtype: torch.dtype) -> None:
    given, grad = rand(5, 2, 11, 13, dtype=dtype) + 3, rand(5, 2, 11, 13, seed=1).double()
    given[1] = 0.1
    given[2] = 0
    given[3, 0, 1, 2] = float("nan")
    given[4] *= 1e-2
    got, want = (
        call(standardise.standardise_grad, given, grad, 2, zero_mean),
        scores_definition.standardise_grad(given, grad, 2, zero_mean),
    )
    assert got.dtype == dtype
    rtol = max(2 * EPS[dtype], 1e-10)
    torch.testing.assert_close(got, want, rtol=rtol, atol=1e-10, equal_nan=True)
    assert torch.equal(got[1:3] == 0, want[1:3] == 0)


@pytest.mark.parametrize("shape", [(1, 50, 47), (2, 1, 1), (1, 3, 5)])
def test_standardise_few_and_many_elements(shape: tuple[int, ...]) -> None:
    given = rand(2, *shape) + 1e4
    got, want = (
        call(standardise.standardise, given, 2, True),
        scores_definition.standardise(given, 2, True),
    )
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
