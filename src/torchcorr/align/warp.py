"""Images that are turned, enlarged and shifted, and how well they agree with another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from ..functional import correlate
from .polar import Turn
from .subsample import linearised

__all__ = ["End", "Warp", "blurred", "refined"]

# Deviations of the Gaussians, in pixels of the reference, that both images pass one after another,
# the first ones only if the start may be so far off.
_BLURS = (4.0, 2.0, 1.0, 0.6)
_STEPS = 30
# Pixels that must overlap, and pixels at the border of the moving image that do not count.
_FEWEST = 64
_MARGIN = 2.0


@dataclass(frozen=True)
class Warp:
    """A turn about the centre of the moving image and a shift, and by how much they may be off."""

    turn: Turn
    shift: tuple[float, float]
    centre: tuple[float, float]
    blur: float = 4.0

    @classmethod
    def of(cls, turn: Turn, shift: Sequence[float], y: Tensor) -> Warp:
        row, column = shift
        return cls(turn, (row, column), ((y.shape[0] - 1) / 2, (y.shape[1] - 1) / 2))

    def matrix(self) -> list[list[float]]:
        """What takes (row, column, 1) of the moving image to the reference."""
        cosine = self.turn.scale * math.cos(self.turn.angle)
        sine = self.turn.scale * math.sin(self.turn.angle)
        (row, column), (down, right) = self.centre, self.shift
        return [
            [cosine, -sine, row + down - cosine * row + sine * column],
            [sine, cosine, column + right - sine * row - cosine * column],
            [0.0, 0.0, 1.0],
        ]

    def numbers(self, like: Tensor) -> Tensor:
        """Angle, logarithm of the scale, and shift."""
        return like.new_tensor([self.turn.angle, math.log(self.turn.scale), *self.shift])

    def at(self, numbers: Tensor) -> Warp:
        angle, scale, down, right = numbers.tolist()
        turn = Turn(math.remainder(angle, 2 * math.pi), math.exp(scale))
        return replace(self, turn=turn, shift=(down, right))

    def places(self, numbers: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the moving image pixels of the reference lie."""
        angle, scale, down, right = numbers
        cosine, sine = angle.cos() / scale.exp(), angle.sin() / scale.exp()
        v, u = rows - self.centre[0] - down, columns - self.centre[1] - right
        return (
            cosine * v + sine * u + self.centre[0],
            cosine * u - sine * v + self.centre[1],
        )


@dataclass(frozen=True)
class End:
    """A pose that was followed to the top of its score."""

    warp: Warp
    score: float
    overlap: int

    @property
    def significance(self) -> float:
        return math.atanh(min(self.score, 1 - 1e-9)) * math.sqrt(max(self.overlap - 3, 0))


def inside(places: tuple[Tensor, Tensor], y: Tensor, margin: float) -> Tensor:
    """Which places lie in an image, so far from its border."""
    there = torch.ones_like(places[0], dtype=torch.bool)
    for place, n in zip(places, y.shape, strict=True):
        there &= (place >= margin) & (place <= n - 1 - margin)
    return there


def blurred(x: Tensor, deviation: float) -> Tensor:
    """An image after a Gaussian; outside it is as at its border."""
    if deviation <= 0:
        return x
    reach = math.ceil(3 * deviation)
    t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = (-0.5 * (t / deviation).square()).exp()
    kernel = kernel / kernel.sum()
    wide = pad(x[None, None], [reach] * 4, mode="replicate")[0, 0]
    return correlate(correlate(wide, kernel[:, None]), kernel[None])


