"""Registering the frames of a stack: the drift of a microscope, of a camera, of a patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .._definition.transforms import bordered
from . import operators
from .shift import estimate_shift
from .subsample import resampled

__all__ = ["Drift", "register_stack"]


@dataclass(frozen=True, eq=False)
class Drift:
    """The shifts of the frames of a stack, and their mean.

    Attributes
    ----------
    shifts : Tensor
        ``(T, ndim)``, float64: applied to a frame, it lays the frame on the first one.
    scores : Tensor
        ``(T,)``, float64: the score of each frame with the mean of the others. 1 for the first
        frame if it was compared with none, since ``rounds`` is 1 or it is the only one.
    found : Tensor
        ``(T,)``, bool: False for a frame without a common pattern; it has the shift of the frame
        before it and is not part of the mean.
    mean : Tensor
        ``(*S,)``, float64: the mean of the frames, each shifted, where the first one lies.
    count : Tensor
        ``(*S,)``, int64: the frames that the mean is of at each element.
    """

    shifts: Tensor
    scores: Tensor
    found: Tensor
    mean: Tensor
    count: Tensor


def register_stack(
    frames: Tensor,
    *,
    ndim: int = 2,
    max_step: int | Sequence[int] | None = None,
    rounds: int = 2,
) -> Drift:
    """Return the shift of each frame of a stack that lays it on the first one.

    In the first round each frame is compared with the mean of those before it, which lie where they
    were found; in the next ones with the mean of all others, which neither follows the noise of one
    frame nor adds up the errors of steps.

    Parameters
    ----------
    frames : Tensor
        ``(T, *S)``: real, in the order of time. Computed in float64.
    ndim : int, default 2
        Number of axes of a frame: 1, 2 or 3.
    max_step : int or sequence of int, optional
        Largest shift from one frame to the next. By default any.
    rounds : int, default 2
        How often every frame is compared.

    Returns
    -------
    Drift
        Shifts ``(T, ndim)`` and scores ``(T,)``, float64, and the mean ``(*S,)`` of the frames.

    Raises
    ------
    TypeError
        If ``frames`` is no real tensor, or a limit is no int.
    ValueError
        If there is no frame, frames have another number of axes, or they contain NaN or infinity.

    References
    ----------
    M. Guizar-Sicairos, S. T. Thurman, J. R. Fienup, "Efficient subpixel image registration
    algorithms", Optics Letters 33 (2008) 156-158.

    Examples
    --------
    >>> import torch, torchcorr
    >>> scene = torch.randn(80, 80, generator=torch.Generator().manual_seed(0))
    >>> frames = torch.stack([scene[k : k + 60, 2 * k : 2 * k + 60] for k in range(5)])
    >>> torchcorr.register_stack(frames).shifts.round().int().tolist()
    [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8]]
    """
    _checks.dimension(ndim)
    _checks.real_tensor(frames, "frames")
    _checks.axes(frames, ndim + 1, "frames")
    _checks.finite(frames, "frames")
    _checks.count(rounds, "rounds")
    if max_step is not None:
        max_step = _checks.per_axis(max_step, ndim, "max_step", least=0)
    if operators.is_needed(frames):
        return Drift(*_operator(frames, ndim, max_step, rounds))
    return _Registration(frames.detach().double(), max_step).run(rounds)


class _Canvas:
    """Sums and counts of frames, each laid where its shift says, as far as frames reach."""

    def __init__(self, frame: Tensor) -> None:
        self.sum = torch.zeros_like(frame)
        self.count = torch.zeros_like(frame)
        # The element of the canvas that is the first of the first frame.
        self.origin = [0] * frame.dim()

    def add(self, frame: Tensor, shift: Tensor, sign: int = 1) -> None:
        whole = [math.floor(k + 0.5) for k in shift.tolist()]
        moved = resampled(frame, shift - shift.new_tensor(whole))
        place = self.place(whole, frame.shape)
        self.sum[place] += sign * moved
        self.count[place] += sign

    def place(self, corner: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
        """Where a frame with this corner lies; the canvas grows to hold it."""
        ends = []
        for k, n, origin, m in zip(corner, size, self.origin, self.sum.shape, strict=True):
            ends.append((max(0, -(origin + k)), max(0, origin + k + n - m)))
        if any(low or high for low, high in ends):
            pads = [end for pair in ends for end in pair]
            self.sum, self.count = bordered(self.sum, pads), bordered(self.count, pads)
            self.origin = [o + low for o, (low, _) in zip(self.origin, ends, strict=True)]
        starts = [o + k for o, k in zip(self.origin, corner, strict=True)]
        return tuple(slice(s, s + n) for s, n in zip(starts, size, strict=True))

    def mean(self, corner: Sequence[int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        place = self.place(corner, size)
        count = self.count[place]
        return self.sum[place] / count.clamp(min=1), count


class _Registration:
    """The state of a stack that is being registered."""

    def __init__(self, frames: Tensor, max_step: Sequence[int] | None) -> None:
        self.frames = frames
        self.max_step = max_step
        self.shifts = frames.new_zeros(len(frames), frames.dim() - 1)
        self.scores = frames.new_zeros(len(frames))
        self.scores[0] = 1.0
        self.found = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
        self.canvas = _Canvas(frames[0])

    def run(self, rounds: int) -> Drift:
        self.canvas.add(self.frames[0], self.shifts[0])
        for t in range(1, len(self.frames)):
            self._compare(t, self.shifts[t - 1], self.max_step)
            self._lay(t)
        for _ in range(rounds - 1 if len(self.frames) > 1 else 0):
            for t in range(len(self.frames)):
                self._lay(t, -1)
                self._compare(t, self.shifts[t], (1,) * self.shifts.shape[1])
                self._lay(t)
        corner = [0] * self.shifts.shape[1]
        self.shifts = self.shifts - self.shifts[0]
        self.canvas = _Canvas(self.frames[0])
        for t in range(len(self.frames)):
            self._lay(t)
        mean, count = self.canvas.mean(corner, self.frames.shape[1:])
        return Drift(self.shifts, self.scores, self.found, mean, count.long())

    def _lay(self, t: int, sign: int = 1) -> None:
        if bool(self.found[t]):
            self.canvas.add(self.frames[t], self.shifts[t], sign)

    def _compare(self, t: int, near: Tensor, reach: Sequence[int] | None) -> None:
        """The shift of a frame from the mean of the others around a shift that is nearly right."""
        corner = [math.floor(k + 0.5) for k in near.tolist()]
        mean, count = self.canvas.mean(corner, self.frames.shape[1:])
        inside = _covered(count > 0)
        result = estimate_shift(
            mean[inside],
            self.frames[t],
            ndim=mean.dim(),
            lags=None
            if reach is None
            else [(-r - part.start, r - part.start) for r, part in zip(reach, inside, strict=True)],
        )
        self.found[t] = result.found
        self.scores[t] = result.score
        if bool(result.found):
            starts = near.new_tensor(
                [c + part.start for c, part in zip(corner, inside, strict=True)]
            )
            self.shifts[t] = starts + result.shift
        else:
            self.shifts[t] = near


def _covered(there: Tensor) -> tuple[slice, ...]:
    """The bounding box of what frames cover."""
    box = []
    for axis in range(there.dim()):
        others = [other for other in range(there.dim()) if other != axis]
        lines = there.sum(others) if others else there.int()
        hit = (lines > 0).nonzero().squeeze(1)
        box.append(
            slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, there.shape[axis])
        )
    return tuple(box)


def _call(
    frames: Tensor, ndim: int, max_step: Sequence[int] | None, rounds: int
) -> operators.Fields:
    drift = register_stack(frames, ndim=ndim, max_step=max_step, rounds=rounds)
    return drift.shifts, drift.scores, drift.found, drift.mean, drift.count


def _fake(frames: Tensor, ndim: int, *_: object) -> operators.Fields:
    count, *size = frames.shape
    sizes = {"shifts": (count, ndim), "scores": (count,), "found": (count,)}
    return operators.empty_fields(frames, {**sizes, "mean": size, "count": size})


_operator = operators.register(
    "register_stack",
    "Tensor frames, int ndim, SymInt[]? max_step, int rounds",
    5,
    _call,
    _fake,
)
