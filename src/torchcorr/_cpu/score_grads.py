"""Both gradients of a score through transforms, tile by tile.

One transform of the upstream gradient serves both. A unit of tiles is computed in the input's
precision where an estimate of its rounding, relative to the largest element of the gradient, is
below what is promised. The others are known once the gradients are: then all is computed again,
these units in float64. Tensors that are not finite take the gradient composed of operators, which
confines them to their windows where the method does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _contract
from .._definition import scores as definition
from .._definition.scores import ScoreGradCall
from .._definition.sums import mean_over
from .._plan import rounding
from .._plan.choose import arrange_gradients
from .._plan.dtypes import HALVES
from .._plan.tiling import Block
from . import dense_grads, steps
from .scores import TiledScores
from .threads import without_late_threads

# Error of the float32 score that a gradient is computed from.
_SCORE_ERROR = rounding.ALLOWED_SCORE_ERROR[torch.float32]


class UnitNoise(NamedTuple):
    """How much rounding each unit of tiles contributes (math.md, eq. noise).

    Rows of csrc/tiles/score_grad_pass.cpp: of the input's gradient, what its transforms and the
    scores that it is computed from contribute; the square of the template's.
    """

    rows: Tensor  # (units, 3)

    def of_input(self, unit: float) -> Tensor:
        return rounding.TRANSFORM * unit * self.rows[:, 0] + _SCORE_ERROR * self.rows[:, 1]

    @property
    def squares(self) -> Tensor:
        return self.rows[:, 2]


class _Gradients(TiledScores):
    """The gradients of one call; with `own_means` each channel of a window has a mean. If `wide`,
    all units are computed in float64."""

    def __init__(self, of: ScoreGradCall, own_means: bool, wide: bool = False) -> None:
        input = of.input
        sizes = (input.shape, of.template.shape, of.stride)
        call = arrange_gradients(*sizes, dtype=input.dtype, device="cpu", wide=wide)
        self.wide = wide
        super().__init__(input, of.template, call, of.zero_mean, of.eps, own_means)
        leads, ndim = self.problem.leads, len(self.tiling.stride)
        grad, score = (leads.output(x, ndim).contiguous() for x in (of.grad, of.score))
        self.operands = [grad, self.input, self.coefficients, score]
        self.for_input = self.input.new_empty(0)
        if of.need_input:
            core = self.input.shape[-ndim - 1 :]
            self.for_input = steps.new_map(self.input, (leads.paired * leads.inputs, *core))
        self.for_template = self.coefficients.new_empty(0)
        if of.need_template:
            self.for_template = torch.empty_like(self.coefficients)
        # Of sums in the input's precision that the template's gradient is made of.
        self.contents = 0.0
        # Scores are given: a window is doubtful only if its norm is unknown.
        self.unknown_rule = self.rule._replace(least_energy=0.0)

    def run(self) -> bool | None:
        """Computes both gradients; whether everything was finite, and None if other tiles must be,
        in float64."""
        none = torch.zeros(0, dtype=torch.int64)
        wide = [torch.arange(self._units(b)) if self.wide else none for b in self.blocks]
        while True:
            noise = self._compute(wide)
            if noise is None:
                return False
            chosen = None if self.wide else self._too_noisy(noise, wide)
            if chosen is None:
                return True
            if self.plan.large:
                return None
            # A second time only once: what is too noisy still is computed in float64 throughout.
            wide = chosen if wide[0] is none else [torch.arange(len(n.rows)) for n in noise]

    def _compute(self, wide: list[Tensor]) -> list[UnitNoise] | None:
        """The noise of each block's units, of which `wide` are computed in float64; None if an
        element is not finite."""
        self.for_input.zero_()
        self.contents = 0.0
        noise = []
        for block, units in zip(self.blocks, wide, strict=True):
            rows = self._block(block, units.tolist())
            if not bool(rows.isfinite().all()):
                return None
            noise.append(UnitNoise(rows))
        return noise

    def _units(self, block: Block) -> int:
        tiles = self.problem.leads.inputs * self.tiling.tiles
        return (block.pairs.stop - block.pairs.start) * -(-tiles // block.tiles_of_unit)

    def _block(self, block: Block, wide: list[int]) -> Tensor:
        """Adds what a block contributes to the input's gradient, writes the template's."""
        part = (block.pairs, block.templates)
        coefficients = self.coefficients[part]
        lead, dtype = coefficients.shape[:3], self.input.dtype
        double = self.wide or dtype == torch.float64
        in_lines = self.plan.large and len(self.tiling.stride) == 1
        spectra = steps.spectra_of_templates(coefficients, self.tiling, double, in_lines)
        shape, kinds = (*lead, *self.tiling.length), (dtype, torch.float64)
        need_template = self.for_template.numel() > 0
        needed = (need_template and not self.wide, need_template and bool(wide))
        sums = [
            coefficients.new_zeros(shape if need else 0, dtype=kind.to_complex())
            for kind, need in zip(kinds, needed, strict=True)
        ]
        means = self.problem.channels if self.rule.own_means else 1
        offsets = coefficients.new_zeros((*lead[:2], means) if need_template else 0)
        rows = steps.score_grad_tiles(
            self.operands,
            spectra,
            self.tiling.batch_numbers,
            block.numbers,
            wide,
            self.unknown_rule.numbers,
            [self.for_input, *sums, offsets],
        )
        del spectra
        if need_template:
            self._add_template_grad(self.for_template[part], sums, needed, in_lines)
            self.for_template[part] -= offsets[(..., *(None,) * len(self.tiling.stride))]
        return rows

    def _add_template_grad(
        self, total: Tensor, spectra: list[Tensor], needed: tuple[bool, bool], in_lines: bool
    ) -> None:
        """Writes the template's gradient before the standardisation, of which some of these are
        spectra; they are overwritten."""
        each = 1 / math.prod(self.tiling.length)
        total.zero_()
        if needed[0]:
            # What sums by transforms contain: their root mean square, and half of the largest
            # (math.md, eq. noise). Of complex numbers PyTorch would take each root.
            axes = tuple(range(-len(self.tiling.length) - 1, 0))
            size = torch.linalg.vector_norm(torch.view_as_real(spectra[0]), dim=axes).amax()
            window = steps.restored(spectra[0], self.tiling, in_lines)
            contents = each * (float(size) + steps.largest_size(window) / 2)
            self.contents = max(self.contents, contents)
            total.add_(window, alpha=each)
        if needed[1]:
            total.add_(steps.restored(spectra[1], self.tiling, in_lines), alpha=each)

    def _too_noisy(self, noise: list[UnitNoise], wide: list[Tensor]) -> list[Tensor] | None:
        """Units of each block that must be computed in float64, those that were included; None if
        none must be."""
        if self.input.dtype == torch.float64:
            return None
        counts = [len(n.rows) for n in noise]
        narrow = torch.ones(sum(counts), dtype=torch.bool)
        for flags, units in zip(narrow.split(counts), wide, strict=True):
            flags[units] = False
        unit = rounding.unit(self.input.dtype)
        bad = torch.zeros_like(narrow)
        if self.for_input.numel() > 0:
            most = steps.largest_size(self.for_input)
            of_input = torch.cat([n.of_input(unit) for n in noise])
            bad |= ~(of_input <= rounding.ALLOWED_GRADIENT_ERROR * most)
        if self.for_template.numel() > 0:
            squares = torch.cat([n.squares for n in noise])
            bad |= self._too_noisy_for_template(torch.where(narrow, squares, 0.0), unit)
        bad &= narrow
        if not bool(bad.any()):
            return None
        return [x.nonzero().flatten() for x in (bad | ~narrow).split(counts)]

    def _too_noisy_for_template(self, squares: Tensor, unit: float) -> Tensor:
        """The noisiest units, as many as the template's gradient cannot bear."""
        ndim = len(self.tiling.stride)
        axes = tuple(range(-ndim - 1, 0))
        gradient, weights = self.for_template, self.coefficients
        # The promise is on the gradient behind the standardisation.
        if self.rule.zero_mean:
            of_mean = axes[1:] if self.rule.own_means else axes
            gradient = gradient - mean_over(gradient, of_mean)
        gradient = gradient - weights * mean_over(gradient * weights, axes)
        allowed = rounding.ALLOWED_GRADIENT_ERROR * float(gradient.abs().amax())
        allowed /= rounding.TRANSFORM * unit
        # Sums of the quietest units: the noise that is left without the others.
        order = squares.argsort()
        quiet = 3 * squares[order].cumsum(0).sqrt() + self.contents <= allowed
        if not bool((squares > 0).any()):
            return torch.zeros_like(quiet)
        bad = torch.empty_like(quiet)
        bad[order] = ~quiet
        return bad


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
    found = score_grads(scores, False)
    return definition.composed_grads(_KERNELS, scores) if found is None else found


