"""Plain correlation and its two transposes: direct loops, or tiles through transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import _contract
from .._definition import correlate as definition
from .._definition import transforms
from .._plan import rounding
from .._plan.choose import Arrangement, scratch_allowed
from .._plan.dtypes import HALVES, widen
from .._plan.lags import AxisLags, Lags
from .._plan.predict import transform_cost
from .._plan.shapes import Ints, fast_length
from .._plan.strided import arrange_grad, arrange_sums, on_lattices
from .._plan.tiling import Tiling
from . import steps, strided, tiled_sums
from .overlap import is_long, is_quick
from .rules import SumRule
from .threads import without_late_threads
from .tiled_sums import UNCHECKED, Tiled

# Multiply-adds of recomputed windows, for each element of a tile, that take about as long as its
# transform.
_RECOMPUTED = 32
# A part of a tile is cut smaller as long as that leaves out this share of its elements. Then it is
# computed by the direct loop, if that takes no more than so many times as long as transforms.
_LEFT_OUT = 0.3
_WORTH_LOOP = 16.0
# Scratch of whole transforms, for each element: two spectra, their product and its inverse.
_WHOLE_BYTES = 4 * 8
# Their time for lines, planes and volumes, relative to that of transforming as many elements both
# ways in tiles in float32, and that of large tiles relative to their plan's.
_WHOLE = (30.0, 9.6, 9.6)
_LARGE = 2.0


def correlate(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None = None,
    pads: Sequence[int] = (),
) -> Tensor:
    if input.dtype in HALVES:
        wide = (input.float(), template.float())
        return correlate(*wide, stride, method, None, pads).to(input.dtype)
    if pads:
        return _among_zeros(input, template, stride, method, spectra, pads)
    if _has_few_positions(input.shape, template.shape, stride, method, input.dtype):
        positions = input.shape[-1] - template.shape[-1] + 1
        x, y = (v.reshape(v.shape[-1]).contiguous() for v in (input, template))
        sums = steps.overlap_sums(x, y, [0], [positions - 1]).to(input.dtype)
        leads = torch.broadcast_shapes(input.shape[:-2], template.shape[:-2])
        return sums.reshape(*leads, positions)
    call = _arranged(input.shape, template.shape, stride, method, input.dtype)
    if call.plan.method == "direct":
        return steps.correlate_direct(input, template, stride)
    finite = definition.all_finite(template)
    if input.is_complex():
        finite = finite and definition.all_finite(input)
    if not finite or input.numel() == 0 or template.numel() == 0:
        return definition.correlate(input, template, stride, "direct")
    lone = call.problem.is_complex or _is_lone(call, input.dtype, call.problem.size)
    if lone and (call.problem.is_complex or definition.all_finite(input)):
        return transforms.correlate(input, template, stride)
    if input.is_complex():
        missing = max(0, template.dim() - input.dim())
        return _from_parts(lambda x, w: correlate(x, w, stride, "fft"), input, template, missing)
    sizes = (input.shape, template.shape, stride)
    if spectra is None and _on_lattices(*sizes, input.dtype) and definition.all_finite(input):
        return strided.correlate(input, template, stride, correlate)
    return _sums(input, template, call, spectra)


def at_once(
    input: Ints, template: Ints, stride: Ints, method: str, dtype: torch.dtype, has_channels: bool
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Sums of tensors whose normal forms have these shapes, in float32 or float64, in one step;
    None if they take several. It takes both with or without their axis of channels."""
    if _has_few_positions(input, template, stride, method, dtype):
        return None
    if _arranged(input, template, stride, method, dtype).plan.method != "direct":
        return None

    axis = -len(stride) - 1

    def step(x: Tensor, w: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if not has_channels:
                x, w = x.unsqueeze(axis), w.unsqueeze(axis)
            out: Tensor = steps.correlate_direct(x, w, stride)
        return out

    return step


def _from_parts(
    operation: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor, missing: int = 0
) -> Tensor:
    """A bilinear operation on complex tensors from its values for their real and imaginary parts.

    Those of the first tensor are one more leading axis, before all of the second's: in front of as
    many as are missing to its own.
    """
    parts = torch.view_as_real(first.resolve_conj()).movedim(-1, 0).contiguous()
    parts = parts.reshape(2, *(1,) * missing, *first.shape)
    pair = second.resolve_conj()
    of_real, of_imaginary = (operation(parts, x.contiguous()) for x in (pair.real, pair.imag))
    return torch.complex(of_real[0] - of_imaginary[1], of_real[1] + of_imaginary[0])


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    if grad.dtype in HALVES:
        wide = (grad.float(), template.float())
        return correlate_input_grad(*wide, input_shape, stride, method).to(grad.dtype)
    shape = tuple(input_shape)
    arranged = _arranged_grad(False, shape, template.shape, stride, method, grad.dtype)
    if arranged.plan.method == "direct":
        return steps.correlate_direct_input_grad(grad, template, shape, stride)
    if grad.numel() == 0:
        return grad.new_zeros(shape)
    whole = arranged.problem.is_complex or _is_lone(arranged, grad.dtype, shape[-len(stride) :])
    if whole or not definition.all_finite(grad):
        return transforms.correlate_input_grad(grad, template, shape, stride)
    if grad.is_complex():
        part = (2, *(1,) * (grad.dim() + 1 - len(shape)), *shape)
        return _from_parts(
            lambda g, w: correlate_input_grad(g, w, part, stride, "fft"), grad, template.conj()
        ).reshape(shape)
    if _on_lattices(shape, template.shape, stride, grad.dtype):
        pair = (grad, template)
        return strided.correlate_input_grad(*pair, shape, stride, correlate_input_grad)
    return tiled_sums.onto_input(grad, template, shape, stride)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int], method: str
) -> Tensor:
    if grad.dtype in HALVES:
        wide = (grad.float(), input.float())
        return correlate_template_grad(*wide, template_shape, stride, method).to(grad.dtype)
    ndim, shape = len(stride), tuple(template_shape)
    arranged = _arranged_grad(True, input.shape, shape, stride, method, grad.dtype)
    if arranged.plan.method == "direct":
        return steps.correlate_direct_template_grad(grad, input, shape, stride)
    if grad.numel() == 0:
        return grad.new_zeros(shape)
    whole = arranged.problem.is_complex or _is_lone(arranged, grad.dtype, input.shape[-ndim:])
    if whole or not definition.all_finite(grad, input):
        return transforms.correlate_template_grad(grad, input, shape, stride)
    if grad.is_complex():
        part = (2, *(1,) * (grad.dim() + 1 - len(shape)), *shape)
        return _from_parts(
            lambda g, x: correlate_template_grad(g, x, part, stride, "fft"), grad, input.conj()
        ).reshape(shape)
    if _on_lattices(input.shape, shape, stride, grad.dtype):
        pair = (grad, input)
        return strided.correlate_template_grad(*pair, shape, stride, correlate_template_grad)
    return tiled_sums.onto_template(grad, input, shape, stride)


