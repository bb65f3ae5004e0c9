"""Correlation by its definition and its transpose in the input, for small templates on CUDA.

A lane computes ROWS outputs, one above the other. It loads ROWS + TALL - 1 elements of an input
column once and adds them to all the outputs they contribute to: with eight rows and eight
coefficients, 15 loads and 8 coefficients (the same for all lanes) serve 64 multiply-adds. Outputs
are numbered through all window axes, so that small and odd sizes fill a program as large ones do.
Where the rows do not divide, the last lanes begin earlier and compute some outputs twice, to the
same bits.

The transpose is the same loop over the gradient, with the coefficients reversed: a stride splits
the elements of the input into phases, and each phase meets every stride-th coefficient only. Sums
run in blocks of at most 8 x 8 products, which a compensated sum adds up, so that rounding does not
grow with the template.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition import correlate as definition
from ..._plan.leads import Leads
from ..._plan.shapes import Ints, output_size
from ..values import MOST_LANES, supported, three, wide_type

# Rows of coefficients that are unrolled; columns of a block of products, and those that are
# unrolled together.
TALL = 8
COLUMNS = tl.constexpr(8)
TOGETHER = tl.constexpr(4)
# Programs that keep a large GPU busy.
_ENOUGH = 512


class Unrolled(NamedTuple):
    """What distinguishes the variants of a direct kernel."""

    rows: Any  # outputs of a lane, one above the other
    lanes: Any
    tall: Any  # rows of coefficients that are unrolled together
    rest: Any  # rows that remain of a template and are unrolled too
    rolled: Any  # whether remaining rows are looped over instead, as their number varies
    unit: Any  # whether the elements of a row are adjacent

    @classmethod
    def of(cls, **fields: int) -> Unrolled:
        return cls(**{name: tl.constexpr(value) for name, value in fields.items()})


class Strided(NamedTuple):
    """A pointer into a tensor, and its pitches: of what is summed over, planes, rows, columns."""

    at: Any
    pitch: Any


class Bounds(NamedTuple):
    """Where windows are in a map that is 0 outside itself: first position, sizes, valid lanes."""

    z: Any
    y: Any
    x: Any
    size: Any
    inside: Any


@triton.jit
def zeros(COUNT: tl.constexpr, LANES: tl.constexpr, dtype: tl.constexpr):
    """A tuple of COUNT vectors of zeros."""
    result = ()
    for _ in tl.static_range(COUNT):
        result = result + (tl.zeros([LANES], dtype),)
    return result


@triton.jit
def plus(sums, more, COUNT: tl.constexpr):
    """Tuples of COUNT vectors, added one by one."""
    result = ()
    for r in tl.static_range(COUNT):
        result = result + (sums[r] + more[r],)
    return result


@triton.jit
def minus(sums, more, COUNT: tl.constexpr):
    """Tuples of COUNT vectors, subtracted one by one."""
    result = ()
    for r in tl.static_range(COUNT):
        result = result + (sums[r] - more[r],)
    return result


@triton.jit
def coefficients_of(at, row, COUNT: tl.constexpr, dtype: tl.constexpr):
    """COUNT coefficients of a column."""
    result = ()
    for j in tl.static_range(COUNT):
        result = result + (tl.load(at + j * row).to(dtype),)
    return result


@triton.jit
def compensated(total, lost, part, COUNT: tl.constexpr):
    """total + part, and what rounding lost (Kahan's sum, element by element)."""
    new_total, new_lost = (), ()
    for r in tl.static_range(COUNT):
        term = part[r] - lost[r]
        longer = total[r] + term
        # After an overflow nothing is lost, and infinity has to stay.
        rest = tl.where(tl.abs(longer) < float("inf"), (longer - total[r]) - term, 0.0)
        new_total = new_total + (longer,)
        new_lost = new_lost + (rest,)
    return new_total, new_lost


@triton.jit
def _column(
    sums, source, template, bounds, inside, HEIGHT: tl.constexpr, FORM: tl.constexpr,
    CHECKS: tl.constexpr,
):  # fmt: skip
    """Adds the products of one column of HEIGHT coefficients to each of a lane's sums.

    source and template are pointers with the pitch of rows. CHECKS: whether the map is bounded,
    and whether elements outside it are left out instead of multiplied by 0.
    """
    wide: tl.constexpr = sums[0].dtype
    ROWS: tl.constexpr = FORM.rows
    coefficients = coefficients_of(template.at, template.pitch, HEIGHT, wide)
    y, height = bounds.y, bounds.size[1]
    chain = sums
    for i in tl.static_range(ROWS + HEIGHT - 1):
        if CHECKS[0]:
            exists = inside & (y + i >= 0) & (y + i < height)
            x = tl.load(source.at + i * source.pitch, exists, 0.0).to(wide)
        else:
            x = tl.load(source.at + i * source.pitch).to(wide)
        longer = ()
        for r in tl.static_range(ROWS):
            if i < r or i - r >= HEIGHT:
                longer = longer + (chain[r],)
            elif CHECKS[1]:
                before = 0.0 if i == r else chain[r]
                longer = longer + (before + tl.where(exists, x * coefficients[i - r], 0.0),)
            elif i == r:
                longer = longer + (x * coefficients[0],)
            else:
                longer = longer + (tl.fma(x, coefficients[i - r], chain[r]),)
        chain = longer
    return plus(sums, chain, ROWS)


@triton.jit
def _rows(
    sums, source, template, columns, bounds, HEIGHT: tl.constexpr, FORM: tl.constexpr,
    CHECKS: tl.constexpr,
):  # fmt: skip
    """Adds the products of HEIGHT rows of coefficients; pitches are those of rows and columns."""
    total, lost = sums
    row, step = source.pitch
    template_row, template_step = template.pitch
    for first in range(0, columns, COLUMNS):
        part = zeros(FORM.rows, FORM.lanes, total[0].dtype)
        last = min(first + COLUMNS, columns)
        single = first
        if FORM.unit:
            # Adjacent columns differ by a constant that is part of the load instruction.
            single = last - (last - first) % TOGETHER
            for c in range(first, single, TOGETHER):
                for k in tl.static_range(TOGETHER):
                    part = _column(
                        part, Strided(source.at + c + k, row),
                        Strided(template.at + (c + k) * template_step, template_row), bounds,
                        bounds.inside, HEIGHT, FORM, CHECKS,
                    )  # fmt: skip
        for c in range(single, last):
            inside = bounds.inside
            if CHECKS[0]:
                inside = inside & (bounds.x + c >= 0) & (bounds.x + c < bounds.size[2])
            part = _column(
                part, Strided(source.at + c * step, row),
                Strided(template.at + c * template_step, template_row), bounds, inside, HEIGHT,
                FORM, CHECKS,
            )  # fmt: skip
        total, lost = compensated(total, lost, part, FORM.rows)
    return total, lost


@triton.jit
def _rows_at(
    sums, lines, dy, columns, bounds, HEIGHT: tl.constexpr, FORM: tl.constexpr, CHECKS: tl.constexpr
):
    """Adds the products of HEIGHT rows from row dy of a plane on; lines: source, template, gap."""
    source, template, gap = lines
    _, _, s_y, s_x = source.pitch
    _, _, t_y, t_x = template.pitch
    source = Strided(source.at + dy * s_y, (gap * s_y, s_x))
    template = Strided(template.at + dy * t_y, (t_y, t_x))
    bounds = Bounds(bounds.z, bounds.y + dy, bounds.x, bounds.size, bounds.inside)
    return _rows(sums, source, template, columns, bounds, HEIGHT, FORM, CHECKS)


@triton.jit
def _window(
    source, template, window, gap, bounds, WIDE: tl.constexpr, FORM: tl.constexpr,
    CHECKS: tl.constexpr,
):  # fmt: skip
    """The sums of a lane's outputs over a whole window (sums, planes, rows, columns).

    gap: rows of the source between one output and the next below it.
    """
    count, planes, rows, columns = window
    sums = (zeros(FORM.rows, FORM.lanes, WIDE), zeros(FORM.rows, FORM.lanes, WIDE))
    tall = 0
    if FORM.tall > 1:
        tall = rows // FORM.tall
    for plane in range(count * planes):
        k, dz = plane // planes, plane % planes
        inside = bounds.z + dz < bounds.size[0]
        if CHECKS[0]:
            inside = inside & (bounds.z + dz >= 0)
        here = Bounds(bounds.z, bounds.y, bounds.x, bounds.size, inside)
        lines = (
            Strided(source.at + k * source.pitch[0] + dz * source.pitch[1], source.pitch),
            Strided(template.at + k * template.pitch[0] + dz * template.pitch[1], template.pitch),
            gap,
        )
        for q in range(tall):
            sums = _rows_at(sums, lines, q * FORM.tall, columns, here, FORM.tall, FORM, CHECKS)
        if FORM.rest > 0:
            sums = _rows_at(sums, lines, tall * FORM.tall, columns, here, FORM.rest, FORM, CHECKS)
        if FORM.rolled:
            for dy in range(tall * FORM.tall, rows):
                sums = _rows_at(sums, lines, dy, columns, here, 1, FORM, CHECKS)
    return minus(sums[0], sums[1], FORM.rows)


@triton.jit
def place(lane, rows, columns, ROWS: tl.constexpr):
    """Plane, first row and column of a lane's outputs; how many of them another lane writes."""
    groups = (rows + ROWS - 1) // ROWS
    x, group = lane % columns, lane // columns
    row = group % groups * ROWS
    first = tl.minimum(row, rows - ROWS)
    return group // groups, first, x, row - first


@triton.jit
def _phase(pid, window, size, spread):
    """The phase of a program along one axis: its number, its coefficients and its outputs."""
    phases = min(spread, size)
    phase = pid % phases
    count = max((window - phase + spread - 1) // spread, 0)
    return pid // phases, phase, count, (size - phase - 1) // spread + 1


# Sizes are not specialised: a new shape needs no new compilation.
_SIZES = [
    "blocks", "middles", "inputs", "sums", "w_z", "w_y", "w_x", "i_z", "i_y", "i_x",
    "o_z", "o_y", "o_x", "d_z", "d_y", "d_x", "s_lead", "s_sum", "s_z", "s_y", "s_x",
    "t_pair", "t_middle", "t_sum", "t_z", "t_y", "t_x",
]  # fmt: skip


# Whether a map is bounded, and whether what lies outside it is left out (`_column`).
WITHIN = tl.constexpr((False, False))
BOUNDED = tl.constexpr((True, False))
LEFT_OUT = tl.constexpr((True, True))


@triton.jit(do_not_specialize=_SIZES)
def _correlate_kernel(
    source, coefficients, out,
    blocks, middles, inputs, sums, w_z, w_y, w_x, i_z, i_y, i_x, o_z, o_y, o_x, d_z, d_y, d_x,
    s_lead, s_sum, s_z, s_y, s_x, t_pair, t_middle, t_sum, t_z, t_y, t_x,
    WIDE: tl.constexpr, SPREAD: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """A block of outputs of one lead and one middle axis, summed over a third.

    source is (lead, sum, i), coefficients are (pair, middle, sum, w), out is (lead, middle, o).
    The strides d lie between the windows, or, if SPREAD, between the outputs of a phase. Programs
    that follow each other differ in the middle axis (templates, or channels of a gradient), so
    that they read the same source.
    """
    ROWS: tl.constexpr = FORM.rows
    pid = tl.program_id(0)
    middle, pid = pid % middles, pid // middles
    s_z, s_y, s_x = s_z.to(tl.int64), s_y.to(tl.int64), s_x.to(tl.int64)
    t_z, t_y, t_x = t_z.to(tl.int64), t_y.to(tl.int64), t_x.to(tl.int64)
    if SPREAD:
        pid, p_x, n_x, u_x = _phase(pid, w_x, o_x, d_x)
        pid, p_y, n_y, u_y = _phase(pid, w_y, o_y, d_y)
        pid, p_z, n_z, u_z = _phase(pid, w_z, o_z, d_z)
    else:
        p_z, p_y, p_x, n_z, n_y, n_x, u_z, u_y, u_x = 0, 0, 0, w_z, w_y, w_x, o_z, o_y, o_x
    lead, block = (pid // blocks).to(tl.int64), pid % blocks
    number = block * FORM.lanes + tl.arange(0, FORM.lanes)
    lanes = u_z * ((u_y + ROWS - 1) // ROWS) * u_x
    z, y, x, skipped = place(tl.minimum(number, lanes - 1), u_y, u_x, ROWS)
    first = coefficients + lead // inputs * t_pair + middle * t_middle.to(tl.int64)
    to = out + (lead * middles + middle) * o_z * o_y * o_x
    if SPREAD:
        # The last coefficient of a phase meets the first element of the gradient.
        first += (p_z + d_z * (n_z - 1)) * t_z + (p_y + d_y * (n_y - 1)) * t_y
        first += (p_x + d_x * (n_x - 1)) * t_x
        t_z, t_y, t_x = -d_z * t_z, -d_y * t_y, -d_x * t_x
        to += ((p_z + z * d_z).to(tl.int64) * o_y + p_y + y * d_y) * o_x + p_x + x * d_x
        below = d_y * o_x
        gap = 1
        z, y, x = z - n_z + 1, y - n_y + 1, x - n_x + 1
    else:
        to += (z.to(tl.int64) * o_y + y) * o_x + x
        below = o_x
        gap = d_y
        z, y, x = z * d_z, y * d_y, x * d_x
    at = source + lead * s_lead + z * s_z + y * s_y + x * s_x
    seen = Strided(at, (s_sum.to(tl.int64), s_z, s_y, s_x))
    template = Strided(first, (t_sum.to(tl.int64), t_z, t_y, t_x))
    window, bounds = (sums, n_z, n_y, n_x), Bounds(z, y, x, (i_z, i_y, i_x), True)
    if not SPREAD:
        result = _window(seen, template, window, gap, bounds, WIDE, FORM, WITHIN)
        for r in tl.static_range(ROWS):
            tl.store(to + r * below, result[r], (number < lanes) & (r >= skipped))
    else:
        result = _window(seen, template, window, gap, bounds, WIDE, FORM, BOUNDED)
        # A coefficient that is not finite spoils outputs that it meets outside the gradient only.
        non_finite = result[0] != result[0]
        for r in tl.static_range(ROWS):
            good = result[r] == result[r]
            non_finite = non_finite | (result[r] != result[r])
            tl.store(to + r * below, result[r], (number < lanes) & (r >= skipped) & good)
        if tl.max(non_finite.to(tl.int32), 0) > 0:
            exact = _window(seen, template, window, gap, bounds, WIDE, FORM, LEFT_OUT)
            for r in tl.static_range(ROWS):
                bad = result[r] != result[r]
                tl.store(to + r * below, exact[r], (number < lanes) & (r >= skipped) & bad)


def chosen(outputs: int, rows: int, most: int) -> tuple[int, int]:
    """Rows and lanes of a program, from the number of outputs and the fewest rows of a plane.

    At most `most` outputs a thread, so that no register spills.
    """
    for high, lanes in ((8, 256), (8, 128), (4, 128)):
        enough = outputs >= _ENOUGH * high * lanes
        if rows >= high and enough and high * lanes <= most * 128:
            return high, lanes
    if rows >= 4:
        return 4, 128
    return 1, max(128, 32 * most) if outputs >= _ENOUGH * 512 else 128


def _launch(
    source: Tensor,
    coefficients: Tensor,
    out: Tensor,
    inputs: int,
    input_size: Ints,
    window: Ints,
    stride: Ints,
    spread: bool,
) -> bool:
    """source (lead, sum, size), coefficients (pair, middle, sum, window), out (lead, middle, size).

    Returns False, and writes nothing, if there are more outputs than a launch can number.
    """
    output = three(out.shape[2:], 1)
    sizes = tuple(-(-n // d) for n, d in zip(output, stride, strict=True)) if spread else output
    fewest = max(1, output[1] // stride[1]) if spread else output[1]
    rows, lanes = chosen(
        out.numel(), fewest, 4 if spread else 8 if out.dtype == torch.float64 else 16
    )
    unrolled = spread or stride[1] == 1
    lanes_of_all = sizes[0] * -(-sizes[1] // rows) * sizes[2]
    blocks = -(-lanes_of_all // lanes)
    phases = math.prod(map(min, stride, output)) if spread else 1
    programs = blocks * phases * out.shape[0] * out.shape[1]
    if lanes_of_all > MOST_LANES or programs > MOST_LANES:
        return False
    form = Unrolled.of(
        rows=rows,
        lanes=lanes,
        tall=TALL if unrolled else 1,
        rest=window[1] % TALL if stride[1] == 1 else 0,
        rolled=int(stride[1] != 1),
        unit=int(not spread and source.stride()[-1] == 1),
    )
    _correlate_kernel[(programs,)](
        source, coefficients, out,
        blocks, out.shape[1], inputs, coefficients.shape[2], *window, *input_size, *output, *stride,
        *source.stride()[:2], *three(source.stride()[2:], 0),
        *coefficients.stride()[:3], *three(coefficients.stride()[3:], 0),
        WIDE=wide_type(out.dtype), SPREAD=spread, FORM=form, num_warps=4,
    )  # fmt: skip
    return True


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v), summed over channels."""
    ndim = len(stride)
    leads = Leads.of(tuple(input.shape[: -ndim - 1]), tuple(template.shape[: -ndim - 1]))
    if not supported(input, template):
        return definition.correlate(input, template, stride, "direct")
    source, coefficients = leads.input(input, ndim + 1), leads.template(template, ndim + 1)
    window, size = tuple(template.shape[-ndim:]), tuple(input.shape[-ndim:])
    out = input.new_empty(
        (leads.paired * leads.inputs, leads.templates, *output_size(size, window, stride))
    )
    geometry = (leads.inputs, three(size, 1), three(window, 1), three(stride, 1))
    if not _launch(source, coefficients, out, *geometry, False):
        return definition.correlate(input, template, stride, "direct")
    return leads.restored(out, ndim)


def correlate_input_grad(
    grad: Tensor, template: Tensor, input_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its input: every output spread over its window."""
    ndim = len(stride)
    shape = tuple(input_shape)
    leads = Leads.of(shape[: -ndim - 1], tuple(template.shape[: -ndim - 1]))
    if not supported(grad, template):
        return definition.correlate_input_grad(grad, template, shape, stride, "direct")
    source = leads.output(grad, ndim)
    coefficients = leads.template(template, ndim + 1).transpose(1, 2)
    window, size = tuple(template.shape[-ndim:]), tuple(grad.shape[-ndim:])
    out = grad.new_empty((source.shape[0], *shape[-ndim - 1 :]))
    geometry = (leads.inputs, three(size, 1), three(window, 1), three(stride, 1))
    if not _launch(source, coefficients, out, *geometry, True):
        return definition.correlate_input_grad(grad, template, shape, stride, "direct")
    return leads.input_restored(out, shape, ndim + 1)
