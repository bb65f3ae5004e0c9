"""Plain sums through transforms of tiles, and both gradients of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._definition.transposes import Transpose
from .._plan import rounding
from .._plan.choose import blocks
from .._plan.plan import Plan
from .._plan.predict import Problem
from .._plan.shapes import Ints
from .._plan.tiling import Tiling
from . import steps
from .rules import SumRule

# Groups of tiles, or of templates, that workers share in the gradient of a template, and bytes of
# the spectra that groups are summed in.
_GROUPS = 4
_ROOM = 16 << 20
# Bytes of the numbers that gradients are transformed in, in turn until they are precise enough.
_ITEMSIZES = {torch.float32: (4, 8), torch.float64: (8,)}
# Sums of either precision that are not looked at.
UNCHECKED = SumRule(0.0, 0.0, 0.0, math.inf, 0)
_NARROW = SumRule(0.0, 0.0, math.inf, math.inf, 0)


class Tiled(NamedTuple):
    """Tiles in which sums are computed."""

    problem: Problem
    plan: Plan
    tiling: Tiling

    def sum(
        self,
        input: Tensor,
        template: Tensor,
        rule: SumRule,
        out: Tensor,
        prepared: Tensor | None = None,
    ) -> list[list[int]]:
        """Writes sums of tensors in normal form; (tile, template) that have many unknown ones."""
        working = torch.float32 if rule.narrow_allowed > 0 else torch.float64
        batch = self.tiling.batch_numbers
        left = []
        for block in blocks(self.problem, self.plan):
            part = (block.pairs, block.templates)
            spectra = None
            if prepared is not None and prepared.dtype == working.to_complex():
                spectra = prepared[part].flatten(0, 1).contiguous()
            elif len(self.tiling.window) > 1 and not self.plan.large:
                # Quicker here, axis by axis; that of a line is made by a worker.
                wide = working == torch.float64
                spectra = steps.spectra_of_templates(template[part], self.tiling, wide)
            how = (batch, block.numbers, rule.numbers)
            left += steps.sum_tiles(input, template, spectra, *how, out).tolist()
        return left


def onto_input(grad: Tensor, template: Tensor, shape: Ints, stride: Sequence[int]) -> Tensor:
    """The gradient of an input of this shape, in the first precision that is enough."""
    for itemsize in _ITEMSIZES[grad.dtype]:
        call = Transpose.into_input(grad, template, shape, stride, "cpu", itemsize)
        total = _onto_input(call, shape[-len(stride) :])
        if itemsize == 8 or _is_known(total, _contents_of_input_grad(call)):
            break
    return call.leads.input_restored(total, shape, len(stride) + 1)


def onto_template(grad: Tensor, input: Tensor, shape: Ints, stride: Sequence[int]) -> Tensor:
    """The same of a template."""
    for itemsize in _ITEMSIZES[grad.dtype]:
        call = Transpose.into_template(grad, input, shape, stride, "cpu", itemsize)
        total = _onto_template(call)
        if itemsize == 8 or _is_known(total, _contents_of_template_grad(call)):
            break
    return call.leads.template_restored(total.to(grad.dtype), shape, len(stride) + 1)


def _onto_input(call: Transpose, size: Ints) -> Tensor:
    upstream, weights = call.upstream, call.other
    out = steps.new_map(upstream, (upstream.shape[0], weights.shape[1], *size))
    # A gradient is exact relative to its largest element, so no sum is computed again.
    rule = UNCHECKED if call.problem.itemsize == 8 else _NARROW
    Tiled(call.problem, call.plan, call.tiling).sum(upstream, weights, rule, out)
    return out


def _onto_template(call: Transpose) -> Tensor:
    leads, upstream, tiling = call.leads, call.upstream, call.tiling
    seen, ndim = steps.readable(call.other), len(tiling.window)
    # Tiles of the gradient: the same positions, and nothing around them.
    of_upstream = replace(tiling, window=(1,) * ndim, extent=tiling.outputs)
    spectra = upstream.shape[1] * call.problem.channels * math.prod(tiling.length) * 16
    groups = max(1, min(_ROOM // spectra, _GROUPS, -(-leads.inputs * tiling.tiles // 2)))
    parts = 1 if groups > 1 else _GROUPS
    numbers = (of_upstream.batch_numbers, tiling.batch_numbers)
    how = (leads.paired, groups, parts, call.problem.itemsize == 8)
    total = steps.template_grad_spectra(upstream, seen, *numbers, *how)
    return steps.restored(total, tiling) / math.prod(tiling.length)


def _is_known(gradient: Tensor, contents: float) -> bool:
    """Whether a gradient by transforms in float32 that contain so much is precise enough, relative
    to its largest element (docs/math.md, What float32 can carry)."""
    largest = steps.largest_size(gradient)
    noise = rounding.TRANSFORM * rounding.unit(torch.float32) * (contents + 1.5 * largest)
    return math.isfinite(largest) and rounding.is_precise_gradient(noise, largest)


def _contents_of_input_grad(call: Transpose) -> float:
    upstream, weights = call.upstream, call.other
    axes = tuple(range(2, weights.dim()))
    elements = math.prod(call.tiling.length)
    size = min(steps.largest_size(upstream), float(upstream.norm()) / math.sqrt(elements))
    norm = float(torch.linalg.vector_norm(weights, dim=axes).amax())
    return math.sqrt(2 * upstream.shape[1]) * size * norm


def _contents_of_template_grad(call: Transpose) -> float:
    leads, tiles = call.leads, call.leads.inputs * call.tiling.tiles
    upstream = call.upstream.unflatten(0, (leads.paired, leads.inputs)).flatten(3)
    norm = float(torch.linalg.vector_norm(upstream, dim=(1, 3)).amax())
    return math.sqrt(2 * tiles) * steps.largest_size(call.other) * norm