def _arranged(
    input: Ints, template: Ints, stride: Sequence[int], method: str, dtype: torch.dtype
) -> Arrangement:
    return arrange_sums(input, template, stride, method, dtype=dtype, device="cpu")


def _arranged_grad(
    of_template: bool,
    input: Ints,
    template: Ints,
    stride: Sequence[int],
    method: str,
    dtype: torch.dtype,
) -> Arrangement:
    return arrange_grad(of_template, input, template, stride, method, dtype=dtype, device="cpu")


def _on_lattices(
    input: Sequence[int], template: Sequence[int], stride: Sequence[int], dtype: torch.dtype
) -> bool:
    return on_lattices(input, template, stride, dtype=dtype, device="cpu") is not None


def _has_few_positions(
    input: Ints, template: Ints, stride: Sequence[int], method: str, dtype: torch.dtype
) -> bool:
    """Whether both are one line of real numbers, so alike in length that sums of many positions
    side by side take less time than any other way; of an input that is padded to this shape.
    """
    size, window = input[-1], template[-1]
    if method != "auto" or dtype.is_complex or list(stride) != [1]:
        return False
    if math.prod(input) != size or math.prod(template) != window:
        return False
    lags = AxisLags(size, window, 0, size - window)
    return is_long(lags) and is_quick(Lags((lags,), (0,)))