def score_grads(of: ScoreGradCall, own_means: bool) -> tuple[Tensor, Tensor] | None:
    """Both gradients, by loops or transforms; None if an element is not finite.

    With `own_means` each channel of a window and of the template has a mean.
    """
    if dense_grads.is_worth(of):
        found = dense_grads.score_grads(of, own_means)
        if found is not None:
            return found
    call = _Gradients(of, own_means)
    finite = call.run()
    if finite is None:
        del call  # its gradient of the input takes as much as the next one
        call = _Gradients(of, own_means, wide=True)
        finite = call.run()
    if not finite:
        return None
    leads, core = call.problem.leads, len(of.stride) + 1
    for_input, for_template = call.for_input, call.for_template.to(of.template.dtype)
    if of.need_input:
        for_input = leads.input_restored(for_input, tuple(of.input.shape), core)
    if of.need_template:
        for_template = leads.template_restored(for_template, tuple(of.template.shape), core)
    return for_input, for_template


_KERNELS = definition.ScoreOperators(
    _contract.ncc.kernel,
    _contract.window_moments.kernel,
    _contract.window_combine.kernel,
    _contract.correlate_input_grad.kernel,
    _contract.correlate_template_grad.kernel,
)


def register() -> None:
    _contract.ncc_grads.implement(without_late_threads(ncc_grads), "CPU")
