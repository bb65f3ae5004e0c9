"""Every operator passes opcheck; a list shows that none is left out."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from inputs import METHODS, draw
from samples import SAMPLES
from torch import Tensor

import torchcorr
from torchcorr import _contract


def moved(x, device):
    """A leaf on another device that requires a gradient if x does."""
    return x.detach().to(device).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s[0]}-{s[1][0].dtype}")
def test_opcheck(sample, device):
    name, args = sample
    args = [moved(x, device) if isinstance(x, Tensor) else x for x in args]
    with warnings.catch_warnings():
        # opcheck itself touches deprecated corners of PyTorch.
        warnings.simplefilter("ignore")
        torch.library.opcheck(getattr(torch.ops.torchcorr, name).default, args)


DIFFERENTIABLE = [
    s for s in SAMPLES if any(isinstance(x, Tensor) and x.requires_grad for x in s[1])
]


def gradients(operator, args, device):
    args = [moved(x, device) if isinstance(x, Tensor) else x for x in args]
    wanted = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    result = operator(*args)
    results = result if isinstance(result, tuple) else (result,)
    weights = (torch.arange(y.numel()).to(y).reshape(y.shape) for y in results)
    total = sum((y * w).real.sum() for y, w in zip(results, weights, strict=True))
    first = torch.autograd.grad(total, wanted, create_graph=True, materialize_grads=True)
    again = [x for x in first if x.requires_grad]
    if not again:
        return first, ()
    power = sum((x * x.conj()).real.sum() for x in again)
    return first, torch.autograd.grad(power, wanted, materialize_grads=True)


@pytest.mark.parametrize("sample", DIFFERENTIABLE, ids=lambda s: f"{s[0]}-{s[1][0].dtype}")
def test_calls_that_autograd_records_have_the_gradients_of_the_registered_operator(sample, device):
    name, args = sample
    operator = next(o for o in _contract.OPERATORS if o.name == name)
    for one, other in zip(
        gradients(operator, args, device), gradients(operator.kernel, args, device), strict=True
    ):
        assert len(one) == len(other)
        for x, y in zip(one, other, strict=True):
            assert torch.equal(x, y)


class Marked(Tensor):
    """A subclass, whose rules for operators PyTorch's dispatcher calls."""

    called = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.called = (*cls.called, function)
        return super().__torch_function__(function, types, args, kwargs)


def test_a_subclass_sees_the_operator(monkeypatch):
    monkeypatch.setattr(Marked, "called", ())
    image = draw((9, 9)).as_subclass(Marked).requires_grad_()
    torchcorr.zncc(image, draw((3, 3), seed=1)).sum().backward()
    assert torch.ops.torchcorr.ncc.default in Marked.called


class Scorer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.template = torch.nn.Parameter(draw((3, 3), seed=1))

    def forward(self, image):
        return torchcorr.zncc(image, self.template)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_module_that_learns_calls_the_operator():
    """Not Python, which cannot be stored."""
    layer, image, stored = Scorer(), draw((9, 9)), io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, image), stored)
    stored.seek(0)
    loaded = torch.jit.load(stored)
    for model in (layer, loaded):
        model(image).sum().backward()
    torch.testing.assert_close(loaded(image), layer(image), rtol=0, atol=0)
    torch.testing.assert_close(loaded.template.grad, layer.template.grad, rtol=0, atol=0)


def test_every_operator_has_a_sample():
    names = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torchcorr::")
    }
    assert names == {name for name, _ in SAMPLES}


def test_the_input_is_never_written():
    image, template = draw((9, 9)), draw((3, 3), seed=1)
    before = image.clone(), template.clone()
    for name in ("correlate", "convolve", "zncc", "ncc"):
        for method in METHODS:
            getattr(torchcorr, name)(image, template, method=method)
    for name in ("local_sum", "local_mean", "local_var", "local_std"):
        getattr(torchcorr, name)(image, 3)
    assert torch.equal(image, before[0])
    assert torch.equal(template, before[1])