def _among_zeros(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    method: str,
    spectra: Tensor | None,
    pads: Sequence[int],
) -> Tensor:
    """The same of an input with so many zeros before and behind each window axis in turn, which are
    written to a copy only where neither one transform of all nor tiles do without."""
    ndim = len(pads) // 2
    size, window = input.shape[-ndim:], template.shape[-ndim:]
    wide = (n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(size))
    shape = (*input.shape[:-ndim], *wide)
    if input.numel() > 0 and template.numel() > 0:
        call = _arranged(shape, template.shape, stride, method, input.dtype)
        if call.plan.method != "direct" and definition.all_finite(template):
            needed = transforms.needed_among_zeros(size, window)
            lone = call.problem.is_complex or _is_lone(call, input.dtype, needed)
            if lone and definition.all_finite(input):
                return transforms.correlate(input, template, stride, pads)
            few = _has_few_positions(shape, template.shape, stride, method, input.dtype)
            lattices = _on_lattices(shape, template.shape, stride, input.dtype)
            if not (few or lattices or input.is_complex()):
                return _sums(input, template, call, spectra, pads)
    return correlate(transforms.bordered(input, pads), template, stride, method, spectra)


def _is_lone(call: Arrangement, dtype: torch.dtype, size: Sequence[int]) -> bool:
    """Whether one real transform of all takes less time than tiles, within the scratch allowed.

    Tiles are transformed two by two as complex numbers, and large templates in parts.
    """
    problem, leads = call.problem, call.problem.leads
    if dtype != torch.float64 or leads.paired * leads.inputs * leads.templates > 1:
        return False
    elements = problem.channels * math.prod(fast_length(n) for n in size)
    if _WHOLE_BYTES * elements > scratch_allowed(problem):
        return False
    ndim = len(problem.size)
    transform = problem.costs.sums[1] * transform_cost(problem.costs, ndim, elements, 4)
    time = _WHOLE[ndim - 1] * transform * 1e-6
    return time < call.plan.cost * (_LARGE if call.plan.large else 1.0)


