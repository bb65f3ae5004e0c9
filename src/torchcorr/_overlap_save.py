"""Correlation through torch.fft, registered for the CPU.

The transforms run in float64 and on a centred input, so that rounding which they spread over the
whole image stays far below what float32 shows.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _choose, _reference
from ._geometry import Tiling, dilated_size, fast_length
from ._ops import kernels as ops
from ._ops import library
from ._tile_ops import new_map

# Rounding that transforms in float64 leave, beside the larger of a tile's two sides.
_NOISE = 64.0
# What a sum may be off, in roundings of its sum of absolute products.
_ULPS = 16.0
# Multiply-adds of windows computed again, for each element of a tile, that are worth it.
_AGAIN = 32
# Elements from which on MKL uses several threads for one line.
_LONG_LINE = 4096


def _lengths(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(fast_length(n) for n in size)


def _transform(x: Tensor, lengths: Sequence[int]) -> Tensor:
    axes = tuple(range(-len(lengths), 0))
    if x.is_complex():
        return torch.fft.fftn(x, s=tuple(lengths), dim=axes)
    return torch.fft.rfftn(x, s=tuple(lengths), dim=axes)


def _conjugate(x: Tensor) -> Tensor:
    """The complex conjugate, computed now: a kernel must not return or keep a lazy one."""
    return x.conj().resolve_conj()


def _reversed(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectrum of x with every window axis reversed, which turns a convolution into a
    correlation.
    """
    return _conjugate(_transform(_conjugate(x), lengths))


def _inverse(spectrum: Tensor, lengths: Sequence[int], is_complex: bool) -> Tensor:
    axes = tuple(range(-len(lengths), 0))
    if is_complex:
        return torch.fft.ifftn(spectrum, s=tuple(lengths), dim=axes)
    return torch.fft.irfftn(spectrum, s=tuple(lengths), dim=axes)


