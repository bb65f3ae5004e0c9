"""Inputs, weights and outputs of a convolution laid out as sub-lattices, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .._plan.lattice import Lattices
from .._plan.shapes import Ints
from .transforms import bordered


def resized(x: Tensor, before: Sequence[int], size: Sequence[int]) -> Tensor:
    """x with so many zeros before its last axes, cut or filled up to a size; itself if it fits."""
    ndim = len(size)
    behind = [m - n - p for m, n, p in zip(size, x.shape[-ndim:], before, strict=True)]
    if not any(before) and not any(behind):
        return x
    return bordered(x, [n for pair in zip(before, behind, strict=True) for n in pair])


def _view(padded: Tensor, at: Lattices) -> Tensor:
    """Sub-lattices of a padded input without a copy: (N, C, *phases, *steps, *dense)."""
    lead, unit = padded.stride()[:2], padded.stride()[2:]
    sizes = (*padded.shape[:2], *at.phases, *at.steps, *at.dense)
    strides = [
        u * n
        for steps in (at.stride, at.dilation, at.period)
        for u, n in zip(unit, steps, strict=True)
    ]
    return padded.as_strided(sizes, (*lead, *strides))


def input_lattices(x: Tensor, at: Lattices) -> Tensor:
    """(N, C, *size) as (N * phases, C * steps, *dense)."""
    if at.trivial:
        return resized(x, at.padding, at.dense)
    ndim = len(at.size)
    view = _view(resized(x, at.padding, at.extent).contiguous(), at)
    order = (0, *range(2, 2 + ndim), 1, *range(2 + ndim, 2 + 3 * ndim))
    return view.permute(order).flatten(0, ndim).flatten(1, 1 + ndim)


def input_restored(x: Tensor, at: Lattices) -> Tensor:
    """The transpose of `input_lattices`: each element lies in one sub-lattice at most."""
    before = [-n for n in at.padding]
    if at.trivial:
        return resized(x, before, at.size)
    ndim = len(at.size)
    items, channels = x.shape[0] // math.prod(at.phases), x.shape[1] // math.prod(at.steps)
    parts = x.reshape(items, *at.phases, channels, *at.steps, *at.dense)
    order = (0, 1 + ndim, *range(1, 1 + ndim), *range(2 + ndim, 2 + 3 * ndim))
    padded = x.new_zeros((items, channels, *at.extent))
    _view(padded, at).copy_(parts.permute(order))
    return resized(padded, before, at.size)


def weight_lattices(w: Tensor, at: Lattices) -> Tensor:
    """(O, C, *window) as (O, C * steps, *taps)."""
    if at.trivial:
        return w
    ndim = len(at.size)
    whole = resized(w, (0,) * ndim, _products(at.taps, at.steps))
    parts = whole.reshape(*w.shape[:2], *_pairs(at.taps, at.steps))
    order = (0, 1, *range(3, 3 + 2 * ndim, 2), *range(2, 2 + 2 * ndim, 2))
    return parts.permute(order).flatten(1, 1 + ndim)


def weight_restored(w: Tensor, at: Lattices) -> Tensor:
    """The transpose of `weight_lattices`."""
    if at.trivial:
        return w
    ndim = len(at.size)
    parts = w.reshape(w.shape[0], -1, *at.steps, *at.taps)
    order = (0, 1, *(2 + i + ndim * j for i in range(ndim) for j in (1, 0)))
    whole = parts.permute(order).reshape(*parts.shape[:2], *_products(at.taps, at.steps))
    return resized(whole, (0,) * ndim, at.window)


def output_lattices(y: Tensor, at: Lattices) -> Tensor:
    """(N, O, *positions) as (N * phases, O, *rows)."""
    ndim = len(at.size)
    whole = resized(y, (0,) * ndim, _products(at.rows, at.phases))
    if max(at.phases) == 1:
        return whole
    parts = whole.reshape(*y.shape[:2], *_pairs(at.rows, at.phases))
    order = (0, *range(3, 3 + 2 * ndim, 2), 1, *range(2, 2 + 2 * ndim, 2))
    return parts.permute(order).flatten(0, ndim)


def output_restored(y: Tensor, at: Lattices) -> Tensor:
    """The transpose of `output_lattices`."""
    ndim = len(at.size)
    if max(at.phases) > 1:
        parts = y.reshape(-1, *at.phases, y.shape[1], *at.rows)
        order = (0, 1 + ndim, *(i + (1 + ndim) * j for i in range(1, 1 + ndim) for j in (1, 0)))
        whole = parts.permute(order)
        y = whole.reshape(*whole.shape[:2], *_products(at.rows, at.phases))
    return resized(y, (0,) * ndim, at.positions)


def _products(a: Sequence[int], b: Sequence[int]) -> Ints:
    return tuple(m * n for m, n in zip(a, b, strict=True))


def _pairs(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [n for pair in zip(a, b, strict=True) for n in pair]
