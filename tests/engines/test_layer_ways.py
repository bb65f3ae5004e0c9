"""The ways of convolution layers on the CPU: which is chosen, tiles and blocks, what is kept."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from inputs import draw
from tolerances import ROUNDING

import torchcorr
from torchcorr._cpu import conv as engine
from torchcorr._cpu import spectra
from torchcorr._definition import conv as definition
from torchcorr._plan import conv as plan

# Input, weight, stride, groups, and the ways of the output and of the gradients of both.
CHOICES = [
    ((8, 64, 56, 56), (64, 64, 3, 3), 1, 1, ("torch", "torch", "torch")),
    ((8, 3, 224, 224), (64, 3, 3, 3), 2, 1, ("torch", "torch", "torch")),
    ((8, 64, 56, 56), (64, 1, 3, 3), 1, 64, ("torch", "torch", "torch")),
    ((1, 64, 256, 256), (64, 64, 31, 31), 1, 1, ("spectra", "spectra", "spectra")),
    ((1, 1, 1024, 1024), (1, 1, 7, 7), 1, 1, ("sums", "sums", "sums")),
    ((8, 64, 56, 56), (64, 1, 31, 31), 1, 64, ("sums", "torch", "spectra")),
    ((8, 16, 4096), (16, 16, 1023), 1, 1, ("spectra", "spectra", "spectra")),
]


def layer_of(input, weight, stride=1, groups=1, dtype=torch.float32):
    ndim = len(input) - 2
    padding = [k // 2 for k in weight[2:]]
    how = ([stride] * ndim, padding, [1] * ndim, groups)
    return plan.Layer.of(input, weight, *how, dtype), how


@pytest.mark.parametrize(("input", "weight", "stride", "groups", "ways"), CHOICES)
def test_the_choice(input, weight, stride, groups, ways):
    layer, _ = layer_of(input, weight, stride, groups)
    assert tuple(plan.way_of(layer, form).method for form in plan.FORMS) == ways
    half, _ = layer_of(input, weight, stride, groups, torch.bfloat16)
    assert plan.way_of(half, "output").method == "torch" or ways[0] != "torch"


@pytest.mark.parametrize("method", ["sums", "spectra"])
def test_the_named_way_is_taken(method, monkeypatch):
    """A way that fell back to another would pass every comparison."""
    module, names = {
        "sums": (
            engine.correlate,
            ("correlate", "correlate_input_grad", "correlate_template_grad"),
        ),
        "spectra": (spectra, ("convolve", "weight_grad")),
    }[method]
    calls = []
    for name in names:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=real, n=name: calls.append(n) or f(*a))
    x, w = draw((1, 2, 9, 9)), draw((2, 2, 3, 3), seed=1)
    how = ([1, 1], [1, 1], [1, 1], 1)
    out = engine.conv(x, w, *how, method)
    engine.conv_input_grad(out, w, x.shape, *how, method)
    engine.conv_weight_grad(out, x, w.shape, *how, method)
    forms = names if method == "sums" else ("convolve", "convolve", "weight_grad")
    assert calls == list(forms)


@pytest.mark.parametrize(("at_once", "piece"), [(1, 1), (3, 4000), (1 << 20, 1 << 20), (9, 1)])
@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("least", [1, 1 << 20])
@pytest.mark.parametrize("window", [(5, 4), (3,), (2, 3, 2)])
def test_any_tiles_and_blocks(at_once, piece, block, least, window, monkeypatch):
    """Few tiles and channels at once, rows of tiles, blocks of outputs, lengths that are too long,
    and tiles that are transformed by products with a matrix or not."""
    monkeypatch.setattr(spectra, "MATRIX_CHANNELS", least)
    ndim = len(window)
    monkeypatch.setattr(plan, "_PIECE", piece)
    x, w = draw((2, 3, *(23, 19, 8)[:ndim])) - 0.5, draw((4, 3, *window), seed=1) - 0.5
    how = ([1] * ndim, [1] * ndim, [1] * ndim, 1)
    layer = plan.Layer.of(tuple(x.shape), tuple(w.shape), *how, x.dtype)
    exact = definition.conv(x, w, *how)
    grad = draw(tuple(exact.shape), seed=2) - 0.5
    for wanted in (6, 11, 64):
        tiles = plan._tiles(layer.dense, wanted)
        together = min(max(at_once, math.prod(tiles.grid[1:])), 2 * math.prod(tiles.grid))
        tiles = tiles._replace(block=block, together=together)
        of_input = plan._tiles(layer.transposed, wanted)
        got = spectra.convolve(x, w, [1] * ndim, tiles)
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-13)
        back = [k - 2 for k in window]
        got = spectra.convolve(grad, w.transpose(0, 1), back, of_input, True)
        expected = definition.conv_input_grad(grad, w, x.shape, *how)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
        got = spectra.weight_grad(grad, x, [1] * ndim, tiles)
        exact_grad = definition.conv_weight_grad(grad, x, w.shape, *how)
        torch.testing.assert_close(got, exact_grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [plan.SHORT, plan.SHORT + 1])
def test_short_and_long_transforms(length):
    """Products with a matrix and FFTs meet at SHORT taps and SHORT kept elements."""
    x, w = draw((1, 2, 300)) - 0.5, draw((2, 2, length), seed=1) - 0.5
    how = ([1], [3], [1], 1)
    exact = definition.conv(x, w, *how)
    torch.testing.assert_close(engine.conv(x, w, *how, "spectra"), exact, rtol=0, atol=1e-12)
    for form, other in ((engine.conv_weight_grad, w.shape),):
        got = form(exact, x, other, *how, "spectra")
        expected = definition.conv_weight_grad(exact, x, other, *how)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [64, 256, 1024, 4096])
@pytest.mark.parametrize("channels", [4, 64, 512])
@pytest.mark.parametrize("kernel", [7, 31, 63])
def test_scratch_does_not_grow_with_the_image_beyond_a_row_of_tiles(size, channels, kernel):
    layer, _ = layer_of((4, channels, size, size), (channels, channels, kernel, kernel))
    for form in ("output", "input"):
        dense = layer.dense_of(form)
        tiles, _ = plan.tiles_of(dense)
        spectrum = 8 * math.prod(tiles.frequencies)
        count = dense.items * math.prod(tiles.grid)
        of_block = spectrum * channels * tiles.block
        assert tiles.block == 1 or of_block <= plan.WEIGHT_BYTES
        # Neither spectra are made twice, unless all tiles and all weights have no room.
        if tiles.block < channels and tiles.together < count:
            assert spectrum * channels * min(channels, count) > plan.WEIGHT_BYTES
        row = spectrum * tiles.grid[-1] * (channels + 2 * tiles.block)
        assert tiles.scratch(dense) <= 2 * (plan.WEIGHT_BYTES + of_block) + row


def peak_of(call):
    """Bytes that PyTorch has allocated at once during a call, less those of its result."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events)) - result.nbytes


