"""Modules of convolution layers, converted networks, and the transforms of PyTorch."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from inputs import draw, normal
from test_conv import METHODS, close, forced  # noqa: F401

import torchcorr

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
KINDS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
each_kind = pytest.mark.parametrize("kind", KINDS)


def layer_pair(kind, **options):
    """PyTorch's module and ours with its state."""
    theirs = getattr(torch.nn, kind)(4, 6, 5, dtype=torch.float64, **options)
    ours = getattr(torchcorr.nn, kind)(4, 6, 5, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("method", METHODS[1:])
@each_kind
def test_modules_are_those_of_pytorch(kind, method, forced):  # noqa: F811
    forced(method)
    x = draw((2, 4, *(13, 12, 9)[: int(kind[-2])]))
    options = [{}, {"stride": 2, "padding": 3}, {"groups": 2, "dilation": 2, "bias": False}]
    if "Transpose" in kind:
        options += [{"stride": 3, "output_padding": 2}]
    else:
        options += [{"padding": 2, "padding_mode": m} for m in ("reflect", "replicate", "circular")]
        options += [{"padding": "same"}]
    for option in options:
        theirs, ours = layer_pair(kind, **option)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert repr(ours) == repr(theirs)
        results = []
        for layer in (ours, theirs):
            seen = x.clone().requires_grad_()
            out = layer(seen)
            out.square().sum().backward()
            results.append((out, seen.grad, *(p.grad for p in layer.parameters())))
        for got, expected in zip(*results, strict=True):
            close(got, expected)


def test_output_size_of_a_transposed_layer(forced):  # noqa: F811
    forced("spectra")
    theirs, ours = layer_pair("ConvTranspose2d", stride=2)
    x = draw((2, 4, 7, 6))
    close(ours(x, [18, 16]), theirs(x, [18, 16]))
    with pytest.raises(ValueError, match="output size"):
        ours(x, [40, 40])


@each_kind
def test_copies_and_pickles(kind):
    _, layer = layer_pair(kind)
    x = draw((1, 4, *(9, 8, 7)[: int(kind[-2])]))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))


class LargeKernelBlock(torch.nn.Module):
    """As in RepLKNet: 1x1, depthwise 31x31 beside 5x5, 1x1, each with a norm, and a shortcut."""

    def __init__(self, channels):
        super().__init__()
        wide = torch.nn.Conv2d(channels, channels, 31, padding=15, groups=channels, bias=False)
        small = torch.nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.first = torch.nn.Conv2d(channels, channels, 1, bias=False)
        self.last = torch.nn.Conv2d(channels, channels, 1)
        self.wide, self.small = wide, small
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x):
        y = F.relu(self.norms[0](self.first(x)))
        y = F.relu(self.norms[1](self.wide(y)) + self.norms[2](self.small(y)))
        return x + self.last(y)


class LongFilterBlock(torch.nn.Module):
    """A gated causal filter as long as its input: what lies ahead has no effect."""

    def __init__(self, channels, length):
        super().__init__()
        self.gates = torch.nn.Conv1d(channels, 2 * channels, 1)
        self.filter = torch.nn.Conv1d(
            channels, channels, length, padding=length - 1, groups=channels
        )

    def forward(self, x):
        gate, value = self.gates(x).chunk(2, 1)
        return torch.sigmoid(gate) * self.filter(value)[..., : x.shape[-1]]


@pytest.mark.parametrize(
    ("block", "size", "changed"),
    [
        (lambda: LargeKernelBlock(8), (2, 8, 48, 50), ["wide", "small"]),
        (lambda: LongFilterBlock(6, 900), (2, 6, 900), ["filter"]),
    ],
    ids=["RepLKNet", "long filter"],
)
def test_a_converted_network_gives_the_same(block, size, changed):
    theirs = block()
    ours = torchcorr.nn.convert(copy.deepcopy(theirs))
    kinds = {name: type(m).__module__ for name, m in ours.named_modules() if "Conv" in repr(m)[:4]}
    assert [name for name, module in kinds.items() if module == "torchcorr.layers"] == changed
    assert list(ours.state_dict()) == list(theirs.state_dict())
    # Gradients through a norm nearly cancel, so float32 says little of them.
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        results = []
        for network in (ours.to(dtype), theirs.to(dtype)):
            x = normal(*size, seed=5).to(dtype).requires_grad_()
            out = network(x)
            grads = torch.autograd.grad(out.square().mean(), (x, *network.parameters()))
            results.append((out, *(grads if dtype == torch.float64 else ())))
        for got, expected in zip(*results, strict=True):
            scale = float(expected.detach().abs().max())
            torch.testing.assert_close(got, expected, rtol=0, atol=bound * scale)


