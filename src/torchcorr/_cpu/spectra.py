"""Dense convolutions of many channels by spectra of tiles: a matrix product for each frequency.

Spectra are (frequencies, tiles or inputs, channels), so that a frequency is a matrix as it lies in
memory. Transforms of few elements, or of which few elements are kept, are products with a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._definition.lattices import resized
from .._definition.layer_spectra import conjugate_spectra, contract, fourier
from .._plan.conv import SHORT, Tiles
from .._plan.shapes import Ints


def _inverse(spectra: Tensor, tiles: Tiles, kept: Ints) -> Tensor:
    """The first `kept` real elements (*kept, A, B) of spectra (frequencies, A, B); no factor."""
    ndim, dtype = len(kept), spectra.dtype
    x = spectra.unflatten(0, tiles.frequencies)
    for axis in range(ndim - 1):
        n, m = tiles.length[axis], kept[axis]
        if m <= SHORT:
            x = contract(fourier(m, n, n, dtype), x, axis)
        else:
            x = torch.fft.ifft(x, dim=axis, norm="forward").narrow(axis, 0, m)
    n, m, f = tiles.length[-1], kept[-1], tiles.frequencies[-1]
    if m > SHORT:
        return torch.fft.irfft(x, n=n, dim=ndim - 1, norm="forward").narrow(ndim - 1, 0, m)
    # All frequencies but the first, and the last of an even length, stand for two.
    weights = torch.full((f,), 2.0, dtype=dtype.to_real())
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    return contract(fourier(m, f, n, dtype) * weights, x, ndim - 1).real


def _forward(tiles: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectra (*frequencies, n, *grid, C) of tiles (n, C, *grid, *extent), as matrices."""
    ndim = len(lengths)
    spectra = torch.fft.rfftn(tiles, s=tuple(lengths), dim=tuple(range(-ndim, 0)))
    order = (*range(2 + ndim, 2 + 2 * ndim), 0, *range(2, 2 + ndim), 1)
    # A copy even where a view would do: a product of matrices without unit steps copies each.
    spectra = spectra.permute(order).contiguous()
    return spectra.reshape(math.prod(spectra.shape[:ndim]), -1, spectra.shape[-1])


def _cut(x: Tensor, begin: Sequence[int], step: Ints, extent: Ints, grid: Ints) -> Tensor:
    """Tiles (n, C, *grid, *extent) that start at `begin` of x, which has zeros around it."""
    size = tuple((g - 1) * m + n for g, m, n in zip(grid, step, extent, strict=True))
    tiles = resized(x, [-n for n in begin], size)
    for axis, (n, m) in enumerate(zip(extent, step, strict=True), 2):
        tiles = tiles.unfold(axis, n, m)
    return tiles


def _batches(items: int, tiles: Tiles, at_once: int) -> Iterator[tuple[slice, int, int]]:
    """Items, and rows of tiles along the first axis, that are transformed together."""
    rows, each = tiles.grid[0], math.prod(tiles.grid[1:])
    together = max(1, at_once // (rows * each))
    step = rows if at_once >= rows * each else max(1, at_once // each)
    for n in range(0, items, together):
        for first in range(0, rows, step):
            yield slice(n, n + together), first, min(first + step, rows)


def convolve(
    x: Tensor, w: Tensor, padding: Sequence[int], tiles: Tiles, prepared: Tensor | None = None
) -> Tensor:
    """The dense convolution of (N, C, *size), zeros around it, and (O, C, *window).

    Spectra of all weights may have been prepared, if they have room in one block.
    """
    items, (outputs, channels) = x.shape[0], w.shape[:2]
    covered = tuple(g * m for g, m in zip(tiles.grid, tiles.outputs, strict=True))
    out = x.new_empty((items, outputs, *covered))
    at_once = tiles.at_once(2 * (channels + tiles.block), x.element_size())
    for block in range(0, outputs, tiles.block):
        weights = prepared
        if weights is None:
            weights = conjugate_spectra(w[block : block + tiles.block], tiles)
        for some, first, last in _batches(items, tiles, at_once):
            products = torch.bmm(_tile_spectra(x[some], padding, tiles, first, last), weights)
            sums = _inverse(products, tiles, tiles.outputs)
            part = out[some, block : block + tiles.block]
            _place(sums, part, tiles, first, last)
    return resized(out, (0,) * len(covered), tiles.positions).contiguous()


def _tile_spectra(x: Tensor, padding: Sequence[int], tiles: Tiles, first: int, last: int) -> Tensor:
    begin = [first * tiles.outputs[0] - padding[0], *(-p for p in padding[1:])]
    grid = (last - first, *tiles.grid[1:])
    return _forward(_cut(x, begin, tiles.outputs, tiles.length, grid), tiles.length)


def _place(sums: Tensor, out: Tensor, tiles: Tiles, first: int, last: int) -> None:
    """Writes (*outputs, tiles, O) where the tiles lie in (n, O, *covered)."""
    ndim, rows = len(tiles.grid), last - first
    grid = (rows, *tiles.grid[1:])
    parts = sums.unflatten(-2, (out.shape[0], *grid))
    # (*outputs, n, *grid, O) in the order n, O, then a tile and its outputs for each axis.
    order = (ndim, 2 * ndim + 1, *(i + (ndim + 1) * j for i in range(ndim) for j in (1, 0)))
    begin = first * tiles.outputs[0]
    to = out.narrow(2, begin, rows * tiles.outputs[0])
    for axis in range(ndim):
        to = to.unflatten(2 + 2 * axis, (grid[axis], tiles.outputs[axis]))
    to.copy_(parts.permute(order))


def weight_grad(grad: Tensor, x: Tensor, padding: Sequence[int], tiles: Tiles) -> Tensor:
    """(O, C, *window) of (N, O, *positions) and (N, C, *size), summed over tiles as spectra."""
    items, channels, outputs = x.shape[0], x.shape[1], grad.shape[1]
    at_once = tiles.at_once(2 * (channels + tiles.block), x.element_size())
    shape = (channels, outputs, *tiles.window)
    out = x.new_empty(shape)
    for block in range(0, outputs, tiles.block):
        of_block = grad[:, block : block + tiles.block]
        total: Tensor | None = None
        for some, first, last in _batches(items, tiles, at_once):
            seen = _tile_spectra(x[some], padding, tiles, first, last).transpose(1, 2)
            begin = [first * tiles.outputs[0], *(0 for _ in tiles.grid[1:])]
            grid = (last - first, *tiles.grid[1:])
            cut = _cut(of_block[some], begin, tiles.outputs, tiles.outputs, grid)
            upstream = _forward(cut, tiles.length).conj_physical_()
            if total is None:
                total = torch.bmm(seen, upstream)
            else:
                total.baddbmm_(seen, upstream)
        if total is not None:
            sums = _inverse(total, tiles, tiles.window) / math.prod(tiles.length)
            ndim = len(tiles.window)
            out[:, block : block + tiles.block] = sums.permute(ndim, ndim + 1, *range(ndim))
    return out.transpose(0, 1).contiguous()
