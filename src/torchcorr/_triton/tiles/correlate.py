"""Plain correlation through transforms on CUDA, and its two transposes.

Transforms run in float64, which costs twice the bytes of float32 and keeps each value within a few
roundings of its own terms: a value is trusted if it, or for float64 the sum of its absolute
products, is large beside what rounding left in its tile. The others, and all those of a tile that
holds what is not finite, are computed again from the definition by the kernel that writes them: N
multiply-adds each. The host waits for nothing and decides nothing.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ..._definition import correlate as definition
from ..._definition import transforms as whole
from ..._definition.transposes import Transpose
from ..._plan import rounding
from ..._plan.choose import Plan, Problem
from ..._plan.tiling import Tiling
from ..direct.correlate import three
from .cut import gather, noise_of
from .emit import converted
from .products import add_products
from .transforms import Piece, Spectra, arranged, forth, kind_of, pieces, sums

_BLOCK = 256
_SIZES = [
    "count", "blocks", "first", "templates", "all_templates", "inputs", "channels", "item",
    "channel", "plane", "row", "n_z", "n_y", "n_x", "m_z", "m_y", "m_x", "g_z", "g_y", "g_x",
    "l_z", "l_y", "l_x", "s_z", "s_y", "s_x", "w_z", "w_y", "w_x", "p_z", "p_y", "p_x",
    "size_z", "size_y", "size_x", "out_item", "out_template", "out_plane", "out_row",
]  # fmt: skip


@triton.jit
def _definition(
    source, taps, z, y, x, wanted, channels, channel, plane, row, size, window,
):  # fmt: skip
    """Sums of products of the windows that begin at (z, y, x); what the input lacks is 0."""
    total = tl.zeros(wanted.shape, tl.float64)
    for line in range(channels * window[0] * window[1]):
        dy = line % window[1]
        c, dz = line // window[1] // window[0], line // window[1] % window[0]
        inside = wanted & (z + dz >= 0) & (z + dz < size[0]) & (y + dy >= 0) & (y + dy < size[1])
        at = c.to(tl.int64) * channel + (z + dz).to(tl.int64) * plane + (y + dy).to(tl.int64) * row
        for dx in range(window[2]):
            there = inside & (x + dx >= 0) & (x + dx < size[2])
            value = tl.load(source + at + x + dx, mask=there, other=0).to(tl.float64)
            total += value * tl.load(taps + line * window[2] + dx).to(tl.float64)
    return total


@triton.jit(do_not_specialize=_SIZES)
def finish_sums_kernel(
    sums_, stats, noise, bound, bound_stats, source, taps, out, allowed,
    count, blocks, first, templates, all_templates, inputs, channels, item, channel, plane, row,
    n_z, n_y, n_x, m_z, m_y, m_x, g_z, g_y, g_x, l_z, l_y, l_x, s_z, s_y, s_x,
    w_z, w_y, w_x, p_z, p_y, p_x, size_z, size_y, size_x,
    out_item, out_template, out_plane, out_row,
    BOUND: tl.constexpr, CHECKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one lead's and template's sums, in the input's units and at its level.

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
    scale = tl.load(stats + tile * 4 + 1)
    strange = tl.load(stats + tile * 4 + 3) > 0
    which = lead // inputs * all_templates + first + k
    value = tl.load(sums_ + at, mask=valid, other=0.0).to(tl.float64) / scale
    known = tl.abs(value) < float("inf")
    if CHECKED:
        lost = noise + (tile * templates + k) * 2
        value += tl.load(lost + 1)
        known = value == value
        size = tl.abs(value)
        if BOUND:
            size = tl.load(bound + at, mask=valid, other=0.0).to(tl.float64)
            size = size / tl.load(bound_stats + tile * 4 + 1)
        known = known & (size * allowed >= tl.load(lost))
    doubt = valid & (strange | (known == 0))
    if tl.max(doubt.to(tl.int32), 0) > 0:
        window, shape = (w_z, w_y, w_x), (size_z, size_y, size_x)
        exact = _definition(
            source + lead * item, taps + which * channels * w_z * w_y * w_x,
            z * s_z - p_z, y * s_y - p_y, x * s_x - p_x, doubt, channels, channel, plane, row,
            shape, window,
        )  # fmt: skip
        value = tl.where(doubt, exact, value)
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
        # A float64 value says little of its own accuracy: what it is made of must tell.
        bounded = self.checked and self.input.dtype == torch.float64
        sizes = Spectra(self.template, *call, torch.float32, absolute=True)
        for piece in pieces(*call):
            seen, at_once = piece.of_input(self.input), self.plan.templates
            tiles, stats = gather(
                seen, piece.tiling, torch.float64, centred=self.checked, behind=spectra.behind
            )
            bounds = None
            if bounded:
                raw, raw_stats = gather(
                    seen, piece.tiling, torch.float32, centred=False, behind=sizes.behind
                )
                bounds = sums(raw.abs_(), sizes, piece, at_once)
            for first, found, moments in sums(tiles, spectra, piece, at_once):
                bound = None if bounds is None else (next(bounds)[1], raw_stats)
                self._finish(piece, seen, found, stats, bound, moments, first)

    def _finish(
        self,
        piece: Piece,
        seen: Tensor,
        found: Tensor,
        stats: Tensor,
        bound: tuple[Tensor, Tensor] | None,
        moments: Tensor,
        first: int,
    ) -> None:
        out, tiling = piece.of_map(self.out), piece.tiling
        noise = stats
        if self.checked:
            level = rounding.TRANSFORM_OF_SUMS * rounding.unit(torch.float64)
            noise = noise_of(found, stats, moments, level)
        leads, templates = out.shape[0], found.shape[1]
        count = math.prod(tiling.positions)
        blocks = -(-count // _BLOCK)
        plane, row, _ = three(seen.stride()[2:], 0)
        out_plane, out_row, _ = three(out.stride()[2:], 0)
        finish_sums_kernel[(blocks * leads * templates,)](
            found, stats, noise, *(bound or (found, stats)), seen, self.template[piece.pairs],
            out, rounding.ALLOWED_ROUNDINGS * rounding.unit(self.input.dtype),
            count, blocks, first, templates, self.template.shape[1], leads // piece.groups,
            seen.shape[1], *seen.stride()[:2], plane, row,
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
    weights = leads.template(template, ndim + 1).contiguous()
    _Call(items, weights, plan.problem, plan.plan, plan.tiling, out, True).run()
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
    leads, seen, tiling = call.leads, call.other, call.tiling
    missing = [n - m for n, m in zip(tiling.positions, call.upstream.shape[2:], strict=True)]
    spread = pad(call.upstream, [n for m in reversed(missing) for n in (0, m)])
    axes = tuple(range(-ndim, 0))
    half = (*tiling.length[:-1], tiling.length[-1] // 2 + 1)
    total = spread.new_zeros(
        (leads.paired, leads.templates, seen.shape[1], *half), dtype=torch.complex128
    )
    strange = spread.new_zeros(leads.paired, dtype=torch.float64)
    for piece in pieces(call.problem, call.plan, tiling):
        found, stats = _spectra(piece.of_input(seen), piece.tiling, piece.groups)
        # Tiles of the gradient: the same positions, and nothing around them.
        own = _upstream(piece.tiling)
        given, more = _spectra(piece.of_map(spread), own, piece.groups)
        add_products(total[piece.pairs], found, given)
        bad = (stats[:, 3] + more[:, 3]).unflatten(0, (piece.groups, -1)).sum(1)
        strange[piece.pairs] += bad
    lines = torch.fft.irfftn(total, s=tiling.length, dim=axes, norm="backward")
    lines = lines[(..., *(slice(0, k) for k in tiling.window))]
    # What is not finite reaches every element, as it does through a transform.
    poison = torch.where(strange > 0, torch.nan, 0.0).reshape(-1, *(1,) * (ndim + 2))
    return leads.template_restored((lines + poison).to(grad.dtype), shape, ndim + 1)


def _spectra(x: Tensor, tiling: Tiling, groups: int) -> tuple[Tensor, Tensor]:
    """Half spectra (groups, tiles, ...) of all tiles as they are, and their stats."""
    tiles, stats = gather(x, tiling, torch.float64, centred=False, scaled=False)
    return forth(tiles, groups, len(tiling.length)), stats


def _upstream(tiling: Tiling) -> Tiling:
    """Tiles of a map: the positions of the same tiles of its input, zeros behind them."""
    return replace(tiling, size=tiling.positions, extent=tiling.outputs)
