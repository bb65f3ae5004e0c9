"""A pair of tensors with weights as kernels take it: what windows are read from and meet.

A template is centred and multiplied with its weights in one launch.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition.weights import weighted
from ..._plan.choose import Arrangement
from ..._plan.dtypes import widen
from ..._plan.leads import Leads
from ..._plan.shapes import Ints, output_size
from ..tiles.cut import power_of_two
from ..tiles.transforms import arranged
from ..values import MOST_LANES
from .records import PLANES

# Elements of a template that one program prepares; larger ones are prepared by their definition.
_LARGEST = 1 << 16


@triton.jit
def _of_elements(source, weights, number, inside, scale):
    """Elements times a scale, 0 without weight or where not finite; their weights."""
    m = tl.load(weights + number, mask=inside, other=0.0).to(tl.float64)
    t = tl.load(source + number, mask=inside, other=0.0).to(tl.float64)
    return tl.where((m > 0.0) & (tl.abs(t) < float("inf")), t * scale, 0.0), m


@triton.jit(do_not_specialize=["groups", "n"])
def factors_kernel(
    source, weights, planes, sums, totals, heaviest, groups, n,
    ZERO_MEAN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """All of a template: its scale, then of each group the mean, that of the rest, and the planes.

    The total weight of a template in which an element with weight is not finite is NaN.
    """
    line, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    source += line * groups * n
    weights += line * groups * n
    planes += line * groups * n * PLANES
    none = tl.zeros([LANES], tl.float64)
    peaks, wrong = none, none
    for first in range(0, groups * n, LANES):
        inside = first + lane < groups * n
        t, m = _of_elements(source, weights, first + lane, inside, 1.0)
        peaks = tl.maximum(peaks, tl.abs(t))
        raw = tl.load(source + first + lane, mask=inside, other=0.0).to(tl.float64)
        wrong += tl.where((m > 0.0) & ((raw - raw) != 0.0), 1.0, 0.0)
    scale = power_of_two(tl.max(peaks, 0))
    total = tl.sum(none, 0)
    for group in range(groups):
        low, high, best, where = none + float("inf"), none - float("inf"), none - 1.0, lane
        count_l, first_l = none, none
        for first in range(0, n, LANES):
            inside = first + lane < n
            t, m = _of_elements(source, weights, first + lane, inside, scale)
            low, high = (
                tl.minimum(low, tl.where(m > 0.0, t, low)),
                tl.maximum(high, tl.where(m > 0.0, t, high)),
            )
            where = tl.where(inside & (m > best), first + lane, where)
            best = tl.maximum(best, tl.where(inside, m, best))
            count_l += m
            first_l += m * t
        count = tl.sum(count_l, 0)
        divisor = tl.where(count > 0.0, count, 1.0)
        mean, rest = count * 0.0, count * 0.0
        flat = count != count
        if ZERO_MEAN:
            # Twice: the first mean is rounded in units of the offset, the second of the contrast.
            flat = tl.max(high, 0) <= tl.min(low, 0)
            mean = tl.sum(first_l, 0) / divisor
            rest_l = none
            for first in range(0, n, LANES):
                t, m = _of_elements(source, weights, first + lane, first + lane < n, scale)
                rest_l += m * (t - mean)
            rest = tl.sum(rest_l, 0) / divisor
        other_l, energy_l = none, none
        for first in range(0, n, LANES):
            inside = first + lane < n
            t, m = _of_elements(source, weights, first + lane, inside, scale)
            t = tl.where(flat, 0.0, tl.where(m > 0.0, t - mean - rest, 0.0))
            at = planes + first + lane
            tl.store(at, m, mask=inside)
            tl.store(at + n, m * t, mask=inside)
            tl.store(at + 2 * n, m * t * t, mask=inside)
            tl.store(at + 3 * n, t, mask=inside)
            other_l += m * t
            energy_l += m * t * t
        to = sums + (line * groups + group) * 3
        tl.store(to, count)
        tl.store(to + 1, tl.sum(other_l, 0))
        tl.store(to + 2, tl.sum(energy_l, 0))
        element = tl.min(tl.where(best == tl.max(best, 0), where, n), 0)
        tl.store(heaviest + line * groups + group, element)
        total += count
        source, weights, planes = source + n, weights + n, planes + n * PLANES
    tl.store(totals + line, tl.where(tl.sum(wrong, 0) > 0.0, float("nan"), total))


@dataclass(frozen=True)
class Factors:
    """What the windows of a template meet; channels of a group share a mean.

    Planes are its weights, these times the template, times its squares, and the template itself.
    """

    planes: Tensor  # (paired, templates, groups, 4, channels, *window), float64
    sums: Tensor  # of the first three planes, (paired, templates, groups, 3)
    total: Tensor  # weight of all groups, (paired, templates); NaN if elements are not finite
    heaviest: (
        Tensor  # the element of each group with the largest weight, (paired, templates, groups)
    )

    @classmethod
    def of(cls, template: Tensor, weight: Tensor, groups: int) -> Factors:
        """Of a centred template (paired, templates, C, *window) and its weights, in float64."""
        planes = torch.stack((weight, weight * template, weight * template * template, template), 3)
        paired, templates, channels = planes.shape[:3]
        window = planes.shape[4:]
        planes = planes.reshape(paired, templates, groups, channels // groups, 4, *window)
        planes = planes.transpose(3, 4).contiguous()
        sums = planes[:, :, :, :3].flatten(4).sum(-1)
        heaviest = planes[:, :, :, 0].flatten(3).argmax(-1)
        return cls(planes, sums, sums[..., 0].sum(-1), heaviest)

    @classmethod
    def prepared(cls, template: Tensor, weight: Tensor, groups: int, *, zero_mean: bool) -> Factors:
        """Of a template as it is, (paired, templates, C, *window), and its weights."""
        paired, templates, channels, *window = template.shape
        n = math.prod((channels, *window))
        if n > _LARGEST or paired * templates > MOST_LANES:
            none, pooled = template.new_zeros((channels, *window)), groups == 1
            of = weighted(none, template, None, weight, len(window), zero_mean, pooled)
            found = cls.of(of.template, widen(weight), groups)
            wrong = of.wrong_template.flatten(2).squeeze(-1)
            return replace(found, total=torch.where(wrong, math.nan, found.total))
        of_groups = (paired, templates, groups)
        shape = (*of_groups, 4, channels // groups, *window)
        planes = template.new_empty(shape, dtype=torch.float64)
        sums, total = planes.new_empty((*of_groups, 3)), planes.new_empty(of_groups[:2])
        heaviest = planes.new_empty(of_groups, dtype=torch.int64)
        factors_kernel[(paired * templates,)](
            template.contiguous(), weight.contiguous(), planes, sums, total, heaviest, groups,
            n // groups, ZERO_MEAN=zero_mean, LANES=1024 if n > 1024 else 256, num_warps=8,
        )  # fmt: skip
        return cls(planes, sums, total, heaviest)


@dataclass(frozen=True)
class Limits:
    """What results depend on: a score's eps, the share of a template's weight from which on windows
    are covered, and errors that rounding may leave.

    They are those of scores; or of variances relative to themselves, and of means relative to the
    root mean square.
    """

    eps: float
    least: float
    allowed: float
    allowed_of_mean: float = 0.0


@dataclass(frozen=True)
class Pair:
    """An input and its weights, (items, C, *size), with the factors of its templates."""

    input: Tensor
    there: Tensor | None
    factors: Factors
    leads: Leads
    shapes: tuple[Ints, Ints]  # of the input and the template, with all their leading axes
    stride: Ints
    level: Tensor | None = None  # what means are relative to, (items, groups)

    def is_direct(self, method: str) -> bool:
        """Whether sums of elements are quicker than transforms, by the costs of plain scores: both
        take several times as many."""
        return self.arranged(method, normalised=True).plan.method == "direct"

    def arranged(self, method: str, *, normalised: bool) -> Arrangement:
        """How a call without weights is computed in float64."""
        return arranged(
            *self.shapes,
            self.stride,
            method,
            self.input,
            normalised=normalised,
            dtype=torch.float64,
        )

    @property
    def groups(self) -> int:
        return self.factors.planes.shape[2]

    @property
    def window(self) -> Ints:
        return tuple(self.factors.planes.shape[5:])

    @property
    def positions(self) -> Ints:
        return output_size(self.input.shape[2:], self.window, self.stride)


def _expanded(x: Tensor, weight: Tensor, core: int) -> tuple[Tensor, Tensor]:
    """Both with the leading axes of both, and as many channels; nothing is copied."""
    lead = torch.broadcast_shapes(x.shape[:-core], weight.shape[:-core])
    core_of = (x.shape[-core], *x.shape[1 - core :])
    return x.expand(*lead, *core_of), weight.expand(*lead, *core_of)


def pair_of(
    input: Tensor,
    template: Tensor,
    weights: tuple[Tensor | None, Tensor | None],
    stride: Sequence[int],
    groups: int,
    prepare: Callable[[Tensor, Tensor, int], Factors],
) -> Pair:
    """Tensors in normal form and their weights, the template as `prepare` takes it."""
    core = len(stride) + 1
    there, mask = weights
    if there is not None:
        input, there = _expanded(input, there, core)
    if mask is None:
        mask = template.new_ones((1, *template.shape[1 - core :]))
    template, mask = _expanded(template, mask, core)
    leads = Leads.of(tuple(input.shape[:-core]), tuple(template.shape[:-core]))
    factors = prepare(leads.template(template, core), leads.template(mask, core), groups)
    items = leads.input(input, core)
    of_items = None if there is None else leads.input(there, core)
    shapes = tuple(input.shape), tuple(template.shape)
    return Pair(items, of_items, factors, leads, shapes, tuple(stride))
