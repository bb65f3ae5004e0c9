"""The search for the shift of one pair of recordings, block by block of its lags."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import _contract
from .._plan.lags import Lags
from .chance import false_alarm, significance, unrelated
from .masked import Masks
from .phase import weighed_scores
from .ranking import Best, Judge, best_of
from .subsample import Place, from_neighbours, from_recordings, is_followed

__all__ = ["Answer", "Search"]

# Lags whose scores are in memory at the same time: at least, and for each element of the smaller
# recording, whose transforms need as much, by the number of axes. Twice as many of a line would
# save a third of the time and take half more memory.
_LAGS = 1 << 18
_LAGS_PER_ELEMENT = {1: 1, 2: 4, 3: 8}
# Elements that nearly always tell two recordings apart.
_SEEN_FIRST = 1 << 10
# A score that is 0 but for rounding. Chance alone gives more: 1e-6 to a recording of 10¹² elements.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Answer:
    """What is known of the shift of one pair: the fields of `Shift`."""

    shift: Tensor
    runner_up: tuple[float, ...]
    score_map: Tensor | None
    score: float = 0.0
    found: bool = False
    overlap: int = 0
    runner_up_score: float = math.nan
    at_limit: bool = False
    significance: float = 0.0
    false_alarm: float = 1.0

    def reversed(self) -> Answer:
        """That of the recordings exchanged."""
        map_ = self.score_map
        return replace(
            self,
            shift=0.0 - self.shift,
            runner_up=tuple(0.0 - k for k in self.runner_up),
            score_map=None if map_ is None else map_.flip(tuple(range(map_.dim()))),
        )


@dataclass(frozen=True)
class Search:
    """What was asked for."""

    lags: Lags
    either: bool
    min_overlap: float | None
    weighting: str | None
    subsample: str | None
    keep_map: bool
    method: str

    @property
    def smaller(self) -> int:
        axes = self.lags.axes
        return min(math.prod(a.size for a in axes), math.prod(a.moved for a in axes))

    @property
    def largest(self) -> int:
        """The largest overlap at any of the lags."""
        return math.prod(a.most() for a in self.lags.axes)

    def least(self, smaller: float) -> float:
        """Elements that must overlap: two always agree or disagree perfectly."""
        if self.min_overlap is None:
            return min(3, self.largest)
        return max(self.min_overlap * smaller, min(2, smaller))

    def check_overlap(self) -> None:
        if self.largest >= self.least(self.smaller):
            return
        axes = self.lags.axes
        raise ValueError(
            "lags and min_overlap leave no shift to consider: got lags "
            f"{[(a.low, a.high) for a in axes]}, min_overlap={self.min_overlap} for sizes "
            f"{tuple(a.size for a in axes)} and {tuple(a.moved for a in axes)}"
        )

    def run(self, x: Tensor, y: Tensor, masks: Masks | None = None) -> Answer:
        """The answer for one reference and one moving recording."""
        # A long float32 record is widened block by block.
        if x.dtype != torch.float32:
            x, y = x.double(), y.double()
        # So that exchanged recordings are computed alike, and the shorter one is the moving one.
        first = _comes_first(y, x)
        if masks is not None and x.shape == y.shape and torch.equal(x, y):
            first = _comes_first(masks.y, masks.x)
        if first:
            swapped = None if masks is None else masks.swapped()
            return replace(self, lags=self.lags.swapped())._run(y, x, swapped).reversed()
        return self._run(x, y, masks)

    def _run(self, x: Tensor, y: Tensor, masks: Masks | None) -> Answer:
        fixed, moved = x.detach(), y.detach()
        named = self.min_overlap is not None or self.weighting is not None
        by_score = named or self.largest <= 3
        alike = unrelated(fixed, moved)
        least = self.least(self.smaller if masks is None else masks.smaller)
        judge = Judge(fixed, moved, self.lags, self.either, least, by_score, alike, masks)
        best: Best | None = None
        kept = None
        if self.keep_map:
            kept = torch.empty(self.lags.shape, dtype=torch.float64, device=x.device)
        most = max(_LAGS, _LAGS_PER_ELEMENT[len(self.lags.axes)] * self.smaller)
        # Spectra that are weighed are those of the whole.
        for block in self.lags.blocks(
            most if self.weighting is None else math.prod(self.lags.shape)
        ):
            here = self._best(block, judge, kept)
            best = here if best is None else best.joined(here, judge)
        return self._answer(x, y, best, kept, judge)

    def _best(self, block: Lags, judge: Judge, kept: Tensor | None) -> Best | None:
        """That of some lags, whose scores are kept if asked for, and otherwise forgotten."""
        around = block.around(1)
        scores, counts = self._scores(judge.x, judge.y, judge.masks, around)
        if kept is not None:
            to, of = (block.within(other) for other in (self.lags, around))
            kept[to] = scores[of]
        return best_of(scores, counts, around, block, judge)

    def _scores(
        self, x: Tensor, y: Tensor, masks: Masks | None, lags: Lags
    ) -> tuple[Tensor, Tensor | None]:
        """Scores, and how many elements overlap if the lags do not say it."""
        if self.weighting is not None:
            scores = weighed_scores(x.double(), y.double(), lags, self.weighting, masks)
            return scores, None if masks is None else masks.counts(lags)
        if masks is not None:
            return masks.scores(x, y, lags)
        scores = _contract.overlap_scores(x, y, *lags.ends, self.method)
        return scores, None

    def _answer(
        self, x: Tensor, y: Tensor, best: Best | None, kept: Tensor | None, judge: Judge
    ) -> Answer:
        ndim = len(self.lags.axes)
        first = best.first if best is not None else None
        if (
            best is None
            or first is None
            or not (abs(first.score) if self.either else first.score) > _NOTHING
        ):
            return Answer(
                torch.zeros(ndim, dtype=torch.float64, device=x.device), (math.nan,) * ndim, kept
            )
        second = best.second
        deviate = significance(first.score, first.count / judge.alike)
        trials = max(1.0, math.prod(self.lags.shape) / judge.alike)
        if self.weighting is not None:
            length: float = math.prod(a.length() for a in self.lags.around(1).axes)
            if judge.masks is not None:
                length /= judge.masks.concentration(self.lags, first.lag)
            deviate = first.score * math.sqrt(length)
            trials = float(math.prod(self.lags.shape))
        return Answer(
            shift=self._refined(x, y, best, judge.masks),
            runner_up=(math.nan,) * ndim if second is None else tuple(map(float, second.lag)),
            score_map=kept,
            score=first.score,
            found=True,
            overlap=first.count,
            runner_up_score=math.nan if second is None else second.score,
            at_limit=judge.limits(first),
            significance=deviate,
            false_alarm=false_alarm(deviate, self.either, trials),
        )

    def _refined(self, x: Tensor, y: Tensor, best: Best, masks: Masks | None) -> Tensor:
        lag = torch.tensor(best.first.lag, dtype=torch.float64, device=x.device)
        # Nothing agrees better than perfectly.
        exact = best.first.is_exact and not is_followed(x, y)
        if self.subsample is None or exact:
            return lag
        sign = math.copysign(1.0, best.first.score)
        offset = from_neighbours(best.patch * sign, self.subsample)
        if self.subsample == "fourier":
            place = Place(self.lags, best.first.lag, best.first.score, masks)
            offset = from_recordings(x, y * sign, place, offset)[0]
        return lag + offset


def _comes_first(x: Tensor, y: Tensor) -> bool:
    """An order of two recordings that are not equal, whichever is named first."""
    if x.shape != y.shape:
        return (x.numel(), tuple(x.shape)) > (y.numel(), tuple(y.shape))
    first, second = x.flatten(), y.flatten()
    for part in (slice(0, _SEEN_FIRST), slice(_SEEN_FIRST, None)):
        unequal = (first[part] != second[part]).nonzero()
        if len(unequal) > 0:
            return bool(first[part][unequal[0]] > second[part][unequal[0]])
    return False
