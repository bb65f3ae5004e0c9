"""Gradients of scores by the loop for many channels and templates, against their definitions."""

from __future__ import annotations

import pytest
import torch
from inputs import draw
from tolerances import GRADIENT_OF_FLOAT32

import torchcorr
from torchcorr._cpu import dense_grads
from torchcorr._definition import scores as definition
from torchcorr._definition.scores import ScoreGradCall

# Items, channels, size; templates, window; stride.
CASES = (
    ((3, 1, 5, 14, 17), (9, 5, 3, 4), (1, 1)),
    ((2, 1, 6, 13, 12), (17, 6, 4, 3), (2, 1)),
    ((1, 4, 60), (8, 4, 7), (1,)),
    ((2, 1, 4, 7, 6, 8), (8, 4, 2, 3, 3), (1, 1, 1)),
)
BOUND = {torch.float32: GRADIENT_OF_FLOAT32, torch.float64: 1e-9}


def call_of(case, dtype, zero_mean=True, offset=0.0):
    shape, window, stride = case
    input = draw(shape, dtype) + offset
    template = definition.standardise(draw(window, seed=1), len(stride), zero_mean)
    how = (stride, zero_mean, 0.0)
    score = definition.ncc(input.double(), template, *how, "direct")
    grad = (draw(tuple(score.shape), seed=2) - 0.5).to(dtype)
    return ScoreGradCall(grad, input, template, score.to(dtype), *how, "auto", True, True)


def error(got, want):
    return float((got.double() - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("zero_mean", (True, False))
def test_one_mean_or_none(case, dtype, zero_mean):
    call = call_of(case, dtype, zero_mean)
    wide = (x.double() for x in (call.grad, call.input, call.template, call.score))
    how = (call.stride, zero_mean, 0.0, "direct", True, True)
    exact = definition.ncc_grads(*wide, *how)
    for got, want in zip(dense_grads.score_grads(call, False), exact, strict=True):
        assert error(got, want) <= BOUND[dtype]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("offset", (0.0, 1e4))
@pytest.mark.parametrize("channels", ("joint", "pooled"))
def test_through_the_public_function(case, dtype, offset, channels, monkeypatch):
    """Both engines' gradients, the second by transforms or differences of sums."""
    shape, window, stride = case
    raw = (draw(shape, dtype) + offset, draw(window, dtype, seed=1))
    how = {"ndim": len(stride), "stride": stride, "channels": channels, "eps": 1e-3}

    def grads(worth, *pair):
        monkeypatch.setattr(dense_grads, "is_worth", lambda *of: worth)
        leaves = [x.clone().requires_grad_() for x in pair]
        score = torchcorr.zncc(*leaves, **how)
        return torch.autograd.grad(
            (score * (draw(tuple(score.shape), dtype, seed=2) - 0.5)).sum(), leaves
        )

    exact = grads(False, *(x.double() for x in raw))
    for got, want in zip(grads(True, *raw), exact, strict=True):
        assert error(got, want) <= max(BOUND[dtype], 1e-13 * offset**2)


def test_sums_that_cancel_are_computed_in_float64():
    """All templates are alike but for their signs, and so is the upstream gradient."""
    call = call_of(((2, 1, 4, 20, 20), (8, 4, 3, 3), (1, 1)), torch.float32)
    template = call.template[:1] * torch.tensor([1.0, -1.0] * 4)[:, None, None, None]
    score = definition.ncc(call.input.double(), template, (1, 1), True, 0.0, "direct")
    grad = torch.ones_like(call.grad) + 1e-6 * call.grad
    how = ((1, 1), True, 0.0, "auto", True, True)
    got = dense_grads.score_grads(
        ScoreGradCall(grad, call.input, template, score.float(), *how), False
    )
    wide = (grad.double(), call.input.double(), template, score.float().double())
    exact = definition.ncc_grads(*wide, (1, 1), True, 0.0, "direct", True, True)
    assert error(got[1], exact[1]) <= GRADIENT_OF_FLOAT32


@pytest.mark.parametrize("channels", ("joint", "pooled"))
@pytest.mark.parametrize("stride", (1, (2, 1)))
def test_an_upstream_gradient_of_a_sum_stays_in_float32(channels, stride, monkeypatch):
    """What all positions have in common is taken out of the sums, which would cancel it."""
    taken = []
    loop = dense_grads.steps.correlate_direct_template_grad
    monkeypatch.setattr(dense_grads, "is_worth", lambda *of: True)
    monkeypatch.setattr(
        dense_grads.steps,
        "correlate_direct_template_grad",
        lambda *args: taken.append(args[0].dtype) or loop(*args),
    )
    raw = (draw((6, 1, 16, 40, 42), torch.float32), draw((32, 16, 5, 4), torch.float32, seed=1))

    def grads(pair):
        leaves = [x.clone().requires_grad_() for x in pair]
        score = torchcorr.zncc(*leaves, channels=channels, stride=stride)
        return torch.autograd.grad(score.sum(), leaves)

    got = grads(raw)
    assert taken == [torch.float32]
    for ours, exact in zip(got, grads([x.double() for x in raw]), strict=True):
        assert error(ours, exact) <= GRADIENT_OF_FLOAT32


def test_flat_windows_and_templates_have_no_gradient():
    input, template = draw((2, 1, 4, 30, 30)), draw((16, 4, 3, 3), seed=1)
    input[..., 4:14, 4:14], template[0] = 0.7, 0.3
    leaves = [x.requires_grad_() for x in (input, template)]
    for channels in ("joint", "pooled"):
        score = torchcorr.zncc(*leaves, channels=channels)
        assert not score[:, 0].any() and not score[..., 4:12, 4:12].any()
        of_flat = torch.autograd.grad(score[..., 4:12, 4:12].sum(), leaves, retain_graph=True)
        assert not any(x.any() for x in of_flat)
        assert not torch.autograd.grad(score.sum(), template)[0][0].any()


def test_the_loop_is_chosen_for_a_dense_layer():
    call = call_of(((2, 1, 16, 20, 20), (64, 16, 3, 3), (1, 1)), torch.float32)
    assert dense_grads.is_worth(call)
    large = call._replace(input=draw((1, 1, 300, 300)), template=draw((8, 1, 64, 64)))
    assert not dense_grads.is_worth(large)
