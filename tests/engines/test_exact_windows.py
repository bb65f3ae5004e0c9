"""Windows that are recomputed from their definition: in float32 where a level near their mean
allows it, alone or beside each other, and in float64 elsewhere."""

from __future__ import annotations

import pytest
import torch
from inputs import normal
from tolerances import SCORE
from torch import Tensor

import torchcorr
from torchcorr._cpu import counters

# What float32 sums about a level of a window may cost, of the promised 1e-5.
ERROR = SCORE[torch.float32] / 2
# Rows, columns: shorter than a vector, one, not a multiple, several, and more than a run of sums.
WINDOWS = ((9, 7), (16, 16), (12, 19), (31, 40), (9, 133))


def patched(rows: int, columns: int, *lead: int, seed: int = 0) -> Tensor:
    """Noise with a patch of two levels and little contrast, windows of which lie side by side on
    both sides of the edge."""
    image = normal(*lead, 3 * rows + 200, 5 * columns + 240, seed=seed)
    patch = image[..., 20 : 20 + rows + 6, 30 : 30 + 2 * columns + 50]
    patch *= 1e-2
    patch += 0.3
    patch[..., columns + 6 :] += 20.0
    return image.float()


def check(image: Tensor, template: Tensor, method: str, **how: object) -> counters.Ways:
    counters.take()
    found = torchcorr.zncc(image, template, method=method, **how)
    ways = counters.take()
    exact = torchcorr.zncc(image.double(), template.double(), method="direct", **how)
    assert float((found - exact).abs().max()) <= ERROR
    return ways


@pytest.mark.parametrize("method", ("direct", "fft"))
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_neighbours_on_both_sides_of_an_edge(window: tuple[int, int], method: str) -> None:
    rows, columns = window
    image = patched(rows, columns)
    for first in (22, 80):
        template = image[first : first + rows, 33 : 33 + columns].clone()
        ways = check(image, template, method)
        assert ways.exact_windows >= 100
        assert ways.float64 == 0


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_few_windows_of_a_row(window: tuple[int, int]) -> None:
    """Patches that only a few windows fit in, so that each is computed alone."""
    rows, columns = window
    image = normal(3 * rows + 200, 5 * columns + 240, seed=0)
    for i in range(5):
        at = 10 + i * (columns + 12)
        patch = image[20 + 3 * i :, at:][: rows + 3, : columns + 4]
        patch *= 1e-2
        patch += i
    image = image.float()
    template = image[21 : 21 + rows, 12 : 12 + columns].clone()
    assert 150 >= check(image, template, "fft").exact_windows >= 20


@pytest.mark.parametrize("channels", ("joint", "pooled"))
def test_channels_at_levels_of_their_own(channels: str) -> None:
    image = patched(16, 20, 3)
    image += torch.tensor([0.0, 50.0, -7.0])[:, None, None] * (channels == "joint")
    template = image[:, 22:38, 33:53].clone()
    ways = check(image, template, "fft", channels=channels)
    assert ways.exact_windows >= 100


def test_volumes_and_strides() -> None:
    volume = normal(30, 60, 160, seed=0)
    volume[5:15, 9:30, 20:90] = volume[5:15, 9:30, 20:90] * 1e-2 + 2.0
    volume = volume.float()
    template = volume[6:12, 10:22, 25:43].clone()
    assert check(volume, template, "fft", ndim=3).exact_windows >= 100
    image = patched(16, 18)
    template = image[22:38, 33:51].clone()
    assert check(image, template, "direct", stride=(1, 2)).exact_windows >= 50


@pytest.mark.parametrize("scale", (1e-30, 1e-12, 1e12, 1e30))
def test_squares_that_leave_float32(scale: float) -> None:
    image = patched(16, 20)
    small = image * scale
    template = image[22:38, 33:53].clone()
    assert check(small, template, "fft").exact_windows >= 100


def test_without_means() -> None:
    image = patched(16, 20)
    patch = image[20:42, 30:120]
    patch -= patch.mean()
    patch *= 1e-2
    template = image[22:38, 33:53].clone()
    found = torchcorr.ncc(image, template, method="fft")
    exact = torchcorr.ncc(image.double(), template.double(), method="direct")
    assert float((found - exact).abs().max()) <= ERROR
