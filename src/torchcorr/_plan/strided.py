"""A plain sum with a stride as a dense one over the channels of sub-lattices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from .choose import Arrangement, arrange
from .lattice import Lattices
from .shapes import Ints

# Times of the gradients of the input and of the template, relative to sums: by transforms, which
# are not checked, and by the direct loop, for each element of the input and for each position.
GRADS_BY_FFT = (0.9, 1.25)
_GRADS_BY_LOOP = (1.1, 1.45)
# Time of laying out an element of the input as sub-lattices, in the units of a plan's cost.
_COPIED = 1e-6


def arrange_sums(
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    method: str,
    *,
    dtype: torch.dtype,
    device: str,
) -> Arrangement:
    """`arrange` for plain sums: by transforms also where only those of sub-lattices take less time
    than the direct loop."""
    sizes = (input, template, stride)
    call = arrange(*sizes, method, normalised=False, dtype=dtype, device=device)
    if max(stride, default=1) == 1 or method != "auto" or call.plan.method != "direct":
        return call
    if call.problem.costs.pairs:
        dense = on_lattices(*sizes, dtype=dtype, device=device)
        if dense is not None and _time(dense, input) < call.plan.cost:
            return arrange(*sizes, "fft", normalised=False, dtype=dtype, device=device)
    return call


def arrange_grad(
    of_template: bool,
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    method: str,
    *,
    dtype: torch.dtype,
    device: str,
) -> Arrangement:
    """`arrange_sums` for a gradient, whose direct loop may take longer than that of the sums."""
    call = arrange_sums(input, template, stride, method, dtype=dtype, device=device)
    if method != "auto" or call.plan.method != "direct" or 0 in call.plan.tile:
        return call
    quick = arrange_sums(input, template, stride, "fft", dtype=dtype, device=device)
    loop = grad_by_loop(of_template, input[-len(stride) :], call.tiling.positions)
    return quick if GRADS_BY_FFT[of_template] * quick.plan.cost < loop * call.plan.cost else call


def grad_by_loop(of_template: bool, size: Sequence[int], positions: Sequence[int]) -> float:
    """Time of a gradient by the direct loop, relative to that of the sums."""
    runs_over_input = 1.0 if of_template else math.prod(size) / max(1, math.prod(positions))
    return _GRADS_BY_LOOP[of_template] * runs_over_input


def on_lattices(
    input: Sequence[int],
    template: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype,
    device: str,
) -> Arrangement | None:
    """How a sum by transforms is computed on sub-lattices; None if it takes less time as it is.

    Shapes are those of an input and of a template in normal form, (*lead, C, *size).
    """
    if max(stride, default=1) == 1:
        return None
    return _on_lattices(tuple(input), tuple(template), tuple(stride), dtype, device)


@lru_cache(maxsize=1024)
def _on_lattices(
    input: Ints, template: Ints, stride: Ints, dtype: torch.dtype, device: str
) -> Arrangement | None:
    if dtype.is_complex or 0 in input or 0 in template:
        return None
    ndim = len(stride)
    at = lattices_of(input, template, stride)
    shapes = dense_shape(input, at, at.dense), dense_shape(template, at, at.taps)
    ones = (1,) * ndim
    dense = arrange(*shapes, ones, "fft", normalised=False, dtype=dtype, device=device)
    whole = arrange(input, template, stride, "fft", normalised=False, dtype=dtype, device=device)
    return dense if _time(dense, input) < whole.plan.cost else None


def _time(dense: Arrangement, input: Sequence[int]) -> float:
    """The cost of sums on sub-lattices, with that of laying them out."""
    return dense.plan.cost + _COPIED * math.prod(input)


def lattices_of(input: Ints, template: Ints, stride: Sequence[int]) -> Lattices:
    ndim = len(stride)
    zeros, ones = (0,) * ndim, (1,) * ndim
    return Lattices.of(input[-ndim:], template[-ndim:], stride, zeros, ones)


def dense_shape(whole: Ints, at: Lattices, size: Ints) -> Ints:
    """(*lead, C, *size) with the channels of all sub-lattices."""
    ndim = len(size)
    return *whole[: -ndim - 1], whole[-ndim - 1] * math.prod(at.steps), *size
