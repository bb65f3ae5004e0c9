"""Direct sums from halves of rows: whole numbers exactly, others within their rounding."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import draw, normal
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

import torchcorr
from torchcorr._cpu.scores import _HALVED_NOISE
from torchcorr._plan.choose import arrange
from torchcorr._plan.predict import halvings, is_halved

halved = torch.ops.torchcorr_cpu.correlate_halved
DTYPES = (torch.float32, torch.float64)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Geometry(NamedTuple):
    """Tiles (count, channels, *size) and so many templates (channels, *window)."""

    tiles: tuple[int, ...]
    window: tuple[int, ...]
    templates: int = 1


GEOMETRIES = {
    # Halved once, twice and three times, without and with rows that are left.
    "8": Geometry((1, 1, 60, 90), (8, 5)),
    "9": Geometry((1, 1, 60, 90), (9, 8)),
    "15": Geometry((1, 1, 61, 90), (15, 15)),
    "16": Geometry((1, 1, 63, 90), (16, 16)),
    "19": Geometry((1, 1, 80, 90), (19, 17)),
    "32": Geometry((1, 1, 90, 70), (32, 32)),
    "39": Geometry((1, 1, 120, 60), (39, 33)),
    # Rows of sums that fill no block, less than half of one, more, and several parts.
    "one-row": Geometry((1, 1, 16, 40), (16, 7)),
    "three-rows": Geometry((1, 1, 18, 40), (16, 7)),
    "few-rows": Geometry((1, 1, 20, 40), (16, 7)),
    "a-block-and-few": Geometry((1, 1, 42, 40), (16, 7)),
    "a-block-and-most": Geometry((1, 1, 60, 40), (16, 7)),
    "parts": Geometry((1, 1, 120, 530), (16, 3)),
    "many-columns": Geometry((1, 1, 12, 57_900), (9, 2)),
    "fewest-columns": Geometry((1, 1, 40, 20), (16, 5)),
    "one-column": Geometry((2, 1, 40, 30), (16, 1)),
    # Several of everything.
    "tiles-and-templates": Geometry((3, 1, 40, 50), (10, 6), 4),
    "channels": Geometry((2, 3, 40, 50), (12, 9), 2),
    "volumes": Geometry((2, 1, 7, 30, 40), (3, 8, 6), 2),
    "one-position-deep": Geometry((2, 2, 3, 30, 40), (3, 8, 6), 2),
}
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)


def operands(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole numbers, as tiles (count, 1, C, *size) and templates (1, templates, C, *window)."""
    tiles, window, templates = GEOMETRIES[name]
    x = draw((tiles[0], 1, *tiles[1:]), torch.int8) % 17
    return x.to(dtype), (draw((1, templates, tiles[1], *window), torch.int8) % 13).to(dtype)


def by_convolution(tiles: Tensor, templates: Tensor) -> Tensor:
    conv = F.conv3d if tiles.dim() == 6 else F.conv2d
    return conv(tiles[:, 0].double(), templates[0].double())


@every_geometry
@every_dtype
def test_sums_of_whole_numbers_are_exact(name: str, dtype: torch.dtype) -> None:
    tiles, templates = operands(name, dtype)
    got = halved(tiles, templates)
    assert got.dtype == dtype
    assert torch.equal(got.double(), by_convolution(tiles, templates))


@pytest.mark.parametrize("name", ("19", "parts", "tiles-and-templates", "volumes"))
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    tiles, templates = (x + 0.1 for x in operands(name, torch.float32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(halved(tiles, templates))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("rows", (8, 11, 16, 32))
@every_dtype
def test_a_sum_takes_nothing_beside_its_window(rows: int, dtype: torch.dtype) -> None:
    image, template = normal(60, 50, seed=0, dtype=dtype), normal(rows, 9, seed=1, dtype=dtype)
    whole = halved(image[None, None, None], template[None, None, None])[0, 0]
    for y, x in ((0, 0), (7, 20), (60 - rows, 41), (13, 3)):
        beside = torch.full_like(image, math.nan)
        beside[y : y + rows, x : x + 9] = image[y : y + rows, x : x + 9]
        got = halved(beside[None, None, None], template[None, None, None])[0, 0]
        assert got[y, x] == whole[y, x]
        assert got.isnan().sum() == got.numel() - 1


@pytest.mark.parametrize(
    "window", ((8, 8), (8, 64), (16, 16), (32, 16), (32, 32), (128, 16)), ids=str
)
@pytest.mark.parametrize("kind", ("noise", "level", "rows", "columns"))
@every_dtype
def test_rounding_is_that_of_the_rule(
    window: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    """Relative to the norms of window and template, less the mean of the template."""
    size = (window[0] + 40, window[1] + 60)
    image, template = normal(*size, seed=2), normal(*window, seed=3)
    if kind == "level":
        image = image + 20
    elif kind != "noise":
        axis = 0 if kind == "rows" else 1
        ramp = torch.arange(float(size[axis]), dtype=torch.float64)
        ramp = (ramp[:, None] if axis == 0 else ramp).expand(size)
        image = ramp + 0.1 * image
        template = ramp[: window[0], : window[1]] + 0.1 * template
    template = template - template.mean()
    x, t = image.to(dtype), template.to(dtype)
    how = {"normalised": True, "dtype": dtype, "device": "cpu"}
    call = arrange((1, *x.shape), (1, *t.shape), (1, 1), "direct", **how)
    assert is_halved(call.problem, call.tiling)
    windows = sliding_window_view(x.numpy().astype(np.longdouble), t.shape)
    exact = (windows * t.numpy()).sum((-2, -1))
    norms = np.sqrt((windows**2).sum((-2, -1)) * (t.numpy().astype(np.longdouble) ** 2).sum())
    got = halved(x[None, None, None], t[None, None, None])[0, 0].numpy()
    error = float((np.abs(got - exact) / norms).max()) / (torch.finfo(dtype).eps / 2)
    assert 0 < error < 0.9 * _HALVED_NOISE


@pytest.mark.parametrize("window", ((64, 64), (8, 72), (160, 16)), ids=str)
def test_sums_of_many_products_take_the_plain_loop(window: tuple[int, int]) -> None:
    """Rounding grows with the number of sums that are added."""
    how = {"normalised": True, "dtype": torch.float32, "device": "cpu"}
    call = arrange((1, 300, 300), (1, *window), (1, 1), "direct", **how)
    assert not is_halved(call.problem, call.tiling)


@pytest.mark.parametrize("rows", (8, 13, 16, 32))
@every_dtype
def test_scores_keep_the_promise(rows: int, dtype: torch.dtype) -> None:
    """Noise beside a faint ramp, all of it on a level."""
    image = normal(170, 160, seed=4)
    image[:, 80:] = 0.02 * image[:, 80:] + torch.arange(170.0, dtype=torch.float64)[:, None] / 50
    x = (image + 30).to(dtype)
    t = x[40 : 40 + rows, 70 : 70 + rows].clone()
    how = {"normalised": True, "dtype": dtype, "device": "cpu"}
    call = arrange((1, *x.shape), (1, *t.shape), (1, 1), "direct", **how)
    assert is_halved(call.problem, call.tiling)
    exact = torchcorr.zncc(x.double(), t.double(), method="fft")
    error = (torchcorr.zncc(x, t, method="direct") - exact).abs().max()
    assert float(error) < (1e-5 if dtype == torch.float32 else 1e-10)


def test_the_number_of_halvings() -> None:
    assert [halvings(rows) for rows in (1, 7, 8, 15, 16, 31, 32, 200)] == [0, 0, 1, 1, 2, 2, 3, 3]
