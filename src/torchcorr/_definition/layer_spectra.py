"""Spectra of the weights of convolution layers, as matrices that tiles are multiplied with."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .._plan.conv import SHORT, Layer, Tiles
from . import lattices


@lru_cache(maxsize=64)
def fourier(rows: int, columns: int, length: int, dtype: torch.dtype) -> Tensor:
    """exp(2 pi i u v / length) for the first rows u and columns v."""
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % length
    angle = turns.double() * (2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle).to(dtype)


def contract(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """The product of a matrix with one axis of x."""
    lines = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
    if axis == 0:
        product = torch.mm(matrix, lines[0])
    else:
        # Written out for each line: otherwise each product is a call of its own.
        repeated = matrix.expand(lines.shape[0], *matrix.shape).contiguous()
        product = torch.bmm(repeated, lines)
    return product.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def conjugate_spectra(w: Tensor, tiles: Tiles) -> Tensor:
    """Conjugate spectra of real (O, C, *window) as (frequencies, C, O), and the factor 1/n."""
    ndim, last = len(tiles.window), len(tiles.window) - 1
    dtype = w.dtype.to_complex()
    x = (w / math.prod(tiles.length)).permute(*range(2, 2 + ndim), 1, 0)
    for axis in reversed(range(ndim)):
        n, k = tiles.length[axis], tiles.window[axis]
        f = tiles.frequencies[axis]
        if k <= SHORT:
            matrix = fourier(f, k, n, dtype)
            if axis == last:
                parts = (contract(m.contiguous(), x, axis) for m in (matrix.real, matrix.imag))
                x = torch.complex(*parts)
            else:
                x = contract(matrix, x, axis)
        elif axis == last:
            x = torch.fft.rfft(x, n=n, dim=axis).conj().resolve_conj()
        else:
            x = torch.fft.ifft(x, n=n, dim=axis, norm="forward")
    return x.reshape(math.prod(tiles.frequencies), *x.shape[ndim:])


def dense_weights(w: Tensor, layer: Layer, form: str) -> tuple[Tensor, ...]:
    """For each group (O, C, *window) of the dense convolution that is the output of a layer, or the
    gradient of its input.
    """
    dense, at = layer.dense, layer.lattices
    w = lattices.weight_lattices(w, at).unflatten(0, (dense.groups, dense.outputs))
    if form == "input":
        w = w.flip(tuple(range(-len(at.size), 0))).transpose(1, 2)
    return w.unbind(0)


def weight_spectra(w: Tensor, layer: Layer, form: str, tiles: Tiles) -> Tensor:
    """Spectra (groups, frequencies, C, O) of the weights of all groups."""
    return torch.stack([conjugate_spectra(v, tiles) for v in dense_weights(w, layer, form)])
