"""The C++ direct correlation against its definition in NumPy, and the laws it must obey."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import torchcorr  # noqa: F401  (registers the operators)

ops = torch.ops.torchcorr_cpu
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
NAMES = ("correlate_direct", "correlate_direct_input_grad", "correlate_direct_template_grad")


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def oracle(
    input: np.ndarray, template: np.ndarray, stride: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The correlation by its definition in float64, and its sum of |input| |template|."""
    ndim = len(stride)
    wide = np.complex128 if np.iscomplexobj(input) else np.float64
    input, template = input.astype(wide), template.astype(wide)
    window = template.shape[-ndim:]
    sizes = zip(input.shape[-ndim:], window, stride, strict=True)
    output = tuple((s - k) // d + 1 for s, k, d in sizes)
    lead = np.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    total, weight = np.zeros(lead + output, wide), np.zeros(lead + output)
    for v in itertools.product(*map(range, window)):
        cut = tuple(
            slice(first, first + (o - 1) * d + 1, d)
            for first, o, d in zip(v, output, stride, strict=True)
        )
        coefficients = template[(..., *v)].reshape(template.shape[:-ndim] + (1,) * ndim)
        products = input[(..., *cut)] * coefficients
        total += products.sum(axis=-ndim - 1)
        weight += np.abs(products).sum(axis=-ndim - 1)
    return total, weight


def check_forward(input: Tensor, template: Tensor, stride: tuple[int, ...]) -> None:
    got = ops.correlate_direct(input, template, list(stride))
    want, weight = oracle(input.numpy(), template.numpy(), stride)
    assert got.dtype == input.dtype
    assert got.shape == want.shape
    error = np.abs(got.numpy().astype(want.dtype) - want)
    assert np.all(error <= 4 * EPS[input.abs().dtype] * weight)


def check_adjoint(input: Tensor, template: Tensor, stride: tuple[int, ...]) -> None:
    """<A x, y> = <x, A^T y>, with the second factor of every product conjugated."""
    score = ops.correlate_direct(input, template, list(stride))
    grad = torch.randn(score.shape, dtype=score.dtype, generator=torch.Generator().manual_seed(9))
    left = (score.conj() * grad).sum()
    image = ops.correlate_direct_input_grad(grad, template, list(input.shape), list(stride))
    gradient = ops.correlate_direct_template_grad(grad, input, list(template.shape), list(stride))
    assert image.shape == input.shape and image.dtype == input.dtype
    assert gradient.shape == template.shape and gradient.dtype == template.dtype
    size = oracle(input.abs().numpy(), template.abs().numpy(), stride)[0]
    bound = 16 * EPS[input.abs().dtype] * (size * grad.abs().numpy()).sum()
    assert abs(complex((input.conj() * image).sum() - left)) <= bound
    assert abs(complex((template.conj() * gradient).sum() - left)) <= bound


def autograd(input: Tensor, template: Tensor, grad: Tensor, stride: list[int]) -> list[Tensor]:
    """Both gradients by differentiating the definition in float64."""
    ndim = len(stride)
    x, t = input.double().requires_grad_(), template.double().requires_grad_()
    windows = x
    for axis, (k, s) in enumerate(zip(t.shape[-ndim:], stride, strict=True)):
        windows = windows.unfold(axis - ndim - axis, k, s)
    windows = windows.movedim(-2 * ndim - 1, -ndim - 1)
    window = t.reshape(*t.shape[: -ndim - 1], *(1,) * ndim, *t.shape[-ndim - 1 :])
    score = (windows * window).flatten(-ndim - 1).sum(-1)
    return list(torch.autograd.grad(score, (x, t), grad.double()))


CASES = [
    # input, template, stride
    ((1, 1), (1, 1), (1,)),
    ((1, 50), (1, 50), (1,)),
    ((1, 193), (1, 1), (1,)),
    ((1, 208), (1, 17), (1,)),
    ((3, 1021), (3, 401), (1,)),
    ((2, 1, 97), (5, 1, 1, 7), (2,)),
    ((1, 500), (1, 11), (13,)),
    ((1, 6, 51), (1, 3, 4), (1, 1)),
    ((1, 5, 49), (1, 1, 1), (1, 1)),
    ((1, 7, 54), (1, 3, 7), (1, 1)),
    ((3, 13, 67), (3, 5, 5), (1, 1)),
    ((1, 3, 3), (1, 3, 3), (1, 1)),
    ((1, 83, 103), (1, 31, 29), (1, 1)),
    ((1, 83, 103), (1, 7, 5), (2, 3)),
    ((1, 40, 120), (1, 5, 5), (3, 1)),
    ((2, 30, 41), (2, 2, 3), (4, 5)),
    ((4, 1, 17, 60), (4, 1, 3, 3), (1, 1)),
    ((4, 1, 1, 17, 60), (3, 1, 3, 3), (1, 1)),
    ((2, 1, 3, 20, 30), (1, 3, 3, 4, 2), (1, 2)),
    ((1, 5, 9, 61), (1, 2, 3, 4), (1, 1, 1)),
    ((3, 7, 11, 13), (3, 7, 11, 13), (1, 1, 1)),
    ((2, 1, 9, 10, 11), (3, 1, 1, 3, 2, 5), (2, 3, 2)),
    ((1, 9, 8, 70), (1, 1, 1, 1), (2, 1, 1)),
    # Templates that share images are computed together.
    ((2, 1, 2, 2500), (9, 2, 7), (1,)),
    ((1, 3100), (17, 1, 9), (3,)),
    ((1, 3, 1100), (8, 1, 2, 5), (1, 1)),
    ((3, 1, 6, 140), (33, 6, 65), (1,)),
    ((2, 1, 5, 9, 23), (9, 5, 3, 4), (1, 1)),
    ((2, 1, 5, 12, 23), (17, 5, 3, 4), (2, 3)),
    ((2, 1, 8, 6, 5), (70, 8, 4, 3), (1, 1)),
    ((4, 1, 8, 5, 6), (12, 8, 5, 6), (1, 1)),
    ((2, 1, 9, 11, 50), (40, 9, 1, 1), (1, 1)),
    ((1, 2, 9, 7, 30), (16, 1, 9, 2, 5), (1, 1)),
    ((2, 1, 4, 5, 6, 7), (8, 4, 3, 2, 3), (1, 1, 1)),
    ((2, 1, 9, 6, 7, 8), (8, 9, 3, 3, 3), (2, 1, 2)),
    # Of these the gradient of the input adds up tap by tap.
    ((2, 1, 8, 16, 16), (40, 8, 7, 7), (1, 1)),
    ((2, 1, 9, 12, 13), (24, 9, 6, 7), (2, 3)),
    ((1, 8, 700), (210, 8, 333), (1,)),
    ((2, 1, 33, 6, 5, 9), (30, 33, 3, 2, 5), (1, 1, 2)),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_registered(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchcorr_cpu::{name}", "CPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape, window, stride", CASES)
def test_definition_and_adjoints(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
) -> None:
    input, template = rand(*shape, dtype=dtype), rand(*window, dtype=dtype, seed=1)
    check_forward(input, template, stride)
    check_adjoint(input, template, stride)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, window, stride", CASES)
def test_gradients_element_by_element(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
) -> None:
    input, template = rand(*shape, dtype=dtype), rand(*window, dtype=dtype, seed=1)
    score = ops.correlate_direct(input, template, list(stride))
    grad = rand(*score.shape, dtype=dtype, seed=2)
    got = (
        ops.correlate_direct_input_grad(grad, template, list(shape), list(stride)),
        ops.correlate_direct_template_grad(grad, input, list(window), list(stride)),
    )
    want = autograd(input, template, grad, list(stride))
    weight = autograd(input.abs(), template.abs(), grad.abs(), list(stride))
    for g, w, size in zip(got, want, weight, strict=True):
        assert torch.all((g.double() - w).abs() <= 4 * EPS[dtype] * size)


def test_equal_terms_do_not_drift() -> None:
    input, template = torch.full((1, 70, 80), 0.1), torch.full((1, 64, 64), 0.3)
    check_forward(input, template, (1, 1))
    check_forward(
        input.expand(32, 70, 80)[:, :12, :16], template.expand(9, 32, 64, 64)[..., :7, :7], (1, 1)
    )


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.mT.contiguous().mT,
    lambda x: torch.stack([x, x], dim=-1)[..., 0],
    lambda x: x.flip(-1).flip(-1),
    lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    lambda x: x.movedim(-3, -1).contiguous().movedim(-1, -3),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [[1, 1], [2, 3]])
def test_layout_does_not_matter(layout: Callable[[Tensor], Tensor], stride: list[int]) -> None:
    input, template = rand(2, 3, 33, 60), rand(2, 3, 5, 4, seed=1)
    score = ops.correlate_direct(input, template, stride)
    assert torch.equal(ops.correlate_direct(layout(input), layout(template), stride), score)
    a = ops.correlate_direct_input_grad(score, template, [2, 3, 33, 60], stride)
    b = ops.correlate_direct_input_grad(layout(score[None])[0], layout(template), a.shape, stride)
    assert torch.equal(a, b)
    c = ops.correlate_direct_template_grad(score, input, [2, 3, 5, 4], stride)
    d = ops.correlate_direct_template_grad(layout(score[None])[0], layout(input), c.shape, stride)
    assert torch.equal(c, d)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [[1, 1], [2, 3]])
def test_layout_of_many_templates(layout: Callable[[Tensor], Tensor], stride: list[int]) -> None:
    input, template = rand(2, 1, 9, 13, 30), rand(10, 9, 5, 4, seed=1)
    score = ops.correlate_direct(input, template, stride)
    other = layout(score[None])[0]
    assert torch.equal(ops.correlate_direct(layout(input), layout(template), stride), score)
    a = ops.correlate_direct_input_grad(score, template, [2, 1, 9, 13, 30], stride)
    assert torch.equal(a, ops.correlate_direct_input_grad(other, layout(template), a.shape, stride))
    c = ops.correlate_direct_template_grad(score, input, [10, 9, 5, 4], stride)
    assert torch.equal(c, ops.correlate_direct_template_grad(other, layout(input), c.shape, stride))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [[1, 1], [2, 3]])
