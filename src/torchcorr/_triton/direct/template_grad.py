"""The gradient of a direct correlation in its template, for small templates on CUDA.

A program holds a tile of taps, up to eight below each other in two columns, and walks through its
share of the positions. A lane owns ROWS positions of the gradient, one above the other: eight
elements of the gradient and 2 x 15 of the input serve 128 multiply-adds. Products are summed in
blocks of eight rows and eight steps into a compensated sum for each lane, lanes are summed pair
by pair, and the shares, whose number depends on the shapes alone, by one more reduction: no
atomic addition, the same bits in every run.
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
from ..._plan.shapes import Ints
from .correlate import MOST_LANES, TALL, compensated, supported, three, wide_type, zeros

_STEPS = tl.constexpr(8)
_PROGRAMS = 1024
_LANES = 128


@triton.jit
def _chain(
    given, seen, row, y, gap, height, rows, inside,
    ROWS: tl.constexpr, TAPS: tl.constexpr, LANES: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """For each of TAPS taps below each other, its products with ROWS positions a lane."""
    wide: tl.constexpr = given[0].dtype
    chain = zeros(TAPS, LANES, wide)
    for i in tl.static_range(ROWS + TAPS - 1):
        x = tl.load(seen + i * row, inside & ((y + i) * gap < height), 0.0).to(wide)
        longer = ()
        for j in tl.static_range(TAPS):
            if i < j or i - j >= ROWS:
                longer = longer + (chain[j],)
            elif CAREFUL:
                before = 0.0 if i == j else chain[j]
                met = inside & (i - j < rows)
                longer = longer + (before + tl.where(met, x * given[i - j], 0.0),)
            elif i == j:
                longer = longer + (x * given[0],)
            else:
                longer = longer + (tl.fma(x, given[i - j], chain[j]),)
        chain = longer
    return chain


@triton.jit
def _share(
    grad, input, begin, end, lanes, height, o_z, o_y, o_x, d_z, d_y, d_x,
    g_lead, g_z, g_y, g_x, i_lead, i_z, i_y, i_x,
    ROWS: tl.constexpr, TAPS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Sums of COLUMNS x TAPS taps over the blocks of positions from begin to end."""
    total, lost = zeros(COLUMNS * TAPS, LANES, WIDE), zeros(COLUMNS * TAPS, LANES, WIDE)
    groups = (o_y + ROWS - 1) // ROWS
    for first in range(begin, end, _STEPS):
        part = zeros(COLUMNS * TAPS, LANES, WIDE)
        for block in range(first, min(first + _STEPS, end)):
            number = block * LANES + tl.arange(0, LANES)
            inside = number < lanes
            number = tl.minimum(number, lanes - 1)
            x, plane = number % o_x, number // o_x
            y, plane = plane % groups * ROWS, plane // groups
            z, item = plane % o_z, (plane // o_z).to(tl.int64)
            given_at = grad + item * g_lead + z * g_z + y * g_y + x * g_x
            seen = input + item * i_lead + z * d_z * i_z + y * d_y * i_y + x * d_x * i_x
            given = ()
            for r in tl.static_range(ROWS):
                one = tl.load(given_at + r * g_y, inside & (y + r < o_y), 0.0).to(WIDE)
                given = given + (one,)
            found = ()
            for k in tl.static_range(COLUMNS):
                found = found + _chain(
                    given, seen + k * i_x, d_y * i_y, y, d_y, height, o_y - y, inside,
                    ROWS, TAPS, LANES, CAREFUL,
                )  # fmt: skip
            longer = ()
            for k in tl.static_range(COLUMNS * TAPS):
                longer = longer + (part[k] + found[k],)
            part = longer
        total, lost = compensated(total, lost, part, COLUMNS * TAPS)
    sums = ()
    for k in tl.static_range(COLUMNS * TAPS):
        sums = sums + (tl.sum(total[k] - lost[k], 0),)
    return sums


# Sizes are no part of what is compiled: a new shape needs no new kernel.
_SIZES = [
    "templates", "inputs", "channels", "steps", "blocks", "lanes", "w_z", "w_y", "w_x", "n_y",
    "o_z", "o_y", "o_x", "d_z", "d_y", "d_x", "g_lead", "g_template", "g_z", "g_y", "g_x",
    "i_lead", "i_channel", "i_z", "i_y", "i_x",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _template_grad_kernel(
    grad, input, out,
    templates, inputs, channels, steps, blocks, lanes, w_z, w_y, w_x, n_y,
    o_z, o_y, o_x, d_z, d_y, d_x, g_lead, g_template, g_z, g_y, g_x,
    i_lead, i_channel, i_z, i_y, i_x,
    ROWS: tl.constexpr, TAPS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One share of the positions for one tile of taps: out (share, pair * template, channel, w).

    grad is (pair * input, template, o), input is (pair * input, channel, i). Neighbouring
    programs hold different taps of one share, so that they read the same elements. The last
    tiles begin earlier where they do not divide the window, and keep only the taps they own.
    """
    pid = tl.program_id(0)
    wide, tall = (w_x + COLUMNS - 1) // COLUMNS, (w_y + TAPS - 1) // TAPS
    own_x, pid = pid % wide * COLUMNS, pid // wide
    own_y, pid = pid % tall * TAPS, pid // tall
    v_z, pid = pid % w_z, pid // w_z
    channel, pid = pid % channels, pid // channels
    pairs = tl.num_programs(0) // (wide * tall * w_z * channels)
    shares = (blocks + steps - 1) // steps
    share, template = pid % shares, pid // shares
    v_y, v_x = min(own_y, w_y - TAPS), min(own_x, w_x - COLUMNS)

    g_lead, g_z, g_y, g_x = (
        g_lead.to(tl.int64), g_z.to(tl.int64), g_y.to(tl.int64), g_x.to(tl.int64)
    )  # fmt: skip
    i_lead, i_z, i_y, i_x = (
        i_lead.to(tl.int64), i_z.to(tl.int64), i_y.to(tl.int64), i_x.to(tl.int64)
    )  # fmt: skip
    lead = template // templates * inputs
    grad += lead * g_lead + template % templates * g_template.to(tl.int64)
    input += lead * i_lead + channel * i_channel.to(tl.int64) + v_z * i_z + v_y * i_y + v_x * i_x
    begin, end = share * steps, min(share * steps + steps, blocks)
    found = _share(
        grad, input, begin, end, lanes, n_y - v_y, o_z, o_y, o_x, d_z, d_y, d_x,
        g_lead, g_z, g_y, g_x, i_lead, i_z, i_y, i_x, ROWS, TAPS, COLUMNS, LANES, WIDE, False,
    )  # fmt: skip
    row = ((share * (pairs // shares) + template).to(tl.int64) * channels + channel) * w_z + v_z
    spoilt = found[0] != found[0]
    for k in tl.static_range(COLUMNS * TAPS):
        dx, dy = v_x + k // TAPS, v_y + k % TAPS
        bad = found[k] != found[k]
        spoilt = spoilt | bad
        owned = (dx >= own_x) & (dy >= own_y) & (found[k] == found[k])
        tl.store(out + (row * w_y + dy) * w_x + dx, found[k], owned)
    # An element that is not finite may have met the zeros that fill up the rows of a lane.
    if spoilt:
        again = _share(
            grad, input, begin, end, lanes, n_y - v_y, o_z, o_y, o_x, d_z, d_y, d_x,
            g_lead, g_z, g_y, g_x, i_lead, i_z, i_y, i_x, ROWS, TAPS, COLUMNS, LANES, WIDE, True,
        )  # fmt: skip
        for k in tl.static_range(COLUMNS * TAPS):
            dx, dy = v_x + k // TAPS, v_y + k % TAPS
            owned = (dx >= own_x) & (dy >= own_y) & (found[k] != found[k])
            tl.store(out + (row * w_y + dy) * w_x + dx, again[k], owned)


def _launch(
    grad: Tensor, input: Tensor, leads: Leads, window: Ints, stride: Ints, result: torch.dtype
) -> Tensor | None:
    """grad (lead, template, o), input (lead, channel, i): the gradient (pair * template, ...)."""
    channels, size, output = input.shape[1], three(input.shape[2:], 1), three(grad.shape[2:], 1)
    taps = -(-window[1] // -(-window[1] // TALL)) if stride[1] == 1 else 1
    columns, rows = min(2 if taps > 1 else 8, window[2]), 8 if output[1] >= 4 else 1
    tiles = channels * window[0] * -(-window[1] // taps) * -(-window[2] // columns)
    pairs = leads.paired * leads.templates
    lanes = leads.inputs * output[0] * -(-output[1] // rows) * output[2]
    blocks = -(-lanes // _LANES)
    shares = max(1, min(_PROGRAMS // (tiles * pairs), -(-blocks // 4)))
    steps = -(-blocks // shares)
    shares = -(-blocks // steps)
    if lanes > MOST_LANES or tiles * pairs * shares > MOST_LANES:
        return None
    wide = torch.float64 if result == torch.float64 else torch.float32
    shape = (shares, pairs, channels, *window)
    out = grad.new_empty(shape, dtype=result if shares == 1 else wide)
    _template_grad_kernel[(tiles * pairs * shares,)](
        grad, input, out,
        leads.templates, leads.inputs, channels, steps, blocks, lanes, *window, size[1],
        *output, *stride, *grad.stride()[:2], *three(grad.stride()[2:], 0),
        *input.stride()[:2], *three(input.stride()[2:], 0),
        ROWS=rows, TAPS=taps, COLUMNS=columns, LANES=_LANES, WIDE=wide_type(result), num_warps=4,
    )  # fmt: skip
    return out[0] if shares == 1 else out.sum(0).to(result)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its template: the input met by the gradient."""
    ndim, shape = len(stride), tuple(template_shape)
    if not supported(grad, input) or math.prod(shape) == 0:
        return definition.correlate_template_grad(grad, input, shape, stride, "direct")
    leads = Leads.of(tuple(input.shape[: -ndim - 1]), shape[: -ndim - 1])
    given, seen = leads.output(grad, ndim), leads.input(input, ndim + 1)
    out = _launch(given, seen, leads, three(shape[-ndim:], 1), three(stride, 1), grad.dtype)
    if out is None:
        return definition.correlate_template_grad(grad, input, shape, stride, "direct")
    found = out.reshape(leads.paired, leads.templates, *shape[-ndim - 1 :])
    return leads.template_restored(found, shape, ndim + 1)
