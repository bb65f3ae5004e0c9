"""Both gradients of a normalised score through transforms on CUDA, tile by tile in float64.

The input is cut and transformed once, the upstream gradient once for each template: in float64,
which the terms that nearly cancel need (math.md). A march over the image, as that of a score, sums
the moments of each window, computes its score from the tile's numerators, and writes the share of
the upstream gradient that belongs to the numerators into the tile that is transformed next, and
that of the moments into two maps. Nothing else is stored for a window. Each element of the input's
gradient then adds up the tiles that contain it, in their order, so that no transform needs a halo
and two runs agree; the template's products are summed over tiles as spectra and transformed back
once. About 280 bytes an element for both gradients of a float32 image and one template, if a
transform reads and writes once.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._definition import scores as definition
from ..._plan import rounding
from ..._plan.choose import Arrangement
from ..._plan.dtypes import widen
from ..._plan.tiling import TileStats
from ..values import three
from ..windows.launch import NUMBERS
from ..windows.march import window_march
from ..windows.records import NOWHERE, NUMERATORS, SCORE_MAP, UPSTREAM, Grid, Result, Source
from ..windows.sliding import axes_of
from ..windows.windows import window_combine_onto
from .cut import gather
from .noise import noise_of
from .products import add_products
from .records import SCALE, STATS, Chunk, ScoreTarget, Tiles, UpstreamTarget
from .scores import PLACES, march_launch, places
from .transforms import Piece, Spectra, arranged, forward_fft, inverse_fft, pieces

_BLOCK = 256
_OVERLAP = [
    "count", "blocks", "written", "channels", "item", "channel", "n_z", "n_y", "n_x",
    "o_z", "o_y", "o_x",
    "g_z", "g_y", "g_x", "m_z", "m_y", "m_x", "e_z", "e_y", "e_x", "l_z", "l_y", "l_x",
]  # fmt: skip


@triton.jit(do_not_specialize=["map_pitch", *PLACES, *NUMBERS])
def upstream_kernel(
    source, out, numerators, stats, noise, coefficients, grad, score_map, grad_s1, grad_s2,
    non_finite, map_pitch,
    first, templates, all_templates, inputs, eps_bits, out_item, out_template, out_plane, out_row,
    m_z, m_y, m_x, g_z, g_y, g_x, l_z, l_y, l_x,
    channels, pitch_c, depth, height, width, pitch_z, pitch_y, pitch_l,
    wz, wy, wx, sz, sy, sx, nz, ny, nx, out_channels, out_pitch_c, out_z, out_y, out_l,
    blocks_z, blocks_y, blocks_x, steps, RESULT: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Gradients of numerators, S1 and S2 from those of scores, for the templates at hand."""
    pitch_c = pitch_c.to(pitch_l.dtype)
    size, pitch = (depth, height, width), (pitch_z, pitch_y, pitch_l)
    axes = axes_of(size, pitch, (wz, wy, wx), (sz, sy, sx), FORM)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    # Of lines, rows are leads.
    lead_pitch = pitch_y if FORM.ndim == 1 else pitch_l
    row_pitch = 0 if FORM.ndim == 1 else pitch_y
    scores = ScoreTarget(
        out, numerators, stats, noise, coefficients, source,
        (pitch_c, pitch_z, row_pitch, lead_pitch), (out_item, out_template, out_plane, out_row),
        Chunk(first, templates, all_templates, inputs), channels, axes.window, eps,
        Tiles((m_z, m_y, m_x), (g_z, g_y, g_x), (l_z, l_y, l_x)),
    )  # fmt: skip
    to = UpstreamTarget(scores, grad, score_map, grad_s1, grad_s2, non_finite, map_pitch)
    grid = Grid((nz, ny, nx), (blocks_z, blocks_y, blocks_x), steps)
    window_march(Source(source, source, channels, pitch_c, 0.0, 0, axes), grid, to, RESULT, FORM)


