"""Normalised scores, tile by tile.

Each tile is centred on a level, so that float32 carries its contrast. Windows whose deviation is
small relative to the rounding of their tile are doubtful; a tile that has many is computed in
float64 instead, and the few that remain are recomputed exactly, from their definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .. import _contract
from .._definition import scores as definition
from .._plan import rounding
from .._plan.choose import Arrangement, arrange
from .._plan.dtypes import HALVES, widen
from .._plan.predict import is_dense, is_halved
from .._plan.shapes import Ints
from .._plan.tiling import Block
from . import bytes, dense_scores, steps
from .rules import ScoreRule
from .threads import without_late_threads

# What the numerators of a transform usually contain, relative to the deviation of their tile.
_USUAL_CONTENT = 0.4
# Rounding errors of direct sums, relative to the root mean square of a window about the level, and
# of those that are made of halves of rows.
_DIRECT_NOISE, _HALVED_NOISE = 4.0, 5.0
# Smallest variance, relative to the mean square, that a difference of the two gives exactly enough.
_LEAST_VARIANCE = {torch.float32: 1e-8, torch.float64: 3e-5}
# Multiply-adds of recomputed windows, for each element of a tile, that take as long as transforming
# it in float64.
_RECOMPUTED = 192


class TiledScores:
    """What scores and their gradients share: normal forms, tiles and rules of precision."""

    def __init__(
        self,
        input: Tensor,
        coefficients: Tensor,
        call: Arrangement,
        zero_mean: bool,
        eps: float,
        own_means: bool = False,
        masked: bool = False,
    ) -> None:
        self.problem, self.plan, self.tiling = call.problem, call.plan, call.tiling
        self.blocks = call.blocks
        leads, core = self.problem.leads, len(self.tiling.stride) + 1
        self.input = steps.readable(leads.input_in_place(input, core))
        self.coefficients = leads.template(widen(coefficients), core).contiguous()
        self.count = self.problem.channels * math.prod(self.tiling.window)
        self.is_direct = self.plan.method == "direct"
        means = (zero_mean, own_means)
        self.rule, self.wide_rule = rules_of(call, input.dtype, means, eps, masked)


def rules_of(
    call: Arrangement,
    dtype: torch.dtype,
    means: tuple[bool, bool],
    eps: float,
    masked: bool = False,
) -> tuple[ScoreRule, ScoreRule]:
    count = call.problem.channels * math.prod(call.tiling.window)
    budget = max(1, _RECOMPUTED * math.prod(call.tiling.length) // count)
    is_direct = call.plan.method == "direct"
    # Elements without weight must not enter a sum, and halves add up neighbours.
    halved = is_direct and not masked and is_halved(call.problem, call.tiling)
    return _rules(dtype, (is_direct, halved), means, eps, budget)


@lru_cache(maxsize=256)
def _rules(
    dtype: torch.dtype,
    direct: tuple[bool, bool],
    means: tuple[bool, bool],
    eps: float,
    budget: float,
) -> tuple[ScoreRule, ScoreRule]:
    """The rules of tiles in the dtype of the input, and of tiles in float64, whose doubtful windows
    are all recomputed.

    `direct` says whether sums are direct, and made of halves; `means`, whether these are
    subtracted, and whether each channel has its own.
    """
    (is_direct, halved), (zero_mean, own_means) = direct, means

    def rule(working: torch.dtype, budget: float) -> ScoreRule:
        noise = 0.0 if is_direct else rounding.transform_noise(dtype, working)
        least = _least_energy(dtype, working, is_direct, halved)
        least_variance = _LEAST_VARIANCE[dtype]
        limits = (least, is_direct, least_variance, noise, budget)
        return ScoreRule(zero_mean, eps, *limits, own_means, halved)

    return rule(dtype, budget), rule(torch.float64, math.inf)


def _least_energy(
    dtype: torch.dtype, working: torch.dtype, is_direct: bool, halved: bool = False
) -> float:
    """Energy of a window below which rounding exceeds what is allowed.

    Relative to the mean square of the window itself for direct sums, and of the tile for
    transforms, where it is an estimate that their numerators replace later.
    """
    if is_direct:
        noise = _HALVED_NOISE if halved else _DIRECT_NOISE
        return (noise * rounding.unit(working) / rounding.ALLOWED_SCORE_ERROR[dtype]) ** 2
    return (_USUAL_CONTENT * rounding.transform_noise(dtype, working)) ** 2


# Of the energy of float32 windows about their mean and with eps, for the direct loop.
LIMITS_OF_LOOP = (
    _LEAST_VARIANCE[torch.float32],
    _least_energy(torch.float32, torch.float32, is_direct=True),
)


class Scores(TiledScores):
    """The scores of one call."""

    def run(
        self,
        prepared: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Sequence[float] = (),
    ) -> Tensor:
        """Norms of `masked` scores are those of windows as a mask (*window) weighs them, and of
        `weights`: a factor of all norms, and whether channels have a mean each."""
        leads = self.problem.leads
        out = steps.new_map(self.input, (*leads.sorted_lead, *self.tiling.positions))
        batch = self.tiling.batch_numbers
        rules = (self.rule.numbers, self.wide_rule.numbers)
        for block in self.blocks:
            spectra = None
            if not self.is_direct:
                spectra = self._spectra(block, prepared)
            operands = (self.input, self.coefficients, spectra)
            how = (batch, block.numbers, *rules)
            steps.score_tiles(*operands, *how, mask, weights, out)
        return leads.restored(out, len(self.tiling.stride))

    def _spectra(self, block: Block, prepared: Tensor | None) -> Tensor | None:
        """Spectra of a block's templates; each is needed once, so none are kept. None if the step
        makes them."""
        part = (block.pairs, block.templates)
        if prepared is not None and prepared.dtype == self.input.dtype.to_complex():
            return prepared[part].flatten(0, 1).contiguous()
        if self.plan.large:
            return None
        wide = self.input.dtype == torch.float64
        return steps.spectra_of_templates(self.coefficients[part], self.tiling, wide)


def ncc(
    input: Tensor,
    template: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    method: str,
    spectra: Tensor | None = None,
    whole: Tensor | None = None,
) -> Tensor:
    if whole is not None:
        exact = bytes.ncc(input, whole, stride, zero_mean, eps, method)
        if exact is not None:
            return exact
        if not input.is_floating_point():
            return definition.ncc(input, template, stride, zero_mean, eps, method, None, whole)
    if input.dtype in HALVES:
        wide = input.float()
        return ncc(wide, template, stride, zero_mean, eps, method).to(input.dtype)
    if input.numel() == 0 or template.numel() == 0:
        return definition.ncc(input, template, stride, zero_mean, eps, "direct")
    call = arrange(
        input.shape,
        template.shape,
        stride,
        method,
        normalised=True,
        dtype=input.dtype,
        device="cpu",
    )
    how = (zero_mean, False, eps)
    found = dense_scores.scores(input, template, call, how, LIMITS_OF_LOOP)
    if found is not None:
        return found
    return Scores(input, template, call, zero_mean, eps).run(spectra)


def at_once(
    input: Ints,
    template: Ints,
    stride: Ints,
    zero_mean: bool,
    eps: float,
    method: str,
    dtype: torch.dtype,
    has_channels: bool,
) -> Callable[[Tensor, Tensor], Tensor | None] | None:
    """Scores of an input with templates that are not standardised, whose normal forms have these
    shapes, in float32 or float64, in one step; None if they take several. It takes both with or
    without their axis of channels, and gives None where both may be bytes."""
    if 0 in input or 0 in template:
        return None
    sizes = (input, template, stride, method)
    call = arrange(*sizes, normalised=True, dtype=dtype, device="cpu")
    if call.plan.method != "direct" or len(call.blocks) > 1 or not call.problem.leads.are_sorted:
        return None
    if dtype == torch.float32 and is_dense(call.problem):
        return None
    shape = (*call.problem.leads.sorted_lead, *call.tiling.positions)
    rules = (rule.numbers for rule in rules_of(call, dtype, (zero_mean, False), eps))
    numbers = (shape, call.tiling.batch_numbers, call.blocks[0].numbers, *rules)

    def step(x: Tensor, w: Tensor) -> Tensor | None:
        with torch._C._AutoDispatchBelowAutograd():
            out = steps.score_at_once(steps.readable(x), w, *numbers, has_channels)
        return out if out.numel() > 0 else None

    return step


def register() -> None:
    _contract.ncc.implement(without_late_threads(ncc), "CPU")
    _contract.ncc.at_once = at_once
