"""The gradient of a direct correlation in its template, for small templates on CUDA.

A program computes a tile of template elements, up to eight below each other in two columns, and
loops over its share of the positions. A lane has ROWS positions of the gradient, one above the
other: eight elements of the gradient and 2 x 15 of the input serve 128 multiply-adds. Products are
summed in blocks of eight rows and eight steps into a compensated sum for each lane, lanes are
summed pair by pair, and the shares, whose number depends on the shapes alone, by one more
reduction: no atomic addition, the same bits in every run.
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
from ..._plan.shapes import Ints
from ..values import MOST_LANES, supported, three, wide_type
from .correlate import TALL, Strided, compensated, plus, zeros

_STEPS = tl.constexpr(8)
_PROGRAMS = 1024
_LANES = 128


class Tile(NamedTuple):
    """What distinguishes the variants of the kernel."""

    rows: Any  # positions of a lane, one above the other
    lanes: Any
    tall: Any  # template elements below each other
    wide: Any  # and side by side

    @classmethod
    def of(cls, **fields: int) -> Tile:
        return cls(**{name: tl.constexpr(value) for name, value in fields.items()})


class Share(NamedTuple):
    """The positions that a program sums over."""

    begin: Any  # first block, and the one after the last
    end: Any
    lanes: Any  # lanes of all blocks
    output: Any  # positions (z, y, x)
    stride: Any
    height: Any  # rows of the input below the tile's first element


@triton.jit
def _chain(upstream, source, y, share, inside, FORM: tl.constexpr, LEFT_OUT: tl.constexpr):
    """For each of a column of template elements, its products with a lane's positions.

    source is a pointer with the pitch from one position to the next below. LEFT_OUT: positions
    that do not exist are left out instead of multiplied by 0.
    """
    wide: tl.constexpr = upstream[0].dtype
    ROWS: tl.constexpr = FORM.rows
    TALL: tl.constexpr = FORM.tall
    gap = share.stride[1]
    chain = zeros(TALL, FORM.lanes, wide)
    for i in tl.static_range(ROWS + TALL - 1):
        exists = inside & ((y + i) * gap < share.height)
        x = tl.load(source.at + i * source.pitch, exists, 0.0).to(wide)
        longer = ()
        for j in tl.static_range(TALL):
            if i < j or i - j >= ROWS:
                longer = longer + (chain[j],)
            elif LEFT_OUT:
                before = 0.0 if i == j else chain[j]
                met = inside & (i - j < share.output[1] - y)
                longer = longer + (before + tl.where(met, x * upstream[i - j], 0.0),)
            elif i == j:
                longer = longer + (x * upstream[0],)
            else:
                longer = longer + (tl.fma(x, upstream[i - j], chain[j]),)
        chain = longer
    return chain


@triton.jit
def _share_sums(grad, input, share, WIDE: tl.constexpr, FORM: tl.constexpr, LEFT_OUT: tl.constexpr):
    """Sums of a tile's elements over a share of the positions; pitches (lead, z, y, x)."""
    COUNT: tl.constexpr = FORM.wide * FORM.tall
    ROWS: tl.constexpr = FORM.rows
    LANES: tl.constexpr = FORM.lanes
    g_lead, g_z, g_y, g_x = grad.pitch
    i_lead, i_z, i_y, i_x = input.pitch
    o_z, o_y, o_x = share.output
    d_z, d_y, d_x = share.stride
    total, lost = zeros(COUNT, LANES, WIDE), zeros(COUNT, LANES, WIDE)
    groups = (o_y + ROWS - 1) // ROWS
    for first in range(share.begin, share.end, _STEPS):
        part = zeros(COUNT, LANES, WIDE)
        for block in range(first, min(first + _STEPS, share.end)):
            number = block * LANES + tl.arange(0, LANES)
            inside = number < share.lanes
            number = tl.minimum(number, share.lanes - 1)
            x, plane = number % o_x, number // o_x
            y, plane = plane % groups * ROWS, plane // groups
            z, item = plane % o_z, (plane // o_z).to(tl.int64)
            at = grad.at + item * g_lead + z * g_z + y * g_y + x * g_x
            seen = input.at + item * i_lead + z * d_z * i_z + y * d_y * i_y + x * d_x * i_x
            upstream = ()
            for r in tl.static_range(ROWS):
                one = tl.load(at + r * g_y, inside & (y + r < o_y), 0.0).to(WIDE)
                upstream = upstream + (one,)
            products = ()
            for k in tl.static_range(FORM.wide):
                source = Strided(seen + k * i_x, d_y * i_y)
                products = products + _chain(upstream, source, y, share, inside, FORM, LEFT_OUT)
            part = plus(part, products, COUNT)
        total, lost = compensated(total, lost, part, COUNT)
    sums = ()
    for k in tl.static_range(COUNT):
        sums = sums + (tl.sum(total[k] - lost[k], 0),)
    return sums


# Sizes are not specialised: a new shape needs no new compilation.
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
    i_lead, i_channel, i_z, i_y, i_x, WIDE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """A tile of the template over one share of the positions: out (share, pair * template,
    channel, w).

    grad is (pair * input, template, o), input is (pair * input, channel, i). Neighbouring
    programs compute different tiles over one share, so that they read the same elements. The last
    tiles begin earlier where they do not divide the window, and write only the elements that no
    other tile writes.
    """
    TALL: tl.constexpr = FORM.tall
    COLUMNS: tl.constexpr = FORM.wide
    pid = tl.program_id(0)
    wide, tall = (w_x + COLUMNS - 1) // COLUMNS, (w_y + TALL - 1) // TALL
    first_x, pid = pid % wide * COLUMNS, pid // wide
    first_y, pid = pid % tall * TALL, pid // tall
    v_z, pid = pid % w_z, pid // w_z
    channel, pid = pid % channels, pid // channels
    pairs = tl.num_programs(0) // (wide * tall * w_z * channels)
    shares = (blocks + steps - 1) // steps
    number, template = pid % shares, pid // shares
    v_y, v_x = min(first_y, w_y - TALL), min(first_x, w_x - COLUMNS)

    g_lead, g_z, g_y, g_x = (
        g_lead.to(tl.int64), g_z.to(tl.int64), g_y.to(tl.int64), g_x.to(tl.int64)
    )  # fmt: skip
    i_lead, i_z, i_y, i_x = (
        i_lead.to(tl.int64), i_z.to(tl.int64), i_y.to(tl.int64), i_x.to(tl.int64)
    )  # fmt: skip
    lead = template // templates * inputs
    grad += lead * g_lead + template % templates * g_template.to(tl.int64)
    input += lead * i_lead + channel * i_channel.to(tl.int64) + v_z * i_z + v_y * i_y + v_x * i_x
    upstream = Strided(grad, (g_lead, g_z, g_y, g_x))
    source = Strided(input, (i_lead, i_z, i_y, i_x))
    share = Share(
        number * steps, min(number * steps + steps, blocks), lanes, (o_z, o_y, o_x),
        (d_z, d_y, d_x), n_y - v_y,
    )  # fmt: skip
    sums = _share_sums(upstream, source, share, WIDE, FORM, False)
    row = ((number * (pairs // shares) + template).to(tl.int64) * channels + channel) * w_z + v_z
    non_finite = sums[0] != sums[0]
    for i in tl.static_range(COLUMNS):
        for j in tl.static_range(TALL):
            dx, dy, value = v_x + i, v_y + j, sums[i * TALL + j]
            non_finite = non_finite | (value != value)
            written = (dx >= first_x) & (dy >= first_y) & (value == value)
            tl.store(out + (row * w_y + dy) * w_x + dx, value, written)
    # An element that is not finite may have met the zeros that fill up the rows of a lane.
    if non_finite:
        exact = _share_sums(upstream, source, share, WIDE, FORM, True)
        for i in tl.static_range(COLUMNS):
            for j in tl.static_range(TALL):
                dx, dy, value = v_x + i, v_y + j, sums[i * TALL + j]
                written = (dx >= first_x) & (dy >= first_y) & (value != value)
                tl.store(out + (row * w_y + dy) * w_x + dx, exact[i * TALL + j], written)


def _launch(
    grad: Tensor, input: Tensor, leads: Leads, window: Ints, stride: Ints, result: torch.dtype
) -> Tensor | None:
    """grad (lead, template, o), input (lead, channel, i): the gradient (pair * template, ...)."""
    channels, size, output = input.shape[1], three(input.shape[2:], 1), three(grad.shape[2:], 1)
    tall = -(-window[1] // -(-window[1] // TALL)) if stride[1] == 1 else 1
    columns, rows = min(2 if tall > 1 else 8, window[2]), 8 if output[1] >= 4 else 1
    tiles = channels * window[0] * -(-window[1] // tall) * -(-window[2] // columns)
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
        WIDE=wide_type(result), FORM=Tile.of(rows=rows, lanes=_LANES, tall=tall, wide=columns),
        num_warps=4,
    )  # fmt: skip
    return out[0] if shares == 1 else out.sum(0).to(result)


def correlate_template_grad(
    grad: Tensor, input: Tensor, template_shape: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The transpose of `correlate` in its template: the input correlated with the gradient."""
    ndim, shape = len(stride), tuple(template_shape)
    if not supported(grad, input) or math.prod(shape) == 0:
        return definition.correlate_template_grad(grad, input, shape, stride, "direct")
    leads = Leads.of(tuple(input.shape[: -ndim - 1]), shape[: -ndim - 1])
    upstream, items = leads.output(grad, ndim), leads.input(input, ndim + 1)
    out = _launch(upstream, items, leads, three(shape[-ndim:], 1), three(stride, 1), grad.dtype)
    if out is None:
        return definition.correlate_template_grad(grad, input, shape, stride, "direct")
    result = out.reshape(leads.paired, leads.templates, *shape[-ndim - 1 :])
    return leads.template_restored(result, shape, ndim + 1)
