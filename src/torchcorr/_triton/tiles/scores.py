"""Normalised scores through transforms on CUDA.

Tiles are centred and transformed in the input's precision; one kernel then marches over the image,
sums the moments of each window and divides, so that no map of moments is in memory. What the noise
of a tile's sums may have spoilt is found by that kernel and computed again there (`finish`).
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition import scores as definition
from ..._plan import rounding
from ..._plan.dtypes import widen
from ..._plan.tiling import Tiling
from ..direct.correlate import three
from ..direct.scores import bits
from ..windows.launch import NUMBERS, SCORE_BLOCK, Plan, plan
from ..windows.march import PLAIN_SCORE, SCORE, sweep
from .cut import gather, noise_of
from .transforms import Piece, Spectra, arranged, pieces, sums

PLACES = [
    "first", "templates", "all_templates", "inputs", "eps_bits", "out_item", "out_template",
    "out_plane", "out_row", "m_z", "m_y", "m_x", "g_z", "g_y", "g_x", "l_z", "l_y", "l_x",
]  # fmt: skip


@triton.jit(do_not_specialize=[*PLACES, *NUMBERS])
def score_kernel(
    source, out, found, stats, noise, taps,
    first, templates, all_templates, inputs, eps_bits, out_item, out_template, out_plane, out_row,
    m_z, m_y, m_x, g_z, g_y, g_x, l_z, l_y, l_x,
    channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, ZERO_MEAN: tl.constexpr, NDIM: tl.constexpr,
    SPREAD: tl.constexpr, STRIDED: tl.constexpr, DIRECT: tl.constexpr, ONE: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Scores of windows with the templates whose sums are at hand."""
    pitch_c = pitch_c.to(pitch_l.dtype)
    if NDIM < 3:
        depth, wz, sz, nz = 1, 1, 1, 1
    if NDIM < 2:
        wy, sy = 1, 1
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes, positions = (size, pitch, (wz, wy, wx), (sz, sy, sx)), (nz, ny, nx)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    lead_pitch = pitch_y if NDIM == 1 else pitch_l
    row_pitch = 0 if NDIM == 1 else pitch_y
    elements = channels * wz * wy * wx
    to = (
        out, found, stats, noise, taps, source, (pitch_c, pitch_z, row_pitch), lead_pitch,
        (out_item, out_template, out_plane, out_row),
        (first, templates, all_templates, inputs, channels, (wz, wy, wx), elements, eps),
        ((m_z, m_y, m_x), (g_z, g_y, g_x), (l_z, l_y, l_x)),
    )  # fmt: skip
    sweep(
        source, axes, positions, channels, pitch_c, to, (blocks_z, blocks_y, blocks_x), steps,
        SCORE if ZERO_MEAN else PLAIN_SCORE, NDIM, SPREAD, STRIDED, R, B, J,
    )  # fmt: skip


def _finish(
    piece: Piece,
    seen: Tensor,
    found: Tensor,
    stats: Tensor,
    noise: Tensor,
    taps: Tensor,
    first: int,
    zero_mean: bool,
    eps: float,
    out: Tensor,
) -> None:
    """Writes the scores of a piece with templates from `first` on."""
    cut = march(seen, piece.tiling)
    score_kernel[(cut.grid,)](
        seen, out, found, stats, noise, taps[piece.pairs],
        *places(piece, out, taps.shape[1], (first, found.shape[1]), eps), *cut.numbers,
        ZERO_MEAN=zero_mean, **cut.options,
    )  # fmt: skip


def march(seen: Tensor, tiling: Tiling) -> Plan:
    """The launch that marches over the windows of part of an input."""
    (leads, channels), ndim = seen.shape[:2], len(tiling.length)
    size, window = seen.shape[2:], tiling.window
    cut = plan(leads, channels, size, window, tiling.stride, exact=False, block=SCORE_BLOCK)
    numbers = list(cut.numbers)
    # The input is part of a larger one.
    item, channel = seen.stride()[:2]
    plane, row, _ = three(seen.stride()[2:], 0)
    numbers[NUMBERS.index("pitch_c")] = channel
    numbers[NUMBERS.index("pitch_z")] = plane
    numbers[NUMBERS.index("pitch_y")] = item if ndim == 1 else row
    # A single item may have any pitch; kernels take this one's type for what lies in an item.
    numbers[NUMBERS.index("pitch_l")] = max(item, channels * channel)
    return replace(cut, numbers=tuple(numbers))


def places(
    piece: Piece, out: Tensor, templates: int, chunk: tuple[int, int], eps: float
) -> tuple[int, ...]:
    """PLACES of a piece, of its part `out` of a map, and of a first template and how many."""
    tiling = piece.tiling
    return (
        *chunk, templates, out.shape[0] // piece.groups, bits(eps), *out.stride()[:2],
        *three(out.stride()[2:], 0)[:2], *three(tiling.outputs, 1), *three(tiling.grid, 1),
        *three(tiling.length, 1),
    )  # fmt: skip


def ncc(
    input: Tensor, template: Tensor, stride: Sequence[int], zero_mean: bool, eps: float
) -> Tensor:
    """Score of a standardised template at each window."""
    ndim = len(stride)
    if input.numel() == 0 or template.numel() == 0:
        return definition.ncc(input, template, stride, zero_mean, eps, "direct")
    call = arranged(input.shape, template.shape, stride, "fft", input, normalised=True)
    leads, tiling = call.problem.leads, call.tiling
    working = torch.float64 if input.dtype == torch.float64 else torch.float32
    items = leads.input(input, ndim + 1).contiguous()
    taps = leads.template(widen(template), ndim + 1).contiguous()
    out = input.new_empty((leads.paired * leads.inputs, leads.templates, *tiling.positions))
    spectra = Spectra(taps, call.problem, call.plan, tiling, working)
    level = rounding.transform_noise(working, working)
    for piece in pieces(call.problem, call.plan, tiling):
        seen = piece.of_input(items)
        tiles, stats = gather(seen, piece.tiling, working, centred=zero_mean, behind=spectra.behind)
        for first, found, moments in sums(tiles, spectra, piece, call.plan.templates):
            noise = noise_of(found, stats, moments, level)
            place = (seen, found, stats, noise, taps, first)
            _finish(piece, *place, zero_mean, eps, piece.of_map(out))
    return leads.restored(out, ndim)
