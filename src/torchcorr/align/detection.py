"""Detection of templates in long records of several channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _contract
from .._definition.peaks import kept_of
from . import operators
from .gaps import scores_beside_gaps

__all__ = ["Detections", "match_filter"]

# Scores of channels that are in memory at the same time.
_SCORES = 1 << 23


@dataclass(frozen=True, eq=False)
class Detections:
    """Places of a record at which templates were detected, sorted by template and place.

    Attributes
    ----------
    positions : Tensor
        ``(n,)``, int64: the first element of each template, before its moveouts.
    templates : Tensor
        ``(n,)``, int64: which template.
    scores : Tensor
        ``(n,)``, the dtype of the record: the weighted mean of the scores of its channels.
    thresholds : Tensor
        ``(n,)``, the same: what each score exceeded.
    stack : Tensor or None
        ``(T, positions)``: the score at every position, the first of which is the first at which
        all channels lie in the record, if it was asked for.
    """

    positions: Tensor
    templates: Tensor
    scores: Tensor
    thresholds: Tensor
    stack: Tensor | None

    def __len__(self) -> int:
        return self.positions.shape[0]


def match_filter(
    record: Tensor,
    templates: Tensor,
    *,
    moveouts: Tensor | None = None,
    weights: Tensor | None = None,
    threshold: float | None = None,
    deviations: float = 8.0,
    min_distance: int | None = None,
    block: int = 1 << 20,
    keep_stack: bool = False,
    method: str = "auto",
) -> Detections:
    r"""Return where templates of several channels occur in a long record.

    The score of template t at u is the weighted mean over channels c of the coefficient of
    correlation, ``sum_c weights[t, c] * zncc(record[c], templates[t, c])[u + moveouts[t, c]]``.

    Parameters
    ----------
    record : Tensor
        ``(C, N)``, float32 or float64. NaN marks a gap: a channel contributes nothing where its
        window contains one.
    templates : Tensor
        ``(T, C, n)``, of the same dtype.
    moveouts : Tensor, optional
        ``(T, C)``, integers: by how many elements each channel of a template is later than its
        position. By default 0.
    weights : Tensor, optional
        ``(T, C)``, not negative; those of a template are divided by their sum. By default equal.
    threshold : float, optional
        Smallest score of a detection. By default that of ``deviations``.
    deviations : float, default 8
        By default a detection exceeds the median of the scores of its template by so many median
        absolute deviations, in each block. A score that is 0, because all channels have gaps or
        flat windows, is no evidence: it counts for neither and is never detected.
    min_distance : int, optional
        Of two detections of one template that are nearer only the better is kept. By default n.
    block : int, default 1048576
        Positions that share a threshold, at most: the record is divided into equal blocks. Scores
        of no more are in memory.
    keep_stack : bool, default False
        Return the scores at all positions.
    method : {"auto", "direct", "fft"}
        As for `zncc`.

    Returns
    -------
    Detections
        Positions ``(k,)``, templates ``(k,)`` and scores ``(k,)``, which have gradients for record
        and templates. Positions are those at which every channel lies in the record.

    Raises
    ------
    TypeError
        If an argument is no tensor of float32 or float64, or dtypes differ.
    ValueError
        If shapes do not fit, a weight is negative or all of a template are 0, a template contains
        NaN, or the record is too short for the moveouts.

    References
    ----------
    E. Beaucé, W. B. Frank, A. Romanenko, "Fast matched filter (FMF): an efficient seismic
    matched-filter search for both CPU and GPU architectures", Seismological Research Letters 89
    (2018) 165-172.
    D. R. Shelly, G. C. Beroza, S. Ide, "Non-volcanic tremor and low-frequency earthquake swarms",
    Nature 446 (2007) 305-307: the threshold.

    Examples
    --------
    >>> import torch, torchcorr
    >>> record = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    >>> templates = torch.stack([record[0, 1000:1100], record[1, 1040:1140]])[None]
    >>> moveouts = torch.tensor([[0, 40]])
    >>> found = torchcorr.match_filter(record, templates, moveouts=moveouts)
    >>> found.positions.tolist(), round(found.scores.item(), 3)
    ([1000], 1.0)
    """
    if operators.is_needed(record, templates, moveouts, weights):
        options = (threshold, deviations, min_distance, block, keep_stack, method)
        at, of, scores, limits, every = _operator(record, templates, moveouts, weights, *options)
        return Detections(at, of, scores, limits, every if keep_stack else None)
    search = _Search.parse(record, templates, moveouts, weights)
    if threshold is not None:
        _checks.threshold(threshold)
    _checks.not_negative(deviations, "deviations")
    _checks.count(min_distance, "min_distance")
    _checks.per_axis(block, 1, "block")
    stack = record.new_empty(len(templates), search.positions) if keep_stack else None
    parts = []
    for group, start, scores in search.stacks(block, method):
        if stack is not None:
            stack[group.start : group.stop, start : start + scores.shape[1]] = scores
        if threshold is not None:
            limits = scores.new_full((len(scores),), threshold)
            above = scores >= threshold
        else:
            limits = _limits(scores, deviations)
            above = (scores > limits[:, None]) & (scores != 0)
        parts.append(_detected(scores, above, limits, group.start, search.first + start))
    distance = min_distance if min_distance is not None else templates.shape[-1]
    return _kept(parts, distance, record, stack)


def _limits(scores: Tensor, deviations: float) -> Tensor:
    """The threshold of each row, of the scores that are not 0; infinite where there are none."""
    if bool((scores != 0).all()):
        middle, deviation = _contract.medians(scores)
        return middle + deviations * deviation
    limits = scores.new_full((len(scores),), torch.inf)
    for t, row in enumerate(scores):
        measured = row[row != 0]
        if len(measured) > 0:
            middle, deviation = _contract.medians(measured[None])
            limits[t] = (middle + deviations * deviation)[0]
    return limits


def _detected(
    scores: Tensor, above: Tensor, limits: Tensor, template: int, position: int
) -> Detections:
    """The positions of one block that reach the thresholds."""
    rows, at = above.nonzero().unbind(1)
    return Detections(at + position, rows + template, scores[rows, at], limits[rows], None)


def _kept(
    parts: list[Detections], distance: int, record: Tensor, stack: Tensor | None
) -> Detections:
    """Of the positions of each template, those that no better one is near."""
    fields = ("positions", "templates", "scores", "thresholds")
    joined = [torch.cat([getattr(part, name) for part in parts]) for name in fields]
    positions, templates, scores, _ = joined
    kept: list[int] = []
    for t in templates.unique().tolist():
        numbers = (templates == t).nonzero().squeeze(1)
        order = numbers[scores[numbers].argsort(descending=True, stable=True)]
        points: list[tuple[int, ...]] = [(p,) for p in positions[order].tolist()]
        survivors = order[kept_of(points, min_distance=(distance,), limit=None)]
        kept += survivors[positions[survivors].argsort()].tolist()
    chosen = torch.tensor(kept, dtype=torch.long, device=record.device)
    positions, templates, scores, limits = (values[chosen] for values in joined)
    return Detections(positions, templates, scores, limits, stack)


@dataclass(frozen=True)
class _Search:
    """Record and templates, and by how much each channel of a template is later and counts."""

    record: Tensor
    templates: Tensor
    moveouts: list[list[int]]
    weights: list[list[float]]
    first: int
    positions: int

    @classmethod
    def parse(
        cls, record: Tensor, templates: Tensor, moveouts: Tensor | None, weights: Tensor | None
    ) -> _Search:
        for name, tensor, axes in (("record", record, 2), ("templates", templates, 3)):
            _checks.real_tensor(tensor, name)
            _checks.axes(tensor, axes, name)
        _checks.same_dtype({"record": record, "templates": templates})
        if record.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"record must be of float32 or float64: got {record.dtype}")
        _checks.finite(templates, "templates")
        shape = tuple(templates.shape[:2])
        _checks.channels_match(record.shape[0], shape[1])
        late = torch.zeros(shape, dtype=torch.long) if moveouts is None else moveouts
        shares = torch.ones(shape) if weights is None else weights
        for name, tensor in (("moveouts", late), ("weights", shares)):
            _checks.shape(tensor, shape, name)
        _checks.integral(late, "moveouts")
        _checks.shares(shares, "weights")
        shares = shares.double() / shares.double().sum(1, keepdim=True)
        first = max(0, -int(late.min())) if late.numel() > 0 else 0
        last = max(0, int(late.max())) if late.numel() > 0 else 0
        positions = record.shape[1] - templates.shape[2] - last - first + 1
        if positions < 1:
            raise ValueError(
                f"record must be longer than a template with its moveouts: got {record.shape[1]} "
                f"for {templates.shape[2]} and moveouts from {-first} to {last}"
            )
        return cls(record, templates, late.tolist(), shares.tolist(), first, positions)

    def stacks(self, block: int, method: str) -> Iterator[tuple[range, int, Tensor]]:
        """Groups of templates, where a block of positions begins, and the scores of either.

        A channel of the record is transformed once for all templates of a group.
        """
        window = self.templates.shape[2]
        spread = self.record.shape[1] - self.positions - window + 1
        # A remainder of a few positions would have a threshold of its own.
        block = math.ceil(self.positions / math.ceil(self.positions / block))
        many = max(1, _SCORES // (min(block, self.positions) + spread))
        for t in range(0, len(self.templates), many):
            group = range(t, min(t + many, len(self.templates)))
            for start in range(0, self.positions, block):
                count = min(block, self.positions - start)
                total = self.record.new_zeros(len(group), count)
                for c in range(len(self.record)):
                    self._add_channel(total, group, c, start, method)
                yield group, start, total

    def _add_channel(self, total: Tensor, group: range, c: int, start: int, method: str) -> None:
        count, window = total.shape[1], self.templates.shape[2]
        late = [self.moveouts[t][c] for t in group]
        begin = self.first + start + min(late)
        seen = self.record[c, begin : begin + count + max(late) - min(late) + window - 1]
        of_group = self.templates[group.start : group.stop, c]
        scores = scores_beside_gaps(seen, of_group, method).nan_to_num_(0.0)
        for row, t in enumerate(group):
            from_ = late[row] - min(late)
            total[row].add_(scores[row, from_ : from_ + count], alpha=self.weights[t][c])


def _call(
    record: Tensor,
    templates: Tensor,
    moveouts: Tensor | None,
    weights: Tensor | None,
    *options: Any,
) -> operators.Fields:
    """The fields of the detections; an empty stack where none was asked for."""
    asked = dict(zip(_OPTIONS, options, strict=True))
    found = match_filter(record, templates, moveouts=moveouts, weights=weights, **asked)
    stack = record.new_empty(0) if found.stack is None else found.stack
    return found.positions, found.templates, found.scores, found.thresholds, stack


def _fake(
    record: Tensor, templates: Tensor, moveouts: Tensor | None, *others: Any
) -> operators.Fields:
    *_, keep_stack, _ = others
    sizes = torch.library.get_ctx()
    count = sizes.new_dynamic_size()
    numbers = (record.new_empty(count, dtype=torch.int64) for _ in range(2))
    values = (record.new_empty(count) for _ in range(2))
    if not keep_stack:
        return (*numbers, *values, record.new_empty(0))
    positions: Any = record.shape[1] - templates.shape[2] + 1
    if moveouts is not None:  # which say how many positions there are
        positions = sizes.new_dynamic_size()
    return (*numbers, *values, record.new_empty(templates.shape[0], positions))


_OPTIONS = ("threshold", "deviations", "min_distance", "block", "keep_stack", "method")
_operator = operators.register(
    "match_filter",
    "Tensor record, Tensor templates, Tensor? moveouts, Tensor? weights, float? threshold, "
    "float deviations, SymInt? min_distance, SymInt block, bool keep_stack, str method",
    5,
    _call,
    _fake,
    differentiable=(2, 3, 4),
)
