"""`lncc` with windows at the border, windows with weights, and masks; and the losses of others."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import INTEGERS, array, draw, other_of, result_dtype, says, tensor
from tolerances import GRADIENT_OF_FLOAT32, SCORE

import torchcorr
from torchcorr._definition import weighted_lncc as definition
from torchcorr._plan.taps import window_taps

ops = torch.ops.torchcorr
BORDERS = ("renormalize", "zeros", "valid")
WEIGHTS = ("box", "triangle", "gaussian")
SHAPES = {
    "1d": ((2, 13), 4, 1, "independent"),
    "1d-long": ((2, 3001), 31, 1, "independent"),
    "1d-joint": ((2, 3, 13), 5, 1, "joint"),
    "2d": ((2, 9, 8), (3, 4), 2, "independent"),
    "2d-joint": ((2, 3, 9, 8), (4, 3), 2, "joint"),
    "2d-wide": ((17, 301), (5, 11), 2, "independent"),
    "2d-large": ((2, 20, 23), (17, 4), 2, "independent"),
    "2d-large-joint": ((3, 7, 19), (2, 18), 2, "joint"),
    "2d-one": ((5, 6), 1, 2, "independent"),
    "3d": ((6, 5, 17), (2, 3, 4), 3, "independent"),
    "3d-joint": ((2, 5, 4, 6), 3, 3, "joint"),
    "3d-large": ((6, 5, 18), (2, 3, 17), 3, "independent"),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_border = pytest.mark.parametrize("border", BORDERS)
every_weights = pytest.mark.parametrize("weights", WEIGHTS)


def mask_of(size, dtype=torch.float64, seed=7):
    """Weights of which about a third are 0."""
    x = draw(size, dtype, seed)
    return torch.where(x < 0.35, torch.zeros_like(x), x)


def hidden(x, mask, value=float("nan")):
    return torch.where(mask > 0, x, torch.full_like(x, value))


def near(got, exact, dtype):
    assert tuple(got.shape) == exact.shape and got.dtype == result_dtype(dtype)
    assert (np.abs(array(got) - exact) <= SCORE[result_dtype(dtype)]).all()


@every_border
@every_weights
@every_shape
def test_matches_the_definition(shape, weights, border):
    size, window, ndim, channels = shape
    how = {"ndim": ndim, "border": border, "weights": weights, "channels": channels}
    for stride in (1, 3):
        for dtype in (torch.float64, torch.float32):
            a, b, mask = draw(size, dtype), draw(size, dtype, 1), mask_of(size, dtype)
            got = torchcorr.lncc(a, b, window, stride=stride, eps=0.1, **how)
            near(got, oracle.lncc(array(a), array(b), window, stride=stride, eps=0.1, **how), dtype)
            got = torchcorr.lncc(a, hidden(b, mask), window, mask_b=mask, stride=stride, **how)
            exact = oracle.lncc(array(a), array(b), window, mask=array(mask), stride=stride, **how)
            near(got, exact, dtype)


def test_a_window_may_be_larger_than_the_inputs():
    a, b = draw((5, 6)), draw((5, 6), seed=1)
    for weights in WEIGHTS:
        exact = oracle.lncc(array(a), array(b), (13, 12), weights=weights)
        near(torchcorr.lncc(a, b, (13, 12), weights=weights), exact, a.dtype)
    exact = oracle.lncc(array(a), array(b), (20, 31), border="zeros", mask=array(mask_of((5, 6))))
    near(torchcorr.lncc(a, b, (20, 31), border="zeros", mask_b=mask_of((5, 6))), exact, a.dtype)
    everything = torchcorr.lncc(a, b, (11, 13))
    torch.testing.assert_close(everything, torchcorr.zncc(a, b).expand(5, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *INTEGERS], ids=str)
def test_dtypes(dtype):
    a, b = draw((2, 12, 11), dtype), draw((2, 12, 11), dtype, 1)
    for mask in (mask_of((12, 11), torch.float32), mask_of((12, 11)) > 0):
        got = torchcorr.lncc(a, b, (5, 4), weights="gaussian", mask_a=mask)
        exact = oracle.lncc(array(a), array(b), (5, 4), weights="gaussian", mask=array(mask))
        near(got, exact, dtype)


@every_weights
@pytest.mark.parametrize("k", range(1, 12))
def test_windows_are_symmetric(weights, k):
    """A mirrored pair has mirrored scores; even windows reach one element further to the front."""
    taps = window_taps(weights, (k,))
    assert taps == taps[::-1] and min(taps) > 0 and max(taps) == taps[k // 2]
    np.testing.assert_allclose(taps, oracle.window_weights(weights, (k,)).astype(float))
    a, b = draw((14, 15)), draw((14, 15), seed=1)
    for border in BORDERS:
        how = {"border": border, "weights": weights}
        score = torchcorr.lncc(a, b, k, **how)
        mirrored = torchcorr.lncc(a.flip(0, 1), b.flip(0, 1), k, **how).flip(0, 1)
        if k % 2 == 0 and border != "valid":
            score, mirrored = score[1:, 1:], mirrored[:-1, :-1]
        torch.testing.assert_close(mirrored, score)
    rows = torchcorr.lncc(a.t(), b.t(), k, weights=weights).t()
    torch.testing.assert_close(rows, torchcorr.lncc(a, b, k, weights=weights))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", (False, True))
@every_weights
def test_survives_the_torture(dtype, weights, masked):
    bound = SCORE[torch.float32 if dtype == np.float32 else torch.float64]
    for case in torture.cases(dtype):
        window = tuple(min(5 if masked and weights != "box" else 16, n) for n in case.image.shape)
        a, b = case.image, other_of(case.image)
        mask = array(mask_of(a.shape)).astype(dtype) if masked else None
        exact = oracle.lncc(a, b, window, weights=weights, mask=mask)
        given = tensor(mask) if masked else None
        got = torchcorr.lncc(tensor(a), tensor(b), window, weights=weights, mask_a=given)
        assert torture.error(array(got), exact) <= bound, case.name


@every_weights
def test_laws(weights):
    a, b = draw((20, 21), torch.float32), draw((20, 21), torch.float32, 1)
    how = {"weights": weights, "mask_a": mask_of((20, 21), torch.float32)}
    score = torchcorr.lncc(a, b, 5, **how)
    assert float(score.abs().max()) <= 1
    swapped = torchcorr.lncc(b, a, 5, weights=weights, mask_b=how["mask_a"])
    torch.testing.assert_close(swapped, score)
    torch.testing.assert_close(torchcorr.lncc(a, a, 5, **how), torch.ones_like(score))
    torch.testing.assert_close(torchcorr.lncc(a, -2 * a, 5, **how), -torch.ones_like(score))
    # Weights of masks have no scale, and an offset of 1e3 and a scale of 1e-6 change nothing.
    wide = (a.double() * 2**-20, b.double() * 1024 + 1000)
    torch.testing.assert_close(
        torchcorr.lncc(*wide, 5, weights=weights, mask_b=8 * how["mask_a"]).float(), score
    )
    far, small = (a + 1e3).double(), 1e-6 * b
    exact = torchcorr.lncc(far, small.double(), 5, **how).float()
    torch.testing.assert_close(
        torchcorr.lncc(far.float(), small, 5, **how), exact, atol=SCORE[a.dtype], rtol=0
    )
    whole = torch.ones(20, 21)
    masked = torchcorr.lncc(a, b, 5, weights=weights, mask_a=whole, mask_b=whole > 0)
    torch.testing.assert_close(masked, torchcorr.lncc(a, b, 5, weights=weights))
    squared = torchcorr.lncc(a, b, 5, squared=True, **how)
    torch.testing.assert_close(squared, score.square())
    # A hidden frame is a border that renormalises.
    inner = torch.zeros(24, 25)
    inner[2:-2, 2:-2] = 1
    wide = [torch.nn.functional.pad(x, (2, 2, 2, 2), value=torch.nan) for x in (a, b)]
    framed = torchcorr.lncc(*wide, 5, weights=weights, mask_b=inner)[2:-2, 2:-2]
    torch.testing.assert_close(framed, torchcorr.lncc(a, b, 5, weights=weights))


def test_masks_broadcast():
    a, b = draw((3, 1, 9, 8)), draw((2, 9, 8), seed=1)
    mask_a, mask_b = mask_of((9, 1)), mask_of((2, 9, 8), seed=8)
    got = torchcorr.lncc(a, b, 3, mask_a=mask_a, mask_b=mask_b)
    for i in range(3):
        for j in range(2):
            mask = array(mask_a * mask_b[j])
            near(got[i, j], oracle.lncc(array(a[i, 0]), array(b[j]), 3, mask=mask), a.dtype)
    joint = torchcorr.lncc(b, b.flip(0), 3, channels="joint", mask_a=mask_of((8,)))
    mask = array(mask_of((8,)).expand(2, 9, 8))
    exact = oracle.lncc(array(b), array(b.flip(0)), 3, channels="joint", mask=mask)
    near(joint, exact, b.dtype)
    assert torchcorr.lncc(draw((0, 5, 6)), draw((5, 6)), 3, mask_b=mask_of((5, 6))).shape == (
        0,
        5,
        6,
    )


def test_flat_windows_and_windows_without_weight_score_nothing():
    for dtype in (torch.float32, torch.float64):
        a, b = draw((14, 15), dtype), draw((14, 15), dtype, 1)
        mask = torch.ones(14, 15, dtype=dtype)
        mask[:, 12:] = 0
        a[0:9, 0:9] = 1e6 + 0.3
        # Flat where it has weight.
        mask[3, 3] = 0
        a[3, 3] = 7
        for weights in WEIGHTS:
            x, y, w = (v.clone().requires_grad_() for v in (a, b, mask))
            score = torchcorr.lncc(x, y, 4, weights=weights, mask_a=w)
            none = torch.zeros(14, 15, dtype=torch.bool)
            none[:8, :8] = none[:, 14:] = True
            assert (score[none] == 0).all() and (score[~none] != 0).all()
            grads = torch.autograd.grad(score[none].sum(), (x, y, w), retain_graph=True)
            assert all((g == 0).all() for g in grads)
            grads = torch.autograd.grad(score.square().sum(), (x, y, w), create_graph=True)
            assert all((g[:, 12:] == 0).all() for g in grads)
            twice = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, y, w))
            assert all(g.isfinite().all() for g in (*grads, *twice))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (6, 9), (12, 14)])
@every_border
def test_a_bad_pixel_touches_only_its_windows(value, place, border):
    for dtype in (torch.float32, torch.float64):
        mask = mask_of((13, 15), dtype) + 0.1
        for options in ({"weights": "gaussian"}, {"mask_a": mask}):
            a, b = draw((13, 15), dtype), draw((13, 15), dtype, 1)
            call = dict(options, border=border)
            clean = torchcorr.lncc(a, b, (4, 3), **call)
            b[place] = value
            a.requires_grad_()
            mode = "valid" if border == "valid" else "same"
            hit = ~np.isfinite(oracle.local_sum(array(b), (4, 3), mode=mode).astype(float))
            got = torchcorr.lncc(a, b, (4, 3), **call)
            assert np.isnan(array(got)[hit]).all()
            assert (array((got - clean).abs())[~hit] <= SCORE[dtype]).all()
            # Scores that the pixel has no part in are differentiated as if it were not there.
            delta = torch.where(tensor(hit), torch.zeros_like(got), 1.0)
            grad = torch.autograd.grad(got, a, delta.to(got.device))[0]
            reached = np.zeros((13, 15), bool)
            reached[max(0, place[0] - 3) : place[0] + 4, max(0, place[1] - 2) : place[1] + 3] = True
            assert np.isfinite(array(grad)[~reached]).all()


OPTIONS = (
    {},
    {"border": "zeros", "weights": "gaussian"},
    {"border": "valid", "weights": "triangle", "stride": (2, 1), "eps": 0.1},
    {"channels": "joint", "squared": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives(options):
    a, b = draw((2, 6, 5)).requires_grad_(), draw((2, 6, 5), seed=1).requires_grad_()
    mask, fixed = (mask_of((2, 6, 5)) + 0.1).requires_grad_(), mask_of((6, 5)).round()

    def masked(a, b, mask):
        return torchcorr.lncc(a, b, (3, 2), mask_a=mask, mask_b=fixed, **options)

    def plain(a, b):
        return torchcorr.lncc(a, b, (3, 4), **options)

    for call, leaves in ((masked, (a, b, mask)), (plain, (a, b))):
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("ndim", (1, 3))
def test_derivatives_of_lines_and_volumes(ndim):
    size = (2, 11) if ndim == 1 else (4, 3, 4)
    a, b = draw(size).requires_grad_(), draw(size, seed=1).requires_grad_()
    mask = (mask_of(size) + 0.1).requires_grad_()

    def call(a, b, mask):
        return torchcorr.lncc(a, b, 3, ndim=ndim, weights="gaussian", mask_b=mask)

    assert torch.autograd.gradcheck(call, (a, b, mask))
    assert torch.autograd.gradgradcheck(call, (a, b, mask))
    assert torch.autograd.gradcheck(lambda b: call(a.detach(), b, mask.detach()), b)
    assert torch.autograd.gradcheck(lambda mask: call(a.detach(), b.detach(), mask), mask)


@pytest.mark.parametrize("masked", (False, True))
def test_float32_gradients_on_the_torture_list(masked):
    for case in torture.cases(np.float32):
        window = tuple(min(5, n) for n in case.image.shape)
        inputs = [case.image, other_of(case.image)]
        if masked:
            inputs.append(array(mask_of(case.image.shape)))
        found = []
        for dtype in (torch.float64, torch.float32):
            leaves = [tensor(x, torch.float32).to(dtype).requires_grad_() for x in inputs]
            mask = leaves[2] if masked else None
            score = torchcorr.lncc(*leaves[:2], window, weights="gaussian", mask_a=mask)
            delta = draw(tuple(score.shape), seed=5).sub(0.5).to(torch.float32)
            found.append(torch.autograd.grad(score, leaves, delta.to(dtype)))
        for exact, got in zip(*found, strict=True):
            assert got.isfinite().all(), case.name
            error = (got - exact).abs().max()
            assert error <= GRADIENT_OF_FLOAT32 * exact.abs().max(), case.name


# Gradients of large inputs go slab by slab along the first axis, of small ones many at once.
SLABS = {
    "1d": ((1, 60_000), (5,), (2,)),
    "1d-many": ((300, 1, 200), (5,), (1,)),
    "2d": ((1, 900, 300), (9, 5), (1, 1)),
    "2d-few-rows": ((1, 24, 12_000), (9, 3), (1, 1)),
    "2d-stride-past-window": ((1, 2400, 400), (2, 3), (3, 2)),
    "3d-joint": ((2, 90, 60, 50), (5, 3, 2), (2, 1, 1)),
    "1d-large": ((1, 60_000), (31,), (2,)),
    "2d-large": ((1, 900, 300), (21, 5), (1, 1)),
    "2d-large-stride": ((2, 2, 61, 77), (20, 21), (2, 3)),
    "3d-large": ((1, 60, 50, 60), (5, 17, 2), (1, 1, 1)),
}


@pytest.mark.parametrize("border", ["renormalize", "valid"])
@pytest.mark.parametrize("shape, window, stride", SLABS.values(), ids=SLABS)
def test_gradients_in_slabs(shape, window, stride, border):
    a, b, mask = draw(shape), draw(shape, seed=1), mask_of(shape)
    for weight in (None, mask):
        weights = "box" if max(window) > 15 else "triangle"
        place = (window_taps(weights, window), window, stride, border, 0.01)
        score = definition.weighted_lncc(a, b, weight, *place)
        delta = draw(tuple(score.shape), seed=2) - 0.5
        got = ops.weighted_lncc(a, b, weight, *place)
        assert float((got - score).abs().max()) <= SCORE[a.dtype]
        needed = [True, True, weight is not None]
        args = (delta, a, b, weight, *place)
        want = definition.weighted_lncc_grads(*args, needed)
        found = [list(ops.weighted_lncc_grads(*args, needed))]
        for i in range(3 if weight is not None else 2):
            alone = ops.weighted_lncc_grads(*args, [i == j for j in range(3)])
            assert all(x.numel() == 0 for j, x in enumerate(alone) if j != i)
            found.append([alone[j] if i == j else None for j in range(3)])
        for grads in found:
            for exact, one in zip(want, grads, strict=True):
                if one is not None and exact.numel() > 0:
                    assert float((one - exact).abs().max()) <= 1e-10 * float(exact.abs().max())


def test_compiled_batched_and_differentiated_by_functions():
    a, b = draw((3, 9, 10)).requires_grad_(), draw((3, 9, 10), seed=1).requires_grad_()
    mask = mask_of((9, 10))

    def call(a, b):
        return torchcorr.lncc(a, b, (4, 3), weights="gaussian", mask_a=mask)

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
    for name in ("mask_a", "mask_b"):
        for mask, kind, words in (
            (-a, ValueError, (name, "negative")),
            (a * torch.nan, ValueError, (name, "finite")),
            (a / 0, ValueError, (name, "finite")),
            (torch.ones(4, 6), ValueError, (name, "(4, 6)", "(4, 5)")),
            (a.to(torch.complex64), TypeError, (name, "complex64")),
            (np.ones((4, 5)), TypeError, (name, "ndarray")),
            (a.to("meta"), ValueError, (name, "meta")),
        ):
            with pytest.raises(kind, match=says(*words)):
                torchcorr.lncc(a, a, 3, **{name: mask})
    with pytest.raises(ValueError, match=says("the input", "mask_b", "(2,)", "(3,)")):
        torchcorr.lncc(a, torch.ones(2, 4, 5), 3, mask_b=torch.ones(3, 4, 5))
    for make in (torchcorr.lncc, torchcorr.nn.LNCCLoss):
        args = (a, a, 3) if make is torchcorr.lncc else (3,)
        with pytest.raises(ValueError, match=says("border", "reflect")):
            make(*args, border="reflect")
        with pytest.raises(ValueError, match=says("weights", "hann")):
            make(*args, weights="hann")


def ramp(n, ndim, channels=1):
    shape = (1, 1, n, *(1,) * (ndim - 1))
    return torch.arange(n, dtype=torch.float32).reshape(shape).expand(1, channels, *(n,) * ndim)


# The losses and the numbers of MONAI's own test of its loss, and of its later ones for Gaussians.
MONAI = (
    ((3, 1), 1, 3, "box", "sum", -3.0),
    ((3, 1), 1, 3, "box", "mean", -1.0),
    ((6, 1), 1, 3, "triangle", "mean", 0.0),
    ((3, 2), 1, 3, "box", "mean", -1.0),
    ((3, 3), 1, 3, "box", "mean", -1.0),
    ((3, 3, 3), 2, 3, "box", "mean", -0.95801723),
    ((5, 3, 3), 2, 5, "triangle", "mean", -0.918672),
    ((3, 3, 3), 2, 3, "gaussian", "mean", -0.95406944),
    ((5, 1), 1, 5, "gaussian", "mean", -1.0),
    ((9, 1), 1, 9, "gaussian", "mean", -1.0),
)


@pytest.mark.parametrize("size, power, window, weights, reduction, expected", MONAI)
def test_the_numbers_of_monai(size, power, window, weights, reduction, expected):
    # The loss that is 0 is that of zeros.
    a = ramp(*size) * (expected != 0)
    ndim = a.dim() - 2
    loss = torchcorr.nn.LNCCLoss(
        window, ndim=ndim, border="zeros", weights=weights, squared=True, reduction=reduction
    )
    ours = float(loss(a, a**power)) - (a.numel() if reduction == "sum" else 1)
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)


def voxelmorph(a, b, window):
    """Its formula, with sums of products: (batch, 1, *size) of two volumes, zeros around."""
    filters = torch.ones(1, 1, *(window,) * 3, dtype=a.dtype)
    sums = [
        torch.nn.functional.conv3d(x, filters, padding=window // 2)
        for x in (a, b, a * a, b * b, a * b)
    ]
    sum_a, sum_b, square_a, square_b, product = sums
    size = window**3
    cross = product - sum_a * sum_b / size
    var_a, var_b = square_a - sum_a**2 / size, square_b - sum_b**2 / size
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


def test_the_loss_of_voxelmorph():
    a, b = draw((2, 1, 11, 12, 10)), draw((2, 1, 11, 12, 10), seed=1)
    loss = torchcorr.nn.LNCCLoss(9, border="zeros", squared=True)
    torch.testing.assert_close(loss(a, b) - 1, voxelmorph(a, b, 9), atol=1e-6, rtol=0)


def test_losses_with_masks():
    a, b = draw((2, 7, 8, 6)).requires_grad_(), draw((2, 7, 8, 6), seed=1)
    mask = mask_of((7, 8, 6))
    loss = torchcorr.nn.LNCCLoss(5, weights="triangle", squared=True, reduction="none")
    got = loss(a, hidden(b, mask), input_mask=mask, target_mask=mask)
    exact = oracle.lncc(array(a), array(b), 5, ndim=3, weights="triangle", mask=array(mask) ** 2)
    near(got, 1 - exact**2, a.dtype)
    assert "border='renormalize', weights='triangle'" in repr(loss)


def test_several_scales_by_the_recipe():
    a = draw((1, 1, 24, 26, 20)).requires_grad_()
    b, loss = draw((1, 1, 24, 26, 20), seed=1), torchcorr.nn.LNCCLoss(5)
    pool = torch.nn.functional.avg_pool3d
    same = sum(loss(pool(a, s), pool(3 * a + 1, s)) for s in (1, 2, 4))
    assert float(same.detach()) < 1e-6
    total = sum(loss(pool(a, s), pool(b, s)) for s in (1, 2, 4))
    assert torch.autograd.grad(total, a)[0].abs().min() > 0
