"""Correlation by its definition and its transpose in the input, for small templates on CUDA.

A lane owns ROWS outputs, one above the other. It loads ROWS + TALL - 1 elements of an input
column once and adds them to all the outputs they belong to: with eight rows and eight taps, 15
loads and 8 taps (the same for all lanes) serve 64 multiply-adds. Outputs are numbered through all
window axes, so that small and odd sizes fill a program as large ones do. Where the rows do not
divide, the last lanes begin earlier and compute some outputs twice, to the same bits.

The transpose is the same loop over the gradient, with the taps backwards: a stride splits the
elements of the input into phases, and each phase meets every stride-th tap only. Sums run in
blocks of at most 8 x 8 products, and a compensated sum holds the blocks, so that rounding does
not grow with the template.
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition import correlate as definition
from ..._plan.leads import Leads
from ..._plan.shapes import Ints, output_size

# Taps along the rows' axis that are unrolled; columns of a block of products; most lanes.
TALL = 8
_COLUMNS = tl.constexpr(8)
_TOGETHER = tl.constexpr(4)
MOST_LANES = 2**31 - 2**12
# Programs that keep a large GPU busy.
_ENOUGH = 512
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@triton.jit
def zeros(COUNT: tl.constexpr, LANES: tl.constexpr, dtype: tl.constexpr):
    """A tuple of COUNT vectors of zeros."""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros([LANES], dtype),)
    return found


@triton.jit
def _column(
    sums, at, tap, row, tap_row, y, height, inside,
    ROWS: tl.constexpr, TAPS: tl.constexpr, BOUNDED: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Adds the products of one column of TAPS taps to each of ROWS sums."""
    wide: tl.constexpr = sums[0].dtype
    taps = ()
    for j in tl.static_range(TAPS):
        taps = taps + (tl.load(tap + j * tap_row).to(wide),)
    chain = sums
    for i in tl.static_range(ROWS + TAPS - 1):
        if BOUNDED:
            seen = inside & (y + i >= 0) & (y + i < height)
            x = tl.load(at + i * row, seen, 0.0).to(wide)
        else:
            x = tl.load(at + i * row).to(wide)
        longer = ()
        for r in tl.static_range(ROWS):
            if i < r or i - r >= TAPS:
                longer = longer + (chain[r],)
            elif CAREFUL:
                before = 0.0 if i == r else chain[r]
                longer = longer + (before + tl.where(seen, x * taps[i - r], 0.0),)
            elif i == r:
                longer = longer + (x * taps[0],)
            else:
                longer = longer + (tl.fma(x, taps[i - r], chain[r]),)
        chain = longer
    found = ()
    for r in tl.static_range(ROWS):
        found = found + (sums[r] + chain[r],)
    return found


@triton.jit
def compensated(total, lost, part, COUNT: tl.constexpr):
    """total + part with what rounding lost kept beside it (Kahan's sum, element by element)."""
    new_total, new_lost = (), ()
    for r in tl.static_range(COUNT):
        term = part[r] - lost[r]
        longer = total[r] + term
        # After an overflow there is nothing to keep, and infinity has to stay.
        left = tl.where(tl.abs(longer) < float("inf"), (longer - total[r]) - term, 0.0)
        new_total = new_total + (longer,)
        new_lost = new_lost + (left,)
    return new_total, new_lost


