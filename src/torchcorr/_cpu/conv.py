"""Convolution layers: PyTorch's own where it is quicker, else sliding sums or spectra of tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .. import _contract
from .._definition import conv as definition
from .._definition import lattices
from .._definition.layer_spectra import dense_weights
from .._plan.conv import Dense, Layer, sums_method, tiles_of, way_of
from .._plan.dtypes import HALVES
from .._plan.lattice import Lattices
from .._plan.shapes import Ints
from . import correlate
from . import spectra as tiled

Kernel = Callable[..., Tensor]


def _without_autocast(kernel: Kernel) -> Kernel:
    """Matrix products inside of an operator keep the types that it was called with."""

    @wraps(kernel)
    def call(*args: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return kernel(*args)
        return kernel(*args)

    return call


@_without_autocast
def conv(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str = "auto",
    spectra: Tensor | None = None,
) -> Tensor:
    how = (stride, padding, dilation, groups)
    layer = Layer.of(tuple(input.shape), tuple(weight.shape), *how, input.dtype)
    way = _way(layer, "output", method)
    if way == "torch":
        return definition.conv(input, weight, *how)
    at, dense = layer.lattices, layer.dense
    x, w = _single(input), _single(weight)
    if way == "sums":
        seen = _sorted(lattices.input_lattices(x, at), dense.groups)
        templates = _templates(lattices.weight_lattices(w, at), dense)
        sums = correlate.correlate(seen, templates, _ones(at.size), "auto")
        out = sums.flatten(1, 2)
    else:
        x, padding = _seen(x, at)
        out = _by_spectra(x, w, layer, "output", padding, spectra)
    if not _is_finite(out):
        return definition.conv(input, weight, *how)
    return lattices.output_restored(out, at).to(input.dtype).contiguous()


@_without_autocast
def conv_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str = "auto",
    spectra: Tensor | None = None,
) -> Tensor:
    how = (stride, padding, dilation, groups)
    shape = tuple(input_shape)
    layer = Layer.of(shape, tuple(weight.shape), *how, grad.dtype)
    way = _way(layer, "input", method)
    if way == "torch":
        return definition.conv_input_grad(grad, weight, shape, *how)
    at, dense = layer.lattices, layer.dense
    g = lattices.output_lattices(_single(grad), at)
    w = _single(weight)
    if way == "sums":
        upstream = g.unflatten(1, (groups, dense.outputs))
        templates = _templates(lattices.weight_lattices(w, at), dense)
        seen = (dense.items, groups, 1, dense.channels, *at.dense)
        step, kind = _ones(at.size), sums_method(layer, "input")
        out = correlate.correlate_input_grad(upstream, templates, seen, step, kind)
        out = lattices.input_restored(out.flatten(1, 3), at)
    else:
        # The full convolution, of which a dense layer needs what its padding leaves.
        inside = at.padding if at.trivial else (0,) * len(at.size)
        padding = [k - 1 - p for k, p in zip(at.taps, inside, strict=True)]
        out = _by_spectra(g, w, layer, "input", padding, spectra)
        if not at.trivial:
            out = lattices.input_restored(out, at)
    if not _is_finite(out):
        return definition.conv_input_grad(grad, weight, shape, *how)
    return out.to(grad.dtype).contiguous()


@_without_autocast
def conv_weight_grad(
    grad: Tensor,
    input: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str = "auto",
) -> Tensor:
    how = (stride, padding, dilation, groups)
    layer = Layer.of(tuple(input.shape), tuple(weight_shape), *how, grad.dtype)
    way = _way(layer, "weight", method)
    if way == "torch":
        return definition.conv_weight_grad(grad, input, weight_shape, *how)
    at, dense = layer.lattices, layer.dense
    x, g = _single(input), lattices.output_lattices(_single(grad), at)
    if way == "sums":
        seen = _sorted(lattices.input_lattices(x, at), groups)
        upstream = g.unflatten(1, (groups, dense.outputs))
        shape = (groups, dense.outputs, dense.channels, *at.taps)
        step = _ones(at.size)
        kind = sums_method(layer, "weight")
        out = correlate.correlate_template_grad(upstream, seen, shape, step, kind).flatten(0, 1)
    else:
        x, padding = _seen(x, at)
        tiles = tiles_of(dense)[0]
        pairs = zip(g.chunk(groups, 1), x.chunk(groups, 1), strict=True)
        out = torch.cat([tiled.weight_grad(*pair, padding, tiles) for pair in pairs])
    if not _is_finite(out):
        return definition.conv_weight_grad(grad, input, weight_shape, *how)
    return lattices.weight_restored(out, at).to(grad.dtype).contiguous()


def _by_spectra(
    x: Tensor,
    w: Tensor,
    layer: Layer,
    form: str,
    padding: Sequence[int],
    spectra: Tensor | None,
) -> Tensor:
    """The dense convolution of a layer, or its transpose, group by group."""
    tiles, groups = tiles_of(layer.dense_of(form))[0], layer.dense.groups
    prepared = (None,) * groups if spectra is None else spectra.unbind(0)
    parts = zip(x.chunk(groups, 1), dense_weights(w, layer, form), prepared, strict=True)
    turned = form == "input"
    return _joined([tiled.convolve(v, u, padding, tiles, turned, s) for v, u, s in parts])


def _way(layer: Layer, form: str, method: str) -> str:
    """PyTorch's own has a rule for tensors without elements and for types that are not real."""
    sizes = (*layer.input, *layer.weight, *layer.lattices.positions)
    if min(sizes) < 1 or not layer.dtype.is_floating_point:
        return "torch"
    return way_of(layer, form, method).method


def _seen(x: Tensor, at: Lattices) -> tuple[Tensor, Ints]:
    """The input of a dense convolution, on sub-lattices if there are any, and its padding."""
    if at.trivial:
        return x, at.padding
    return lattices.input_lattices(x, at), (0,) * len(at.size)


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALVES else x


def _is_finite(x: Tensor) -> bool:
    """Whether transforms have met finite numbers only: others reach all that they are made with."""
    return math.isfinite(float(x.sum()))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _sorted(x: Tensor, groups: int) -> Tensor:
    """(N, C, *size) as an input of `correlate`, (N, groups, 1, C / groups, *size)."""
    return x.unflatten(1, (groups, 1, -1))


def _templates(w: Tensor, dense: Dense) -> Tensor:
    """(O, C, *window) as templates of `correlate`, (groups, O / groups, C, *window)."""
    return w.unflatten(0, (dense.groups, dense.outputs))


def _ones(size: Sequence[int]) -> list[int]:
    return [1] * len(size)


def register() -> None:
    _contract.conv.implement(conv, "CPU")
    _contract.conv_input_grad.implement(conv_input_grad, "CPU")
    _contract.conv_weight_grad.implement(conv_weight_grad, "CPU")