def test_a_converted_network_learns_the_same():
    """The losses of some steps in float32, as the example on large kernels shows them."""
    theirs = LargeKernelBlock(4)
    losses = []
    for network in (torchcorr.nn.convert(copy.deepcopy(theirs)), theirs):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        losses.append([])
        for step in range(6):
            x = normal(2, 4, 40, 41, seed=step).float()
            loss = (network(x) - x.roll(1, -1)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[1][-1] < 0.9 * losses[1][0]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=0)


def test_a_causal_filter_does_not_look_ahead():
    block = torchcorr.nn.convert(LongFilterBlock(4, 600)).double()
    x = draw((1, 4, 600))
    other = x.clone()
    other[..., 400:] += 1
    torch.testing.assert_close(block(x)[..., :400], block(other)[..., :400], rtol=0, atol=1e-12)


def test_convert_keeps_parameters_hooks_and_shared_layers():
    layer = torch.nn.Conv2d(4, 4, 9, padding=4, groups=4)
    lone = torch.nn.ModuleList([layer, layer, torch.nn.Conv2d(4, 4, 3)])
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    weight = layer.weight
    ours = torchcorr.nn.convert(lone)
    assert ours is lone and ours[0] is ours[1] and ours[0].weight is weight
    assert type(ours[2]) is torch.nn.Conv2d
    ours[0](draw((1, 4, 12, 12), torch.float32))
    assert seen == [1]
    assert type(torchcorr.nn.convert(torch.nn.Conv1d(1, 1, 30))) is torchcorr.nn.Conv1d

    class Other(torch.nn.Conv2d):
        pass

    assert type(torchcorr.nn.convert(Other(1, 1, 9))) is Other
    with pytest.raises(TypeError, match="module must be a torch.nn.Module: got list"):
        torchcorr.nn.convert([layer])


# --- PyTorch's transforms: the cells of the table in docs/layers.md ------------------------------


def tensors():
    return draw((2, 4, 20, 21)).requires_grad_(), draw((4, 2, 7, 8), seed=1).requires_grad_()


def layer(x, w):
    return torchcorr.conv2d(x, w, stride=(1, 2), padding=3, groups=2)


def transposed_layer(x, w):
    return torchcorr.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1)


FUNCTIONS = {"conv2d": layer, "conv_transpose2d": transposed_layer}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def reference(function):
    def call(*args):
        other = {"conv2d": F.conv2d, "conv_transpose2d": F.conv_transpose2d}
        with pytest.MonkeyPatch.context() as patch:
            for name, theirs in other.items():
                patch.setattr(torchcorr, name, theirs)
            return function(*args)

    return call


def quiet(call, *args):
    with warnings.catch_warnings():
        # The compiler's own imports warn; what it computes is compared.
        warnings.simplefilter("ignore")
        return call(*args)


@pytest.mark.parametrize("dynamic", [False, True])
@each_function
def test_compile(function, dynamic, forced):  # noqa: F811
    forced("spectra")
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x, w = tensors()
    for rows in (20, 23):
        seen = draw((2, 4, rows, 21)).requires_grad_()
        for got in quiet(compiled, seen, w), function(seen, w):
            expected = reference(function)(seen, w)
            close(got, expected)
            both = (torch.autograd.grad(y.square().sum(), (seen, w)) for y in (got, expected))
            for one, other in zip(*both, strict=True):
                close(one, other)


