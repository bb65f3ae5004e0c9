"""The two transposes of a correlation through transforms, in tiles and in float64.

The gradient of the input is a correlation of the upstream gradient, padded by a window, with the
reversed template. That of the template is summed over tiles as spectra and transformed back once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _choose, _reference
from ._choose import Plan, Problem
from ._geometry import Leads, Tiling, output_size
from ._ops import kernels as ops
from ._ops import library
from ._overlap_save import (
    TemplateSpectra,
    back,
    dilated,
    forth,
    numerators,
    whole_input_grad,
    whole_template_grad,
)
from ._tile_ops import new_map


def _unscaled(tiles: Tensor, stats: Tensor) -> Tensor:
    """Pairs of tiles in the units of what they were cut from."""
    scale = stats[:, 1].unflatten(0, (-1, 2))
    return tiles.div_(scale.reshape(scale.shape[0], *(1,) * (tiles.dim() - 2), 2))


def _plan(problem: Problem) -> Plan:
    return _choose.make_plan(problem, "fft")


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(input_shape))
    if grad.is_complex() or not bool(torch.isfinite(grad).all()):
        return whole_input_grad(grad, template, input_shape, stride)
    shape = tuple(input_shape)
    size, window = shape[-ndim:], tuple(template.shape[-ndim:])
    leads = Leads.of(shape[: -ndim - 1], tuple(template.shape[: -ndim - 1]))
    spread = dilated(leads.output(grad, ndim), stride).contiguous()
    weights = leads.template(_reference.widen(template), ndim + 1)
    weights = weights.flip(tuple(range(-ndim, 0))).transpose(1, 2).contiguous()
    channels = weights.shape[1]
    # Roles change: what was a template is a channel now, what was a channel a template.
    turned = Leads((), (), (), leads.paired, leads.inputs, channels)
    ones = (1,) * ndim
    full = tuple(n + k - 1 for n, k in zip(size, window, strict=True))
    problem = Problem(full, window, ones, leads.templates, turned, 8, 0, False)
    plan = _plan(problem)
    grid = tuple(-(-n // m) for n, m in zip(size, plan.tile, strict=True))
    pad = tuple(k - 1 for k in window)
    tiling = Tiling.cut(spread.shape[2:], window, ones, grid, pad=pad, positions=size)
    spectra = TemplateSpectra(weights, tiling, ones, True)
    out = new_map(spread, (leads.paired * leads.inputs, channels, *size))
    for pairs, ids in _choose.batches(problem, plan):
        tiles, stats = ops.gather_tiles(spread, ids, tiling.numbers, False, True, True)
        for first, found in numerators(tiles, spectra, pairs, plan.templates):
            # Nothing is checked, so neither the input nor the template is read again.
            place = (ids, tiling.numbers, list(ones), first)
            ops.finish_sums(found, stats, None, None, spread, weights, *place, 0.0, 1.0, 0, out)
    return leads.input_restored(out, shape, ndim + 1)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(template_shape))
    finite = bool(torch.isfinite(grad).all()) and bool(torch.isfinite(input).all())
    if grad.is_complex() or not finite:
        return whole_template_grad(grad, input, template_shape, stride)
    shape = tuple(template_shape)
    size, window = tuple(input.shape[-ndim:]), shape[-ndim:]
    leads = Leads.of(tuple(input.shape[: -ndim - 1]), shape[: -ndim - 1])
    spread = dilated(leads.output(grad, ndim), stride).contiguous()
    seen = leads.input(input, ndim + 1).contiguous()
    ones = (1,) * ndim
    whole = output_size(size, window, ones)
    problem = Problem(size, window, ones, seen.shape[1], leads, 8, 0, False)
    plan = _plan(problem)
    grid = tuple(-(-n // m) for n, m in zip(whole, plan.tile, strict=True))
    tiling = Tiling.cut(size, window, ones, grid)
    # Tiles of the gradient: the same positions, and nothing around them.
    upstream = list(tiling.numbers)
    upstream[3 * ndim : 4 * ndim] = tiling.outputs
    total = spread.new_zeros(
        (leads.paired, leads.templates, seen.shape[1], *tiling.length), dtype=torch.complex128
    )
    for pairs, ids in _choose.batches(problem, plan):
        each = len(ids) // (pairs.stop - pairs.start)
        for k in range(pairs.stop - pairs.start):
            own = ids[k * each : (k + 1) * each]
            found = _spectra_of(seen, own, tiling.numbers, ndim)
            given = _spectra_of(spread, own, upstream, ndim).conj().resolve_conj()
            for one, other in zip(found, given, strict=True):
                sums = total[pairs.start + k]
                torch.addcmul(sums, one.unsqueeze(0), other.unsqueeze(1), out=sums)
    lead = total.shape[:3]
    lines = back(total.flatten(0, 2), ndim).unflatten(0, lead).real
    lines = lines[(..., *(slice(0, k) for k in window))] / math.prod(tiling.length)
    return leads.template_restored(lines.to(grad.dtype), shape, ndim + 1)


def _spectra_of(x: Tensor, ids: list[int], geometry: list[int], ndim: int) -> Tensor:
    """(pairs, channels, ...): spectra of tiles (first, second) as one complex tile."""
    tiles, stats = ops.gather_tiles(x, ids, geometry, False, True, True)
    lines = torch.view_as_complex(_unscaled(tiles, stats))
    return forth(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])


library.impl("correlate_fft_input_grad", correlate_input_grad, "CPU")
library.impl("correlate_fft_template_grad", correlate_template_grad, "CPU")
