"""Plain correlation through transforms on CUDA, and its two transposes.

Transforms run in float64, which costs twice the bytes of float32 and keeps almost every value
within a few roundings of its terms: a value is trusted if it, or for float64 the sum of its
absolute products, is large relative to the noise of its tile. The others, and all those of a tile
with an element that is not finite, are doubtful: the kernel that writes them recomputes them from
the definition, N multiply-adds each. The host does not wait and decides nothing from data.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ..._definition import correlate as definition
from ..._definition import transforms as whole
from ..._definition.transposes import Transpose
from ..._plan import rounding
from ..._plan.plan import Plan
from ..._plan.predict import Problem
from ..._plan.tiling import TileStats, Tiling
from ..values import converted, three
from .cut import gather
from .noise import noise_of
from .products import add_products
from .records import NOT_FINITE, SCALE, STATS
from .transforms import (
    Piece,
    Spectra,
    arranged,
    forward_fft,
    kind_of,
    numerators_of,
    pieces,
)

_BLOCK = 256
_SIZES = [
    "count", "blocks", "first", "templates", "all_templates", "inputs", "channels", "item",
    "channel", "plane", "row", "n_z", "n_y", "n_x", "m_z", "m_y", "m_x", "g_z", "g_y", "g_x",
    "l_z", "l_y", "l_x", "s_z", "s_y", "s_x", "w_z", "w_y", "w_x", "p_z", "p_y", "p_x",
    "size_z", "size_y", "size_x", "out_item", "out_template", "out_plane", "out_row",
]  # fmt: skip


class Windows(NamedTuple):
    """Windows of one lead: the input they are read from, and their template's coefficients."""

    source: Any
    coefficients: Any
    channels: Any
    pitch: Any  # of channels, planes and rows
    size: Any
    window: Any


@triton.jit
def _by_definition(windows, z, y, x, wanted):
    """Sums of products of the windows that begin at (z, y, x); the input is 0 outside itself."""
    channel, plane, row = windows.pitch
    size, window = windows.size, windows.window
    total = tl.zeros(wanted.shape, tl.float64)
    for line in range(windows.channels * window[0] * window[1]):
        dy = line % window[1]
        c, dz = line // window[1] // window[0], line // window[1] % window[0]
        in_row = wanted & (z + dz >= 0) & (z + dz < size[0]) & (y + dy >= 0) & (y + dy < size[1])
        at = c.to(tl.int64) * channel + (z + dz).to(tl.int64) * plane + (y + dy).to(tl.int64) * row
        for dx in range(window[2]):
            inside = in_row & (x + dx >= 0) & (x + dx < size[2])
            value = tl.load(windows.source + at + x + dx, mask=inside, other=0).to(tl.float64)
            at_template = windows.coefficients + line * window[2] + dx
            total += value * tl.load(at_template).to(tl.float64)
    return total