def test_the_compiled_graph_has_the_operator():
    graphs = []

    def keep(graph, inputs):
        graphs.append(str(graph.code))
        return graph

    torch.compiler.reset()
    quiet(torch.compile(layer, fullgraph=True, backend=keep), *(x.detach() for x in tensors()))
    assert "torchcorr.conv" in graphs[0]


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (2, 1)])
@each_function
def test_vmap(function, dims, forced):  # noqa: F811
    forced("spectra")
    shapes = ((2, 4, 9, 10), (4, 2, 3, 4) if function is layer else (4, 2, 3, 4))
    pairs = zip(shapes, dims, strict=True)
    args = [draw(s if d is None else (*s[:d], 3, *s[d:]), seed=d or 0) for s, d in pairs]

    def at(x, dim, i):
        return x if dim is None else x.select(dim, i)

    got = torch.func.vmap(function, dims)(*args)
    looped = [
        reference(function)(*(at(*p, i) for p in zip(args, dims, strict=True))) for i in range(3)
    ]
    close(got, torch.stack(looped))


@each_function
def test_per_sample_gradients(function, forced):  # noqa: F811
    forced("spectra")
    x, w = draw((3, 1, 4, 9, 10)), draw((4, 2, 3, 4), seed=1)

    def loss(f):
        return lambda w, x: f(x, w).square().sum()

    got, expected = (
        torch.func.vmap(torch.func.grad(loss(f)), (None, 0))(w, x)
        for f in (function, reference(function))
    )
    close(got, expected)


@each_function
def test_reverse_and_forward_mode(function, forced):  # noqa: F811
    forced("spectra")
    x, w = draw((1, 4, 5, 6)), draw((4, 2, 2, 3), seed=1)

    def total(f):
        return lambda x, w: f(x, w).pow(3).mean()

    for transform in (
        lambda f: torch.func.jacrev(f, (0, 1))(x, w),
        lambda f: torch.func.jacfwd(f, (0, 1))(x, w),
        lambda f: torch.func.jvp(f, (x, w), (x.cos(), w.sin())),
        lambda f: torch.func.hessian(total(f), 1)(x, w),
    ):
        got, expected = (transform(f) for f in (function, reference(function)))
        for one, other in zip(got, expected, strict=True):
            close(one, other)


@each_function
def test_dual_numbers_outside_of_transforms(function, forced):  # noqa: F811
    forced("spectra")
    x, w = draw((1, 4, 5, 6)), draw((4, 2, 2, 3), seed=1)
    tangents = []
    for f in (function, reference(function)):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x.cos())
            tangents.append(torch.autograd.forward_ad.unpack_dual(f(dual, w)).tangent)
    close(*tangents)


@each_function
def test_autocast(function, forced, device):  # noqa: F811
    forced("spectra")
    x, w = (t.detach().float().requires_grad_() for t in tensors())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got, expected = function(x, w), reference(function)(x, w)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    got.float().sum().backward()
    assert x.grad.dtype == w.grad.dtype == torch.float32


@each_function
def test_checkpoint(function, forced):  # noqa: F811
    forced("spectra")
    x, w = tensors()
    kept = torch.utils.checkpoint.checkpoint(function, x, w, use_reentrant=False)
    both = (torch.autograd.grad(y.square().sum(), (x, w)) for y in (kept, function(x, w)))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)


class Layer(torch.nn.Module):
    def forward(self, x, w):
        return layer(x, w)


def test_export():
    x, w = (t.detach() for t in tensors())
    program = quiet(torch.export.export, Layer(), (x, w))
    close(program.module()(x, w), reference(layer)(x, w))
    assert any("torchcorr.conv" in str(node.target) for node in program.graph.nodes)


@each_function
def test_memory_formats_and_strides(function, forced):  # noqa: F811
    for method in METHODS:
        forced(method)
        x, w = (t.detach() for t in tensors())
        expected = reference(function)(x, w)
        last = x.contiguous(memory_format=torch.channels_last)
        close(function(last, w), expected)
        close(function(x.mT.contiguous().mT, w.mT.contiguous().mT), expected)
