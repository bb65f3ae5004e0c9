"""Plans of layers show what is chosen, why, and the tiles that are computed."""

from __future__ import annotations

import math

import pytest
import torch
from inputs import draw

import torchcorr
from torchcorr._definition import transposes

MIB = 1 << 20


def shapes(*size, dtype=torch.float32):
    return torch.empty(size, device="meta", dtype=dtype)


# Input, weight and options; and the methods of the output and of both gradients.
CASES = [
    ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "torch torch torch"),
    ((1, 64, 256, 256), (64, 64, 31, 31), {}, "spectra spectra spectra"),
    ((64, 256, 256), (64, 64, 31, 31), {"padding": "same"}, "spectra spectra spectra"),
    ((1, 1, 1024, 1024), (1, 1, 7, 7), {}, "sums sums sums"),
    ((8, 64, 56, 56), (64, 1, 31, 31), {"groups": 64, "padding": 15}, "sums torch spectra"),
    ((8, 16, 4096), (16, 16, 1023), {"padding": [511]}, "spectra spectra spectra"),
]


@pytest.mark.parametrize(("input", "weight", "options", "methods"), CASES)
def test_the_cheapest_method_is_chosen_and_its_costs_are_shown(input, weight, options, methods):
    plan = torchcorr.plan_layer(shapes(*input), shapes(*weight), **options)
    ways = (plan.output, plan.input_gradient, plan.weight_gradient)
    assert " ".join(way.method for way in ways) == methods
    for way in ways:
        best = min(way.costs, key=way.costs.get)
        if way.method == "torch":
            assert way.plan is None
            assert way.costs[best] > 0.75 * way.costs["torch"] - 0.2
        else:
            assert way.method == best and way.costs[best] <= 0.75 * way.costs["torch"]
            assert way.plan.cost == way.costs[best]
            assert way.plan.bytes <= 192 * MIB


def test_a_transposed_layer_is_the_gradient_of_its_transpose():
    small, large, weight = (2, 32, 90, 90), (2, 64, 120, 120), (32, 64, 31, 31)
    one = torchcorr.plan_layer(shapes(*small), shapes(*weight), transposed=True)
    other = torchcorr.plan_layer(shapes(*large), shapes(*weight))
    assert one.output == other.input_gradient
    assert one.input_gradient == other.output
    assert one.weight_gradient == other.weight_gradient
    assert one.output.method == "spectra"
    how = {"stride": 3, "padding": 5}
    one = torchcorr.plan_layer(
        shapes(1, 32, 40), shapes(32, 32, 401), transposed=True, output_padding=2, **how
    )
    other = torchcorr.plan_layer(shapes(1, 32, 39 * 3 - 10 + 401 + 2), shapes(32, 32, 401), **how)
    assert one.output == other.input_gradient
    assert one.input_gradient == other.output


@pytest.mark.cpu_only("layers on a GPU are PyTorch's")
@pytest.mark.parametrize("kind", ("spectra", "sums"))
def test_the_plan_is_that_of_the_call(kind, monkeypatch):
    """Tiles that the engine is called with, of the output and of both gradients."""
    from torchcorr._cpu import conv, spectra

    seen = []
    sizes = (
        ((2, 64, 90, 80), (64, 64, 31, 29))
        if kind == "spectra"
        else ((3, 1, 500, 300), (1, 1, 7, 7))
    )
    x, w = (draw(size, torch.float32) for size in sizes)
    if kind == "spectra":
        for name in ("convolve", "weight_grad"):
            real = getattr(spectra, name)
            keep = lambda *a, real=real: seen.append(a[3]) or real(*a)  # noqa: E731
            monkeypatch.setattr(spectra, name, keep)
    else:
        for name in ("_arranged", "_arranged_grad"):
            real = getattr(conv.correlate, name)
            keep = lambda *a, real=real: seen.append(real(*a).plan) or real(*a)  # noqa: E731
            monkeypatch.setattr(conv.correlate, name, keep)
    plan = torchcorr.plan_layer(x, w)
    x.requires_grad_()
    w.requires_grad_()
    torchcorr.conv2d(x, w).sum().backward()
    ways = (plan.output, plan.input_gradient, plan.weight_gradient)
    assert [way.method for way in ways] == [kind] * 3
    assert len(seen) == 3
    for way, used in zip(ways, seen, strict=True):
        if kind == "sums":
            assert (way.plan.method, way.plan.tile) == (used.method, used.tile)
        else:
            shown = (way.plan.tile, way.plan.transform, way.plan.tiles, way.plan.templates)
            assert shown == (used.outputs, used.length, math.prod(used.grid), used.block)


@pytest.mark.cpu_only("layers on a GPU are PyTorch's")
def test_the_plan_of_sums_by_transforms_is_that_of_the_gradients(monkeypatch):
    """The gradients of `correlate` have tiles of their own."""
    from torchcorr import planning
    from torchcorr._cpu import conv
    from torchcorr._plan.conv import Layer

    monkeypatch.setattr(planning, "sums_method", lambda *_: "fft")
    monkeypatch.setattr(conv, "sums_method", lambda *_: "fft")
    x, w = draw((2, 3, 300, 200), torch.float32), draw((1, 3, 61, 50), torch.float32)
    how = ([1, 1], [0, 0], [1, 1], 1)
    layer = Layer.of(tuple(x.shape), tuple(w.shape), *how, x.dtype)
    seen = []
    for name in ("into_input", "into_template"):
        real = getattr(transposes.Transpose, name)

        def keep(*args, real=real):
            seen.append(real(*args))
            return seen[-1]

        monkeypatch.setattr(transposes.Transpose, name, keep)
    grad = draw((2, 1, 240, 151), torch.float32)
    conv.conv_input_grad(grad, w, x.shape, *how, "sums")
    conv.conv_weight_grad(grad, x, w.shape, *how, "sums")
    used = [call.plan for call in seen]
    assert [planning._sums_plan(layer, form) for form in ("input", "weight")] == used


def test_complex_layers_are_three_real_ones():
    real = torchcorr.plan_layer(shapes(1, 16, 150, 150), shapes(16, 16, 31, 31)).output
    both = [shapes(*s, dtype=torch.complex64) for s in ((1, 16, 150, 150), (16, 16, 31, 31))]
    way = torchcorr.plan_layer(*both).output
    assert way.costs == {name: 3 * cost for name, cost in real.costs.items()}
    assert way.method == real.method == "spectra"


def test_other_devices_and_dtypes_are_left_to_pytorch():
    plan = torchcorr.plan_layer(shapes(1, 16, 150, 150), shapes(16, 16, 31, 31), device="cuda")
    assert plan.output.method == "torch" and plan.output.costs == {}
    whole = [shapes(*s, dtype=torch.int32) for s in ((1, 16, 150, 150), (16, 16, 31, 31))]
    assert torchcorr.plan_layer(*whole).output.method == "torch"


def test_errors_are_those_of_pytorch():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        torchcorr.plan_layer(shapes(1, 3, 5, 5), shapes(2, 3, 7, 7))
    with pytest.raises(RuntimeError, match="expected input.* to have 4 channels"):
        torchcorr.plan_layer(shapes(1, 3, 9), shapes(2, 4, 7))
    with pytest.raises(ValueError, match="weight must have 3 to 5 axes: got 2"):
        torchcorr.plan_layer(shapes(5, 5), shapes(3, 3))
