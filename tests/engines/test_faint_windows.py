"""A second look at the faint windows of tiles: as exact as float64, without its transforms."""

from __future__ import annotations

import math

import pytest
import torch
from inputs import normal
from tolerances import SCORE
from torch import Tensor

import torchcorr
from torchcorr._cpu import counters
from torchcorr._plan import rounding

# Shape of the image, window.
SHAPES = {
    "line": ((60_000,), (3000,)),
    "plane": ((300, 420), (40, 32)),
    "odd plane": ((257, 391), (31, 40)),
    "volume": ((70, 60, 90), (12, 10, 14)),
}

PERIOD = 6000  # of the parts of a line, elements


def halves(size: tuple[int, ...], contrast: float, seed: int = 0) -> Tensor:
    """Noise of size 1 in the first half of the last axis, or in every other part of a long one, and
    much less beside it, on a slope."""
    image = normal(*size, seed=seed)
    at = torch.arange(size[-1])
    faint = (at // min(PERIOD, size[-1] // 2)) % 2 == 1
    slope = 2.0 * at / size[-1]
    return torch.where(faint, 0.3 + contrast * (image + slope), image).float()


def scores(image: Tensor, template: Tensor, **how: object) -> tuple[Tensor, counters.Ways]:
    counters.take()
    found = torchcorr.zncc(image, template, ndim=template.dim(), method="fft", **how)
    return found, counters.take()


def error(found: Tensor, image: Tensor, template: Tensor) -> float:
    exact = torchcorr.zncc(image.double(), template.double(), ndim=template.dim(), method="direct")
    return float((found - exact).abs().max())


@pytest.mark.parametrize("part", ("faint", "strong"))
@pytest.mark.parametrize("name", SHAPES)
def test_a_faint_half_is_exact(name: str, part: str) -> None:
    size, window = SHAPES[name]
    image = halves(size, 1 / 300)
    period = min(PERIOD, size[-1] // 2)
    first = [n // 3 for n in size[:-1]] + [period * 4 // 3 if part == "faint" else 5]
    inside = tuple(slice(i, i + k) for i, k in zip(first, window, strict=True))
    template = image[inside].clone()
    found, ways = scores(image, template)
    assert error(found, image, template) <= SCORE[torch.float32]
    assert ways.looked_again > 0
    assert ways.float64 == 0


def test_without_it_the_estimate_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first look gives for these windows is worse than what is promised of others."""
    size, window = SHAPES["plane"]
    image = halves(size, 1 / 3000)
    template = image[100:140, 300:332].clone()
    monkeypatch.setattr(rounding, "TRANSFORM", 1e-6)
    torchcorr._cpu.scores._rules.cache_clear()
    found, ways = scores(image, template)
    torchcorr._cpu.scores._rules.cache_clear()
    assert ways.looked_again == 0
    assert error(found, image, template) > SCORE[torch.float32]


@pytest.mark.parametrize("value", (math.nan, math.inf, 1e30))
def test_what_no_faint_window_contains_is_of_no_account(value: float) -> None:
    image = halves((300, 420), 1 / 300)
    image[40:60, 20:40] = value
    template = image[100:140, 300:332].clone()
    found, ways = scores(image, template)
    exact = torchcorr.zncc(image.double(), template.double(), method="direct")
    assert torch.equal(found.isnan(), exact.isnan())
    assert float((found - exact).nan_to_num().abs().max()) <= SCORE[torch.float32]


def test_channels_that_share_a_mean() -> None:
    image = halves((2, 300, 420), 1 / 300)
    template = image[:, 100:140, 300:332].clone()
    counters.take()
    found = torchcorr.zncc(image, template, channels="pooled", method="fft")
    ways = counters.take()
    exact = torchcorr.zncc(image.double(), template.double(), channels="pooled", method="direct")
    assert float((found - exact).abs().max()) <= SCORE[torch.float32]
    assert ways.looked_again > 0


def test_several_templates_and_images() -> None:
    images = torch.stack([halves((300, 420), 1 / 300, seed=i) for i in range(3)])
    templates = torch.stack([images[0, 100:140, 250 + i : 282 + i] for i in (0, 30, 60)])
    counters.take()
    found = torchcorr.zncc(images[:, None], templates, method="fft")
    assert counters.take().looked_again > 0
    exact = torchcorr.zncc(images[:, None].double(), templates.double(), method="direct")
    assert float((found - exact).abs().max()) <= SCORE[torch.float32]


def test_too_faint_for_a_second_look() -> None:
    """Steps of contrast: what is left of the tile rounds too much for its faintest part."""
    image = halves((300, 420), 1 / 300)
    image[:, 300:] = 0.3 + (image[:, 300:] - 0.3) / 60
    template = image[100:140, 350:382].clone()
    found, _ = scores(image, template)
    assert error(found, image, template) <= SCORE[torch.float32]
