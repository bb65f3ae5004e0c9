"""Convolution layers: PyTorch's samples and errors, a grid of options, laws, non-finite values."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from inputs import draw, normal
from pytorch_samples import OPS
from tolerances import ROUNDING

import torchcorr

# Of PyTorch itself: a copy that it makes, and what it imports for forward mode.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]
NAMES = [f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)]
METHODS = ("torch", "sums", "spectra")
each_layer = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def forced(monkeypatch):
    """Sends all valid calls to the operators, and these to one method of an engine."""

    def force(method):
        def chosen(ndim, input, weight, how, kinds, needs):
            if kinds[0] != kinds[1] or not torchcorr.convolution.is_supported(kinds[0]):
                return None
            hash(how)
            return torchcorr.convolution.parse(ndim, tuple(input), tuple(weight), how)

        monkeypatch.setattr(torchcorr.convolution, "_chosen", chosen)
        engine = getattr(torchcorr, "_cpu", None)
        if engine is not None:
            monkeypatch.setattr(
                engine.conv, "way_of", lambda *_: torchcorr._plan.conv.Way(method, ())
            )

    return force


def close(got, expected, dtype=None):
    """Within what transforms of these few elements may round."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    unit = ROUNDING[got.dtype]
    scale = expected.abs().max().item() if expected.numel() > 0 else 0.0
    torch.testing.assert_close(got, expected, rtol=64 * unit, atol=64 * unit * max(scale, 1))


def leaves(sample):
    tensors = [sample.input, *(x for x in sample.args if isinstance(x, torch.Tensor))]
    return [x for x in tensors if x.requires_grad]


