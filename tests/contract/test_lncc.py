"""The local coefficient in plain boxes against the oracle, its laws and its derivatives."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import INTEGERS, array, draw, other_of, result_dtype, says, tensor
from tolerances import GRADIENT_OF_FLOAT32, SCORE
from torch.nn.functional import pad

import torchcorr
from torchcorr._definition import lncc as definition
from torchcorr._definition import weighted_lncc as weighted
from torchcorr._plan.taps import window_taps

ops = torch.ops.torchcorr
SHAPES = {
    "1d": ((2, 13), 4, 1, "independent"),
    "1d-joint": ((2, 3, 13), 5, 1, "joint"),
    "1d-long": ((2, 3001), 31, 1, "independent"),
    "2d": ((2, 9, 8), (3, 4), 2, "independent"),
    "2d-joint": ((2, 3, 9, 8), (4, 3), 2, "joint"),
    "2d-one": ((5, 6), 1, 2, "independent"),
    "2d-whole": ((5, 6), (5, 6), 2, "independent"),
    "2d-wide": ((37, 301), (11, 5), 2, "independent"),
    "3d": ((6, 5, 7), (2, 3, 4), 3, "independent"),
    "3d-joint": ((2, 5, 4, 6), 3, 3, "joint"),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def lncc(a, b, window, *, border="valid", **options):
    """Where no window leaves the inputs, or finds zeros there, one operator has boxes alone."""
    return torchcorr.lncc(a, b, window, border=border, **options)


def check(a, b, window, *, border="valid", **options):
    got = lncc(a, b, window, border=border, **options)
    exact = oracle.lncc(array(a), array(b), window, border=border, **options)
    result = result_dtype(a.dtype)
    assert tuple(got.shape) == exact.shape and got.dtype == result
    assert (np.abs(array(got) - exact) <= SCORE[result]).all()


@pytest.mark.parametrize("border", ["valid", "zeros"])
@every_shape
def test_matches_the_definition(shape, border):
    size, window, ndim, channels = shape
    for stride in (1, 3, tuple(range(1, ndim + 1))):
        options = {"ndim": ndim, "border": border, "stride": stride, "channels": channels}
        for dtype in (torch.float64, torch.float32):
            check(draw(size, dtype), draw(size, dtype, 1), window, **options)
        check(draw(size), draw(size, seed=1), window, eps=0.1, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *INTEGERS], ids=str)
def test_dtypes(dtype):
    check(draw((2, 12, 11), dtype), draw((2, 12, 11), dtype, 1), (5, 4))


def test_leading_axes_broadcast():
    a, b = draw((3, 1, 9, 8)), draw((2, 9, 8), seed=1)
    got = lncc(a, b, 3)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(got[i, j], lncc(a[i, 0], b[j], 3))
    assert lncc(draw((0, 5, 6)), draw((5, 6)), 3).shape == (0, 3, 4)
    view = draw((14, 12)).t()[::2]
    torch.testing.assert_close(
        lncc(view, view.flip(0), 3), lncc(view.contiguous(), view.flip(0), 3)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("side", (5, 16))
def test_survives_the_torture(dtype, side):
    for case in torture.cases(dtype):
        window = tuple(min(side, n) for n in case.image.shape)
        a, b = case.image, other_of(case.image)
        for one, other in ((a, b), (b, a), (a, torture._texture(20, a.shape).astype(dtype))):
            exact = oracle.lncc(one, other, window, border="valid")
            got = array(lncc(tensor(one), tensor(other), window))
            bound = SCORE[torch.float32 if dtype == np.float32 else torch.float64]
            assert torture.error(got, exact) <= bound, case.name


def test_laws():
    a, b = draw((20, 21), torch.float32), draw((20, 21), torch.float32, 1)
    score = lncc(a, b, 5)
    assert float(score.abs().max()) <= 1
    torch.testing.assert_close(lncc(b, a, 5), score)
    torch.testing.assert_close(lncc(a, a, 5), torch.ones_like(score))
    torch.testing.assert_close(lncc(2 * a + 3, 1 - b, 5), -score, atol=1e-5, rtol=0)
    torch.testing.assert_close(lncc(a[3:], b[3:], 5), score[3:])
    # The window is the whole: Pearson's coefficient, which is what a template scores.
    one = lncc(a, b, (20, 21))
    torch.testing.assert_close(one, torchcorr.zncc(a, b))


def test_flat_windows_score_nothing():
    a, b = draw((14, 15), torch.float32), draw((14, 15), torch.float32, 1)
    a[2:9, 3:11] = 0.3
    a.requires_grad_()
    b.requires_grad_()
    flat = torchcorr.flat_windows(a.detach(), 4)
    score = lncc(a, b, 4)
    assert flat.any() and (score[flat] == 0).all() and (score[~flat] != 0).all()
    for_a, for_b = torch.autograd.grad(score[flat].sum(), (a, b), retain_graph=True)
    assert (for_a == 0).all() and (for_b == 0).all()
    grads = torch.autograd.grad(score.square().sum(), (a, b), create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in grads), (a, b))
    assert all(x.isfinite().all() for x in (*grads, *twice))
    both = torch.full((9, 9), 7.0, requires_grad=True)
    score = lncc(both, both, 3)
    assert (score == 0).all()
    assert (torch.autograd.grad(score.sum(), both)[0] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (6, 9), (12, 14)])
def test_a_bad_pixel_touches_only_its_windows(value, place):
    for dtype in (torch.float32, torch.float64):
        a, b = draw((13, 15), dtype), draw((13, 15), dtype, 1)
        a[1:7, 1:5] = 0.5
        clean = lncc(a, b, (4, 3))
        b[place] = value
        hit = ~np.isfinite(oracle.local_sum(array(b), (4, 3)).astype(float))
        for one, other in ((a, b), (b, a)):
            got = lncc(one, other, (4, 3))
            assert np.isnan(array(got)[hit]).all()
            assert (array((got - clean).abs())[~hit] <= SCORE[dtype]).all()


OPTIONS = (
    {},
    {"stride": (2, 1), "eps": 0.1},
    {"channels": "joint"},
    {"border": "zeros"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives(options):
    a, b = draw((2, 6, 5)).requires_grad_(), draw((2, 6, 5), seed=1).requires_grad_()

    def call(a, b):
        return lncc(a, b, (3, 2), **options)

    assert torch.autograd.gradcheck(call, (a, b))
    assert torch.autograd.gradgradcheck(call, (a, b))


@pytest.mark.parametrize("ndim", (1, 3))
def test_derivatives_of_lines_and_volumes(ndim):
    size = (2, 11) if ndim == 1 else (4, 5, 4)
    a, b = draw(size).requires_grad_(), draw(size, seed=1).requires_grad_()

    def call(a, b):
        return lncc(a, b, 3, ndim=ndim)

    assert torch.autograd.gradcheck(call, (a, b))
    assert torch.autograd.gradgradcheck(call, (a, b))
    fixed = b.detach()
    assert torch.autograd.gradcheck(lambda a: call(a, fixed), a)
    assert torch.autograd.gradcheck(lambda a: call(fixed, a), a)


def gradients(a, b, window, **options):
    """In float64 and in float32, from the same numbers and the same upstream gradient."""
    delta, results = None, []
    for dtype in (torch.float64, torch.float32):
        leaves = [tensor(x, dtype).requires_grad_() for x in (a, b)]
        score = lncc(*leaves, window, **options)
        delta = draw(tuple(score.shape), seed=5).sub(0.5) if delta is None else delta
        results.append(torch.autograd.grad(score, leaves, delta.to(dtype)))
    return zip(*results, strict=True)


@pytest.mark.parametrize("side", (5, 16))
def test_float32_gradients_on_the_torture_list(side):
    for case in torture.cases(np.float32):
        window = tuple(min(side, n) for n in case.image.shape)
        for exact, got in gradients(case.image, other_of(case.image), window):
            assert got.isfinite().all(), case.name
            error = (got - exact).abs().max()
            assert error <= GRADIENT_OF_FLOAT32 * exact.abs().max(), case.name


# Gradients of large inputs go slab by slab along the first axis; of small ones many at once.
SLABS = {
    "1d": ((1, 500_000), (31,), (2,)),
    "2d": ((1, 900, 500), (9, 5), (1, 1)),
    "2d-few-rows": ((1, 24, 30_000), (9, 3), (1, 1)),
    "2d-stride-past-window": ((1, 3600, 400), (2, 3), (3, 2)),
    "2d-some-items-at-once": ((5, 1, 300, 300), (7, 8), (1, 1)),
    "3d-joint": ((2, 90, 80, 80), (5, 3, 2), (2, 1, 1)),
}


@pytest.mark.parametrize("shape, window, stride", SLABS.values(), ids=SLABS)
def test_gradients_in_slabs(shape, window, stride):
    a, b = draw(shape), draw(shape, seed=1)
    score = definition.lncc(a, b, window, stride, 0.0)
    delta = draw(tuple(score.shape), seed=2) - 0.5
    assert float((ops.lncc(a, b, window, stride, 0.0) - score).abs().max()) <= SCORE[a.dtype]
    want = definition.lncc_grads(delta, a, b, window, stride, 0.0, True, True)
    both = ops.lncc_grads(delta, a, b, window, stride, 0.0, True, True)
    first, none = ops.lncc_grads(delta, a, b, window, stride, 0.0, True, False)
    nothing, second = ops.lncc_grads(delta, a, b, window, stride, 0.0, False, True)
    assert none.numel() == nothing.numel() == 0
    for exact, got, alone in zip(want, both, (first, second), strict=True):
        bound = 1e-10 * float(exact.abs().max())
        assert float((got - exact).abs().max()) <= bound
        assert float((alone - exact).abs().max()) <= bound


@pytest.mark.cpu_only
@pytest.mark.parametrize("shape, window, stride", SLABS.values(), ids=SLABS)
def test_zeros_around_are_those_of_padded_inputs(shape, window, stride):
    """The CPU's kernel reads them where there are none; the bits are those of copies with zeros."""
    a, b = draw(shape, torch.float32), draw(shape, torch.float32, seed=1)
    place = (window_taps("box", window), window, stride, "zeros", 0.01)
    windows = weighted.Windows(*place[:-1])
    wide = [pad(x, windows.reach) for x in (a, b)]
    score = ops.lncc(*wide, window, stride, 0.01)
    assert torch.equal(ops.weighted_lncc(a, b, None, *place), score)
    delta = draw(tuple(score.shape), torch.float32, seed=2) - 0.5
    want = ops.lncc_grads(delta, *wide, window, stride, 0.01, True, True)
    both = ops.weighted_lncc_grads(delta, a, b, None, *place, [True, True, False])
    for i, exact in enumerate(map(windows.inner, want)):
        alone = ops.weighted_lncc_grads(delta, a, b, None, *place, [j == i for j in range(3)])
        assert alone[1 - i].numel() == alone[2].numel() == both[2].numel() == 0
        for got in (both[i], alone[i]):
            assert float((got - exact).abs().max()) <= 1e-6 * float(exact.abs().max())


