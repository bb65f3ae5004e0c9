"""Dense convolutions of many channels by spectra of tiles: a matrix product for each frequency.

Spectra are (frequencies, tiles or inputs, channels), so that a frequency is a matrix as it lies in
memory. Transforms of few elements, or of which few elements are kept, are products with a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .._definition.lattices import resized
from .._definition.layer_spectra import conjugate_spectra, contract, forward, fourier, taken
from .._plan.conv import MATRIX_CHANNELS, SHORT, Tiles
from .._plan.shapes import Ints

Batch = tuple[slice, slice]  # items, and rows of their tiles along the first axis


def _inverse(spectra: Tensor, tiles: Tiles, kept: Ints) -> Tensor:
    """The first `kept` real elements of spectra (frequencies, M), without a factor, as the first
    axes (*kept[:-1], M, kept[-1]).
    """
    last, dtype = len(kept) - 1, spectra.dtype
    x = spectra.unflatten(0, tiles.frequencies)
    for axis in range(last):
        n, m = tiles.length[axis], kept[axis]
        if m <= SHORT:
            x = contract(fourier(m, n, n, 1, dtype), x, axis)
        else:
            x = torch.fft.ifft(x, dim=axis, norm="forward").narrow(axis, 0, m)
    n, m, f = tiles.length[-1], kept[-1], tiles.frequencies[-1]
    if m > SHORT:
        return torch.fft.irfft(x, n=n, dim=last, norm="forward").narrow(last, 0, m).mT
    # All frequencies but the first, and the last of an even length, stand for two.
    weights = torch.full((f, 1), 2.0, dtype=dtype.to_real())
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    lines = x.reshape(math.prod(kept[:-1]), f, -1).mT
    matrix = (fourier(f, m, n, 1, dtype) * weights).expand(lines.shape[0], f, m).contiguous()
    return torch.bmm(lines, matrix).real.reshape(*kept[:-1], -1, m)


def _cut(x: Tensor, begin: Sequence[int], step: Ints, extent: Ints, grid: Ints) -> Tensor:
    """Tiles (n, C, *grid, *extent) that start at `begin` of x, which has zeros around it."""
    size = tuple((g - 1) * m + n for g, m, n in zip(grid, step, extent, strict=True))
    tiles = resized(x, [-n for n in begin], size)
    for axis, (n, m) in enumerate(zip(extent, step, strict=True), 2):
        tiles = tiles.unfold(axis, n, m)
    return tiles


def _spectra_of(tiles: Tensor, lengths: Ints, sign: int) -> Tensor:
    """Spectra (*frequencies, n, *grid, C), for sign 1 conjugate ones, of tiles (n, C, *grid,
    *extent).
    """
    ndim, channels = len(lengths), tiles.shape[1]
    order = (*range(2 + ndim, 2 + 2 * ndim), 0, *range(2, 2 + ndim), 1)
    if max(tiles.shape[2 + ndim :]) <= SHORT and channels >= MATRIX_CHANNELS:
        return forward(tiles.permute(order), lengths, sign)
    spectra = torch.fft.rfftn(tiles, s=lengths, dim=tuple(range(-ndim, 0)))
    return (spectra.conj_physical_() if sign > 0 else spectra).permute(order)


def _batches(tiles: Tiles, items: slice, rows: slice, at_once: int) -> Iterator[Batch]:
    """Items, and rows of tiles along the first axis, that are transformed together."""
    count, each = rows.stop - rows.start, math.prod(tiles.grid[1:])
    together = max(1, at_once // (count * each))
    step = count if at_once >= count * each else max(1, at_once // each)
    for n in range(items.start, items.stop, together):
        for first in range(rows.start, rows.stop, step):
            some = slice(n, min(n + together, items.stop))
            yield some, slice(first, min(first + step, rows.stop))


def _all_batches(items: int, tiles: Tiles) -> list[Batch]:
    return list(_batches(tiles, slice(0, items), slice(0, tiles.grid[0]), tiles.together))


def _spectra_at(
    x: Tensor, padding: Sequence[int], tiles: Tiles, batch: Batch, extent: Ints, sign: int
) -> Tensor:
    """Spectra (frequencies, tiles, C) of a batch of tiles, a few tiles and channels at a time."""
    items, rows = batch
    ndim, channels = len(extent), x.shape[1]
    at_once, some = tiles.at_once(channels, math.prod(tiles.grid[1:]), x.element_size())
    sizes = (items.stop - items.start, rows.stop - rows.start, *tiles.grid[1:], channels)
    spectra = _room(x, tiles, math.prod(sizes)).view(*tiles.frequencies, *sizes)
    all_of_them = (slice(None),) * ndim
    for of_items, of_rows in _batches(tiles, items, rows, at_once):
        begin = [of_rows.start * tiles.outputs[0] - padding[0], *(-p for p in padding[1:])]
        grid = (of_rows.stop - of_rows.start, *tiles.grid[1:])
        to = spectra[(*all_of_them, _from(items, of_items), _from(rows, of_rows))]
        for c in range(0, channels, some):
            cut = _cut(x[of_items, c : c + some], begin, tiles.outputs, extent, grid)
            to[..., c : c + some] = _spectra_of(cut, tiles.length, sign)
    return spectra.flatten(0, ndim - 1).flatten(1, ndim + 1)


def _spectra_by_batch(
    x: Tensor, padding: Sequence[int], tiles: Tiles, batches: Sequence[Batch]
) -> Callable[[Batch], Tensor]:
    """The spectra of a batch of tiles: those of a single batch are made once, others when asked."""

    def made(batch: Batch) -> Tensor:
        return _spectra_at(x, padding, tiles, batch, tiles.length, -1)

    if len(batches) != 1:
        return made
    held = made(batches[0])
    return lambda batch: held


def _from(whole: slice, part: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def convolve(
    x: Tensor,
    w: Tensor,
    padding: Sequence[int],
    tiles: Tiles,
    turned: bool = False,
    prepared: Tensor | None = None,
) -> Tensor:
    """The dense convolution of (N, C, *size), zeros around it, and (O, C, *window), or that window
    turned around.

    Spectra of all weights may have been prepared.
    """
    items, (outputs, channels) = x.shape[0], w.shape[:2]
    covered = tuple(g * m for g, m in zip(tiles.grid, tiles.outputs, strict=True))
    out = x.new_empty((items, outputs, *covered))
    batches = _all_batches(items, tiles)
    seen_by = _spectra_by_batch(x, padding, tiles, batches)
    room = None if prepared is not None else _room(x, tiles, channels * min(tiles.block, outputs))
    of_products = _room(x, tiles, tiles.together * min(tiles.block, outputs))
    for block in range(0, outputs, tiles.block):
        part = slice(block, min(block + tiles.block, outputs))
        if prepared is None:
            weights = conjugate_spectra(w[part], tiles, turned, room)
        else:
            weights = prepared[..., part]
        for batch in batches:
            seen = seen_by(batch)
            products = taken(of_products, *seen.shape[:2], weights.shape[2])
            torch.bmm(seen, weights, out=products)
            sums = _inverse(products.flatten(1), tiles, tiles.outputs)
            _place(sums, out[batch[0], part], tiles, batch[1])
    return resized(out, (0,) * len(covered), tiles.positions).contiguous()


def _room(x: Tensor, tiles: Tiles, numbers: int) -> Tensor:
    """For so many spectra, one at each frequency."""
    return x.new_empty(math.prod(tiles.frequencies) * numbers, dtype=x.dtype.to_complex())


def _place(sums: Tensor, out: Tensor, tiles: Tiles, rows: slice) -> None:
    """Writes (*outputs[:-1], tiles * O, outputs[-1]) where the tiles lie in (n, O, *covered)."""
    ndim = len(tiles.grid)
    grid = (rows.stop - rows.start, *tiles.grid[1:])
    parts = sums.unflatten(-2, (out.shape[0], *grid, out.shape[1]))
    # In the order n, O, then a tile and its outputs for each axis.
    within = (*range(ndim - 1), 2 * ndim + 1)
    order = (ndim - 1, 2 * ndim, *(i for pair in enumerate(within, ndim) for i in pair))
    to = out.narrow(2, rows.start * tiles.outputs[0], grid[0] * tiles.outputs[0])
    for axis in range(ndim):
        to = to.unflatten(2 + 2 * axis, (grid[axis], tiles.outputs[axis]))
    to.copy_(parts.permute(order))


def weight_grad(grad: Tensor, x: Tensor, padding: Sequence[int], tiles: Tiles) -> Tensor:
    """(O, C, *window) of (N, O, *positions) and (N, C, *size), summed over tiles as spectra."""
    items, channels, outputs, ndim = x.shape[0], x.shape[1], grad.shape[1], len(tiles.window)
    out = x.new_empty((outputs, channels, *tiles.window))
    batches = _all_batches(items, tiles)
    seen_by = _spectra_by_batch(x, padding, tiles, batches)
    room = _room(x, tiles, channels * min(tiles.block, outputs))
    for block in range(0, outputs, tiles.block):
        part = slice(block, min(block + tiles.block, outputs))
        total: Tensor | None = None
        for batch in batches:
            seen = seen_by(batch)
            upstream = _spectra_at(grad[:, part], (0,) * ndim, tiles, batch, tiles.outputs, 1)
            if total is None:
                total = taken(room, seen.shape[0], upstream.shape[2], channels)
                torch.bmm(upstream.mT, seen, out=total)
            else:
                total.baddbmm_(upstream.mT, seen)
        if total is not None:
            sums = _inverse(total.flatten(1), tiles, tiles.window).movedim(-2, 0)
            to = out[part]
            torch.div(sums.reshape(to.shape), math.prod(tiles.length), out=to)
    return out
