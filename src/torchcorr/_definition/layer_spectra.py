"""Spectra of the weights and tiles of convolution layers, as matrices of each frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._plan.conv import SHORT, Layer, Tiles
from . import lattices


@lru_cache(maxsize=64)
def fourier(rows: int, columns: int, length: int, sign: int, dtype: torch.dtype) -> Tensor:
    """exp(sign 2 pi i u v / length) for the first rows u and columns v."""
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % length
    angle = turns.double() * (sign * 2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle).to(dtype)


def taken(room: Tensor, *shape: int) -> Tensor:
    """A tensor in room for several, which need not be made anew then: memory that the system has
    just given takes longer to write than a product of matrices."""
    return room[: math.prod(shape)].view(shape)


def contract(matrix: Tensor, x: Tensor, axis: int, room: Tensor | None = None) -> Tensor:
    """The product of a matrix with one axis of x."""
    lines = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
    if axis == 0:
        out = None if room is None else taken(room, matrix.shape[0], lines.shape[2])
        product = torch.mm(matrix, lines[0], out=out)
    else:
        # Written out for each line: otherwise each product is a call of its own.
        repeated = matrix.expand(lines.shape[0], *matrix.shape).contiguous()
        product = torch.bmm(repeated, lines)
    return product.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def forward(x: Tensor, lengths: Sequence[int], sign: int, room: Tensor | None = None) -> Tensor:
    """Spectra (*frequencies, *rest) of real (*extent, *rest), zeros behind each extent, for sign
    -1, and their conjugates for sign 1. They may lie in `room`.
    """
    last, dtype = len(lengths) - 1, x.dtype.to_complex()
    for axis in reversed(range(len(lengths))):
        n, k = lengths[axis], x.shape[axis]
        f = n // 2 + 1 if axis == last else n
        if k <= SHORT:
            matrix = fourier(f, k, n, sign, dtype)
            if axis == last:
                x = x.contiguous()
                parts = (contract(m.contiguous(), x, axis) for m in (matrix.real, matrix.imag))
                x = torch.complex(*parts)
            else:
                x = contract(matrix, x, axis, room if axis == 0 else None)
        elif axis == last:
            x = torch.fft.rfft(x, n=n, dim=axis)
            x = x.conj_physical_() if sign > 0 else x
        elif sign > 0:
            x = torch.fft.ifft(x, n=n, dim=axis, norm="forward")
        else:
            x = torch.fft.fft(x, n=n, dim=axis)
    return x


def conjugate_spectra(
    w: Tensor, tiles: Tiles, turned: bool = False, room: Tensor | None = None
) -> Tensor:
    """Conjugate spectra of real (O, C, *window) as (frequencies, C, O), and the factor 1/n.

    Of a weight that is turned around along all axes of its window, if `turned`.
    """
    if not w.is_contiguous() and w.transpose(0, 1).is_contiguous():
        return conjugate_spectra(w.transpose(0, 1), tiles, turned, room).transpose(1, 2)
    # A transpose of two axes, which is copied faster than one of more.
    flat = w.reshape(w.shape[0] * w.shape[1], -1) / math.prod(tiles.length)
    flat = (flat.flip(1) if turned else flat).t().contiguous()
    spectra = forward(flat.reshape(*w.shape[2:], *w.shape[:2]), tiles.length, 1, room)
    return spectra.flatten(0, -3).transpose(1, 2)


def dense_weights(w: Tensor, layer: Layer, form: str) -> tuple[Tensor, ...]:
    """For each group (O, C, *window) of the dense convolution that is the output of a layer, or the
    gradient of its input, which is one with turned weights.
    """
    dense, at = layer.dense, layer.lattices
    w = lattices.weight_lattices(w, at).unflatten(0, (dense.groups, dense.outputs))
    return (w.transpose(1, 2) if form == "input" else w).unbind(0)


def weight_spectra(w: Tensor, layer: Layer, form: str, tiles: Tiles) -> Tensor:
    """Spectra (groups, frequencies, C, O) of the weights of all groups."""
    turned = form == "input"
    parts = dense_weights(w, layer, form)
    return torch.stack([conjugate_spectra(v, tiles, turned) for v in parts])