def test_layout_of_many_templates_tap_by_tap(
    layout: Callable[[Tensor], Tensor], stride: list[int]
) -> None:
    input, template = rand(2, 1, 9, 13, 15), rand(20, 9, 7, 10, seed=1)
    score = ops.correlate_direct(input, template, stride)
    shape = [2, 1, 9, 13, 15]
    want = ops.correlate_direct_input_grad(score, template, shape, stride)
    for grad in (score, layout(score[None])[0]):
        got = ops.correlate_direct_input_grad(grad, layout(template), shape, stride)
        assert torch.equal(got, want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_what_it_multiplies_tap_by_tap(value: float) -> None:
    grad, template, shape = rand(2, 20, 6, 5), rand(20, 9, 7, 10, seed=1), [2, 1, 9, 12, 14]
    clean = ops.correlate_direct_input_grad(grad, template, shape, [1, 1])
    bad = grad.clone()
    bad[1, 3, 2, 4] = value
    got = ops.correlate_direct_input_grad(bad, template, shape, [1, 1])
    touched = torch.zeros(shape, dtype=torch.bool)
    touched[1, :, :, 2:9, 4:14] = True
    assert torch.equal(~got.isfinite(), touched)
    assert torch.equal(got[~touched], clean[~touched])
    bad = template.clone()
    bad[3, 2, 4, 9] = value
    got = ops.correlate_direct_input_grad(grad, bad, shape, [1, 1])
    touched = torch.zeros(shape, dtype=torch.bool)
    touched[:, :, 2, 4:10, 9:14] = True
    assert torch.equal(~got.isfinite(), touched)
    assert torch.equal(got[~touched], clean[~touched])


def test_one_window_that_is_not_finite_among_many_templates() -> None:
    input, template = rand(1, 4, 12, 40), rand(20, 4, 3, 3, seed=1)
    clean = ops.correlate_direct(input, template, [1, 1])
    input[0, 2, 6, 17] = torch.nan
    score = ops.correlate_direct(input, template, [1, 1])
    touched = torch.zeros(10, 38, dtype=torch.bool)
    touched[4:7, 15:18] = True
    assert bool(score[..., touched].isnan().all())
    assert torch.equal(score[..., ~touched], clean[..., ~touched])


def test_expanded_gradient() -> None:
    input = rand(1, 20, 70)
    grad = torch.ones((), dtype=torch.float64).expand(18, 66)
    got = ops.correlate_direct_template_grad(grad, input, [1, 3, 5], [1, 1])
    want = ops.correlate_direct_template_grad(grad.contiguous(), input, [1, 3, 5], [1, 1])
    assert torch.equal(got, want)


def test_empty_batch() -> None:
    score = ops.correlate_direct(rand(0, 1, 9, 9), rand(1, 3, 3), [1, 1])
    assert score.shape == (0, 7, 7)
    image = ops.correlate_direct_input_grad(score, rand(1, 3, 3), [0, 1, 9, 9], [1, 1])
    assert image.shape == (0, 1, 9, 9)
    gradient = ops.correlate_direct_template_grad(score, rand(0, 1, 9, 9), [1, 3, 3], [1, 1])
    assert torch.equal(gradient, torch.zeros(1, 3, 3, dtype=torch.float64))


def bad_places(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield tuple(0 for _ in shape)
    yield tuple(n - 1 for n in shape)
    yield tuple(n // 2 for n in shape)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "shape, window, stride",
    [
        ((300,), (5,), (1,)),
        ((19, 70), (3, 4), (1, 1)),
        ((23, 70), (3, 4), (2, 3)),
        ((9, 8, 20), (2, 3, 2), (1, 1, 1)),
    ],
)
def test_a_bad_element_reaches_only_windows_that_contain_it(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], value: float
) -> None:
    steps, template = list(stride), torch.ones(1, *window)
    ones = torch.ones(ops.correlate_direct(torch.ones(1, *shape), template, steps).shape)
    for place in bad_places(shape):
        bad = torch.zeros(1, *shape)
        bad[(0, *place)] = 1.0
        covered = ops.correlate_direct(bad, template, steps) > 0
        reached = ops.correlate_direct_template_grad(ones, bad, [1, *window], steps) > 0
        bad[(0, *place)] = value
        assert torch.equal(~ops.correlate_direct(bad, template, steps).isfinite(), covered)
        got = ops.correlate_direct_template_grad(ones, bad, [1, *window], steps)
        assert torch.equal(~got.isfinite(), reached)
    for place in bad_places(tuple(ones.shape)):
        bad = torch.zeros(ones.shape)
        bad[place] = 1.0
        covered = ops.correlate_direct_input_grad(bad, template, [1, *shape], steps) > 0
        bad[place] = value
        got = ops.correlate_direct_input_grad(bad, template, [1, *shape], steps)
        assert torch.equal(~got.isfinite(), covered)


def test_a_bad_coefficient_reaches_only_elements_that_it_multiplies() -> None:
    template = torch.zeros(1, 3, 3)
    template[0, 1, 1] = float("nan")
    got = ops.correlate_direct_input_grad(torch.ones(10, 60), template, [1, 12, 62], [1, 1])
    want = torch.zeros(1, 12, 62, dtype=torch.bool)
    want[0, 1:-1, 1:-1] = True
    assert torch.equal(got.isnan(), want)


@pytest.mark.parametrize("shape, window, stride", [CASES[4], CASES[12], CASES[13], CASES[19]])
def test_threads_do_not_change_a_bit(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    scale = (6,) + (1,) * (len(shape) - 1)
    input = rand(*shape, dtype=torch.float32).repeat(scale).unsqueeze(0)
    template = rand(*window, dtype=torch.float32, seed=1).repeat(scale).unsqueeze(0)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            score = ops.correlate_direct(input, template, list(stride))
            image = ops.correlate_direct_input_grad(score, template, input.shape, list(stride))
            gradient = ops.correlate_direct_template_grad(
                score, input, template.shape, list(stride)
            )
            results.append((score, image, gradient))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_threads_do_not_change_a_bit_tap_by_tap() -> None:
    grad, template = rand(5, 64, 22, 22).float(), rand(64, 40, 7, 7, seed=1).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            shape = [5, 1, 40, 28, 28]
            results.append(ops.correlate_direct_input_grad(grad, template, shape, [1, 1]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_conjugate_views() -> None:
    input, template = rand(1, 9, 30, dtype=torch.complex128), rand(1, 3, 4, dtype=torch.complex128)
    got = ops.correlate_direct(input.conj(), template.conj(), [1, 1])
    torch.testing.assert_close(got, ops.correlate_direct(input, template, [1, 1]).conj())


def test_expanded_leads() -> None:
    input = rand(1, 1, 30, 30).mT.expand(3, 1, 30, 30)
    template = rand(4, 1, 1, 3, 3, seed=1)
    want = ops.correlate_direct(input.contiguous(), template, [1, 1])
    assert torch.equal(ops.correlate_direct(input, template, [1, 1]), want)


@pytest.mark.parametrize("dtype", EPS)
def test_rows_of_every_length(dtype: torch.dtype) -> None:
    """Blocks of two or of three vectors, and rows that are shorter than either."""
    for columns in range(1, 105):
        check_forward(
            rand(1, 7, columns + 2, dtype=dtype, seed=columns), rand(1, 3, 3, dtype=dtype), (1, 1)
        )