def _rule_of(call: Arrangement, dtype: torch.dtype) -> SumRule:
    """Sums of float32 are within a few roundings of their terms, those of float64 as transforms."""
    if dtype == torch.float64:
        return UNCHECKED
    unit = rounding.unit(dtype)
    count = call.problem.channels * math.prod(call.tiling.window)
    # Large tiles are transformed in one precision.
    narrow = 0.0 if call.plan.large else rounding.ALLOWED_ROUNDINGS_IN_FLOAT32
    return SumRule(
        rounding.TRANSFORM * unit,
        rounding.TRANSFORM_OF_SUMS * rounding.unit(torch.float64),
        narrow * unit,
        rounding.ALLOWED_ROUNDINGS * unit,
        max(1, _RECOMPUTED * math.prod(call.tiling.length) // count),
    )


def _sums(
    input: Tensor,
    template: Tensor,
    call: Arrangement,
    prepared: Tensor | None,
    pads: Sequence[int] = (),
) -> Tensor:
    leads, tiling = call.problem.leads, call.tiling
    ndim = len(tiling.stride)
    image = steps.readable(leads.input_in_place(input, ndim + 1))
    weights = leads.template(widen(template), ndim + 1).contiguous()
    shape = (leads.paired * leads.inputs, leads.templates, *tiling.positions)
    out = steps.new_map(image, shape)
    seen = replace(tiling, size=tuple(image.shape[-ndim:]), pad=tuple(pads[::2]) or tiling.pad)
    tiled = Tiled(call.problem, call.plan, seen)
    left = tiled.sum(image, weights, _rule_of(call, input.dtype), out, prepared)
    wide = transforms.bordered(image, pads) if left else image
    for tile, k in left:
        item, number = divmod(tile, tiling.tiles)
        elements, positions = tiling.slices(number)
        part = _item(wide, item, ndim + 1)[(slice(None), *elements)]
        of_item = weights[item // leads.inputs, k]
        _sum_in_halves(part, of_item, tiling.stride, out[(item, k, *positions)])
    return leads.restored(out, ndim)


def _item(items: Tensor, number: int, core: int) -> Tensor:
    """One of (*items, *core)."""
    for axis in reversed(range(items.dim() - core)):
        number, index = divmod(number, items.shape[axis])
        items = items.select(axis, index)
    return items


def _sum_in_halves(input: Tensor, template: Tensor, stride: Ints, out: Tensor) -> None:
    """Sums of a part of an input that is too varied for one transform."""
    axis = max(range(out.dim()), key=lambda i: out.shape[i])
    middle, last = out.shape[axis] // 2, out.shape[axis]
    for begin, end in ((0, middle), (middle, last)):
        if begin == end:
            continue
        step, k = stride[axis], template.shape[axis + 1]
        seen = input.narrow(axis + 1, begin * step, (end - 1 - begin) * step + k)
        to = out.narrow(axis, begin, end - begin)
        seen, weights = _without_zeros(seen, template, stride, to.shape)
        if seen.numel() <= (1 - _LEFT_OUT) * input.numel():
            to.copy_(correlate(seen, weights.to(seen.dtype), stride, "auto"))
            continue
        sizes = (tuple(seen.shape), tuple(weights.shape), stride)
        loop, quick = (_arranged(*sizes, m, input.dtype).plan.cost for m in ("direct", "fft"))
        # Otherwise they keep the rounding of their tile: no promise is worth quadratic time.
        if loop <= _WORTH_LOOP * quick:
            to.copy_(steps.correlate_direct(widen(seen)[None], weights[None, None], stride)[0, 0])


def _without_zeros(
    input: Tensor, template: Tensor, stride: Ints, positions: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Both without the margins that are zero in one of them at all positions."""
    for axis, (m, s) in enumerate(zip(positions, stride, strict=True), 1):
        first, last = _live(input, axis)
        begin, end = _live(template, axis)
        begin, end = max(begin, first - (m - 1) * s), min(end, last)
        # One element is left where nothing is.
        begin = min(begin, template.shape[axis] - 1)
        end = max(end, begin + 1)
        template = template.narrow(axis, begin, end - begin)
        input = input.narrow(axis, begin, (m - 1) * s + end - begin)
    return input.contiguous(), template.contiguous()


def _live(x: Tensor, axis: int) -> tuple[int, int]:
    """The first element along an axis that is not zero, and the one behind the last."""
    others = [i for i in range(x.dim()) if i != axis]
    live = (x != 0).sum(others).nonzero()
    return (int(live[0]), int(live[-1]) + 1) if live.numel() > 0 else (0, 0)


def _spectra(template: Tensor, tiling: Tiling, wide: bool) -> Tensor | None:
    if template.device.type != "cpu":
        return None
    return steps.spectra_of_templates(template, tiling, wide).unflatten(0, template.shape[:2])


def register() -> None:
    _contract.correlate.implement(without_late_threads(correlate), "CPU")
    _contract.correlate.at_once = at_once
    _contract.correlate.spectra = _spectra
    _contract.correlate_input_grad.implement(without_late_threads(correlate_input_grad), "CPU")
    _contract.correlate_template_grad.implement(
        without_late_threads(correlate_template_grad), "CPU"
    )
