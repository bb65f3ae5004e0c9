"""Normalised scores through transforms on CUDA.

Tiles are centred and transformed in the input's precision; one kernel then marches over the image,
sums the moments of each window and divides, so that no map of moments is stored. The same kernel
finds the numerators whose rounding may exceed what is promised, and recomputes them (`normalise`).
"""

# Kernels are written in Triton's language, whose types mypy does not know.
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
from ..values import bits, three
from ..windows.launch import NUMBERS, SCORE_BLOCK, Launch, window_launch
from ..windows.march import window_march
from ..windows.records import SCORE, Grid, Result, Source
from ..windows.sliding import axes_of
from .cut import gather
from .noise import noise_of
from .records import Chunk, ScoreTarget, Tiles
from .transforms import Piece, Spectra, arranged, numerators_of, pieces

PLACES = [
    "first", "templates", "all_templates", "inputs", "eps_bits", "out_item", "out_template",
    "out_plane", "out_row", "m_z", "m_y", "m_x", "g_z", "g_y", "g_x", "l_z", "l_y", "l_x",
]  # fmt: skip


@triton.jit(do_not_specialize=[*PLACES, *NUMBERS])
def score_kernel(
    source, out, numerators, stats, noise, coefficients,
    first, templates, all_templates, inputs, eps_bits, out_item, out_template, out_plane, out_row,
    m_z, m_y, m_x, g_z, g_y, g_x, l_z, l_y, l_x,
    channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, RESULT: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Scores of windows with the templates at hand."""
    pitch_c = pitch_c.to(pitch_l.dtype)
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    # Of lines, rows are leads.
    lead_pitch = pitch_y if FORM.ndim == 1 else pitch_l
    row_pitch = 0 if FORM.ndim == 1 else pitch_y
    to = ScoreTarget(
        out, numerators, stats, noise, coefficients, source,
        (pitch_c, pitch_z, row_pitch, lead_pitch), (out_item, out_template, out_plane, out_row),
        Chunk(first, templates, all_templates, inputs), channels, axes.window, eps,
        Tiles((m_z, m_y, m_x), (g_z, g_y, g_x), (l_z, l_y, l_x)),
    )  # fmt: skip
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    window_march(Source(source, source, channels, pitch_c, 0.0, 0, axes), grid, to, RESULT, FORM)


def march_launch(part: Tensor, tiling: Tiling) -> Launch:
    """The launch that marches over the windows of part of an input."""
    (leads, channels), ndim = part.shape[:2], len(tiling.length)
    launch = window_launch(
        leads, channels, part.shape[2:], tiling.window, tiling.stride, direct=False,
        block=SCORE_BLOCK,
    )  # fmt: skip
    numbers = list(launch.numbers)
    # The input is part of a larger one.
    item, channel = part.stride()[:2]
    plane, row, _ = three(part.stride()[2:], 0)
    numbers[NUMBERS.index("pitch_c")] = channel
    numbers[NUMBERS.index("pitch_z")] = plane
    numbers[NUMBERS.index("pitch_y")] = item if ndim == 1 else row
    # A single item may have any pitch; kernels take its type for all offsets in an item.
    numbers[NUMBERS.index("pitch_l")] = max(item, channels * channel)
    return replace(launch, numbers=tuple(numbers))


def places(
    piece: Piece, out: Tensor, templates: int, chunk: tuple[int, int], eps: float
) -> tuple[int, ...]:
    """PLACES of a piece and its part `out` of a map; chunk: a first template and how many."""
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
    coefficients = leads.template(widen(template), ndim + 1).contiguous()
    scores = input.new_empty((leads.paired * leads.inputs, leads.templates, *tiling.positions))
    spectra = Spectra(coefficients, call.problem, call.plan, tiling, working)
    level = rounding.transform_noise(working, working)
    result = Result.of(SCORE, zero_mean=zero_mean)
    for piece in pieces(call.problem, call.plan, tiling):
        part, out = piece.of_input(items), piece.of_map(scores)
        tiles, stats = gather(part, piece.tiling, working, centred=zero_mean, extra=spectra.extra)
        launch = march_launch(part, piece.tiling)
        for first, numerators, moments in numerators_of(tiles, spectra, piece, call.plan.templates):
            noise = noise_of(numerators, stats, moments, level)
            chunk = (first, numerators.shape[1])
            score_kernel[(launch.programs,)](
                part, out, numerators, stats.rows, noise, coefficients[piece.pairs],
                *places(piece, out, leads.templates, chunk, eps), *launch.numbers,
                RESULT=result, **launch.options,
            )  # fmt: skip
    return leads.restored(scores, ndim)
