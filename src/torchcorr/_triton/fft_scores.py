"""Normalised scores through transforms on CUDA, and their gradients.

Tiles are centred and transformed in the input's precision; one kernel then marches over the image,
sums the moments of each window and divides, so that no map of moments is in memory. What the noise
of a tile's sums may have spoilt is found by that kernel and computed again there (`finish`).
"""

# Kernels are written in Triton's language, which has types of its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _reference
from .._score_ops import ncc_grads
from .._scores import noise_beside
from ._plan import NUMBERS, SCORE_BLOCK, plan
from .direct import three
from .direct_scores import bits
from .sweep import PLAIN_SCORE, SCORE, sweep
from .tiles import gather, noise_of
from .transforms import Piece, Spectra, arranged, pieces, sums

_SCORE_NUMBERS = [
    "first", "templates", "all_templates", "inputs", "eps_bits", "out_item", "out_template",
    "out_plane", "out_row", "m_z", "m_y", "m_x", "g_z", "g_y", "g_x", "l_z", "l_y", "l_x",
]  # fmt: skip


@triton.jit(do_not_specialize=[*_SCORE_NUMBERS, *NUMBERS])
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
    tiling, leads = piece.tiling, out.shape[0]
    ndim = len(tiling.length)
    window, size = tiling.window, seen.shape[2:]
    cut = plan(leads, seen.shape[1], size, window, tiling.stride, exact=False, block=SCORE_BLOCK)
    numbers = list(cut.numbers)
    # The input is part of a larger one.
    item, channel = seen.stride()[:2]
    plane, row, _ = three(seen.stride()[2:], 0)
    numbers[NUMBERS.index("pitch_c")] = channel
    numbers[NUMBERS.index("pitch_z")] = plane
    numbers[NUMBERS.index("pitch_y")] = item if ndim == 1 else row
    numbers[NUMBERS.index("pitch_l")] = item
    score_kernel[(cut.grid,)](
        seen, out, found, stats, noise, taps[piece.pairs],
        first, found.shape[1], taps.shape[1], leads // piece.groups, bits(eps), *out.stride()[:2],
        *three(out.stride()[2:], 0)[:2], *three(tiling.outputs, 1), *three(tiling.grid, 1),
        *three(tiling.length, 1), *numbers, ZERO_MEAN=zero_mean,
        **cut.options,
    )  # fmt: skip


def ncc_fft(
    input: Tensor, template: Tensor, stride: Sequence[int], zero_mean: bool, eps: float
) -> Tensor:
    """Score of a standardised template at each window."""
    ndim = len(stride)
    if input.numel() == 0 or template.numel() == 0:
        return _reference.ncc(input, template, stride, zero_mean, eps)
    call = arranged(input, template, stride, True)
    leads, tiling = call.problem.leads, call.tiling
    working = torch.float64 if input.dtype == torch.float64 else torch.float32
    items = leads.input(input, ndim + 1).contiguous()
    taps = leads.template(_reference.widen(template), ndim + 1).contiguous()
    out = input.new_empty((leads.paired * leads.inputs, leads.templates, *tiling.positions))
    spectra, squares = Spectra(taps, tiling, stride, True), taps.square().flatten(2).sum(2)
    level = noise_beside(working, working)
    for piece in pieces(call.problem, call.plan, tiling):
        seen = piece.of_input(items)
        tiles, stats = gather(seen, piece.tiling, working, centred=zero_mean)
        through = sums(tiles, spectra, piece.pairs, call.plan.templates, tiling.length)
        for first, found in through:
            noise = noise_of(found, stats, squares[piece.pairs, first:], level)
            place = (seen, found, stats, noise, taps, first)
            _finish(piece, *place, zero_mean, eps, piece.of_map(out))
    return leads.restored(out, ndim)


def ncc_fft_grads(
    grad: Tensor,
    input: Tensor,
    template: Tensor,
    score: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    need_input: bool,
    need_template: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients in float64, which float32 scores and upstream gradients need (math.md)."""
    args = (grad, input, template, score, stride, zero_mean, eps, need_input, need_template)
    if grad.numel() == 0 or input.numel() == 0 or template.numel() == 0:
        return _reference.ncc_grads(*args)
    for_input, for_template = ncc_grads("fft", *args)
    return (
        input.new_empty(0) if for_input is None else for_input,
        template.new_empty(0) if for_template is None else for_template,
    )
