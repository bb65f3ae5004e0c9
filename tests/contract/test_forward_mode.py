"""Forward mode: tangents are those of finite differences, second derivatives those of reverse."""

from __future__ import annotations

import pytest
import torch
from inputs import draw, normal
from tolerances import GRADIENT_OF_FLOAT32
from torch.autograd import forward_ad, gradcheck

import torchcorr

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
IMAGE, TEMPLATES = (2, 5, 4), (2, 1, 3, 2)


def of_pair(name, **options):
    return lambda x, y: getattr(torchcorr, name)(x, y, **options)


def of_windows(name, window=(3, 2), **options):
    return lambda x: getattr(torchcorr, name)(x, window, **options)


# A function of tensors, and their shapes.
CALLS = {
    "correlate": (of_pair("correlate", mode="full"), (IMAGE, TEMPLATES)),
    "convolve-fft": (of_pair("convolve", method="fft", stride=(1, 2)), (IMAGE, TEMPLATES)),
    "conv2d": (of_pair("conv2d", stride=2, groups=2), ((1, 2, 5, 4), (4, 1, 3, 2))),
    "zncc": (of_pair("zncc"), (IMAGE, TEMPLATES)),
    "zncc-fft-same": (of_pair("zncc", method="fft", mode="same", eps=0.1), (IMAGE, TEMPLATES)),
    "zncc-pooled": (of_pair("zncc", channels="pooled", stride=2), ((2, 5, 4), (2, 3, 2))),
    "ncc": (of_pair("ncc", stride=(1, 2)), (IMAGE, TEMPLATES)),
    "ncc-fft": (of_pair("ncc", method="fft", channels="pooled"), ((2, 5, 4), (3, 2, 3, 2))),
    "local_sum": (of_windows("local_sum", mode="same"), (IMAGE,)),
    "local_mean": (of_windows("local_mean", stride=2), (IMAGE,)),
    "local_var": (of_windows("local_var", correction=1), (IMAGE,)),
    "local_std": (of_windows("local_std", correction=1, eps=0.2), (IMAGE,)),
    "lncc": (of_pair("lncc", window=(3, 2)), (IMAGE, IMAGE)),
    "lncc-valid": (of_pair("lncc", window=3, border="valid", eps=0.1), (IMAGE, IMAGE)),
    "lncc-masks": (
        lambda a, b, mask: torchcorr.lncc(a, b, 3, stride=2, mask_a=mask.square()),
        (IMAGE, IMAGE, IMAGE),
    ),
    "zncc-masks": (
        lambda x, t, mask, other: torchcorr.zncc(
            x, t, input_mask=mask.square(), template_mask=other.square()
        ),
        (IMAGE, (3, 2), IMAGE, (3, 2)),
    ),
    "local_std-weights": (
        lambda x, mask, w: torchcorr.local_std(x, w.square(), input_mask=mask.square()),
        (IMAGE, IMAGE, (3, 2)),
    ),
    "local_var-ignore": (
        lambda x, mask: torchcorr.local_var(
            x, 3, input_mask=mask.square(), mode="same", pad_mode="ignore"
        ),
        (IMAGE, IMAGE),
    ),
}
each_call = pytest.mark.parametrize(("call", "shapes"), CALLS.values(), ids=CALLS)


def tensors(shapes):
    return tuple(normal(*shape, seed=seed) for seed, shape in enumerate(shapes))


@each_call
def test_finite_differences(call, shapes):
    leaves = [x.requires_grad_() for x in tensors(shapes)]
    assert gradcheck(call, leaves, check_forward_ad=True, check_backward_ad=False, fast_mode=True)


@each_call
def test_jacobians_of_either_mode(call, shapes):
    args, which = tensors(shapes), tuple(range(len(shapes)))
    both = (transform(call, which)(*args) for transform in (torch.func.jacfwd, torch.func.jacrev))
    for forward, reverse in zip(*both, strict=True):
        torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12)


@each_call
def test_second_derivatives(call, shapes):
    """Forward over reverse, and forward over forward, against reverse over reverse."""
    args, last = tensors(shapes), len(shapes) - 1

    def total(*args):
        return call(*args).pow(3).mean()

    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    expected = reverse(reverse(total, last), 0)(*args)
    for outer, inner in ((forward, reverse), (forward, forward), (reverse, forward)):
        got = outer(inner(total, last), 0)(*args)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@each_call
def test_dual_numbers(call, shapes):
    args = tensors(shapes)
    steps = tuple(x.cos() for x in args)
    out, expected = torch.func.jvp(call, args, steps)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(call(*map(forward_ad.make_dual, args, steps)))
    torch.testing.assert_close(got.primal, out)
    torch.testing.assert_close(got.tangent, expected)


@pytest.mark.parametrize("border", ["renormalize", "valid"])
def test_flat_windows_of_either_input_have_no_tangent(border):
    a, b = draw((8, 9)), draw((8, 9), seed=1)
    a[:4, :5] = 0.3
    call = of_pair("lncc", window=3, border=border)
    out, tangent = torch.func.jvp(call, (a, b), (draw((8, 9), seed=2), draw((8, 9), seed=3)))
    assert (out == 0).any() and (tangent[out == 0] == 0).all() and (tangent[out != 0] != 0).all()
    assert torch.func.hessian(lambda a: call(a, b).square().sum())(a).isfinite().all()


@pytest.mark.parametrize("name", ["zncc", "local_var", "local_std"])
def test_flat_windows_have_no_tangent(name):
    x, t = draw((8, 9)), draw((3, 3), seed=1)
    x[1:6, 2:8] = 0.3
    call = of_pair(name) if name == "zncc" else of_windows(name, 3)
    args = (x, t) if name == "zncc" else (x,)
    _, tangent = torch.func.jvp(call, args, tuple(draw(a.shape, seed=2) for a in args))
    flat = torchcorr.flat_windows(x, 3)
    assert flat.any() and (tangent[flat] == 0).all() and (tangent[~flat] != 0).all()
    twice = torch.func.hessian(lambda x: call(x, *args[1:]).square().sum())(x)
    assert twice.isfinite().all()


@pytest.mark.parametrize("name", ["zncc", "ncc"])
def test_flat_templates_have_no_tangent(name):
    flat = torch.full_like(draw((3, 3)), 0.7) if name == "zncc" else torch.zeros_like(draw((3, 3)))
    steps = draw((8, 9), seed=1), draw((3, 3), seed=2)
    out, tangent = torch.func.jvp(of_pair(name), (draw((8, 9)), flat), steps)
    assert not out.any() and not tangent.any()


@pytest.mark.parametrize("name", ["zncc", "local_std"])
def test_float32_tangents_at_an_offset(name):
    """The same float32 data in both precisions, on an offset of 1e4."""
    x, t = draw((20, 21), torch.float32) + 1e4, draw((5, 4), torch.float32, 1)
    call = of_pair(name) if name == "zncc" else of_windows(name, 3)
    args = (x, t) if name == "zncc" else (x,)
    steps = tuple(draw(a.shape, torch.float32, seed=2) for a in args)
    narrow = torch.func.jvp(call, args, steps)[1]
    wide = torch.func.jvp(call, *(tuple(a.double() for a in part) for part in (args, steps)))[1]
    assert narrow.dtype == torch.float32
    error = (narrow - wide).abs().max() / wide.abs().max()
    assert error < GRADIENT_OF_FLOAT32
