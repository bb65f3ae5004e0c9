"""Spectra of weights that layers keep: made once, never stale, and not while they learn."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from inputs import draw

import torchcorr
from torchcorr import _prepared
from torchcorr._plan import conv as plan

pytestmark = [
    pytest.mark.cpu_only("layers on a GPU are PyTorch's"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]
# A layer and its input for which spectra are the quickest way.
KINDS = {
    "Conv1d": ((4, 4, 301), {}, (4, 3000)),
    "Conv2d": ((8, 8, 31), {"padding": 15}, (8, 90, 90)),
    "Conv3d": ((8, 16, 9), {}, (8, 24, 24, 24)),
    "ConvTranspose1d": ((4, 4, 301), {}, (4, 3000)),
    "ConvTranspose2d": ((8, 8, 31), {}, (8, 90, 90)),
    "ConvTranspose3d": ((8, 16, 9), {}, (8, 20, 20, 20)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def spectra(monkeypatch):
    """Every layer by spectra, and a list that grows by one whenever those of a weight are made."""
    made = []
    real = _prepared.weight_spectra
    monkeypatch.setattr(_prepared, "weight_spectra", lambda *a: made.append(1) or real(*a))
    chosen = plan.Way("spectra", ())
    for module in (_prepared, torchcorr.convolution, torchcorr._cpu.conv):
        monkeypatch.setattr(module, "way_of", lambda *_: chosen)
    torchcorr.convolution._chosen.cache_clear()
    yield made
    torchcorr.convolution._chosen.cache_clear()


def layer_of(kind="Conv2d", dtype=torch.float32, **options):
    """A layer in eval mode whose values do not depend on the tests before, and an input."""
    sizes, more, shape = KINDS[kind]
    layer = getattr(torchcorr.nn, kind)(*sizes, **{**more, **options}, dtype=dtype).eval()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = draw(tuple(parameter.shape), dtype, seed=i) - 0.5
    return layer, draw((1, *shape), dtype, seed=7)


def function_of(layer):
    """What the layer computes, of the weight that it has now."""
    name = type(layer).__name__.lower().replace("transpose", "_transpose")
    how = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    how["dilation"] = layer.dilation
    return lambda x: getattr(torchcorr, name)(x, layer.weight, layer.bias, **how)


@each_kind
@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2}, {"dilation": 2}])
def test_several_images_pay_for_the_weight_once(kind, options, spectra):
    layer, x = layer_of(kind, **options)
    with torch.no_grad():
        for scale in (1.0, -2.0, 0.5):
            assert torch.equal(layer(scale * x), function_of(layer)(scale * x))
    assert len(spectra) == 1
    close = {"rtol": 0, "atol": 2e-4}
    theirs = copy.deepcopy(layer)
    theirs.__class__ = getattr(torch.nn, kind)
    torch.testing.assert_close(layer(x).detach(), theirs(x).detach(), **close)


def assign(layer, w):
    layer.weight = torch.nn.Parameter(w)


CHANGES = {
    "in place": lambda layer, w: layer.weight.copy_(w),
    "data": lambda layer, w: layer.weight.data.copy_(w),
    "new data": lambda layer, w: setattr(layer.weight, "data", w),
    "assign": assign,
    "load": lambda layer, w: layer.load_state_dict({**layer.state_dict(), "weight": w}),
    "through a view": lambda layer, w: layer.weight.detach().view(-1)[3:4].add_(1.0),
    "dtype": lambda layer, w: layer.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ("Conv2d", "ConvTranspose2d"))
def test_a_changed_weight_is_never_stale(kind, change, spectra):
    layer, x = layer_of(kind)
    with torch.no_grad():
        before = layer(x)
        CHANGES[change](layer, draw(tuple(layer.weight.shape), torch.float32, seed=5) - 0.5)
        x = x.to(layer.weight.dtype)
        after = layer(x)
        assert torch.equal(after, function_of(layer)(x))
        assert not torch.equal(after, before)
    assert len(spectra) == 2


def test_nothing_is_kept_while_a_weight_learns(spectra):
    layer, x = layer_of()
    layer(x)  # in eval mode, but the gradient of the weight is recorded
    assert layer._prepared is None
    with torch.no_grad():
        layer(x)
        assert layer._prepared is not None
        layer.train()
        assert layer._prepared is None
        layer(x)
        assert layer._prepared is None
        layer.eval()(x)
        assert layer._prepared is not None
    layer(x)
    assert layer._prepared is None
    assert len(spectra) == 2


@pytest.mark.parametrize("kind", ("Conv2d", "ConvTranspose2d"))
def test_gradients_of_the_input_of_a_frozen_layer(kind, spectra):
    layer, x = layer_of(kind, torch.float64)
    layer.requires_grad_(False)
    with torch.inference_mode():
        layer(x)
    x.requires_grad_()
    weight = draw(tuple(layer(x).shape), seed=3)
    results = []
    for f in (layer, function_of(layer)):
        (grad,) = torch.autograd.grad(f(x).square(), x, weight, create_graph=True)
        results += [grad, torch.autograd.grad(grad.square().sum(), x)[0]]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert len(spectra) == 1
    half = torch.func.jvp(layer, (x.detach(),), (x.detach().cos(),))[1]
    theirs = torch.func.jvp(function_of(layer), (x.detach(),), (x.detach().cos(),))[1]
    assert torch.equal(half, theirs)


def test_dual_numbers_outside_of_transforms(spectra):
    layer, x = layer_of(dtype=torch.float64)
    layer.requires_grad_(False)
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        got, expected = (forward_ad.unpack_dual(f(dual)) for f in (layer, function_of(layer)))
    assert torch.equal(got.tangent, expected.tangent) and torch.equal(got.primal, expected.primal)
    assert len(spectra) == 1


def test_kept_spectra_are_neither_state_nor_copied():
    layer, x = layer_of()
    with torch.no_grad():
        want = layer(x)
        saved = io.BytesIO()
        torch.save(layer, saved)
        saved.seek(0)
        others = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer))
        for other in (*others, torch.load(saved, weights_only=False)):
            assert other._prepared is None
            assert torch.equal(other(x), want)
    assert layer._prepared.kept is not None
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(layer.buffers()) == [] and len(list(layer.parameters())) == 2
    assert len(pickle.dumps(layer)) < 2 * layer.weight.numel() * 4


def test_images_of_other_sizes_and_converted_networks(spectra):
    layer, x = layer_of()
    network = torchcorr.nn.convert(torch.nn.Sequential(torch.nn.Conv2d(8, 8, 31)).eval())
    with torch.no_grad():
        for size in (90, 200, 45, 90):
            seen = x[..., :size, :size].repeat(1, 1, 3, 3)[..., :size, :size]
            assert torch.equal(layer(seen), function_of(layer)(seen))
            assert torch.equal(network(seen), function_of(network[0])(seen))
    assert network[0]._prepared.kept is not None


def test_more_than_the_room_for_spectra_is_not_kept(spectra, monkeypatch):
    layer, x = layer_of()
    monkeypatch.setattr(plan, "WEIGHT_BYTES", 1 << 16)
    with torch.no_grad():
        assert torch.equal(layer(x), function_of(layer)(x))
    assert layer._prepared.kept is None and spectra == []


@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn
def test_compiled_and_mapped_layers_keep_nothing(spectra):
    layer, x = layer_of()
    layer.requires_grad_(False)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    mapped = torch.func.vmap(layer)(x[None])
    assert torch.equal(mapped[0], layer(x))
    assert len(spectra) == 1