def test_compiled_batched_and_exported():
    a, b = draw((3, 9, 10)).requires_grad_(), draw((3, 9, 10), seed=1).requires_grad_()

    def call(a, b):
        return lncc(a, b, (4, 3), border="zeros")

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), call(a, b))
    want = torch.autograd.grad(call(a, b).square().sum(), (a, b))
    torch.testing.assert_close(torch.autograd.grad(compiled(a, b).square().sum(), (a, b)), want)
    batched = torch.func.vmap(call, (0, None))(a, b[0])
    torch.testing.assert_close(batched, call(a, b[:1]))
    jacobian = torch.func.jacrev(lambda a: call(a, b[0]).sum(-1))(a[0])
    row = torch.autograd.grad(call(a[0], b[0])[4].sum(), a)[0][0]
    torch.testing.assert_close(jacobian[4], row)


def test_errors():
    a = torch.ones(4, 5)
    for b, window, kind, words in (
        (torch.ones(4, 6), 3, ValueError, ("a", "b", "(4, 6)")),
        (torch.ones(4, 5), 6, ValueError, ("window", "6")),
        (torch.ones(4, 5).double(), 3, TypeError, ("float32", "float64")),
        (np.ones((4, 5)), 3, TypeError, ("b", "ndarray")),
        (torch.ones(4, 5).to("meta"), 3, ValueError, (a.device.type, "meta")),
    ):
        with pytest.raises(kind, match=says(*words)):
            lncc(a, b, window)
    with pytest.raises(ValueError, match=says("a and b", "(2,)", "(3,)")):
        lncc(torch.ones(2, 4, 5), torch.ones(3, 4, 5), 3)
    with pytest.raises(ValueError, match=says("eps", -1)):
        lncc(a, a, 3, eps=-1)
    with pytest.raises(TypeError, match="positional"):
        lncc(a, a, 3, 2)
    with pytest.raises(TypeError, match="complex64"):
        lncc(a.to(torch.complex64), a.to(torch.complex64), 3)