@pytest.mark.parametrize(
    ("input", "weight"),
    [((1, 64, 160, 160), (64, 64, 31, 31)), ((8, 3, 256, 256), (16, 3, 31, 31))],
)
def test_scratch_is_bounded_where_many_channels_meet(input, weight):
    """As the row C13M of the benchmarks measures it, in resident memory."""
    layer, how = layer_of(input, weight)
    x, w = draw(input, torch.float32), draw(weight, torch.float32, 1)
    grad = draw((input[0], weight[0], *layer.lattices.positions), torch.float32, 2)
    calls = {
        "output": lambda: engine.conv(x, w, *how, "spectra"),
        "input": lambda: engine.conv_input_grad(grad, w, x.shape, *how, "spectra"),
        "weight": lambda: engine.conv_weight_grad(grad, x, w.shape, *how, "spectra"),
    }
    for form, call in calls.items():
        dense = layer.dense_of(form)
        assert plan.tiles_of(dense)[0].scratch(dense) <= plan.SCRATCH
        assert peak_of(call) <= plan.SCRATCH, form


def test_the_backward_pass_keeps_input_and_weight_alone():
    x = draw((2, 8, 60, 60), torch.float32).requires_grad_()
    w = draw((8, 1, 31, 31), torch.float32, 1).requires_grad_()
    layer, _ = layer_of(tuple(x.shape), tuple(w.shape), 1, 8)
    assert plan.way_of(layer, "output").method != "torch"
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        torchcorr.conv2d(x, w, padding=15, groups=8)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), w.data_ptr()}


def test_small_layers_are_those_of_pytorch_bit_for_bit():
    x, w = draw((2, 8, 28, 28), torch.float32), draw((8, 8, 3, 3), torch.float32, 1)
    assert torch.equal(torchcorr.conv2d(x, w), F.conv2d(x, w))


def test_float32_layers_as_a_network_has_them():
    """What `auto` takes is within a few roundings, relative to the norms of both tensors."""
    for input, weight, groups in (
        ((2, 16, 60, 64), (16, 1, 31, 31), 16),
        ((1, 16, 64, 64), (16, 16, 21, 21), 1),
        ((2, 4, 2000), (4, 4, 301), 1),
    ):
        x, w = draw(input, torch.float32) - 0.5, draw(weight, torch.float32, 1) - 0.5
        _, how = layer_of(input, weight, 1, groups)
        exact = definition.conv(x.double(), w.double(), *how)
        bound = 8 * ROUNDING[torch.float32] * float(w.double().flatten(1).norm(dim=1).max())
        bound *= float(x.double().unflatten(1, (groups, -1)).flatten(2).norm(dim=2).max())
        assert float((engine.conv(x, w, *how) - exact).abs().max()) <= bound
