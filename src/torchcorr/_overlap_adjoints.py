"""The two transposes of a correlation through transforms, in tiles and in float64.

The gradient of the input is a correlation of the upstream gradient, padded by a window, with the
reversed template. That of the template is summed over tiles as spectra and transformed back once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Transpose:
    """A transpose in normal form, and the tiles that it is computed in on a kind of device.

    `spread` is the upstream gradient with zeros between its values, (paired * inputs, templates,
    ...); `other` the reversed template (paired, C, templates, *window) that it is correlated with
    for the input's gradient, or the input that it is correlated with for the template's.
    """

    leads: Leads
    spread: Tensor
    other: Tensor
    problem: Problem
    plan: Plan
    tiling: Tiling

    @classmethod
    def into_input(
        cls,
        grad: Tensor,
        template: Tensor,
        shape: tuple[int, ...],
        stride: Sequence[int],
        device: str,
    ) -> Transpose:
        ndim = len(stride)
        size, window, ones = shape[-ndim:], tuple(template.shape[-ndim:]), (1,) * ndim
        leads = Leads.of(shape[: -ndim - 1], tuple(template.shape[: -ndim - 1]))
        spread = dilated(leads.output(grad, ndim), stride).contiguous()
        weights = leads.template(_reference.widen(template), ndim + 1)
        weights = weights.flip(tuple(range(-ndim, 0))).transpose(1, 2).contiguous()
        # Roles change: what was a template is a channel now, what was a channel a template.
        turned = Leads((), (), (), leads.paired, leads.inputs, weights.shape[1])
        full = tuple(n + k - 1 for n, k in zip(size, window, strict=True))
        problem = Problem(full, window, ones, leads.templates, turned, 8, 0, False, device)
        pad = tuple(k - 1 for k in window)
        plan, tiling = _tiles(problem, spread.shape[2:], size, pad)
        return cls(leads, spread, weights, problem, plan, tiling)

    @classmethod
    def into_template(
        cls,
        grad: Tensor,
        input: Tensor,
        shape: tuple[int, ...],
        stride: Sequence[int],
        device: str,
    ) -> Transpose:
        ndim = len(stride)
        size, window, ones = tuple(input.shape[-ndim:]), shape[-ndim:], (1,) * ndim
        leads = Leads.of(tuple(input.shape[: -ndim - 1]), shape[: -ndim - 1])
        spread = dilated(leads.output(grad, ndim), stride).contiguous()
        seen = leads.input(input, ndim + 1).contiguous()
        problem = Problem(size, window, ones, seen.shape[1], leads, 8, 0, False, device)
        plan, tiling = _tiles(problem, size, output_size(size, window, ones), None)
        return cls(leads, spread, seen, problem, plan, tiling)


def _tiles(
    problem: Problem, size: Sequence[int], positions: Sequence[int], pad: Sequence[int] | None
) -> tuple[Plan, Tiling]:
    """A plan, and its tiles over an input of another size."""
    plan = _choose.make_plan(problem, "fft")
    grid = tuple(-(-n // m) for n, m in zip(positions, plan.tile, strict=True))
    powers = not problem.costs.pairs
    tiling = Tiling.cut(
        size, problem.window, problem.stride, grid, pad=pad, positions=positions, powers=powers
    )
    return plan, tiling


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    ndim = len(stride)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(input_shape))
    if grad.is_complex() or not bool(torch.isfinite(grad).all()):
        return whole_input_grad(grad, template, input_shape, stride)
    shape = tuple(input_shape)
    call = Transpose.into_input(grad, template, shape, stride, "cpu")
    spread, weights, tiling, plan = call.spread, call.other, call.tiling, call.plan
    spectra = TemplateSpectra(weights, tiling, tiling.stride, True)
    out = new_map(spread, (spread.shape[0], weights.shape[1], *shape[-ndim:]))
    for pairs, ids in _choose.batches(call.problem, plan):
        tiles, stats = ops.gather_tiles(spread, ids, tiling.numbers, False, True, True)
        for first, found in numerators(tiles, spectra, pairs, plan.templates):
            # Nothing is checked, so neither the input nor the template is read again.
            place = (ids, tiling.numbers, list(tiling.stride), first)
            ops.finish_sums(found, stats, None, None, spread, weights, *place, 0.0, 1.0, 0, out)
    return call.leads.input_restored(out, shape, ndim + 1)


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
    call = Transpose.into_template(grad, input, shape, stride, "cpu")
    leads, spread, seen, tiling = call.leads, call.spread, call.other, call.tiling
    # Tiles of the gradient: the same positions, and nothing around them.
    upstream = list(tiling.numbers)
    upstream[3 * ndim : 4 * ndim] = tiling.outputs
    total = spread.new_zeros(
        (leads.paired, leads.templates, seen.shape[1], *tiling.length), dtype=torch.complex128
    )
    for pairs, ids in _choose.batches(call.problem, call.plan):
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
    lines = lines[(..., *(slice(0, k) for k in tiling.window))] / math.prod(tiling.length)
    return leads.template_restored(lines.to(grad.dtype), shape, ndim + 1)


def _spectra_of(x: Tensor, ids: list[int], geometry: list[int], ndim: int) -> Tensor:
    """(pairs, channels, ...): spectra of tiles (first, second) as one complex tile."""
    tiles, stats = ops.gather_tiles(x, ids, geometry, False, True, True)
    lines = torch.view_as_complex(_unscaled(tiles, stats))
    return forth(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])


library.impl("correlate_fft_input_grad", correlate_input_grad, "CPU")
library.impl("correlate_fft_template_grad", correlate_template_grad, "CPU")
