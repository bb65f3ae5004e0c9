"""Both gradients of a score through transforms, tile by tile.

One transform of the upstream gradient serves both. They are computed in the input's precision
where an estimate of the rounding, relative to the largest element of the gradient, is below what is
promised; otherwise both are computed in float64. Tensors that are not finite take the
gradient composed of operators, which confines them to their windows where the method does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto

import torch
from torch import Tensor

from .. import _contract
from .._definition import scores as definition
from .._definition.scores import ScoreGradCall
from .._definition.spectra import forward_fft, inverse_fft
from .._plan import rounding
from .._plan.choose import arrange, batches, stepwise
from .._plan.dtypes import HALVES
from .._plan.tiling import Batch, TileBatch, TileMoments, TileStats
from . import steps
from .scores import TiledScores
from .spectra import TemplateSpectra

# Error of the float32 score that a gradient is computed from.
_SCORE_ERROR = rounding.ALLOWED_SCORE_ERROR[torch.float32]


class Outcome(Enum):
    """Whether gradients in one precision can be returned."""

    EXACT = auto()
    TOO_NOISY = auto()
    NOT_FINITE = auto()


class _Gradients(TiledScores):
    """The gradients of one call in one precision."""

    def __init__(self, of: ScoreGradCall, *, wide: bool) -> None:
        input = of.input
        sizes = (input.shape, of.template.shape, of.stride)
        call = arrange(*sizes, "fft", normalised=True, dtype=input.dtype, device="cpu")
        super().__init__(input, of.template, call, of.zero_mean, of.eps)
        self.plan = stepwise(self.problem, self.tiling, "fft")
        self.spectra = TemplateSpectra(self.coefficients, self.tiling)
        leads, ndim = self.problem.leads, len(self.tiling.stride)
        self.grad = leads.output(of.grad, ndim).contiguous()
        self.score = leads.output(of.score, ndim).contiguous()
        self.wide = wide
        self.working = torch.float64 if wide else input.dtype
        # A float32 score is rounded too much for terms that nearly cancel in float64.
        self.rescored = wide and input.dtype != torch.float64
        shape = (*self.coefficients.shape[:3], *self.tiling.length)
        self.spectrum = self.coefficients.new_zeros(shape, dtype=self.working.to_complex())
        self.offset = self.coefficients.new_zeros(self.coefficients.shape[:2])
        self.for_input = None
        if of.need_input:
            self.for_input = steps.new_map(self.input, self.input.shape).zero_()
        self.need_template = of.need_template
        self.noise_input, self.noise_template = 0.0, 0.0

    def both(self) -> Outcome:
        """Computes both gradients."""
        for batch in batches(self.problem, self.plan):
            for one in batch.by_pair():
                outcome = self._tiles_of(one)
                if outcome is not Outcome.EXACT:
                    return outcome
        if not math.isfinite(self.noise_input + self.noise_template):
            return Outcome.NOT_FINITE
        return Outcome.EXACT if self.wide or self._is_quiet() else Outcome.TOO_NOISY

    def _cut(self, tiles: list[int]) -> tuple[Tensor, TileStats]:
        batch = TileBatch(self.tiling, tiles).numbers
        values, rows = steps.cut_tiles(self.input, batch, self.rule.zero_mean, self.wide, True)
        return values, TileStats(rows)

    def _moments(self, tiles: list[int], stats: TileStats) -> TileMoments | None:
        """The moments of tiles; None if one needs float64."""
        batch = TileBatch(self.tiling, tiles).numbers
        if self.wide:
            windows = steps.merged_moments(
                self.input, stats.rows, batch, self.wide_rule().numbers, True, True
            )
            return TileMoments(stats, *windows)
        *windows, doubtful = steps.tile_moments(
            self.input, stats.rows, batch, self.rule.numbers, True
        )
        if bool((doubtful > self.rule.budget).any()):
            return None
        return TileMoments(stats, *windows)

    def _tiles_of(self, batch: Batch) -> Outcome:
        """Adds what the tiles of one pair contribute."""
        tiles, stats = self._cut(batch.tiles)
        if bool((stats.non_finite > 0).any()):
            return Outcome.NOT_FINITE
        moments = self._moments(batch.tiles, stats)
        if moments is None:
            return Outcome.TOO_NOISY
        numbers = TileBatch(self.tiling, batch.tiles).numbers
        steps.recompute_norms(moments.tensors, self.input, numbers, self.rule.numbers)
        ndim = len(self.tiling.stride)
        spectrum = None
        if self.need_template or self.rescored:
            lines = torch.view_as_complex(tiles)
            spectrum = forward_fft(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])
        del tiles
        # What goes to the squares and to the means of windows.
        window_grads = moments.norms.new_zeros((2, *moments.norms.shape))
        through: Tensor | None = None
        for first in range(0, self.coefficients.shape[1], self.plan.templates):
            last = min(first + self.plan.templates, self.coefficients.shape[1])
            weights = self.spectra.part(self.working, batch.pairs, first, last)[0]
            score = self.score
            if self.rescored and spectrum is not None:
                score = self._scores(spectrum, weights, moments)
            upstream, sums = steps.cut_upstream(
                self.grad,
                score,
                self.rescored,
                moments.tensors,
                TileBatch(self.tiling, batch.tiles, first).numbers,
                last - first,
                self.count,
                window_grads,
            )
            # The upstream's conjugate spectrum: with the input's spectrum it gives the
            # template's gradient, with the template's conjugate one that of the input, conjugate.
            lines = torch.view_as_complex(upstream)
            given = inverse_fft(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])
            del upstream, lines
            if spectrum is not None and self.need_template:
                total = self.spectrum[batch.pairs.start, first:last]
                for one, other in zip(spectrum, given, strict=True):
                    torch.addcmul(total, one, other.unsqueeze(1), out=total)
                self.offset[batch.pairs.start, first:last] += sums[..., 1].sum(0)
            self._add_noise(sums, stats)
            if self.for_input is not None:
                through = self._through(given, weights, through)
        if self.for_input is not None and through is not None:
            lead = through.shape[:2]
            lines = forward_fft(through.flatten(0, 1), ndim).unflatten(0, lead)
            products = torch.view_as_real(lines)
            operands = (window_grads, stats.rows, self.input, numbers, self.for_input)
            steps.emit_input_grad(products, *operands)
        return Outcome.EXACT

    def _through(self, given: Tensor, weights: Tensor, total: Tensor | None) -> Tensor:
        """(pairs, C, ...): products of upstream and template spectra, summed over templates."""
        if total is None and given.shape[1] == 1 and weights.shape[1] == 1:
            return given.mul_(weights)
        start = 0
        if total is None:
            total, start = given[:, :1] * weights[0], 1
        for k in range(start, given.shape[1]):
            torch.addcmul(total, given[:, k : k + 1], weights[k], out=total)
        return total

    def _scores(self, spectrum: Tensor, weights: Tensor, moments: TileMoments) -> Tensor:
        """Scores of these tiles in float64."""
        product = (spectrum.unsqueeze(1) * weights).sum(2)
        lines = inverse_fft(product.flatten(0, 1), len(self.tiling.stride))
        lines = lines.unflatten(0, product.shape[:2])
        sums = torch.view_as_real(lines).movedim(-1, 1).flatten(0, 1)
        at = tuple(
            slice(0, (m - 1) * s + 1, s)
            for m, s in zip(self.tiling.outputs, self.tiling.stride, strict=True)
        )
        return (sums[(..., *at)] * moments.norms.unsqueeze(1)).clamp(-1, 1).contiguous()

    def _add_noise(self, sums: Tensor, stats: TileStats) -> None:
        """Adds up how much rounding these tiles contribute (math.md, eq. noise)."""
        unit = rounding.unit(self.working)
        n, count = math.prod(self.tiling.length), self.count
        power = sums[..., 0].sum(1)
        root = power.unflatten(0, (-1, 2)).sum(1).div(n).sqrt().repeat_interleave(2)
        score = torch.maximum(4 * sums[..., 2].amax(1), 5 * root * math.sqrt(count))
        noise = rounding.TRANSFORM * unit * root * count + _SCORE_ERROR * score
        largest = float((stats.scale * noise).amax())
        self.noise_input = largest if largest != largest else max(self.noise_input, largest)
        both = stats.mean_square.unflatten(0, (-1, 2)).sum(1)
        self.noise_template += float((both * power.unflatten(0, (-1, 2)).sum(1)).sum())

    def template_grad(self) -> Tensor:
        """(pairs, templates, C, *window) in float64, before the standardisation."""
        ndim = len(self.tiling.stride)
        window = (..., *(slice(0, k) for k in self.tiling.window))
        lead = self.spectrum.shape[:3]
        lines = inverse_fft(self.spectrum.flatten(0, 2), ndim).unflatten(0, lead)
        gradient = lines.real[window].to(torch.float64) / math.prod(self.tiling.length)
        return gradient - self.offset[(..., *(None,) * (ndim + 1))]

    def _is_quiet(self) -> bool:
        """Whether the rounding is below what is allowed."""
        if self.for_input is not None:
            most = max(abs(float(x)) for x in torch.aminmax(self.for_input))
            if not self.noise_input <= rounding.ALLOWED_GRADIENT_ERROR * most:
                return False
        if self.need_template:
            axes = tuple(range(-len(self.tiling.stride) - 1, 0))
            gradient, weights = self.template_grad(), self.coefficients
            largest = float(gradient.abs().amax())
            # The promise is on the gradient behind the standardisation.
            if self.rule.zero_mean:
                gradient = gradient - gradient.mean(axes, keepdim=True)
            gradient = gradient - weights * (gradient * weights).mean(axes, keepdim=True)
            unit = rounding.unit(self.working)
            noise = rounding.TRANSFORM * unit * (3 * math.sqrt(self.noise_template) + largest)
            if not noise <= rounding.ALLOWED_GRADIENT_ERROR * float(gradient.abs().amax()):
                return False
        return True


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
    """Gradients for the input and the standardised template, whatever the method of the score."""
    if input.dtype in HALVES:
        wide = (grad.float(), input.float(), template, score.float())
        how = (stride, zero_mean, eps, method)
        for_input, for_template = _contract.ncc_grads.kernel(*wide, *how, need_input, need_template)
        return for_input.to(input.dtype), for_template
    args = (grad, input, template, score, stride, zero_mean, eps)
    needs = (need_input, need_template)
    if grad.numel() == 0 or input.numel() == 0 or template.numel() == 0:
        return definition.ncc_grads(*args, "direct", *needs)
    scores = ScoreGradCall(*args, method, *needs)
    call = _Gradients(scores, wide=input.dtype == torch.float64)
    outcome = call.both()
    if outcome is Outcome.TOO_NOISY:
        call = _Gradients(scores, wide=True)
        outcome = call.both()
    if outcome is Outcome.NOT_FINITE:
        return definition.composed_grads(_KERNELS, scores)
    leads, core = call.problem.leads, len(stride) + 1
    for_input, for_template = input.new_empty(0), template.new_empty(0)
    if call.for_input is not None:
        for_input = leads.input_restored(call.for_input, tuple(input.shape), core)
    if need_template:
        gradient = call.template_grad().to(template.dtype)
        for_template = leads.template_restored(gradient, tuple(template.shape), core)
    return for_input, for_template


_KERNELS = definition.ScoreOperators(
    _contract.ncc.kernel,
    _contract.window_moments.kernel,
    _contract.window_combine.kernel,
    _contract.correlate_input_grad.kernel,
    _contract.correlate_template_grad.kernel,
)


def register() -> None:
    _contract.ncc_grads.implement(ncc_grads, "CPU")