@triton.jit
def _rows(
    total, lost, at, tap, columns, step_x, tap_x, row, tap_row, y, height, x, width, inside,
    ROWS: tl.constexpr, TAPS: tl.constexpr, LANES: tl.constexpr,
    BOUNDED: tl.constexpr, CAREFUL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Adds the products of TAPS rows of taps."""
    for first in range(0, columns, _COLUMNS):
        part = zeros(ROWS, LANES, total[0].dtype)
        last = min(first + _COLUMNS, columns)
        single = first
        if UNIT:
            # Neighbouring columns differ by a constant that the loads hold.
            single = last - (last - first) % _TOGETHER
            for c in range(first, single, _TOGETHER):
                for k in tl.static_range(_TOGETHER):
                    part = _column(
                        part, at + c + k, tap + (c + k) * tap_x, row, tap_row, y, height, inside,
                        ROWS, TAPS, BOUNDED, CAREFUL,
                    )  # fmt: skip
        for c in range(single, last):
            within = inside
            if BOUNDED:
                within = inside & (x + c >= 0) & (x + c < width)
            part = _column(
                part, at + c * step_x, tap + c * tap_x, row, tap_row, y, height, within,
                ROWS, TAPS, BOUNDED, CAREFUL,
            )  # fmt: skip
        total, lost = compensated(total, lost, part, ROWS)
    return total, lost


@triton.jit
def _window(
    at, tap, sums, planes, rows, columns, z, y, x, depth, height, width, gap_y,
    s_sum, s_z, s_y, s_x, t_sum, t_z, t_y, t_x,
    ROWS: tl.constexpr, TALL: tl.constexpr, REST: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr, BOUNDED: tl.constexpr, CAREFUL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The sums of ROWS outputs a lane, over `sums` channels or templates and a whole window."""
    total, lost = zeros(ROWS, LANES, WIDE), zeros(ROWS, LANES, WIDE)
    tall = 0
    if TALL > 1:
        tall = rows // TALL
    for plane in range(sums * planes):
        k, dz = plane // planes, plane % planes
        inside = z + dz < depth
        if BOUNDED:
            inside = inside & (z + dz >= 0)
        here, taps = at + k * s_sum + dz * s_z, tap + k * t_sum + dz * t_z
        for q in range(tall):
            dy = q * TALL
            total, lost = _rows(
                total, lost, here + dy * s_y, taps + dy * t_y, columns, s_x, t_x, gap_y * s_y,
                t_y, y + dy, height, x, width, inside, ROWS, TALL, LANES, BOUNDED, CAREFUL, UNIT,
            )  # fmt: skip
        if REST > 0:
            dy = tall * TALL
            total, lost = _rows(
                total, lost, here + dy * s_y, taps + dy * t_y, columns, s_x, t_x, gap_y * s_y,
                t_y, y + dy, height, x, width, inside, ROWS, REST, LANES, BOUNDED, CAREFUL, UNIT,
            )  # fmt: skip
        if REST < 0:
            for dy in range(tall * TALL, rows):
                total, lost = _rows(
                    total, lost, here + dy * s_y, taps + dy * t_y, columns, s_x, t_x, gap_y * s_y,
                    t_y, y + dy, height, x, width, inside, ROWS, 1, LANES, BOUNDED, CAREFUL, UNIT,
                )  # fmt: skip
    found = ()
    for r in tl.static_range(ROWS):
        found = found + (total[r] - lost[r],)
    return found


@triton.jit
def place(lane, rows, columns, ROWS: tl.constexpr):
    """Plane, first row and column of a lane's outputs, and the first of them that it owns."""
    groups = (rows + ROWS - 1) // ROWS
    x, group = lane % columns, lane // columns
    own = group % groups * ROWS
    first = tl.minimum(own, rows - ROWS)
    return group // groups, first, x, own - first


@triton.jit
def _phase(pid, window, size, spread):
    """The phase of a program along one axis: its number, its taps and its outputs."""
    phases = min(spread, size)
    phase = pid % phases
    taps = max((window - phase + spread - 1) // spread, 0)
    return pid // phases, phase, taps, (size - phase - 1) // spread + 1


# Sizes are no part of what is compiled: a new shape needs no new kernel.
_SIZES = [
    "blocks", "middles", "inputs", "sums", "w_z", "w_y", "w_x", "i_z", "i_y", "i_x",
    "o_z", "o_y", "o_x", "d_z", "d_y", "d_x", "s_lead", "s_sum", "s_z", "s_y", "s_x",
    "t_pair", "t_middle", "t_sum", "t_z", "t_y", "t_x",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _correlate_kernel(
    source, taps, out,
    blocks, middles, inputs, sums, w_z, w_y, w_x, i_z, i_y, i_x, o_z, o_y, o_x, d_z, d_y, d_x,
    s_lead, s_sum, s_z, s_y, s_x, t_pair, t_middle, t_sum, t_z, t_y, t_x,
    ROWS: tl.constexpr, TALL: tl.constexpr, REST: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr, SPREAD: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A block of outputs of one lead and one middle axis, summed over a third.

    source is (lead, sum, i), taps are (pair, middle, sum, w), out is (lead, middle, o).
    The strides d lie between the windows, or, if SPREAD, between the outputs of a phase. Programs
    that follow each other differ in the middle axis (templates, or channels of a gradient), so
    that they read the same source.
    """
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
    number = block * LANES + tl.arange(0, LANES)
    lanes = u_z * ((u_y + ROWS - 1) // ROWS) * u_x
    z, y, x, owned = place(tl.minimum(number, lanes - 1), u_y, u_x, ROWS)
    tap = taps + lead // inputs * t_pair + middle * t_middle.to(tl.int64)
    to = out + (lead * middles + middle) * o_z * o_y * o_x
    if SPREAD:
        # The last tap of a phase meets the first element of the gradient.
        tap += (p_z + d_z * (n_z - 1)) * t_z + (p_y + d_y * (n_y - 1)) * t_y
        tap += (p_x + d_x * (n_x - 1)) * t_x
        t_z, t_y, t_x = -d_z * t_z, -d_y * t_y, -d_x * t_x
        to += ((p_z + z * d_z).to(tl.int64) * o_y + p_y + y * d_y) * o_x + p_x + x * d_x
        below = d_y * o_x
        gap_y = 1
        z, y, x = z - n_z + 1, y - n_y + 1, x - n_x + 1
    else:
        to += (z.to(tl.int64) * o_y + y) * o_x + x
        below = o_x
        gap_y = d_y
        z, y, x = z * d_z, y * d_y, x * d_x
    at = source + lead * s_lead + z * s_z + y * s_y + x * s_x
    found = _window(
        at, tap, sums, n_z, n_y, n_x, z, y, x, i_z, i_y, i_x, gap_y,
        s_sum.to(tl.int64), s_z, s_y, s_x, t_sum.to(tl.int64), t_z, t_y, t_x,
        ROWS, TALL, REST, LANES, WIDE, SPREAD, False, UNIT,
    )  # fmt: skip
    if not SPREAD:
        for r in tl.static_range(ROWS):
            tl.store(to + r * below, found[r], (number < lanes) & (r >= owned))
    else:
        # A tap that is not finite spoils what it only met outside the gradient.
        spoilt = found[0] != found[0]
        for r in tl.static_range(ROWS):
            good = found[r] == found[r]
            spoilt = spoilt | (found[r] != found[r])
            tl.store(to + r * below, found[r], (number < lanes) & (r >= owned) & good)
        if tl.max(spoilt.to(tl.int32), 0) > 0:
            again = _window(
                at, tap, sums, n_z, n_y, n_x, z, y, x, i_z, i_y, i_x, gap_y,
                s_sum.to(tl.int64), s_z, s_y, s_x, t_sum.to(tl.int64), t_z, t_y, t_x,
                ROWS, TALL, REST, LANES, WIDE, SPREAD, True, UNIT,
            )  # fmt: skip
            for r in tl.static_range(ROWS):
                bad = found[r] != found[r]
                tl.store(to + r * below, again[r], (number < lanes) & (r >= owned) & bad)


def three(values: Sequence[int], fill: int) -> Ints:
    """Sizes or strides of one to three axes as those of three."""
    return (fill,) * (3 - len(values)) + tuple(values)


def wide_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which sums are taken."""
    return tl.float64 if dtype == torch.float64 else tl.float32


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


def supported(*tensors: Tensor) -> bool:
    """Whether the kernels of this file take the tensors; the reference computes the others."""
    return all(x.dtype in _TYPES and x.numel() > 0 for x in tensors)


def _launch(
    source: Tensor,
    taps: Tensor,
    out: Tensor,
    inputs: int,
    input_size: Ints,
    window: Ints,
    stride: Ints,
    spread: bool,
) -> bool:
    """source (lead, sum, size), taps (pair, middle, sum, window), out (lead, middle, size).

    False, and nothing written, if there are more outputs than a launch can number.
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
    _correlate_kernel[(programs,)](
        source, taps, out,
        blocks, out.shape[1], inputs, taps.shape[2], *window, *input_size, *output, *stride,
        *source.stride()[:2], *three(source.stride()[2:], 0),
        *taps.stride()[:3], *three(taps.stride()[3:], 0),
        ROWS=rows,
        TALL=TALL if unrolled else 1,
        REST=window[1] % TALL if stride[1] == 1 else -1,
        LANES=lanes,
        WIDE=wide_type(out.dtype),
        SPREAD=spread,
        UNIT=not spread and source.stride()[-1] == 1,
        num_warps=4,
    )  # fmt: skip
    return True


def correlate(input: Tensor, template: Tensor, stride: Sequence[int]) -> Tensor:
    """sum_v I(u s + v) T(v), summed over channels."""
    ndim = len(stride)
    leads = Leads.of(tuple(input.shape[: -ndim - 1]), tuple(template.shape[: -ndim - 1]))
    if not supported(input, template):
        return definition.correlate(input, template, stride, "direct")
    source, taps = leads.input(input, ndim + 1), leads.template(template, ndim + 1)
    window, size = tuple(template.shape[-ndim:]), tuple(input.shape[-ndim:])
    out = input.new_empty(
        (leads.paired * leads.inputs, leads.templates, *output_size(size, window, stride))
    )
    given = (leads.inputs, three(size, 1), three(window, 1), three(stride, 1))
    if not _launch(source, taps, out, *given, False):
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
    taps = leads.template(template, ndim + 1).transpose(1, 2)
    window, size = tuple(template.shape[-ndim:]), tuple(grad.shape[-ndim:])
    out = grad.new_empty((source.shape[0], *shape[-ndim - 1 :]))
    given = (leads.inputs, three(size, 1), three(window, 1), three(stride, 1))
    if not _launch(source, taps, out, *given, True):
        return definition.correlate_input_grad(grad, template, shape, stride, "direct")
    return leads.input_restored(out, shape, ndim + 1)