@triton.jit(do_not_specialize=_SIZES)
def write_sums_kernel(
    numerators, stats, noise, bound, bound_stats, source, coefficients, out, allowed,
    count, blocks, first, templates, all_templates, inputs, channels, item, channel, plane, row,
    n_z, n_y, n_x, m_z, m_y, m_x, g_z, g_y, g_x, l_z, l_y, l_x, s_z, s_y, s_x,
    w_z, w_y, w_x, p_z, p_y, p_x, size_z, size_y, size_x,
    out_item, out_template, out_plane, out_row,
    BOUND: tl.constexpr, CHECKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one lead's and template's sums, in the input's units and with its level.

    Positions are numbered in the type of their count.
    """
    pid = tl.program_id(0)
    block, k = pid % blocks, pid // blocks % templates
    lead = (pid // blocks // templates).to(tl.int64)
    number = block.to(count.dtype) * BLOCK + tl.arange(0, BLOCK)
    valid = number < count
    z, y, x = number // (n_y.to(count.dtype) * n_x), number // n_x % n_y, number % n_x
    tile = ((z // m_z) * g_y + y // m_y) * g_x + x // m_x
    tile = lead * (g_z * g_y * g_x) + tl.where(valid, tile, 0)
    inner = ((z % m_z * s_z) * l_y + y % m_y * s_y) * l_x + x % m_x * s_x
    at = (tile * templates + k) * l_z * l_y * l_x + inner
    scale = tl.load(stats + tile * STATS + SCALE)
    non_finite = tl.load(stats + tile * STATS + NOT_FINITE) > 0
    template = lead // inputs * all_templates + first + k
    value = tl.load(numerators + at, mask=valid, other=0.0).to(tl.float64) / scale
    trusted = tl.abs(value) < float("inf")
    if CHECKED:
        noise += (tile * templates + k) * 2
        value += tl.load(noise + 1)
        trusted = value == value
        size = tl.abs(value)
        if BOUND:
            size = tl.load(bound + at, mask=valid, other=0.0).to(tl.float64)
            size = size / tl.load(bound_stats + tile * STATS + SCALE)
        trusted = trusted & (size * allowed >= tl.load(noise))
    doubtful = valid & (non_finite | (trusted == 0))
    if tl.max(doubtful.to(tl.int32), 0) > 0:
        windows = Windows(
            source + lead * item, coefficients + template * channels * w_z * w_y * w_x, channels,
            (channel, plane, row), (size_z, size_y, size_x), (w_z, w_y, w_x),
        )  # fmt: skip
        exact = _by_definition(windows, z * s_z - p_z, y * s_y - p_y, x * s_x - p_x, doubtful)
        value = tl.where(doubtful, exact, value)
    to = lead * out_item + (first + k).to(tl.int64) * out_template
    to += z.to(tl.int64) * out_plane + y.to(tl.int64) * out_row + x
    tl.store(out + to, converted(value, out.dtype.element_ty), mask=valid)


@dataclass
class _Call:
    """One correlation in normal form: items (I, C, *size), templates (paired, T, C, *window)."""

    input: Tensor
    template: Tensor
    problem: Problem
    plan: Plan
    tiling: Tiling
    out: Tensor
    checked: bool

    def run(self) -> None:
        call = (self.problem, self.plan, self.tiling)
        spectra = Spectra(self.template, *call, torch.float64)
        # A float64 value does not show how accurate it is: the sum of its absolute products does.
        bounded = self.checked and self.input.dtype == torch.float64
        sizes = Spectra(self.template, *call, torch.float32, absolute=True)
        for piece in pieces(*call):
            part, at_once = piece.of_input(self.input), self.plan.templates
            tiles, stats = gather(
                part, piece.tiling, torch.float64, centred=self.checked, extra=spectra.extra
            )
            bounds = None
            if bounded:
                raw, raw_stats = gather(
                    part, piece.tiling, torch.float32, centred=False, extra=sizes.extra
                )
                bounds = numerators_of(raw.abs_(), sizes, piece, at_once)
            for first, numerators, moments in numerators_of(tiles, spectra, piece, at_once):
                bound = None if bounds is None else (next(bounds)[1], raw_stats)
                noise = None
                if self.checked:
                    level = rounding.TRANSFORM_OF_SUMS * rounding.unit(torch.float64)
                    noise = noise_of(numerators, stats, moments, level)
                self._write(piece, numerators, stats, noise, bound, first)

    def _write(
        self,
        piece: Piece,
        numerators: Tensor,
        stats: TileStats,
        noise: Tensor | None,
        bound: tuple[Tensor, TileStats] | None,
        first: int,
    ) -> None:
        """Writes the sums of a piece with templates from `first` on."""
        part, out, tiling = piece.of_input(self.input), piece.of_map(self.out), piece.tiling
        leads, templates = out.shape[0], numerators.shape[1]
        count = math.prod(tiling.positions)
        blocks = -(-count // _BLOCK)
        plane, row, _ = three(part.stride()[2:], 0)
        out_plane, out_row, _ = three(out.stride()[2:], 0)
        sizes, size_stats = (numerators, stats) if bound is None else bound
        write_sums_kernel[(blocks * leads * templates,)](
            numerators, stats.rows, stats.rows if noise is None else noise, sizes, size_stats.rows,
            part, self.template[piece.pairs], out,
            rounding.ALLOWED_ROUNDINGS * rounding.unit(self.input.dtype),
            count, blocks, first, templates, self.template.shape[1], leads // piece.groups,
            part.shape[1], *part.stride()[:2], plane, row,
            *three(tiling.positions, 1), *three(tiling.outputs, 1), *three(tiling.grid, 1),
            *three(tiling.length, 1), *three(tiling.stride, 1), *three(tiling.window, 1),
            *three(tiling.pad, 0), *three(tiling.size, 1), *out.stride()[:2], out_plane, out_row,
            BOUND=bound is not None, CHECKED=self.checked, BLOCK=_BLOCK,
        )  # fmt: skip


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v)."""
    ndim = len(stride)
    if input.numel() == 0 or template.numel() == 0 or input.is_complex():
        return definition.correlate(input, template, stride, "direct")
    plan = arranged(input.shape, template.shape, stride, "fft", input, normalised=False)
    leads = plan.problem.leads
    out = input.new_empty((leads.paired * leads.inputs, leads.templates, *plan.tiling.positions))
    items = leads.input(input, ndim + 1).contiguous()
    templates = leads.template(template, ndim + 1).contiguous()
    _Call(items, templates, plan.problem, plan.plan, plan.tiling, out, True).run()
    return leads.restored(out, ndim)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Every output spread over its window: a correlation with the flipped template."""
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(input_shape))
    if grad.is_complex():
        return whole.correlate_input_grad(grad, template, input_shape, stride)
    shape = tuple(input_shape)
    call = Transpose.into_input(grad, template, shape, stride, kind_of(grad))
    out = grad.new_empty((call.upstream.shape[0], call.other.shape[1], *shape[-ndim:]))
    _Call(call.upstream, call.other, call.problem, call.plan, call.tiling, out, False).run()
    return call.leads.input_restored(out, shape, ndim + 1)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The input correlated with the gradient: products of spectra, summed over all tiles."""
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(template_shape))
    if grad.is_complex():
        return whole.correlate_template_grad(grad, input, template_shape, stride)
    shape = tuple(template_shape)
    call = Transpose.into_template(grad, input, shape, stride, kind_of(grad))
    leads, tiling = call.leads, call.tiling
    items = leads.input(input, ndim + 1).contiguous()
    missing = [n - m for n, m in zip(tiling.positions, call.upstream.shape[2:], strict=True)]
    upstream = pad(call.upstream, [n for m in reversed(missing) for n in (0, m)])
    axes = tuple(range(-ndim, 0))
    half = (*tiling.length[:-1], tiling.length[-1] // 2 + 1)
    total = upstream.new_zeros(
        (leads.paired, leads.templates, items.shape[1], *half), dtype=torch.complex128
    )
    non_finite = upstream.new_zeros(leads.paired, dtype=torch.float64)
    for piece in pieces(call.problem, call.plan, tiling):
        part, of_map = piece.of_input(items), _map_tiling(piece.tiling)
        input_spectra, stats = _spectra(part, piece.tiling, piece.groups)
        grad_spectra, grad_stats = _spectra(piece.of_map(upstream), of_map, piece.groups)
        add_products(total[piece.pairs], input_spectra, grad_spectra)
        counts = stats.non_finite + grad_stats.non_finite
        non_finite[piece.pairs] += counts.unflatten(0, (piece.groups, -1)).sum(1)
    sums = torch.fft.irfftn(total, s=tiling.length, dim=axes, norm="backward")
    sums = sums[(..., *(slice(0, k) for k in tiling.window))]
    # An element that is not finite reaches every element, as it does through a transform.
    mask = (non_finite > 0).reshape(-1, *(1,) * (ndim + 2))
    return leads.template_restored(
        sums.masked_fill(mask, torch.nan).to(grad.dtype), shape, ndim + 1
    )


def _spectra(x: Tensor, tiling: Tiling, groups: int) -> tuple[Tensor, TileStats]:
    """Half spectra (groups, tiles, ...) of all tiles as they are, and their stats."""
    tiles, stats = gather(x, tiling, torch.float64, centred=False, scaled=False)
    return forward_fft(tiles, groups, len(tiling.length)), stats


def _map_tiling(tiling: Tiling) -> Tiling:
    """Tiles of a map: the positions of the same tiles of its input, and zeros after them."""
    return replace(tiling, size=tiling.positions, extent=tiling.outputs)