def refined(x: Tensor, y: Tensor, warp: Warp) -> End:
    """The top of the coefficient near a pose: Gauss-Newton steps, on images that are blurred less
    and less.
    """
    score, overlap = 0.0, 0
    blurs = [blur for blur in _BLURS if blur <= max(1.0, warp.blur)]
    for blur in blurs:
        # What is enlarged shows less than the other image, so that is blurred more.
        scale = warp.turn.scale
        widths = (
            math.sqrt(blur**2 + max(scale**2 - 1, 0) / 4),
            math.sqrt((blur / scale) ** 2 + max(scale**-2 - 1, 0) / 4),
        )
        fixed, moved = (blurred(v, width) for v, width in zip((x, y), widths, strict=True))
        climb = _Climb(fixed, moved, warp, blur)
        numbers, score, overlap = climb.run(1e-4 if blur == blurs[-1] else 0.05)
        warp = warp.at(numbers)
    return End(warp, score, overlap)


class _Climb:
    """The way to the top of the score of two images."""

    def __init__(self, x: Tensor, y: Tensor, warp: Warp, blur: float) -> None:
        step = max(1, int(blur))
        axes = (torch.arange(0, n, step, dtype=x.dtype, device=x.device) for n in x.shape)
        self.rows, self.columns = torch.meshgrid(*axes, indexing="ij")
        self.x, self.y, self.warp, self.each = x[::step, ::step], y, warp, step * step
        self.slopes = torch.stack(torch.gradient(y))
        # How far a pixel at the border moves with each number.
        reach = 0.5 * math.hypot(*y.shape) * warp.turn.scale
        self.moves = x.new_tensor([reach, reach, 1.0, 1.0])

    def run(self, enough: float) -> tuple[Tensor, float, int]:
        """The numbers of the pose, its score, and the pixels that overlap."""
        here = self.warp.numbers(self.x)
        score, step, overlap = self._look(here)
        for _ in range(_STEPS):
            if step is None or float((step * self.moves).abs().max()) < enough:
                break
            there = here + step
            found, next_step, count = self._look(there)
            if found > score:
                here, score, step, overlap = there, found, next_step, count
            else:
                step = step / 2
        return here, score, overlap

    def _look(self, numbers: Tensor) -> tuple[float, Tensor | None, int]:
        """Score, the step to its top (None if it has none nearby), and pixels that overlap."""
        numbers = numbers.clone().requires_grad_()
        with torch.enable_grad():
            places = self.warp.places(numbers, self.rows, self.columns)
            there = inside(places, self.y, _MARGIN)
            chosen = [place[there] for place in places]
            overlap = len(chosen[0])
            if overlap * self.each < _FEWEST:
                return 0.0, None, 0
            moved = _values(self.y[None], *chosen)[0]
            fixed = self.x[there]
            a, b = fixed - fixed.mean(), moved - moved.mean()
            norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
            if not float(norms.detach()) > 0:
                return 0.0, None, 0
            score = (a @ b) / norms
            (slope,) = torch.autograd.grad(score, numbers)
        with torch.no_grad():
            rows = torch.stack([fixed, moved.detach(), *self._ways(numbers, chosen)])
            bend = linearised(rows, None)[2]
            step = None
            if bool(torch.isfinite(bend).all()) and float(torch.linalg.eigvalsh(bend)[0]) > 0:
                step = torch.linalg.solve(bend, slope)
                # Half of the overlap at most.
                far = float((step * self.moves).abs().max()) / (0.25 * min(self.y.shape))
                step = step / max(1.0, far)
        return float(score.detach()), step, overlap * self.each

    def _ways(self, numbers: Tensor, places: list[Tensor]) -> list[Tensor]:
        """How the moving image changes with each number, but for the error of its slopes."""
        down, right = _values(self.slopes, *places)
        angle, scale = numbers[0], numbers[1].exp()
        v, u = (p - c for p, c in zip(places, self.warp.centre, strict=True))
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        return [
            down * u - right * v,
            -down * v - right * u,
            right * sine - down * cosine,
            -down * sine - right * cosine,
        ]


def _values(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(images, places), by cubic interpolation."""
    height, width = images.shape[-2:]
    places = torch.stack([columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1], -1)
    values = grid_sample(
        images[None],
        places.reshape(1, 1, -1, 2),
        mode="bicubic",
        padding_mode="border",
        align_corners=True,
    )
    return values[0, :, 0]