@triton.jit(do_not_specialize=_OVERLAP)
def overlap_kernel(
    tiles, stats, out, count, blocks, written, channels, item, channel, n_z, n_y, n_x,
    o_z, o_y, o_x, g_z, g_y, g_x, m_z, m_y, m_x, e_z, e_y, e_x, l_z, l_y, l_x, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of elements: the sum of the tiles that contain them, in order, added to earlier ones.

    Elements are numbered in the type of their count.
    """
    pid = tl.program_id(0)
    block, c = pid % blocks, pid // blocks % channels
    lead = (pid // blocks // channels).to(tl.int64)
    number = block.to(count.dtype) * BLOCK + tl.arange(0, BLOCK)
    valid = number < count
    z = number // (n_y.to(count.dtype) * n_x) - o_z
    y, x = number // n_x % n_y - o_y, number % n_x - o_x
    inside = valid & (z >= 0) & (y >= 0) & (x >= 0)
    to = out + lead * item + c.to(tl.int64) * channel + number
    total = tl.load(to, mask=valid & (number < written), other=0.0)
    for i in range((e_z + m_z - 1) // m_z):
        t_z = z // m_z - i
        u_z = z - t_z * m_z
        in_z = inside & (t_z >= 0) & (t_z < g_z) & (u_z < e_z)
        for j in range((e_y + m_y - 1) // m_y):
            t_y = y // m_y - j
            u_y = y - t_y * m_y
            in_y = in_z & (t_y >= 0) & (t_y < g_y) & (u_y < e_y)
            for k in range((e_x + m_x - 1) // m_x):
                t_x = x // m_x - k
                u_x = x - t_x * m_x
                in_x = in_y & (t_x >= 0) & (t_x < g_x) & (u_x < e_x)
                tile = lead * (g_z * g_y * g_x) + (t_z * g_y + t_y) * g_x + t_x
                at = (tile * channels + c) * l_z * l_y * l_x + (u_z * l_y + u_y) * l_x + u_x
                scale = tl.load(stats + tile * STATS + SCALE, mask=in_x, other=0.0)
                total += tl.load(tiles + at, mask=in_x, other=0.0) * scale
    tl.store(to, total, mask=valid)


@dataclass
class _Gradients:
    """One call in normal form, and the sums that its pieces add to.

    Maps (items, 1, *positions) contain the gradients of S1 and S2, `through` (items, C, *size) the
    input's gradient through the numerators, `total` (paired, T, C, ...) the spectra of the
    templates' gradients, all of them in float64; `non_finite` (items, T) marks where an item makes
    a template's gradient NaN.
    """

    grad: Tensor  # (items, T, *positions)
    input: Tensor  # (items, C, *size)
    score: Tensor | None  # (items, T, *positions), where it is accurate enough
    template: Tensor  # (paired, T, C, *window) in float64
    call: Arrangement
    zero_mean: bool
    eps: float
    wanted: tuple[bool, bool]  # the input's gradient, the template's

    def __post_init__(self) -> None:
        tiling, ndim = self.call.tiling, len(self.call.tiling.length)
        wide = self.template
        self.need_input, self.need_template = self.wanted
        maps = (self.input.shape[0], 1, *tiling.positions) if self.need_input else (0,)
        self.grad_s1, self.grad_s2 = wide.new_empty(maps), wide.new_empty(maps)
        self.through = wide.new_empty(self.input.shape if self.need_input else (0,))
        half = (*tiling.length[:-1], tiling.length[-1] // 2 + 1)
        lead = wide.shape[:3] if self.need_template else (0,)
        self.total = wide.new_zeros((*lead, *half), dtype=torch.complex128)
        self.non_finite = wide.new_zeros((self.input.shape[0], wide.shape[1]), dtype=torch.bool)
        self.spectra = Spectra(wide, self.call.problem, self.call.plan, tiling, torch.float64)
        self.axes = tuple(range(-ndim, 0))
        self.written = 0

    @property
    def from_numerators(self) -> bool:
        """Whether scores are recomputed from the tiles' numerators."""
        return self.need_input and self.score is None

    def run(self) -> None:
        for piece in pieces(self.call.problem, self.call.plan, self.call.tiling):
            self._piece(piece)

    def _piece(self, piece: Piece) -> None:
        part = piece.of_input(self.input)
        tiles, stats = gather(part, piece.tiling, torch.float64, centred=self.zero_mean)
        spectrum = None
        if self.from_numerators or self.need_template:
            spectrum = forward_fft(tiles, piece.groups, len(self.axes))
        del tiles
        templates, at_once = self.template.shape[1], self.call.plan.templates
        for first in range(0, templates, at_once):
            last = min(first + at_once, templates)
            self._templates(piece, stats, spectrum, first, last)
        self.written = self._rows(piece)[1]

    def _templates(
        self, piece: Piece, stats: TileStats, spectrum: Tensor | None, first: int, last: int
    ) -> None:
        """Adds the share of a piece and of templates `first` to `last` to both gradients."""
        length = piece.tiling.length
        scores = None
        if self.need_input:
            of_templates, moments = self.spectra.part(piece.pairs, first, last)
            of_templates = of_templates.unsqueeze(1)
        if spectrum is not None and self.from_numerators:
            overwrite = self.template.shape[1] == 1 and not self.need_template
            numerators = inverse_fft(spectrum.unsqueeze(2), of_templates, length, overwrite)
            level = rounding.transform_noise(torch.float64, torch.float64)
            scores = numerators, noise_of(numerators, stats, moments, level)
            del numerators
        share = self._upstream(piece, stats, scores, (first, last - first))
        del scores
        upstream = forward_fft(share, piece.groups, len(self.axes))
        del share
        if spectrum is not None and self.need_template:
            add_products(self.total[piece.pairs, first:last], spectrum, upstream)
        if self.need_input:
            # Not conjugate, and summed over templates: the transpose of the numerators.
            turned = of_templates.conj_physical().transpose(2, 3)
            tiles = inverse_fft(upstream.unsqueeze(2), turned, length, True)
            self._overlap(piece, tiles, stats, first)

    def _upstream(
        self,
        piece: Piece,
        stats: TileStats,
        scores: tuple[Tensor, Tensor] | None,
        chunk: tuple[int, int],
    ) -> Tensor:
        """Tiles (tiles, templates, *length) of numerators' gradients, 0 between the positions.

        `scores` are numerators and their noise, if scores are computed from them.
        """
        out = stats.rows.new_zeros((stats.rows.shape[0], chunk[1], *piece.tiling.length))
        part, grad = piece.of_input(self.input), piece.of_map(self.grad)
        numerators, noise, score_map, source = out, stats.rows, grad, NOWHERE
        if scores is not None:
            (numerators, noise), source = scores, NUMERATORS
        elif self.need_input and self.score is not None:
            score_map, source = piece.of_map(self.score), SCORE_MAP
        grad_s1, grad_s2 = self.grad_s1, self.grad_s2
        if self.need_input:
            grad_s1, grad_s2 = piece.of_map(grad_s1), piece.of_map(grad_s2)
        launch = march_launch(part, piece.tiling)
        upstream_kernel[(launch.programs,)](
            part, out, numerators, stats.rows, noise, self.template[piece.pairs], grad, score_map,
            grad_s1, grad_s2, self.non_finite[piece.items], grad_s1.stride(0),
            *places(piece, grad, self.template.shape[1], chunk, self.eps), *launch.numbers,
            RESULT=Result.of(UPSTREAM, zero_mean=self.zero_mean, scores=source), **launch.options,
        )  # fmt: skip
        return out

    def _rows(self, piece: Piece) -> tuple[int, int]:
        """Along the first axis: where the elements that a piece writes begin and end."""
        size, whole = self.input.shape[2], self.call.tiling.positions[0]
        before = 0 if piece.first == 0 else self.written
        is_last = piece.first + piece.tiling.positions[0] == whole
        # Strides may leave elements between parts, and after them, that no window contains.
        return min(before, piece.element), size if is_last else piece.element + piece.tiling.size[0]

    def _overlap(self, piece: Piece, tiles: Tensor, stats: TileStats, first: int) -> None:
        """Adds tiles to the gradient of the input; elements not yet written begin at 0."""
        tiling, ndim = piece.tiling, len(self.axes)
        begin, end = self._rows(piece)
        before = 0 if piece.first == 0 else self.written
        out = self.through[piece.items].narrow(2, begin, end - begin)
        size = tuple(out.shape[2:])
        row = math.prod(size[1:])
        written = ((end if first > 0 else before) - begin) * row
        steps = [m * s for m, s in zip(tiling.outputs, tiling.stride, strict=True)]
        count, (items, channels) = size[0] * row, out.shape[:2]
        blocks = -(-count // _BLOCK)
        origin = (piece.element - begin, *(0,) * (ndim - 1))
        overlap_kernel[(blocks * items * channels,)](
            tiles, stats.rows, out, count, blocks, written, channels, *out.stride()[:2],
            *three(size, 1), *three(origin, 0), *three(tiling.grid, 1), *three(steps, 1),
            *three(tiling.extent, 1), *three(tiling.length, 1), BLOCK=_BLOCK,
        )  # fmt: skip

    def for_input(self) -> Tensor:
        """(items, C, *size)."""
        tiling, maps = self.call.tiling, (self.grad_s1.squeeze(1), self.grad_s2.squeeze(1))
        return window_combine_onto(self.through, *maps, self.input, tiling.window, tiling.stride)

    def for_template(self) -> Tensor:
        """(paired, T, C, *window) in float64."""
        tiling = self.call.tiling
        grads = torch.fft.irfftn(self.total, s=tiling.length, dim=self.axes, norm="backward")
        grads = grads[(..., *(slice(0, k) for k in tiling.window))]
        if self.zero_mean:
            # Subtracting the means of windows removes the mean of the gradient (math.md).
            grads = grads - grads.mean((-len(self.axes) - 1, *self.axes), keepdim=True)
        non_finite = self.non_finite.unflatten(0, (grads.shape[0], -1)).any(1)
        return grads.masked_fill(non_finite[(..., *(None,) * (len(self.axes) + 1))], torch.nan)


def ncc_grads(
    grad: Tensor,
    input: Tensor,
    template: Tensor,
    score: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    need_input: bool,
    need_template: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of a score in its input and its standardised template; empty if not needed."""
    if grad.numel() == 0 or input.numel() == 0 or template.numel() == 0:
        rest = (stride, zero_mean, eps, "direct", need_input, need_template)
        return definition.ncc_grads(grad, input, template, score, *rest)
    ndim = len(stride)
    call = arranged(
        input.shape, template.shape, stride, "fft", input, normalised=True, dtype=torch.float64
    )
    leads = call.problem.leads
    coefficients = leads.template(widen(template), ndim + 1)
    if zero_mean:
        mean = coefficients.mean(tuple(range(-ndim - 1, 0)), keepdim=True)
        coefficients = coefficients - mean
    work = _Gradients(
        leads.output(grad, ndim).contiguous(),
        leads.input(input, ndim + 1).contiguous(),
        # A score of a narrower type is rounded too much for terms that nearly cancel.
        leads.output(score, ndim).contiguous() if input.dtype == torch.float64 else None,
        coefficients.contiguous(),
        call,
        zero_mean,
        eps,
        (need_input, need_template),
    )
    work.run()
    for_input, for_template = input.new_empty(0), template.new_empty(0)
    if need_input:
        for_input = leads.input_restored(work.for_input(), tuple(input.shape), ndim + 1)
    if need_template:
        grads = work.for_template().to(template.dtype)
        for_template = leads.template_restored(grads, tuple(template.shape), ndim + 1)
    return for_input, for_template
