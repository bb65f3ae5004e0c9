"""The rotation, scale and shift between two images of one scene."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .. import _checks
from . import operators
from .polar import Turn, likely_turns, sampled
from .shift import estimate_shift
from .warp import Warp, blurred, inside, refined

__all__ = ["Pose", "estimate_pose"]

# Turns that are tried, each in both directions, and pixels a side of the images they are tried on.
_TRIED = 6
_SMALL = 96
# Turns that are followed to the end.
_FOLLOWED = 3
# Turns nearer than this, in radians and in factors of two, are one.
_ALIKE = (math.radians(3), 0.06)


@dataclass(frozen=True, eq=False)
class Pose:
    """The rotation, scale and shift between two images, and what is known about them.

    Every field is a tensor with the leading axes ``(*lead,)`` of the images. Applied to ``moving``,
    turned and enlarged about its centre and then shifted, they lay it on ``reference``.

    Attributes
    ----------
    angle : Tensor
        ``(*lead,)``, float64, in degrees, from -180 to 180: anticlockwise as images are shown, as
        for ``skimage.transform.rotate``.
    scale : Tensor
        ``(*lead,)``, float64: by which factor ``moving`` is enlarged.
    shift : Tensor
        ``(*lead, 2)``, float64, in pixels of ``reference``: rows and columns, as `estimate_shift`
        has them.
    matrix : Tensor
        ``(*lead, 3, 3)``, float64: takes ``(row, column, 1)`` of ``moving`` to its place in
        ``reference``.
    score : Tensor
        ``(*lead,)``, float64: the correlation coefficient of what overlaps.
    found : Tensor
        ``(*lead,)``, bool: False where no pose has a common pattern. Then there is no rotation and
        no shift, scale is 1, and score 0.
    overlap : Tensor
        ``(*lead,)``, int64: pixels of ``reference`` that ``moving`` covers.
    runner_up_score : Tensor
        ``(*lead,)``, float64: the best score of another rotation or scale that was followed, or
        NaN.
    at_limit : Tensor
        ``(*lead,)``, bool: angle or scale is at the limit of the search.
    """

    angle: Tensor
    scale: Tensor
    shift: Tensor
    matrix: Tensor
    score: Tensor
    found: Tensor
    overlap: Tensor
    runner_up_score: Tensor
    at_limit: Tensor


def estimate_pose(
    reference: Tensor,
    moving: Tensor,
    *,
    max_angle: float = 180.0,
    max_scale: float = 2.0,
    start: Sequence[float] | None = None,
) -> Pose:
    r"""Return the rotation, scale and shift that lay one image on another.

    Spectra as functions of angle and logarithm of the radius are shifted by rotation and scale,
    and not changed by a shift of the image. The turns at which they agree best are tried by
    `estimate_shift`, and the best poses refined by following the gradient of their coefficient of
    correlation, so that the result is exact to a small part of a pixel.

    Parameters
    ----------
    reference, moving : Tensor
        ``(*lead, H, W)`` and ``(*lead, h, w)``: real, of one dtype, at least 16 pixels a side;
        leading axes broadcast. Computed in float64.
    max_angle : float, default 180
        Largest rotation either way, in degrees.
    max_scale : float, default 2
        Largest factor by which either image is enlarged.
    start : (angle, scale, row, column), optional
        A pose that is nearly right, as the fields of `Pose` have it: only refine it.

    Returns
    -------
    Pose
        Angle, scale and score ``(*lead,)``, shift ``(*lead, 2)``, float64, and what else is known.

    Raises
    ------
    TypeError
        If an argument is no real tensor, or dtypes differ.
    ValueError
        If images have fewer than two axes or 16 pixels a side, leading axes do not broadcast, an
        image contains NaN or infinity, or a limit is out of range.

    Notes
    -----
    An image that is much smaller than the other one has a spectrum of its own, and its turn is
    found from spectra only if both have the same texture; one that is hardly turned is found in
    any case. `match_template` or ``start`` say where else it may lie.

    References
    ----------
    B. S. Reddy and B. N. Chatterji, "An FFT-based technique for translation, rotation, and
    scale-invariant image registration", IEEE Transactions on Image Processing 5 (1996) 1266-1271.
    G. D. Evangelidis and E. Z. Psarakis, "Parametric image alignment using enhanced correlation
    coefficient maximization", IEEE Transactions on Pattern Analysis and Machine Intelligence 30
    (2008) 1858-1865.

    Examples
    --------
    >>> import torch, torchcorr
    >>> scene = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)).double()
    >>> image = torch.nn.functional.interpolate(scene, size=(96, 96), mode="bicubic")[0, 0]
    >>> pose = torchcorr.estimate_pose(image, image.rot90())
    >>> round(pose.angle.item(), 2), round(pose.scale.item(), 3), round(pose.score.item(), 3)
    (-90.0, 1.0, 1.0)
    """
    images = {"reference": reference, "moving": moving}
    _checks.recordings(images, 2)
    for name, x in images.items():
        _checks.sides(x.shape[-2:], 16, name)
    _checks.within(max_angle, 0.0, 180.0, "max_angle")
    _checks.within(max_scale, 1.0, math.inf, "max_scale")
    if start is not None:
        _checks.numbers(start, 4, "start")
        _checks.positive(start[1], "start[1]")
    if operators.is_needed(reference, moving):
        at = None if start is None else [float(v) for v in start]
        return Pose(*_operator(reference, moving, float(max_angle), float(max_scale), at))
    lead = torch.broadcast_shapes(reference.shape[:-2], moving.shape[:-2])
    search = _Search(math.radians(max_angle), float(max_scale), start)
    answers = [search.run(x, y) for x, y in _pairs(reference, moving, lead)]
    return _stacked(answers, lead, reference.device)


def _pairs(x: Tensor, y: Tensor, lead: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    both = [v.detach().double().expand(*lead, *v.shape[-2:]) for v in (x, y)]
    for index in itertools.product(*(range(n) for n in lead)):
        yield both[0][index], both[1][index]


@dataclass(frozen=True)
class _Answer:
    """A pose of one pair."""

    warp: Warp
    score: float = 0.0
    overlap: int = 0
    found: bool = False
    runner_up_score: float = math.nan
    at_limit: bool = False


@dataclass(frozen=True)
class _Search:
    """What was asked for."""

    max_angle: float
    max_scale: float
    start: Sequence[float] | None

    def run(self, x: Tensor, y: Tensor) -> _Answer:
        nothing = _Answer(Warp.of(Turn(0.0, 1.0), (0.0, 0.0), y))
        x, y = (v - v.mean() for v in (x, y))
        if not bool(x.any()) or not bool(y.any()):
            return nothing
        x, y = (v / v.abs().amax() for v in (x, y))
        if self.start is not None:
            angle, scale, *shift = self.start
            starts = [Warp.of(Turn(math.radians(angle), scale), shift, y)]
        else:
            turns = likely_turns(x, y, self.max_angle, self.max_scale, _TRIED)
            starts = self._tried(x, y, [Turn(0.0, 1.0), *turns])[:_FOLLOWED]
        ends = sorted((refined(x, y, warp) for warp in starts), key=lambda e: -e.significance)
        if not ends or not ends[0].score > 0:
            return nothing
        best = ends[0]
        others = [e.score for e in ends[1:] if not _alike(e.warp, best.warp)]
        turn = best.warp.turn
        # Half a turn has no limit.
        limits = abs(turn.angle) >= self.max_angle - _ALIKE[0] / 3 and self.max_angle < math.pi
        limits |= abs(math.log(turn.scale)) >= math.log(self.max_scale) - 0.01
        return _Answer(
            best.warp,
            best.score,
            best.overlap,
            found=True,
            runner_up_score=max(others, default=math.nan),
            at_limit=limits and self.start is None,
        )

    def _tried(self, x: Tensor, y: Tensor, turns: Sequence[Turn]) -> list[Warp]:
        """The best shift of each turn, the most significant first, on small images."""
        found = []
        for turn in turns:
            extent = [turn.scale * math.hypot(*y.shape), *x.shape]
            step = max(1.0, max(extent) / _SMALL)
            fixed, moved, there, corner = _small(x, y, turn, step)
            result = estimate_shift(fixed, moved, moving_mask=there, subpixel=False)
            if not bool(result.found):
                continue
            shift = [step * k + c for k, c in zip(result.shift.tolist(), corner, strict=True)]
            warp = replace(Warp.of(turn, shift, y), blur=step)
            found.append((float(result.significance), warp))
        found.sort(key=lambda pair: -pair[0])
        kept: list[Warp] = []
        for _, warp in found:
            if not any(_alike(warp, other) for other in kept):
                kept.append(warp)
        return kept


def _alike(a: Warp, b: Warp) -> bool:
    turned = math.remainder(a.turn.angle - b.turn.angle, 2 * math.pi)
    return abs(turned) < _ALIKE[0] and abs(math.log2(a.turn.scale / b.turn.scale)) < _ALIKE[1]


def _small(
    x: Tensor, y: Tensor, turn: Turn, step: float
) -> tuple[Tensor, Tensor, Tensor, tuple[float, float]]:
    """Both images in pixels that are `step` pixels of the reference, the second one turned; which
    of its pixels are there; and the place of its first one if it is not shifted.
    """
    rows, columns = (torch.arange(0, n, step, dtype=x.dtype, device=x.device) for n in x.shape)
    fixed = sampled(
        blurred(x, _spread(step)), rows[:, None] + 0 * columns, columns + 0 * rows[:, None]
    )
    sine, cosine = abs(math.sin(turn.angle)), abs(math.cos(turn.angle))
    height, width = y.shape
    size = (height * cosine + width * sine, height * sine + width * cosine)
    reach = [max(1, round(0.5 * turn.scale * n / step)) for n in size]
    steps = [step * torch.arange(-r, r + 1, dtype=x.dtype, device=x.device) for r in reach]
    warp = Warp.of(turn, (0.0, 0.0), y)
    centre = warp.centre
    rows, columns = (
        v + c for v, c in zip(torch.meshgrid(*steps, indexing="ij"), centre, strict=True)
    )
    places = warp.places(warp.numbers(x), rows, columns)
    moved = sampled(blurred(y, _spread(step / turn.scale)), *places)
    there = inside(places, y, 0.5).double()
    if not bool(there.any()):
        there = torch.ones_like(there)
    corner = (step * reach[0] - centre[0], step * reach[1] - centre[1])
    return fixed, moved, there, corner


def _spread(step: float) -> float:
    """Deviation of a Gaussian after which every step-th element suffices."""
    return 0.5 * math.sqrt(max(step * step - 1, 0.0))


def _stacked(answers: list[_Answer], lead: Sequence[int], device: torch.device) -> Pose:
    def joined(values: list[object], dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device).reshape((*lead, *shape))

    wide = torch.float64
    return Pose(
        angle=joined([math.degrees(a.warp.turn.angle) for a in answers], wide),
        scale=joined([a.warp.turn.scale for a in answers], wide),
        shift=joined([a.warp.shift for a in answers], wide, 2),
        matrix=joined([a.warp.matrix() for a in answers], wide, 3, 3),
        score=joined([a.score for a in answers], wide),
        found=joined([a.found for a in answers], torch.bool),
        overlap=joined([a.overlap for a in answers], torch.int64),
        runner_up_score=joined([a.runner_up_score for a in answers], wide),
        at_limit=joined([a.at_limit for a in answers], torch.bool),
    )


def _call(
    reference: Tensor,
    moving: Tensor,
    max_angle: float,
    max_scale: float,
    start: Sequence[float] | None,
) -> operators.Fields:
    limits = {"max_angle": max_angle, "max_scale": max_scale}
    pose = estimate_pose(reference, moving, **limits, start=start)
    return tuple(getattr(pose, field.name) for field in fields(Pose))


def _fake(reference: Tensor, moving: Tensor, *_: object) -> operators.Fields:
    lead = torch.broadcast_shapes(reference.shape[:-2], moving.shape[:-2])
    wide = {"shift": (2,), "matrix": (3, 3)}
    sizes = {field.name: (*lead, *wide.get(field.name, ())) for field in fields(Pose)}
    return operators.empty_fields(reference, sizes)


_operator = operators.register(
    "estimate_pose",
    "Tensor reference, Tensor moving, float max_angle, float max_scale, float[]? start",
    len(fields(Pose)),
    _call,
    _fake,
)