def test_loss():
    a, b = draw((2, 7, 8, 6)).requires_grad_(), draw((2, 7, 8, 6), seed=1)
    for border in ("renormalize", "zeros"):
        score = lncc(a, b, 5, ndim=3, border=border)
        for squared in (False, True):
            value = 1 - (score.square() if squared else score)
            for reduction, want in (("mean", value.mean()), ("sum", value.sum()), ("none", value)):
                loss = torchcorr.nn.LNCCLoss(5, border=border, squared=squared, reduction=reduction)
                torch.testing.assert_close(loss(a, b), want)
                assert f"squared={squared}, reduction={reduction!r}" in repr(loss)
    with pytest.raises(ValueError, match=says("reduction", "median")):
        torchcorr.nn.LNCCLoss(5, reduction="median")


def test_the_loss_aligns_two_images():
    """Gradient descent finds the shift and contrast between two pictures."""
    rows = torch.linspace(-3, 3, 40, dtype=torch.float64)
    image = (3 * rows[:, None]).sin() * (2 * rows).cos() + 0.3 * rows[:, None] * rows
    shift = torch.tensor([0.12, -0.08], dtype=torch.float64, requires_grad=True)
    loss = torchcorr.nn.LNCCLoss(9, ndim=2)
    identity = torch.eye(2, dtype=torch.float64)
    descent = torch.optim.LBFGS([shift], line_search_fn="strong_wolfe")

    def step():
        descent.zero_grad()
        grid = torch.nn.functional.affine_grid(
            torch.cat([identity, shift[:, None]], 1)[None], [1, 1, 40, 40], align_corners=False
        )
        moved = torch.nn.functional.grid_sample(
            image[None, None], grid, padding_mode="border", align_corners=False
        )
        value = loss(moved[0, 0], 7 - 0.5 * -image)
        value.backward()
        return value

    for _ in range(10):
        descent.step(step)
    assert float(shift.detach().abs().max()) < 1e-4
