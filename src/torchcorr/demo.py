"""The demonstration: find, refine and align, on data that scikit-image and PyWavelets carry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .align import estimate_shift
from .functional import zncc
from .match import match_template
from .plot import draw_alignment, draw_matches, draw_refinement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["run"]

_SEED = 20
# Corner, height and width of one coin in scikit-image's `coins`, chosen by eye.
_COIN = (92, 236, 60, 64)
_COIN_THRESHOLD = 0.7

# Where the patch of the second part truly lies, and how it is turned.
_CENTRE = (98.37, 111.64)
_ANGLE = 9.0
_PATCH = 71


def run() -> Iterator[tuple[str, Figure]]:
    """Return an iterator over the parts: each prints what it found, then yields a file name and
    a figure.

    Examples
    --------
    >>> from torchcorr.demo import run
    >>> parts = run()
    >>> name, figure = next(parts)  # doctest: +ELLIPSIS
    1. Find ...
    >>> name
    '1-matches.png'
    """
    yield "1-matches.png", _find_coins()
    yield "2-refinement.png", _refine_patch()
    yield "3-alignment.png", _align_recordings()


def _find_coins() -> Figure:
    from skimage import data

    photograph = torch.from_numpy(data.coins()).float()
    y, x, height, width = _COIN
    template = photograph[y : y + height, x : x + width]
    # Half the contrast, brighter, and light that falls off from right to left.
    ramp = torch.linspace(0.0, 60.0, photograph.shape[1])
    changed = 0.5 * photograph + 50.0 + ramp
    scores = zncc(changed, template)
    # The coins stand so close that their boxes may touch.
    matches = match_template(
        changed, template, threshold=_COIN_THRESHOLD, min_distance=(height // 2, width // 2)
    )
    print("1. Find one coin in a photograph whose brightness and contrast were changed")
    print(f"   cut out at (y, x) = ({y}, {x}); found, best first:")
    for (row, column), score in zip(
        matches.positions.tolist(), matches.scores.tolist(), strict=True
    ):
        print(f"   ({row:6.2f}, {column:6.2f})  score {score:.3f}")
    print(
        "   the first is the coin itself, the others are coins like it "
        f"(score >= {_COIN_THRESHOLD})"
    )
    return draw_matches(
        changed.numpy(),
        matches,
        template=template.numpy(),
        score_map=scores.numpy(),
        title="Found under changed light: the coin itself\n(best score) and coins that resemble it",
    )


def _refine_patch() -> Figure:
    from scipy import ndimage
    from skimage import data

    photograph = data.camera()[20:240, 110:330].astype(np.float64)
    template = _turned_patch(ndimage.gaussian_filter(photograph, 0.7))
    image = torch.from_numpy(photograph)
    half = _PATCH // 2
    found = match_template(image, template, threshold=None, max_matches=1, subpixel=False)
    start = (*(found.positions[0] + half).tolist(), 0.0)
    course = _climb(image, template, start)
    pixels = [math.dist(step[:2], _CENTRE) for step in course]
    degrees = [abs(step[2] - _ANGLE) for step in course]
    print("2. Refine position and rotation of a template by following the gradient of its score")
    for name, at in (("start", 0), ("end", -1)):
        row, column, angle, score = course[at]
        print(
            f"   {name:5}  centre ({row:.3f}, {column:.3f}), angle {angle:6.3f}, "
            f"score {score:.4f}: "
            f"off by {pixels[at]:.3f} pixels and {degrees[at]:.3f} degrees"
        )

    reference = _standard(template.numpy())
    before, after = (
        _standard(_sample(image, *(torch.tensor(v) for v in course[at][:3])).detach().numpy())
        for at in (0, -1)
    )
    return draw_refinement(
        [
            ("Template\n(turned, shifted, other light)", reference - reference.min()),
            (f"Before: off by {pixels[0]:.2f} px, {degrees[0]:.1f} deg", before - before.min()),
            ("Template minus before", reference - before),
            (f"After: off by {pixels[-1]:.2f} px, {degrees[-1]:.2f} deg", after - after.min()),
            ("Template minus after", reference - after),
        ],
        [("position (pixels)", pixels), ("rotation (degrees)", degrees)],
        title="A template laid on its photograph by gradient ascent on ZNCC",
    )


def _turned_patch(photograph: NDArray[np.float64]) -> Tensor:
    """The patch at the true centre and angle, by SciPy's spline, in other light and with noise."""
    from scipy import ndimage

    rows, columns = _grid(*(torch.tensor(v, dtype=torch.float64) for v in (*_CENTRE, _ANGLE)))
    patch = ndimage.map_coordinates(photograph, [rows.numpy(), columns.numpy()], order=3)
    noise = np.random.default_rng(_SEED).normal(scale=2.0, size=patch.shape)
    return torch.from_numpy(0.6 * patch + 40.0 + noise)


def _grid(row: Tensor, column: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a patch about a centre, turned by an angle in degrees."""
    steps = torch.arange(_PATCH, dtype=torch.float64) - _PATCH // 2
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    turn = torch.deg2rad(angle)
    return row + v * turn.cos() - u * turn.sin(), column + v * turn.sin() + u * turn.cos()


def _sample(image: Tensor, row: Tensor, column: Tensor, angle: Tensor) -> Tensor:
    """The patch of the image there, ``(_PATCH, _PATCH)``, differentiable in the three numbers."""
    rows, columns = _grid(row, column, angle)
    height, width = image.shape
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
    return torch.nn.functional.grid_sample(
        image[None, None], grid[None], mode="bicubic", padding_mode="border", align_corners=True
    )[0, 0]


def _climb(
    image: Tensor, template: Tensor, start: tuple[float, float, float]
) -> list[tuple[float, float, float, float]]:
    """Row, column, angle and score at each step from the start to the top of the score."""
    place = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    course = []
    optimiser = torch.optim.Adam([place], lr=0.4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.98)
    for _ in range(200):
        optimiser.zero_grad()
        score = zncc(_sample(image, *place), template).squeeze()
        course.append((*place.tolist(), score.item()))
        (-score).backward()
        optimiser.step()
        schedule.step()
    return course


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean()) / values.std()


def _align_recordings() -> Figure:
    import pywt
    from scipy.interpolate import CubicSpline

    source = pywt.data.ecg().astype(np.float64)
    delay, length = 137.4, 640
    first = source[:700]
    # The second recorder starts late and between two samples of the first, with another gain,
    # another baseline, a slow drift and noise of its own.
    time = delay + np.arange(length)
    noise = np.random.default_rng(_SEED).normal(scale=6.0, size=length)
    drift = 12.0 * np.sin(2 * np.pi * np.arange(length) / 500.0)
    second = 0.6 * CubicSpline(np.arange(len(source)), source)(time) + 40.0 + drift + noise
    shift = estimate_shift(torch.from_numpy(first), torch.from_numpy(second), ndim=1)
    lag = float(shift.shift)
    print("3. Align two recordings of one heart: other start, gain, baseline, drift and noise")
    print(
        f"   lag found {lag:.2f} samples, true {delay:.2f}: off by {abs(lag - delay):.2f} samples, "
        f"score {float(shift.score):.3f}"
    )
    return draw_alignment(
        first,
        second,
        shift,
        names=("recording A", "recording B"),
        title=f"Two recordings of one electrocardiogram (true lag {delay:.2f})",
    )