def gradients(function, sample, seed):
    """The output, first and second derivatives of all tensors."""
    out = function(sample.input, *sample.args, **sample.kwargs)
    inputs = leaves(sample)
    upstream = seed.to(out.dtype).requires_grad_()
    first = torch.autograd.grad(out, inputs, upstream, create_graph=True)
    total = sum((g * g.conj()).real.sum() for g in first)
    return (out, *first, *torch.autograd.grad(total, [*inputs, upstream], allow_unused=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("method", METHODS)
@each_layer
def test_samples_of_pytorch(name, method, dtype, forced, device):
    """Output, gradients and second derivatives of every sample of PyTorch's operator database."""
    forced(method)
    ours, theirs = getattr(torchcorr, name), getattr(F, name)
    samples = list(OPS[name].sample_inputs(device, dtype, requires_grad=True))
    assert len(samples) >= 6
    for sample in samples:
        shape = theirs(sample.input, *sample.args, **sample.kwargs).shape
        seed = normal(*shape, seed=3)
        pairs = (gradients(function, sample, seed) for function in (ours, theirs))
        for got, expected in zip(*pairs, strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@each_layer
def test_samples_of_pytorch_in_other_dtypes(name, dtype, device):
    ours, theirs = getattr(torchcorr, name), getattr(F, name)
    for sample in OPS[name].sample_inputs(device, dtype, requires_grad=False):
        args = (sample.input, *sample.args)
        expected = theirs(*args, **sample.kwargs)
        assert torch.equal(ours(*args, **sample.kwargs), expected)


@each_layer
def test_errors_of_pytorch(name, forced, device):
    forced("spectra")
    ours, theirs = getattr(torchcorr, name), getattr(F, name)
    op = OPS[name]
    errors = list(op.error_inputs(device)) if op.error_inputs_func is not None else []
    assert errors or name not in ("conv1d", "conv2d", "conv3d")
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            ours(sample.input, *sample.args, **sample.kwargs)
    x, w = draw((2, 4, *(9,) * int(name[-2]))), draw((4, 4, *(3,) * int(name[-2])), seed=1)
    wrong = [
        {"stride": 0},
        {"dilation": 0},
        {"padding": -1},
        {"groups": 3},
        {"groups": 0},
        {"stride": (1, 2, 3, 4)},
        {"bias": draw((3,))},
        {"weight": w.float()},
        {"weight": w[:, :, :0]},
        {"weight": w[:, 1:] if "transpose" not in name else w[1:]},
        {"input": x[0, 0]},
        {"padding": "both"},
        {"stride": 1.5},
        {"input": [1.0]},
    ]
    for options in wrong:
        call = {"input": x, "weight": w, **options}
        with pytest.raises((RuntimeError, ValueError, TypeError)) as expected:
            theirs(**call)
        with pytest.raises(expected.type) as got:
            ours(**call)
        if expected.type is not TypeError:
            # Those that name an argument say whether it was passed by position.
            assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_grid_of_options(ndim, method, forced):
    """The options of the tests of fft-conv-pytorch: kernels, padding, strides, dilation, groups."""
    forced(method)
    ours, theirs = (getattr(m, f"conv{ndim}d") for m in (torchcorr, F))
    sizes = (11, 9, 8)[:ndim]
    for kernel, pad, stride, dilation, groups, outputs in itertools.product(
        (2, 3), (0, 1, 3), (1, 2, 3), (1, 2, 3), (1, 2), (2, 4)
    ):
        x = draw((2, 4, *sizes))
        w = draw((outputs, 4 // groups, *(kernel,) * ndim), seed=1) - 0.5
        bias = draw((outputs,), seed=2)
        how = {"padding": pad, "stride": stride, "dilation": dilation, "groups": groups}
        close(ours(x, w, bias, **how), theirs(x, w, bias, **how))


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("size", [(9, 14), (10, 13)])
def test_same_padding(size, method, forced):
    forced(method)
    x = draw((2, 3, *size))
    for window in ((1, 1), (2, 3), (4, 4), (5, 2)):
        w = draw((2, 3, *window), seed=1)
        for dilation in (1, 2, (2, 3)):
            how = {"padding": "same", "dilation": dilation}
            close(torchcorr.conv2d(x, w, **how), F.conv2d(x, w, **how))
        close(torchcorr.conv2d(x[0], w, padding="valid"), F.conv2d(x[0], w, padding="valid"))


def lattice_gradients(x, w, stride, method):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    ones = [1] * len(stride)
    how = (stride, [0] * len(stride), ones, 1, method)
    out = torchcorr._contract.conv(x, w, *how)
    upstream = torch.arange(1.0, out.numel() + 1, dtype=out.dtype, device=out.device)
    out.backward(upstream.reshape(out.shape))
    return out, x.grad, w.grad


@pytest.mark.parametrize("method", METHODS)
def test_stride_two_by_hand(method):
    """A 4x4 input, a 2x2 weight and stride 2: four sub-lattices with one tap each."""
    x = torch.arange(16.0, dtype=torch.float64).reshape(1, 1, 4, 4)
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)[None, None]
    out, of_input, of_weight = lattice_gradients(x, w, [2, 2], method)
    by_hand = [[0 + 2 + 12 + 20, 2 + 6 + 18 + 28], [8 + 18 + 36 + 52, 10 + 22 + 42 + 60]]
    close(out, torch.tensor(by_hand, dtype=torch.float64)[None, None])
    lattice = [[1, 2, 2, 4], [3, 4, 6, 8], [3, 6, 4, 8], [9, 12, 12, 16]]
    close(of_input, torch.tensor(lattice, dtype=torch.float64)[None, None])
    taps = [[0 + 4 + 24 + 40, 1 + 6 + 27 + 44], [4 + 12 + 36 + 56, 5 + 14 + 39 + 60]]
    close(of_weight, torch.tensor(taps, dtype=torch.float64)[None, None])


def random_layer(seed):
    """Shapes and options with every kind of stride, dilation, padding and groups."""
    pick = random.Random(seed).randint

    ndim, groups = pick(1, 3), pick(1, 3)
    window = [pick(1, 5) for _ in range(ndim)]
    stride, dilation = ([pick(1, 4) for _ in range(ndim)] for _ in range(2))
    padding = [pick(0, 5) for _ in range(ndim)]
    axes = zip(window, dilation, padding, strict=True)
    size = [max(1, (k - 1) * d + 1 - 2 * p) + pick(0, 9) for k, d, p in axes]
    input = (pick(1, 3), groups * pick(1, 3), *size)
    weight = (groups * pick(1, 3), input[1] // groups, *window)
    return input, weight, (stride, padding, dilation, groups)


@pytest.mark.parametrize("method", METHODS)
def test_three_forms_are_one_bilinear_form(method):
    """<conv(x, w), g> = <x, input_grad(g, w)> = <w, weight_grad(g, x)>, all equal PyTorch's."""
    ops, definition = torchcorr._contract, torchcorr._definition.conv
    for seed in range(40):
        shape, window, how = random_layer(seed)
        x, w = draw(shape) - 0.5, draw(window, seed=1) - 0.5
        expected = definition.conv(x, w, *how)
        g = draw(tuple(expected.shape), seed=2) - 0.5
        out = ops.conv(x, w, *how, method)
        of_input = ops.conv_input_grad(g, w, shape, *how, method)
        of_weight = ops.conv_weight_grad(g, x, window, *how, method)
        close(out, expected)
        close(of_input, definition.conv_input_grad(g, w, shape, *how))
        close(of_weight, definition.conv_weight_grad(g, x, window, *how))
        forms = [(a * b).sum() for a, b in ((out, g), (of_input, x), (of_weight, w))]
        size = math.sqrt((x * x).sum() * (w * w).sum() * (g * g).sum())
        for form in forms[1:]:
            assert abs(form - forms[0]) <= 64 * ROUNDING[torch.float64] * max(size, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ndim", [1, 2])
def test_gradcheck(ndim, method):
    ops, ones = torchcorr._contract, [1] * ndim
    how = ([2] * ndim, ones, [1, 2][:ndim], 2, method)
    x = draw((1, 2, *(6, 4)[:ndim])).requires_grad_()
    w = draw((2, 1, *(3, 2)[:ndim]), seed=1).requires_grad_()

    def call(x, w):
        return ops.conv(x, w, *how)

    assert torch.autograd.gradcheck(call, (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x, w))
    g = draw(tuple(call(x, w).shape), seed=2).requires_grad_()
    shape, window = tuple(x.shape), tuple(w.shape)
    forms = (
        (lambda g, w: ops.conv_input_grad(g, w, shape, *how), w),
        (lambda g, x: ops.conv_weight_grad(g, x, window, *how), x),
    )
    for form, other in forms:
        assert torch.autograd.gradcheck(form, (g, other), check_forward_ad=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_value_that_is_not_finite_affects_only_its_windows(method, value):
    x, w = draw((1, 2, 40, 41)), draw((3, 2, 5, 4), seed=1)
    x[0, 1, 20, 20] = value
    how = ([1, 1], [2, 2], [1, 1], 1)
    expected = torchcorr._definition.conv.conv(x, w, *how)
    got = torchcorr._contract.conv(x, w, *how, method)
    assert torch.equal(got.isfinite(), expected.isfinite()) and expected.isfinite().any()


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding(dtype, method):
    """Relative to the norms of a window of a tile and of a weight, as the page on layers says."""
    x, w = normal(2, 8, 60, 70, seed=0), normal(6, 8, 21, 19, seed=1)
    x, w = x.to(dtype).double(), w.to(dtype).double()
    how = ([1, 1], [3, 4], [1, 1], 1)
    exact = torchcorr._definition.conv.conv(x, w, *how)
    got = torchcorr._contract.conv(x.to(dtype), w.to(dtype), *how, method)
    bound = 8 * ROUNDING[torch.float32] * math.sqrt(float((w * w).sum((1, 2, 3)).max()))
    bound *= math.sqrt(float((x * x).sum((1, 2, 3)).max()))
    error = (got.double() - exact).abs()
    assert (error <= bound + 2 * ROUNDING[dtype] * exact.abs()).all()
