"""Which lag is the best: scores weighed by their overlap, ties, and what else was there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._plan.lags import Lags
from ..match.maxima import parabola
from .masked import Masks
from .subsample import Place, from_neighbours, from_recordings

__all__ = ["Best", "Judge", "Peak", "best_of"]

# Scores this close to 1 are perfect, and scores this close to one another are equal: rounding must
# not decide.
_PERFECT = 1e-9
_EQUAL = 1e-10
# Overlaps are similar if the smaller one has this share of the other.
_SIMILAR = 0.5
# Ties that are looked at one by one, those nearest to the centre first.
_TIES = 64
# A peak between samples is perfect if it comes this close to 1, and is looked for where the score
# of a whole sample is so high; so many are tried.
_PERFECT_BETWEEN = 3e-4
_HIGH = 0.9
_TRIED = 4
# Lags within which most peaks end.
_NEAR = 1 << 10
# Lags of a line that are ranked together.
_WIDTH = 1 << 10


@dataclass(frozen=True)
class Peak:
    """A lag, its score, rank and overlap, and whether the score, or that at the top of the peak
    between samples, is 1.
    """

    lag: tuple[int, ...]
    score: float
    rank: float
    count: int
    perfect: bool

    @property
    def is_exact(self) -> bool:
        """Whether the whole sample itself agrees perfectly."""
        return abs(self.score) >= 1 - _PERFECT


@dataclass(frozen=True)
class Best:
    """The best lag of a map and the best outside its peak."""

    first: Peak
    second: Peak | None
    # The scores of the 3 lags around the first along each axis, and where its peak begins and ends.
    patch: Tensor
    box: tuple[tuple[int, int], ...]

    def joined(self, other: Best | None, judge: Judge) -> Best:
        """That of both maps."""
        if other is None:
            return self
        winner = self if judge.choice([self.first, other.first]) is self.first else other
        peaks = (self.first, other.first, self.second, other.second)
        outside = [p for p in peaks if p is not None and not winner.contains(p)]
        return replace(winner, second=max(outside, key=lambda p: p.rank, default=None))

    def contains(self, peak: Peak) -> bool:
        return all(a <= k <= b for k, (a, b) in zip(peak.lag, self.box, strict=True))


@dataclass(frozen=True)
class Judge:
    """How the lags of two recordings, the second of which moves, are ranked: by the significance of
    their score, or by the score alone, where so many elements overlap.
    """

    x: Tensor
    y: Tensor
    lags: Lags
    either: bool
    least: float
    by_score: bool
    # Pairs of elements that count as one.
    alike: float
    masks: Masks | None = None

    def ranks(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Fisher's z of each score in units of its chance error, or the score itself."""
        ranks = scores.abs() if self.either else scores.clone()
        if not self.by_score:
            ranks = ranks.clamp_(_PERFECT - 1, 1 - _PERFECT).atanh_()
            ranks *= (counts - 3).clamp_(min=0).sqrt_()
        return ranks.masked_fill_(counts < self.least, -torch.inf)

    def slack(self, peak: Peak) -> float:
        """By how much rounding of the score may change its rank."""
        if self.by_score:
            return _EQUAL
        return _EQUAL * math.sqrt(peak.count) / max(1 - peak.score**2, _PERFECT)

    def choice(self, peaks: list[Peak]) -> Peak:
        """The best of them. Of equals one at which the samples themselves are equal wins, then the
        one nearest to the centre, then the first. Perfect scores over similar overlaps are equal.
        """
        best = max(peaks, key=lambda p: p.rank)
        slack = self.slack(best)
        ties = [
            p
            for p in peaks
            if p.rank >= best.rank - slack - self.slack(p)
            or (best.perfect and p.perfect and p.count >= _SIMILAR * best.count)
        ]
        return best if len(ties) == 1 else min(ties, key=self._order)

    def _order(self, peak: Peak) -> tuple[bool, int, tuple[int, ...]]:
        of_x, of_y = self.lags.overlap(peak.lag)
        equal = peak.perfect and torch.equal(self.x[of_x], self.y[of_y])
        return not equal, self.distance(peak), peak.lag

    def distance(self, peak: Peak) -> int:
        return sum((k - c) ** 2 for k, c in zip(peak.lag, self.lags.centre, strict=True))

    def limits(self, peak: Peak) -> bool:
        """Whether a lag beside this one was left out, though more than two elements overlap."""
        for axis, k in zip(self.lags.axes, peak.lag, strict=True):
            for beside in (k - 1, k + 1):
                count = peak.count * axis.count(beside) / axis.count(k)
                asked = axis.low <= beside <= axis.high and count >= self.least
                if len(axis) > 1 and count > 2 and not asked:
                    return True
        return False