def _crop(x: Tensor, extent: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    steps = stride if stride is not None else (1,) * len(extent)
    return x[(..., *(slice(0, n, s) for n, s in zip(extent, steps, strict=True)))]


def dilated(grad: Tensor, stride: Sequence[int]) -> Tensor:
    """grad with stride - 1 zeros between its values."""
    if all(s == 1 for s in stride):
        return grad
    extent = dilated_size(grad.shape[-len(stride) :], stride)
    spread = grad.new_zeros((*grad.shape[: -len(stride)], *extent))
    _crop(spread, extent, stride).copy_(grad)
    return spread


def sum_channels(input: Tensor, template: Tensor, ndim: int) -> Tensor:
    """Product of two spectra, summed over their channel axis without a tensor of all products."""
    axis = -ndim - 1
    total = input.select(axis, 0) * template.select(axis, 0)
    for c in range(1, input.shape[axis]):
        total = torch.addcmul(total, input.select(axis, c), template.select(axis, c))
    return total


def finite_correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v) of finite tensors, in the precision they come in."""
    size, window = input.shape[-len(stride) :], template.shape[-len(stride) :]
    lengths = _lengths(size)
    weights = _reversed(template, lengths)
    product = sum_channels(_transform(input, lengths), weights, len(stride))
    valid = [n - k + 1 for n, k in zip(size, window, strict=True)]
    return _crop(_inverse(product, lengths, input.is_complex()), valid, stride)


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    if input.numel() == 0 or template.numel() == 0:
        return _reference.correlate(input, template, stride)
    if input.is_complex():
        if not torch.isfinite(input).all():
            return _reference.correlate(input, template, stride)
        wide, weights = _reference.widen(input), _reference.widen(template)
        return finite_correlate(wide, weights, stride).to(input.dtype).contiguous()
    if not torch.isfinite(template).all():
        return _reference.correlate(input, template, stride)
    return TiledSums(input, template, stride).run()


def whole_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Of complex tensors, and of gradients that are not finite: in one transform."""
    ndim = len(stride)
    lengths = _lengths(input_shape[-ndim:])
    weights = _reference.widen(template)
    spread = _transform(dilated(_reference.widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = spread * _transform(_conjugate(weights), lengths)
    product = product.sum_to_size((*input_shape[:-ndim], *product.shape[-ndim:]))
    full = _inverse(product, lengths, grad.is_complex())
    return _crop(full, input_shape[-ndim:]).to(grad.dtype).contiguous()


def whole_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Of complex tensors, and of gradients that are not finite: in one transform."""
    ndim = len(stride)
    lengths = _lengths(input.shape[-ndim:])
    seen = _reference.widen(input)
    weights = _reversed(dilated(_reference.widen(grad), stride), lengths).unsqueeze(-ndim - 1)
    product = weights * _transform(_conjugate(seen), lengths)
    product = product.sum_to_size((*template_shape[:-ndim], *product.shape[-ndim:]))
    full = _inverse(product, lengths, grad.is_complex())
    return _crop(full, template_shape[-ndim:]).to(grad.dtype).contiguous()


# --- tiles ----------------------------------------------------------------------------------------


def _lone(x: Tensor, ndim: int) -> bool:
    """A single long line: MKL cuts it up among threads, and rounds otherwise for each number."""
    return ndim == 1 and x.shape[:-1].numel() == 1 and x.shape[-1] >= _LONG_LINE


def forth(x: Tensor, ndim: int) -> Tensor:
    """Spectrum of a complex x over its last axes."""
    axes = tuple(range(-ndim, 0))
    if _lone(x, ndim):
        return torch.fft.fftn(torch.cat((x, x)), dim=axes)[:1]
    return torch.fft.fftn(x, dim=axes)


def back(x: Tensor, ndim: int) -> Tensor:
    """The inverse of `forth`, without its 1/n."""
    axes = tuple(range(-ndim, 0))
    if _lone(x, ndim):
        return torch.fft.ifftn(torch.cat((x, x)), dim=axes, norm="forward")[:1]
    return torch.fft.ifftn(x, dim=axes, norm="forward")


def conjugate_spectrum(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Conjugate of the spectrum of a real x padded with zeros."""
    ndim = len(lengths)
    # As complex numbers: MKL rounds real input otherwise for each number of threads.
    found = x.flatten(0, -ndim - 1).to(x.dtype.to_complex())
    if ndim == 1:
        found = back(torch.nn.functional.pad(found, (0, lengths[0] - found.shape[-1])), 1)
        return found.reshape(*x.shape[:-1], *lengths)
    # Axis by axis, so that only lines that are not zero are transformed; rows last, as they lie.
    for axis in range(-ndim, 0):
        found = torch.fft.ifft(found, n=lengths[axis], dim=axis, norm="forward")
    return found.reshape(*x.shape[:-ndim], *lengths)


Kept = dict[tuple[torch.dtype, int, int, int], Tensor]
Store = dict[tuple[Any, ...], Kept]
_thread = threading.local()


@contextmanager
def keeping(store: Store) -> Iterator[None]:
    """Lets the calls inside keep spectra of templates in `store`, and find them there.

    Its owner clears it when the template changes.
    """
    outer = getattr(_thread, "store", None)
    _thread.store = store
    try:
        yield
    finally:
        _thread.store = outer


class TemplateSpectra:
    """Templates (paired, templates, C, *window) as the tiles of one tiling need them."""

    # Bytes of spectra that a call keeps for its other batches.
    room = 32 << 20

    def __init__(
        self,
        template: Tensor,
        tiling: Tiling,
        stride: Sequence[int],
        transformed: bool,
        absolute: bool = False,
    ) -> None:
        self.template, self.tiling, self.stride = template, tiling, list(stride)
        if absolute:
            self.template = template.abs()
        self.transformed = transformed
        self._kept: Kept = {}
        store: Store | None = getattr(_thread, "store", None)
        self._room: float = self.room if store is None else math.inf
        if store is not None:
            key = (transformed, absolute, tiling.length, template.shape, template.device)
            self._kept = store.setdefault(key, {})

    def part(self, dtype: torch.dtype, pairs: slice, first: int, last: int) -> Tensor:
        """Templates first to last of some pairs, in one precision."""
        key = (dtype, pairs.start, first, last)
        found = self._kept.get(key)
        if found is not None:
            return found
        part = self.template[pairs, first:last]
        if self.transformed:
            # The 1/n of the inverse is folded in here, where it is cheapest.
            part = (part / math.prod(self.tiling.length)).to(dtype)
            found = conjugate_spectrum(part, self.tiling.length)
        else:
            found = part.to(dtype)
        self._room -= found.nbytes
        if self._room >= 0:
            self._kept[key] = found
        return found


def numerators(
    tiles: Tensor,
    spectra: TemplateSpectra,
    pairs: slice,
    at_once: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """(first template, numerators) of tiles that come from `pairs` in equal parts, for templates
    `start` to `stop`.

    By transforms two tiles are one complex one, as they come and as they are returned: a template
    is real, so real and imaginary part do not meet.
    """
    ndim = len(spectra.tiling.length)
    groups = pairs.stop - pairs.start
    all_templates = spectra.template.shape[1] if stop is None else stop
    shape = (groups, tiles.shape[0] // groups, 1, *tiles.shape[1:])
    if spectra.transformed:
        lines = torch.view_as_complex(tiles)
        found = forth(lines.flatten(0, 1), ndim).reshape(shape[:-1])
        in_place = spectra.template.shape[1:3] == (1, 1)
    for first in range(start, all_templates, at_once):
        last = min(first + at_once, all_templates)
        weights = spectra.part(tiles.dtype, pairs, first, last).unsqueeze(1)
        if not spectra.transformed:
            result = ops.correlate_direct(tiles.reshape(shape), weights, spectra.stride)
        else:
            if in_place:
                product = found.squeeze(-ndim - 1).mul_(weights.squeeze(-ndim - 1))
            else:
                product = sum_channels(found, weights, ndim)
            lead = product.shape[:-ndim]
            product = back(product.flatten(0, -ndim - 1), ndim)
            result = torch.view_as_real(product.unflatten(0, lead))
        yield first, result.reshape(tiles.shape[0], *result.shape[2:])


class TiledSums:
    """One correlation in tiles, in float64, each value within a few roundings of its own terms.

    A value that is large beside what rounding left in its tile is known to be right. For tiles
    that have many others, the sums of absolute products tell; windows that these do not vouch for
    come from the definition, whole tiles of them from the direct loop.
    """

    def __init__(self, input: Tensor, template: Tensor, stride: Sequence[int]) -> None:
        ndim = len(stride)
        arranged = _choose.arrange(input, template, stride, "fft", False)
        self.problem, self.plan = arranged.problem, arranged.plan
        self.tiling, self.geometry = arranged.tiling, arranged.geometry
        self.stride = list(stride)
        leads = self.problem.leads
        self.input = leads.input(input, ndim + 1).contiguous()
        self.template = leads.template(_reference.widen(template), ndim + 1).contiguous()
        self.spectra = TemplateSpectra(self.template, self.tiling, stride, True)
        self.sizes: TemplateSpectra | None = None
        self.count = self.problem.channels * math.prod(self.problem.window)
        unit = torch.finfo(input.dtype).eps / 2
        self.noise = _NOISE * torch.finfo(torch.float64).eps / 2
        self.allowed = _ULPS * unit
        self.budget = max(1, _AGAIN * math.prod(self.tiling.length) // self.count)

    def run(self) -> Tensor:
        leads = self.problem.leads
        shape = (leads.paired * leads.inputs, leads.templates, *self.tiling.positions)
        self.out = new_map(self.input, shape)
        for pairs, ids in _choose.batches(self.problem, self.plan):
            self._batch(pairs, ids)
        return leads.restored(self.out, len(self.stride))

    def _batch(self, pairs: slice, ids: list[int]) -> None:
        tiles, stats = ops.gather_tiles(self.input, ids, self.geometry, True, True, True)
        marked = None
        if not bool((stats[:, 3] != 0).all()):
            window = list(self.problem.window)
            place = (self.input, ids, self.geometry, window, self.stride)
            norms = ops.tile_norms(stats, *place, False, False, 0.0, 0.0, 0.0, False)[0]
            marked = norms.isnan()
        for first, found in numerators(tiles, self.spectra, pairs, self.plan.templates):
            left = self._finish(found, stats, None, marked, ids, first)
            if left:
                self._judge(pairs, ids, stats, marked, found, first, left)

    def _finish(
        self,
        found: Tensor,
        stats: Tensor,
        bound: Tensor | None,
        marked: Tensor | None,
        ids: list[int],
        first: int,
    ) -> list[int]:
        """Writes values; the tiles that keep too many doubtful ones."""
        left = ops.finish_sums(
            found,
            stats,
            bound,
            marked,
            self.input,
            self.template,
            ids,
            self.geometry,
            self.stride,
            first,
            self.noise,
            self.allowed,
            self.budget,
            self.out,
        )
        return [i for i, n in enumerate(left.tolist()) if n > 0]

    def _judge(
        self,
        pairs: slice,
        ids: list[int],
        stats: Tensor,
        marked: Tensor | None,
        found: Tensor,
        first: int,
        left: list[int],
    ) -> None:
        """Tiles that keep doubtful values again: by the sums of absolute products, which float32
        tells well enough, and then by the direct loop.
        """
        if self.sizes is None:
            self.sizes = TemplateSpectra(self.template, self.tiling, self.stride, True, True)
        last, each = first + found.shape[1], len(ids) // (pairs.stop - pairs.start)
        for k in range(pairs.stop - pairs.start):
            pair = slice(pairs.start + k, pairs.start + k + 1)
            both = sorted({i // 2 for i in left if i // each == k})
            if not both:
                continue
            rows = [i for p in both for i in (2 * p, 2 * p + 1)]
            own = [ids[i] for i in rows]
            raw, raw_stats = ops.gather_tiles(self.input, own, self.geometry, False, True, True)
            # In the scale of the centred tiles.
            ratio = (stats[rows, 1] / raw_stats[:, 1]).unflatten(0, (-1, 2))
            shape = (ratio.shape[0], *(1,) * (raw.dim() - 2), 2)
            raw = raw.abs_().mul_(ratio.reshape(shape)).to(torch.float32)
            bounds = numerators(raw, self.sizes, pair, found.shape[1], first, last)
            bound = next(bounds)[1]
            mark = None if marked is None else marked[rows]
            for i in self._finish(found[both], stats[rows], bound, mark, own, first):
                self._direct(own[i], pair.start, first, found.shape[1])

    def _direct(self, tile: int, pair: int, first: int, templates: int) -> None:
        """One tile by its definition."""
        item, at = divmod(tile, self.tiling.tiles)
        seen, to = self.tiling.slices(at)
        part = self.input[(slice(item, item + 1), slice(None), *seen)].to(torch.float64)
        weights = self.template[pair, first : first + templates]
        found = ops.correlate_direct(part, weights, self.stride)
        self.out[(item, slice(first, first + templates), *to)] = found.to(self.out.dtype)


library.impl("correlate_fft", correlate, "CPU")
