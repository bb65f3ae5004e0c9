"""The transposes of a correlation as correlations of other tensors, in normal form and in tiles.

The gradient of the input is a correlation of the upstream gradient, padded by a window, with the
reversed template; that of the template is a correlation of the input with the upstream gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .._plan.choose import make_plan
from .._plan.dtypes import widen
from .._plan.leads import Leads
from .._plan.plan import Plan
from .._plan.predict import Problem
from .._plan.shapes import Ints, output_size
from .._plan.tiling import Tiling
from .transforms import dilated


class Transpose(NamedTuple):
    """A transpose in normal form, and the tiles that it is computed in on a kind of device."""

    leads: Leads
    upstream: Tensor  # (pairs * inputs, templates, ...), zeros between the values of a stride
    other: Tensor  # the reversed template (pairs, C, templates, *window), or the input as it lies
    problem: Problem
    plan: Plan
    tiling: Tiling

    @classmethod
    def into_input(
        cls,
        grad: Tensor,
        template: Tensor,
        shape: Ints,
        stride: Sequence[int],
        device: str,
        itemsize: int = 8,
    ) -> Transpose:
        ndim = len(stride)
        size, window = shape[-ndim:], tuple(template.shape[-ndim:])
        leads = Leads.of(shape[: -ndim - 1], tuple(template.shape[: -ndim - 1]))
        upstream = dilated(leads.output(grad, ndim), stride).contiguous()
        weights = leads.template(widen(template), ndim + 1)
        weights = weights.flip(tuple(range(-ndim, 0))).transpose(1, 2).contiguous()
        # Roles change: what was a template is a channel now, what was a channel a template.
        turned = Leads((), (), (), leads.paired, leads.inputs, weights.shape[1])
        full = tuple(n + k - 1 for n, k in zip(size, window, strict=True))
        problem = _problem(full, window, leads.templates, turned, device, itemsize)
        pad = tuple(k - 1 for k in window)
        plan, tiling = _tiles(problem, upstream.shape[2:], size, pad)
        return cls(leads, upstream, weights, problem, plan, tiling)

    @classmethod
    def into_template(
        cls,
        grad: Tensor,
        input: Tensor,
        shape: Ints,
        stride: Sequence[int],
        device: str,
        itemsize: int = 8,
    ) -> Transpose:
        ndim = len(stride)
        size, window = tuple(input.shape[-ndim:]), shape[-ndim:]
        leads = Leads.of(tuple(input.shape[: -ndim - 1]), shape[: -ndim - 1])
        upstream = dilated(leads.output(grad, ndim), stride).contiguous()
        seen = leads.input_in_place(input, ndim + 1)
        problem = _problem(size, window, seen.shape[-ndim - 1], leads, device, itemsize)
        plan, tiling = _tiles(problem, size, output_size(size, window, problem.stride), None)
        return cls(leads, upstream, seen, problem, plan, tiling)


def _problem(
    size: Ints, window: Ints, channels: int, leads: Leads, device: str, itemsize: int
) -> Problem:
    """A plain sum at stride 1, in transforms of numbers of this size."""
    return Problem(
        size=size,
        window=window,
        stride=(1,) * len(size),
        channels=channels,
        leads=leads,
        itemsize=itemsize,
        normalised=False,
        device=device,
    )


def _tiles(
    problem: Problem, size: Sequence[int], positions: Sequence[int], pad: Sequence[int] | None
) -> tuple[Plan, Tiling]:
    """A plan, and its tiles over an input of another size."""
    plan = make_plan(problem, "fft")
    grid = tuple(-(-n // m) for n, m in zip(positions, plan.tile, strict=True))
    powers = not problem.costs.pairs
    tiling = Tiling.cut(
        size, problem.window, problem.stride, grid, pad=pad, positions=positions, powers=powers
    )
    return plan, tiling