class _Map:
    """Scores of some lags and of those beside them, of which the former are ranked.

    They are ranked row by row, the most promising first, as most rows cannot contain the best; a
    few are ranked at once.
    """

    def __init__(
        self, scores: Tensor, counts: Tensor | None, around: Lags, inner: Lags, judge: Judge
    ) -> None:
        self.scores, self.around, self.inner, self.judge = scores, around, inner, judge
        core = scores[inner.within(around)]
        self.given = None if counts is None else counts[inner.within(around)]
        self.ranked: Tensor | None = None
        if core.numel() <= _WIDTH:
            counts = inner.counts(scores.device) if self.given is None else self.given
            self.ranked = judge.ranks(core, counts)
            self.width = core.numel()
            self.rows, self.outer = (v.reshape(1, -1) for v in (core, counts))
            self.along = counts.new_ones(1)
            self.highest = self._sizes(self.rows).amax(1)
            self.bounds = self.ranked.reshape(1, -1).amax(1)
            return
        self.width = core.shape[-1] if core.dim() > 1 else min(core.shape[-1], _WIDTH)
        first, *others = (axis.counts(scores.device) for axis in inner.axes)
        if others and self.given is not None:
            self.rows, self.outer = (v.reshape(-1, self.width) for v in (core, self.given))
            self.along = first.new_ones(1)
        elif others:
            for along in others[:-1]:
                first = (first[:, None] * along).flatten()
            self.outer, self.along = first[:, None], others[-1]
            self.rows = core.reshape(-1, self.width)
        else:
            # Nothing overlaps at the lags that fill up the last row.
            missing = -len(core) % self.width
            self.outer, self.rows = (
                pad(v, (0, missing)).reshape(-1, self.width)
                for v in (first if self.given is None else self.given, core)
            )
            self.along = first.new_ones(1)
        self.highest, self.bounds = self._bounds(self.rows, self.outer)

    def _bounds(self, scores: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
        """The highest score of each row, and what no rank in it exceeds: ``artanh(r) / r`` and
        ``sqrt(n) > sqrt(n - 3)`` rise.
        """
        sizes = self._sizes(scores)
        highest = sizes.amax(1)
        if self.judge.by_score:
            return highest, highest
        roots = outer.sqrt()
        linear = sizes * self.along.sqrt()
        if roots.shape[1] == 1:
            linear = linear.amax(1) * roots.squeeze(1)
        else:
            linear = linear.mul_(roots).amax(1)
        capped = highest.clamp(2.0**-20, 1 - _PERFECT)
        return highest, linear.clamp_(min=0) * (capped.atanh() / capped) * (1 + _EQUAL)

    def _sizes(self, scores: Tensor) -> Tensor:
        return scores.abs() if self.judge.either else scores

    def counts(self, rows: Tensor) -> Tensor:
        return self.outer[rows] * self.along

    def ranks(self, rows: Tensor) -> Tensor:
        if self.ranked is not None:
            return self.ranked.reshape(1, -1)[rows]
        return self.judge.ranks(self.rows[rows], self.counts(rows))

    def best(self, without: tuple[slice, ...] | None = None) -> Peak | None:
        """The lag with the highest rank, outside a box of the map."""
        if self.ranked is not None:
            ranks = self.ranked
            if without is not None:
                ranks = ranks.clone()
                ranks[without] = -torch.inf
            number = int(ranks.argmax())
            return self.peak(number) if float(ranks.flatten()[number]) > -math.inf else None
        bounds = self.bounds
        if without is not None:
            rows = self._touched(without)
            outside = self.rows[rows].masked_fill_(self._inside(rows, without), 0.0)
            bounds = bounds.index_put((rows,), self._bounds(outside, self.outer[rows])[1])
        order = bounds.argsort(descending=True)
        limits = bounds[order].tolist()
        best, number, start, step = -math.inf, -1, 0, 4
        while start < len(limits) and limits[start] > best:
            rows = order[start : start + step]
            ranks = self.ranks(rows)
            if without is not None:
                ranks.masked_fill_(self._inside(rows, without), -torch.inf)
            highest = ranks.amax(1)
            row = int(highest.argmax())
            if float(highest[row]) > best:
                best = float(highest[row])
                number = int(rows[row]) * self.width + int(ranks[row].argmax())
            start, step = start + step, 2 * step
        return self.peak(number) if number >= 0 else None

    def _touched(self, box: tuple[slice, ...]) -> Tensor:
        """The rows that have lags in a box."""
        device = self.rows.device
        if len(box) == 1:
            last = max(box[0].start, box[0].stop - 1)
            return torch.arange(box[0].start // self.width, last // self.width + 1, device=device)
        rows = torch.zeros((), dtype=torch.long, device=device)
        for part, size in zip(box[:-1], self.inner.shape, strict=False):
            rows = rows[..., None] * size + torch.arange(part.start, part.stop, device=device)
        return rows.flatten()

    def _inside(self, rows: Tensor, box: tuple[slice, ...]) -> Tensor:
        """Which lags of some rows lie in a box."""
        columns = torch.arange(self.width, device=rows.device)
        if len(box) == 1:
            numbers = rows[:, None] * self.width + columns
            return (numbers >= box[0].start) & (numbers < box[0].stop)
        *outer, last = box
        inside = ((columns >= last.start) & (columns < last.stop))[None]
        places = torch.unravel_index(rows, self.inner.shape[:-1])
        for part, at in zip(outer, places, strict=True):
            inside = inside & ((at >= part.start) & (at < part.stop))[:, None]
        return inside

    def numbers(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Those of the lags that are chosen in some rows."""
        row, column = chosen.nonzero().unbind(1)
        return rows[row] * self.width + column

    def tied(self, top: Peak) -> Tensor:
        """The lags whose rank rounding may have made lower, and those that agree as perfectly."""
        least = top.rank - 2 * self.judge.slack(top)
        rows = (self.bounds >= least).nonzero().squeeze(1)
        numbers = self.numbers(rows, self.ranks(rows) >= least)
        if not top.perfect:
            return numbers
        rows, similar = self.similar(top, 1 - _PERFECT)
        scores = self.rows[rows]
        perfect = scores >= 1 - _PERFECT if top.score > 0 else scores <= _PERFECT - 1
        return torch.cat([numbers, self.numbers(rows, perfect & similar)]).unique()

    def similar(self, top: Peak, least: float) -> tuple[Tensor, Tensor]:
        """The rows that contain a score, and which of their lags are ranked and overlap not much
        less than a peak.
        """
        rows = (self.highest >= least).nonzero().squeeze(1)
        counts = self.counts(rows)
        return rows, (counts >= self.judge.least) & (counts >= _SIMILAR * top.count)

    def peak(self, number: int) -> Peak:
        index: list[int] = []
        left = number
        for n in reversed(self.inner.shape):
            left, i = divmod(left, n)
            index.insert(0, i)
        lag = tuple(a.low + i for a, i in zip(self.inner.axes, index, strict=True))
        row, column = divmod(number, self.width)
        score, count = self.rows[row, column], self.outer[row, column % self.outer.shape[1]]
        count = count * self.along[column % len(self.along)]
        rank = float(self.judge.ranks(score, count))
        return Peak(lag, float(score), rank, int(count), abs(float(score)) >= 1 - _PERFECT)

    def place(self, peak: Peak) -> tuple[int, ...]:
        """Its index among the scores."""
        return tuple(k - a.low for a, k in zip(self.around.axes, peak.lag, strict=True))

    def nearest(self, numbers: Tensor) -> Tensor:
        """Elements of the map in the order of their distance to the centre."""
        if len(numbers) == 1:
            return numbers
        distance = torch.zeros_like(numbers)
        indices = torch.unravel_index(numbers, self.inner.shape)
        for axis, centre, at in zip(self.inner.axes, self.inner.centre, indices, strict=True):
            distance += (at + axis.low - centre).square()
        return numbers[distance.argsort(stable=True)]

    def patch(self, peak: Peak) -> Tensor:
        """The scores around a peak, NaN where nothing overlaps."""
        patch = self.scores.new_full((3,) * self.scores.dim(), torch.nan)
        place = self.place(peak)
        ends = zip(place, self.scores.shape, strict=True)
        kept = [slice(max(0, i - 1), min(n, i + 2)) for i, n in ends]
        pairs = zip(kept, place, strict=True)
        patch[tuple(slice(k.start - i + 1, k.stop - i + 1) for k, i in pairs)] = self.scores[
            tuple(kept)
        ]
        return patch

    def box(self, peak: Peak) -> tuple[tuple[int, int], ...]:
        """How far the rank falls on either side of a peak along each axis."""
        core = self.scores[self.inner.within(self.around)]
        place = [k - a.low for a, k in zip(self.inner.axes, peak.lag, strict=True)]
        ends = []
        for axis, (at, lags) in enumerate(zip(place, self.inner.axes, strict=True)):
            along = (*place[:axis], slice(None), *place[axis + 1 :])
            if self.ranked is not None:
                ranks = self.ranked[along]
            elif self.given is not None:
                ranks = self.judge.ranks(core[along], self.given[along])
            else:
                others = peak.count // lags.count(peak.lag[axis])
                ranks = self.judge.ranks(core[along], lags.counts(core.device) * others)
            low, high = at - _fall(ranks[: at + 1].flip(0)), at + _fall(ranks[at:])
            ends.append((lags.low + low, lags.low + high))
        return tuple(ends)


def _fall(line: Tensor) -> int:
    """Steps from the first element on that lead down; mostly the start of a line says it."""
    for part in (line[:_NEAR], line):
        rises = (part[1:] >= part[:-1]).nonzero()
        if len(rises) > 0:
            return int(rises[0])
    return len(line) - 1


def best_of(
    scores: Tensor, counts: Tensor | None, around: Lags, inner: Lags, judge: Judge
) -> Best | None:
    """The best of the lags in `inner`, of scores at these lags and at those beside them."""
    found = _Map(scores, counts, around, inner, judge)
    top = found.best()
    if top is None:
        return None
    ties = found.nearest(found.tied(top))[:_TIES].tolist()
    first = judge.choice([*_perfect_between(found, top, judge), *map(found.peak, ties)])
    box = found.box(first)
    ends = zip(inner.axes, box, strict=True)
    inside = tuple(slice(max(0, low - a.low), max(0, high + 1 - a.low)) for a, (low, high) in ends)
    return Best(first, found.best(without=inside), found.patch(first), box)


def _perfect_between(found: _Map, top: Peak, judge: Judge) -> list[Peak]:
    """The best, and nearer lags at which the recordings agree perfectly as well if one of them is
    shifted by a part of a sample.

    A periodic source repeats. If its period is no whole number, a repetition may happen to be
    sampled nearer to the top of its peak than the first agreement.
    """
    sign, ndim = math.copysign(1.0, top.score), found.scores.dim()
    if abs(top.score) < _HIGH or not _top(found.patch(top) * sign) >= 1 - _PERFECT_BETWEEN:
        return [top]
    scores = found.scores if sign > 0 else -found.scores
    rows, similar = found.similar(top, _HIGH)
    numbers = found.numbers(rows, (found.rows[rows] * sign >= _HIGH) & similar)
    core = found.inner.within(found.around)
    indices = torch.unravel_index(numbers, found.inner.shape)
    at = tuple(i + part.start for i, part in zip(indices, core, strict=True))
    offsets, gain = parabola(scores, at, ndim=ndim)
    kept = (offsets.abs().amax(1) < 0.5) & (scores[at] + gain >= 1 - _PERFECT_BETWEEN)
    numbers = numbers[kept]
    peaks = [replace(top, perfect=True)]
    for peak in map(found.peak, found.nearest(numbers)[:_TRIED].tolist()):
        if judge.distance(peak) >= judge.distance(top):
            break
        start = from_neighbours(found.patch(peak) * sign, "gauss")
        place = Place(judge.lags, peak.lag, peak.score, judge.masks)
        score = from_recordings(judge.x, judge.y * sign, place, start)[1]
        if score is not None and float(score) >= 1 - _PERFECT_BETWEEN:
            peaks.append(replace(peak, perfect=True))
    return peaks


def _top(patch: Tensor) -> float:
    """The top of the parabola through the middle of a patch."""
    middle = (torch.ones(1, dtype=torch.long, device=patch.device),) * patch.dim()
    return float(patch[middle] + parabola(patch, middle, ndim=patch.dim())[1])
