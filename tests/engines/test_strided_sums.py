"""Sums with a stride over sub-lattices: the same numbers, where they take less time."""

from __future__ import annotations

import math

import pytest
import torch
from inputs import draw
from torch import Tensor

import torchcorr
from torchcorr import _contract
from torchcorr._cpu import correlate as engine
from torchcorr._cpu import strided
from torchcorr._definition import correlate as definition

# Shapes in normal form: the case of docs/math.md, windows that a stride does not divide, strides
# larger than the window, pairs, and leading axes that broadcast.
CASES = {
    "4x4, 2x2, stride 2": ((1, 4, 4), (1, 2, 2), (2, 2)),
    "1d": ((2, 3, 57), (3, 8), (3,)),
    "2d": ((2, 2, 19, 23), (2, 5, 4), (2, 3)),
    "2d, sparse": ((1, 17, 19), (2, 1, 2, 3), (4, 2)),
    "2d, one axis": ((1, 12, 13), (1, 4, 5), (1, 2)),
    "2d, pairs": ((2, 1, 2, 14, 15), (2, 3, 2, 6, 3), (2, 2)),
    "3d": ((2, 9, 10, 11), (2, 3, 4, 2), (2, 2, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("size", "window", "stride"), CASES.values(), ids=CASES)
def test_they_are_the_definition(size, window, stride, dtype):
    x, w = draw(size, dtype), draw(window, dtype, 1)
    leaves = [y.double().clone().requires_grad_() for y in (x, w)]
    want = definition.correlate(*leaves, stride, "direct")
    grad = draw(want.shape, dtype, 2)
    exact = torch.autograd.grad(want, leaves, grad.double())
    sizes = definition.correlate(x.double().abs(), w.double().abs(), stride, "direct")
    got = strided.correlate(x, w, stride, engine.correlate)
    assert got.dtype == dtype and got.shape == want.shape
    assert ((got - want.detach()).abs() <= 8 * torch.finfo(dtype).eps * sizes).all()
    grads = (
        strided.correlate_input_grad(grad, w, size, stride, engine.correlate_input_grad),
        strided.correlate_template_grad(grad, x, window, stride, engine.correlate_template_grad),
    )
    for got, want in zip(grads, exact, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        bound = 32 * torch.finfo(dtype).eps * float(want.abs().max())
        assert float((got - want).abs().max()) <= bound


def test_they_are_taken_where_the_plan_says_so(monkeypatch):
    x, w = draw((1024, 1024), torch.float32), draw((200, 200), torch.float32, 1)
    plan = torchcorr.plan(x, w, stride=2, normalised=False)
    whole = torchcorr.plan(x, w, normalised=False)
    assert plan.method == "fft" and plan.cost < whole.cost
    assert math.prod(plan.transform) * plan.tiles < math.prod(whole.transform) * whole.tiles
    called = []
    for name in ("correlate", "correlate_input_grad", "correlate_template_grad"):

        def count(*args: object, name: str = name, real: object = getattr(strided, name)) -> Tensor:
            called.append(name)
            return real(*args)

        monkeypatch.setattr(strided, name, count)
    x.requires_grad_(), w.requires_grad_()
    out = torchcorr.correlate(x, w, stride=2)
    exact = torchcorr.correlate(
        x.detach().double(), w.detach().double(), method="direct", stride=40
    )
    assert float((out.detach()[::20, ::20] - exact).abs().max()) <= 8 * 2.0**-24 * float(
        exact.max()
    )
    torch.autograd.grad(out.sum(), (x, w))
    assert set(called) == {"correlate", "correlate_input_grad", "correlate_template_grad"}


def test_what_is_not_finite_stays_in_its_windows():
    """A window whose sides the stride does not divide has zeros added to it, not elements."""
    x, w = draw((400, 400), torch.float32), draw((129, 129), torch.float32, 1)
    x[129, 60] = float("nan")  # below the first row of windows
    got = torchcorr.correlate(x, w, stride=2, method="fft")
    seen = torchcorr.correlate(x, w, stride=2, method="direct")
    assert torch.equal(got.isnan(), seen.isnan())
    assert not got[0].isnan().any() and got[1].isnan().any()
    assert _contract.correlate.kernels()
