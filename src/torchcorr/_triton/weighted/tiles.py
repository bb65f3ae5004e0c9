"""Scores and moments of windows with weights through transforms on CUDA.

A window has up to six sums: of its weight, of the input and its squares, and of their products with
the template. Each is a correlation by a float64 transform of a tile; all products of spectra come
from one kernel and go through one inverse. The kernel that makes a result of the sums bounds what
rounding of the transforms leaves in it (math.md, eq. noise), and computes windows where that may
exceed what is allowed from their elements: the host decides nothing from data.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._plan import rounding
from ..._plan.choose import Arrangement
from ..._plan.tiling import Tiling
from ..tiles.cut import PART, parts_of, total_of
from ..tiles.noise import tile_content_kernel
from ..tiles.records import LEVEL, NOT_FINITE, SCALE, STATS
from ..tiles.templates import prepare
from ..tiles.transforms import Piece, pieces
from ..values import MOST_LANES, bits, three
from .direct import pitches
from .factors import Factors, Limits, Pair
from .planes import Planes, gather_planes, multiply, products_in, products_of
from .records import MOMENTS, PLANES, Target, Totals, Variant, Windows
from .windows import added, not_finite, settle, write_group, write_scores

_BLOCK = 128
# Bytes of planes, spectra and sums that are held at once.
_ROOM = 256 << 20


@triton.jit
def _bound(content, parts, power, factor, volume, noise):
    """Of one tile of sums: what rounding leaves in each."""
    squares = total_of(content, parts, 2, 32)
    peak = squares * 0.0
    lane = tl.arange(0, 32)
    for first in range(0, parts, 32):
        at = content + (first + lane) * 2 + 1
        peak = tl.maximum(peak, tl.max(tl.load(at, mask=first + lane < parts, other=0.0), 0))
    return noise * (tl.sqrt((power * factor + squares) / volume) + peak / 2)


@triton.jit(do_not_specialize=[
    "templates", "groups", "units", "parts", "plane_parts", "stretches", "volume", "noise",
])  # fmt: skip
def sums_noise_kernel(
    content, powers, moments, out, templates, groups, units, parts, plane_parts, stretches, volume,
    noise, FORM: tl.constexpr,
):  # fmt: skip
    """The noise of all sums of a unit with a template, in the order of the products."""
    k, unit = tl.program_id(0) % templates, (tl.program_id(0) // templates).to(tl.int64)
    pair, group = unit // units, unit % groups
    COUNT: tl.constexpr = 3 if FORM.there else 2
    KINDS: tl.constexpr = 1 if FORM.result == MOMENTS else 3
    n = volume.to(tl.float64)
    powers += unit * plane_parts * COUNT
    x, xx = total_of(powers, plane_parts, COUNT, 32), total_of(powers + 1, plane_parts, COUNT, 32)
    g = 0.0
    if FORM.there:
        g = total_of(powers + 2, plane_parts, COUNT, 32)
    moments += ((pair * templates + k) * groups + group) * KINDS * stretches * 2 + 1
    m, mt, mtt = total_of(moments, stretches, 2, 32), 0.0, 0.0
    if FORM.result != MOMENTS:
        mt = total_of(moments + 2 * stretches, stretches, 2, 32)
        mtt = total_of(moments + 4 * stretches, stretches, 2, 32)
    products = products_in(FORM)
    line = (unit * templates + k) * products
    content += line * parts * 2
    step = parts * 2
    to = out + line
    tl.store(to, _bound(content, parts, xx, m, n, noise))
    if FORM.zero_mean:
        content, to = content + step, to + 1
        tl.store(to, _bound(content, parts, x, m, n, noise))
    if FORM.there:
        content, to = content + step, to + 1
        tl.store(to, _bound(content, parts, g, m, n, noise))
    if FORM.result != MOMENTS:
        content, to = content + step, to + 1
        tl.store(to, _bound(content, parts, x, mt, n, noise))
        if FORM.there:
            content, to = content + step, to + 1
            tl.store(to, _bound(content, parts, g, mtt, n, noise))
            if FORM.zero_mean:
                content, to = content + step, to + 1
                tl.store(to, _bound(content, parts, g, mt, n, noise))


@triton.jit
def _sums_of_window(sums, noise, volume, fixed, none, FORM: tl.constexpr):
    """Values and bounds: square, total, count, product, energy and sum of the template."""
    square, n_square = tl.load(sums), tl.load(noise)
    total, n_total, count, n_count = none, 0.0, none, 0.0
    product, n_product, energy, n_energy, other, n_other = none, 0.0, none, 0.0, none, 0.0
    if FORM.zero_mean:
        sums, noise = sums + volume, noise + 1
        total, n_total = tl.load(sums), tl.load(noise)
    if FORM.there:
        sums, noise = sums + volume, noise + 1
        count, n_count = tl.load(sums), tl.load(noise)
    else:
        count = none + tl.load(fixed)
        energy = none + tl.load(fixed + 2)
        if FORM.zero_mean:
            other = none + tl.load(fixed + 1)
    if FORM.result != MOMENTS:
        sums, noise = sums + volume, noise + 1
        product, n_product = tl.load(sums), tl.load(noise)
        if FORM.there:
            sums, noise = sums + volume, noise + 1
            energy, n_energy = tl.load(sums), tl.load(noise)
            if FORM.zero_mean:
                sums, noise = sums + volume, noise + 1
                other, n_other = tl.load(sums), tl.load(noise)
    values = (square, total, count, product, energy, other)
    return values, (n_square, n_total, n_count, n_product, n_energy, n_other)


@triton.jit
def _moments_of(values, bounds):
    """Moments of a group from its sums; and the divisor of its means, with bounds of rounding in
    the mean times this, in both energies and in the product."""
    square, total, count, product, energy, other = values
    n_square, n_total, n_count, n_product, n_energy, n_other = bounds
    divisor = tl.where(count > n_count, count, 1.0)
    mean, template_mean = total / divisor, other / divisor
    size, other_size = tl.abs(mean), tl.abs(template_mean)
    wrong = n_square + 2 * size * n_total + size * size * n_count
    template_wrong = n_energy + 2 * other_size * n_other + other_size * other_size * n_count
    product_wrong = n_product + other_size * n_total + size * n_other + size * other_size * n_count
    moments = (
        count, mean, square - total * mean, template_mean, energy - other * template_mean,
        product - total * template_mean,
    )  # fmt: skip
    return moments, (divisor, n_total + size * n_count, wrong, template_wrong, product_wrong)


@triton.jit
def _is_good(found, wrong, template_wrong, product_wrong, allowed, FORM: tl.constexpr):
    """Whether rounding of the sums changes a score by no more than allowed, and hides no flat
    window."""
    size = tl.sqrt(tl.maximum(found.energy, 0.0))
    size = size * tl.sqrt(tl.maximum(found.template_energy, 0.0))
    error = product_wrong / size
    error += (wrong / found.energy + template_wrong / found.template_energy) / 2
    # Not a number, and infinite, where there is no energy.
    good = (error <= allowed) & (found.energy > 4 * wrong)
    if not FORM.there:
        good = good | (found.template_energy == 0.0)
    return good


_NUMBERS = [
    "blocks", "first", "templates", "all_templates", "inputs", "groups", "channels", "w_z", "w_y",
    "w_x", "d_z", "d_y", "d_x", "m_z", "m_y", "m_x", "n_z", "n_y", "n_x", "p_z", "p_y", "p_x",
    "l_z", "l_y", "l_x", "s_lead", "s_channel", "s_z", "s_y", "s_x", "g_lead", "g_channel", "g_z",
    "g_y", "g_x", "out_map", "out_item", "out_template", "out_group", "out_z", "out_y",
    "eps_bits", "least_bits", "allowed", "allowed_mean",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def weighted_tiles_kernel(
    sums, noise, stats, source, there, factors, fixed, totals, base, out,
    blocks, first, templates, all_templates, inputs, groups, channels, w_z, w_y, w_x, d_z, d_y, d_x,
    m_z, m_y, m_x, n_z, n_y, n_x, p_z, p_y, p_x, l_z, l_y, l_x,
    s_lead, s_channel, s_z, s_y, s_x, g_lead, g_channel, g_z, g_y, g_x,
    out_map, out_item, out_template, out_group, out_z, out_y,
    eps_bits, least_bits, allowed, allowed_mean, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of windows of one tile with one template at hand.

    Tiles have m outputs and l elements along each axis, and there are n of them for p positions.
    """
    pid = tl.program_id(0)
    k, pid = pid % templates, pid // templates
    block, tile = pid % blocks, pid // blocks
    lead, t = (tile // (n_z * n_y * n_x)).to(tl.int64), tile % (n_z * n_y * n_x)
    number = tl.minimum(block * BLOCK + tl.arange(0, BLOCK), m_z * m_y * m_x - 1)
    keep = block * BLOCK + tl.arange(0, BLOCK) == number
    x, y, z = number % m_x, number // m_x % m_y, number // m_x // m_y
    inner = (z * d_z * l_y + y * d_y) * l_x + x * d_x
    x, y, z = x + t % n_x * m_x, y + t // n_x % n_y * m_y, z + t // n_x // n_y * m_z
    keep = keep & (x < p_x) & (y < p_y) & (z < p_z)
    x = tl.minimum(x, p_x - 1).to(tl.int64)
    y, z = tl.minimum(y, p_y - 1).to(tl.int64), tl.minimum(z, p_z - 1).to(tl.int64)
    at = lead * out_item + (first + k).to(tl.int64) * out_template + z * out_z + y * out_y + x
    template = lead // inputs * all_templates + first + k
    x, y, z = x * d_x, y * d_y, z * d_z
    pitch, there_pitch = (s_channel, s_z, s_y, s_x), (g_channel, g_z, g_y, g_x)
    elements = channels * w_z * w_y * w_x
    w = Windows(
        source + lead * s_lead + z * s_z + y * s_y + x * s_x, pitch,
        there + lead * g_lead + z * g_z + y * g_y + x * g_x, there_pitch,
        factors + template * groups * PLANES * elements, groups, channels, (w_z, w_y, w_x),
    )  # fmt: skip
    none = tl.zeros([BLOCK], tl.float64)
    least = least_bits.to(tl.int64).to(tl.float64, bitcast=True) * tl.load(totals + template)
    least += none
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    to = Target(out, out_map, at, out_group, base + lead * groups, eps, least)
    stats += tile.to(tl.int64) * groups * STATS
    wrong_elements = tl.full([], 0.0, tl.float64)
    for group in range(groups):
        wrong_elements += tl.load(stats + group * STATS + NOT_FINITE)
    # A template with elements that are not finite has no weight that is a number.
    bad = keep & (least != least)
    if wrong_elements > 0.0:
        bad = bad | not_finite(w, keep, FORM)

    volume = (l_z * l_y).to(tl.int64) * l_x
    found, good = Totals(none, none, none, none), keep
    wrong, template_wrong, product_wrong = none, none, none
    for group in range(groups):
        level = tl.load(stats + group * STATS + LEVEL)
        scale = tl.load(stats + group * STATS + SCALE)
        line = ((tile.to(tl.int64) * groups + group) * templates + k) * products_in(FORM)
        values, bounds = _sums_of_window(
            sums + line * volume + inner, noise + line, volume,
            fixed + (template * groups + group) * 3, none, FORM,
        )  # fmt: skip
        moments, errors = _moments_of(values, bounds)
        count, mean, square, template_mean, energy, product = moments
        if FORM.result == MOMENTS:
            away = mean + level * scale
            root = tl.sqrt(tl.maximum(square, 0.0) / errors[0] + away * away) * errors[0]
            good = (errors[2] <= allowed * square) & (square > 4 * errors[2])
            good = good & (errors[1] <= allowed_mean * root)
        wrong += errors[2] / scale / scale
        template_wrong += errors[3]
        product_wrong += errors[4] / scale
        here = Totals(count, square / scale / scale, energy, product / scale)
        write_group(to, group, here, level + mean / scale, template_mean, 1.0, keep, bad, FORM)
        found = added(found, here)
    if FORM.result != MOMENTS:
        good = _is_good(found, wrong, template_wrong, product_wrong, allowed, FORM)
    if FORM.wide:
        good = good & (found.energy > 1e-290)
    write_scores(to, found, 1.0, keep, bad, FORM)
    good = good | (found.count < least) | bad
    settle(w, to, keep & (good == 0), FORM)


def _planned(pair: Pair, form: Variant) -> Arrangement:
    """Tiles, and as many of them and of templates at once as there is room for."""
    call = pair.arranged("fft", normalised=False)
    leads, tiling = call.problem.leads, call.tiling
    element = 16 * math.prod(tiling.length)
    planes = (2 if pair.there is None else 3) * call.problem.channels * element
    sums = products_of(form) * pair.groups * element
    total = leads.paired * leads.inputs * tiling.tiles
    batch = max(1, min(total, _ROOM // (planes + sums)))
    templates = max(1, min(leads.templates, (_ROOM // batch - planes) // sums))
    return replace(call, plan=replace(call.plan, batch=batch, templates=templates))


class _Spectra:
    """Spectra of factors over a tile and sums of their squares, kept while there is room."""

    def __init__(self, factors: Factors, tiling: Tiling, form: Variant) -> None:
        self._factors, self._length = factors, tiling.length
        self._kinds = 1 if form.result.value == MOMENTS.value else 3
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._room = _ROOM

    def part(self, pairs: slice, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Of templates first to last of some pairs: (pairs, templates, groups, kinds, C, ...)."""
        key = (pairs.start, first)
        if key in self._kept:
            return self._kept[key]
        planes = self._factors.planes[pairs, first:last, :, : self._kinds]
        lines = planes.flatten(1, 3).contiguous()
        tiles = lines.new_empty((lines.shape[:2].numel(), lines.shape[2], *self._length))
        moments = prepare(lines, tiles)
        axes = tuple(range(-len(self._length), 0))
        spectra = torch.fft.rfftn(tiles, dim=axes)
        found = spectra.reshape(*planes.shape[:5], *spectra.shape[2:]), moments
        self._room -= spectra.nbytes
        if self._room >= 0:
            self._kept[key] = found
        return found


def _noise_of(
    sums: Tensor, planes: Planes, moments: Tensor, groups: int, units_of_pair: int, form: Variant
) -> Tensor:
    """Bounds (units, templates, products) of sums (units, templates, products, *length)."""
    (units, templates, products), volume = sums.shape[:3], sums.shape[3:].numel()
    parts, _ = parts_of(volume)
    lines = units * templates * products
    content = sums.new_empty((lines * parts, 2))
    tile_content_kernel[(lines * parts,)](sums, content, volume, parts, PART=PART)
    out = sums.new_empty((units, templates, products))
    noise = rounding.TRANSFORM * rounding.unit(torch.float64)
    sums_noise_kernel[(units * templates,)](
        content, planes.powers, moments, out, templates, groups, units_of_pair, parts,
        planes.powers.shape[1], moments.shape[1], volume, noise, FORM=form,
    )  # fmt: skip
    return out


def by_transforms(pair: Pair, out: Tensor, form: Variant, limits: Limits) -> bool:
    """Fills maps (maps, items, templates, groups, *positions), if 32 bits can number them."""
    call, level = _planned(pair, form), pair.level
    plan, tiling, factors = call.plan, call.tiling, pair.factors
    if plan.batch * plan.templates * math.prod(tiling.outputs) > MOST_LANES:
        return False
    x, there = _dense(pair.input), None if pair.there is None else _dense(pair.there)
    axes = tuple(range(-len(tiling.length), 0))
    spectra = _Spectra(factors, tiling, form)
    for piece in pieces(call.problem, plan, tiling):
        part = piece.of_input(x)
        weights = None if there is None else piece.of_input(there)
        planes = gather_planes(part, weights, piece.tiling, pair.groups, form)
        of_tiles = torch.fft.rfftn(planes.values, dim=axes)
        units = planes.values.shape[0] // piece.groups
        for first in range(0, pair.leads.templates, plan.templates):
            last = min(first + plan.templates, pair.leads.templates)
            of_factors, moments = spectra.part(piece.pairs, first, last)
            products = multiply(of_tiles, of_factors, units, form)
            sums = torch.fft.irfftn(products, s=tiling.length, dim=axes, norm="forward")
            noise = _noise_of(sums, planes, moments, pair.groups, units, form)
            to = out[:, piece.items].narrow(4, piece.first, piece.tiling.positions[0])
            blocks = -(-math.prod(tiling.outputs) // _BLOCK)
            weighted_tiles_kernel[(blocks * (last - first) * units // pair.groups * piece.groups,)](
                sums, noise, planes.stats.rows, part, part if weights is None else weights,
                factors.planes[piece.pairs], factors.sums[piece.pairs],
                factors.total[piece.pairs], factors.total if level is None else level[piece.items],
                to, blocks, first, last - first, *_places(pair, piece, to),
                *pitches(part), *pitches(part if weights is None else weights),
                *to.stride()[:4], *three(to.stride()[4:], 0)[:2],
                bits(limits.eps), bits(limits.least), limits.allowed, limits.allowed_of_mean,
                FORM=form, BLOCK=_BLOCK, num_warps=4, maxnreg=128,
            )  # fmt: skip
    return True


def _dense(x: Tensor) -> Tensor:
    """x with dense rows."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _places(pair: Pair, piece: Piece, out: Tensor) -> tuple[int, ...]:
    """Numbers of a piece, its windows and its tiles, in the order of the kernel."""
    tiling = piece.tiling
    return (
        pair.leads.templates, out.shape[1] // piece.groups, pair.groups,
        pair.factors.planes.shape[4], *three(pair.window, 1), *three(pair.stride, 1),
        *three(tiling.outputs, 1), *three(tiling.grid, 1), *three(tiling.positions, 1),
        *three(tiling.length, 1),
    )  # fmt: skip
