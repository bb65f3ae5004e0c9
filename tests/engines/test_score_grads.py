"""The pass of the gradients of scores against their definition, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from inputs import draw, normal
from tile_geometries import (
    LIMITS,
    LONG,
    batch_of,
    every_dtype,
    every_tiling,
    image_of,
    rows_of_line,
    rule_of,
    same,
)
from tolerances import GRADIENT_OF_FLOAT32

import torchcorr
from torchcorr._cpu import steps
from torchcorr._definition import scores as definition
from torchcorr._definition.spectra import template_spectra
from torchcorr._plan import choose
from torchcorr._plan.tiling import Block, TileBatch, Tiling

ops = torch.ops.torchcorr_cpu


def score_grads(
    operands: list[torch.Tensor], tiling: Tiling, block: Block, wide: Sequence[int], budget: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both gradients for a block's templates, and the rounding of its units."""
    _, image, coefficients, _ = operands
    rule = rule_of(image.dtype, True, budget=budget)._replace(least_energy=0.0)
    part = coefficients[block.pairs, block.templates]
    spectra = template_spectra(part, tiling.length, image.dtype)
    narrow, double = torch.zeros_like(spectra), torch.zeros_like(spectra, dtype=torch.complex128)
    offsets = part.new_zeros(part.shape[:2])
    sums = [torch.zeros_like(image), narrow, double, offsets]
    batch = TileBatch(tiling, []).numbers
    spectra = spectra.flatten(0, 1)
    axes = tuple(range(3, part.dim()))
    rows = rows_of_line(tiling.length[-1])
    in_lines = block.large and len(axes) == 1
    if in_lines:
        spectra = spectra.unflatten(-1, (-1, rows)).mT.flatten(-2)
    options = (batch, block.numbers, list(wide), rule.numbers)
    noise = ops.score_grad_tiles(operands, spectra.contiguous(), *options, sums)
    total = narrow.to(torch.complex128) + double
    if in_lines:
        total = total.unflatten(-1, (rows, -1)).mT.flatten(-2)
    total = torch.fft.ifftn(total, dim=axes).real
    total = total[(..., *(slice(0, n) for n in tiling.window))]
    return sums[0], total - offsets[(..., *(None,) * (part.dim() - 2))], noise


@lru_cache
def score_grad_operands(
    name: str, dtype: torch.dtype, pairs: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """An upstream gradient, an input, three templates and their scores; both gradients."""
    tiling, image = batch_of(name, True).tiling, image_of(name, dtype)
    ndim = len(tiling.window)
    templates = definition.standardise(draw((pairs, 3, 2, *tiling.window), seed=1), ndim, True)
    wide = image.double().unsqueeze(1)
    score = definition.ncc(wide, templates, tiling.stride, True, 0.0, "direct")
    grad = (draw(tuple(score.shape), seed=5) - 0.5).to(dtype)
    how = (tiling.stride, True, 0.0, "direct", True, True)
    exact = definition.ncc_grads(grad.double(), wide, templates, score, *how)
    operands = [grad, image, templates, score.to(dtype)]
    return operands, [exact[0].squeeze(1), exact[1]]


def assert_gradients(name: str, dtype: torch.dtype, large: bool, wide: str, budget: int) -> None:
    """In units of two tiles and of all, of which some are computed in float64."""
    operands, exact = score_grad_operands(name, dtype, 1)
    tiling = batch_of(name, True).tiling
    # Spectra of long lines have an order in which they are not folded.
    large = large and (len(tiling.window) > 1 or tiling.folds == (1,))
    for tiles in (2, 1000):
        count = -(-2 * tiling.tiles // tiles)
        units = {"none": [], "one": [count - 1], "all": list(range(count))}[wide]
        block = Block(slice(0, 1), slice(0, 3), tiles, large)
        *grads, noise = score_grads(operands, tiling, block, units, budget)
        assert noise.shape == (count, 3) and (noise >= 0).all() and noise.any()
        bound = GRADIENT_OF_FLOAT32 if dtype == torch.float32 else 1e-9
        if dtype == torch.float32 and wide == "all":
            bound = 1e-6
        for got, want in zip(grads, exact, strict=True):
            same(got.double(), want, 0, bound * float(want.abs().max()))


@every_tiling
@every_dtype
@pytest.mark.parametrize("budget", (0, 10**6), ids=("merged", "exact"))
@pytest.mark.parametrize("wide", ("none", "one", "all"))
@pytest.mark.parametrize("large", (False, True), ids=("own", "shared"))
def test_score_grad_tiles(
    name: str, dtype: torch.dtype, large: bool, wide: str, budget: int
) -> None:
    assert_gradients(name, dtype, large, wide, budget)


@pytest.mark.parametrize("name", LONG)
@every_dtype
@pytest.mark.parametrize("large", (False, True), ids=("own", "shared"))
def test_score_grads_of_long_lines(name: str, dtype: torch.dtype, large: bool) -> None:
    """In pieces. Their faint parts need float64."""
    assert_gradients(name, dtype, large, "all", 10**6)


@every_dtype
def test_score_grads_of_a_block(dtype: torch.dtype) -> None:
    """Blocks add up to the gradients: those of each pair, with its own templates."""
    operands, exact = score_grad_operands("2d", dtype, 2)
    tiling, total = batch_of("2d", True).tiling, 0.0
    bound = GRADIENT_OF_FLOAT32 if dtype == torch.float32 else 1e-9
    for pair in range(2):
        for first, last in ((0, 1), (1, 3)):
            block = Block(slice(pair, pair + 1), slice(first, last), 2)
            for_input, for_templates, _ = score_grads(operands, tiling, block, [], 100)
            assert not for_input[1 - pair].any()
            total = total + for_input
            want = exact[1][pair : pair + 1, first:last]
            same(for_templates, want, 0, bound * float(want.abs().max()))
    same(total.double(), exact[0], 0, bound * float(exact[0].abs().max()))


@pytest.mark.parametrize("place", ("grad", "input"))
def test_score_grads_of_what_is_not_finite(place: str) -> None:
    operands = [x.clone() for x in score_grad_operands("2d", torch.float32, 1)[0]]
    operands[place == "input"].view(-1)[-77] = math.nan
    block = Block(slice(0, 1), slice(0, 3), 2)
    *_, noise = score_grads(operands, batch_of("2d", True).tiling, block, [], 100)
    assert noise.isnan().any()


@pytest.mark.parametrize("channels", ("independent", "joint"))
@pytest.mark.parametrize("offset", (1e3, 1e4))
def test_a_faint_region_far_from_the_level(channels: str, offset: float) -> None:
    """What goes to means and to squares of its windows nearly cancels."""
    size = (64, 64) if channels == "independent" else (2, 64, 64)
    image, template = normal(*size, seed=1).float(), normal(*size[:-2], 8, 8, seed=2).float()
    image[..., 20:40, 20:40] = offset + 1e-2 * image[..., 20:40, 20:40]
    upstream = normal(57, 57, seed=3).float()
    grads = []
    for dtype in LIMITS:
        # Alone: the template's gradient may need float64 by itself.
        x = image.to(dtype).requires_grad_()
        score = torchcorr.zncc(x, template.to(dtype), channels=channels)
        grads += torch.autograd.grad(score, x, upstream.to(dtype))
    got, want = grads
    assert float((got - want).abs().max()) <= GRADIENT_OF_FLOAT32 * float(want.abs().max())


@pytest.mark.parametrize("upstream", ("constant", "smooth"))
def test_a_template_below_a_smooth_gradient(upstream: str) -> None:
    """Sums over all positions are large where brightness changes from one end of the template to
    the other, and their rounding with them; the gradient is what is left without the means."""
    image, template = 1e-2 * normal(200, 200, seed=1).float(), normal(64, 64, seed=2).float()
    image[66:86, 66:91] += 50
    rows = torch.ones(137) if upstream == "constant" else torch.linspace(0, 6, 137).sin()
    grads = []
    for dtype in LIMITS:
        w = template.to(dtype).requires_grad_()
        score = torchcorr.zncc(image.to(dtype), w, method="fft")
        grads += torch.autograd.grad(score, w, rows[:, None].expand_as(score).to(dtype))
    got, want = grads
    assert float((got - want).abs().max()) <= GRADIENT_OF_FLOAT32 * float(want.abs().max())


def test_a_hard_tile_among_easy_ones(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """One hot pixel costs its own tiles a transform in float64, and no others."""
    image, template = draw((150, 160), torch.float32), draw((9, 9), torch.float32, 1)
    image[20, 30] = 1e6
    image[100:, 120:] = 0.5 + 1e-6 * image[100:, 120:]

    def cut(problem: choose.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(problem.size, problem.window, problem.stride, (4, 4))
        return choose.Plan(
            method, tiling.outputs, tiling.length, tiling.parts, tiling.folds, 16, 2, 1, 0, 0.0
        )

    choose._arranged.cache_clear()
    monkeypatch.setattr(choose, "make_plan", cut)
    request.addfinalizer(choose._arranged.cache_clear)
    wide: list[Sequence[int]] = []

    def spy(operands: list[torch.Tensor], *args: Any) -> torch.Tensor:
        wide.append(args[3])
        return ops.score_grad_tiles(operands, *args)

    monkeypatch.setattr(steps, "score_grad_tiles", spy)
    pairs = [[x.to(t).requires_grad_() for x in (image, template)] for t in LIMITS]
    grads = []
    for pair in pairs:
        score = torchcorr.zncc(*pair, method="fft")
        upstream = draw(tuple(score.shape), seed=5).sub(0.5).to(score.dtype)
        # A faint window would give by far the largest gradient.
        upstream[90:, 110:] = 0
        grads.append(torch.autograd.grad(score, pair, upstream))
    units = wide[1]
    assert not wide[0] and 0 in units and 0 < len(units) < 4
    for got, want in zip(*grads, strict=True):
        assert (got - want).abs().max() <= GRADIENT_OF_FLOAT32 * want.abs().max()


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-530, 2.0**-515, 2.0**515, 2.0**1000])
def test_squares_that_leave_float64(scale: float, method: str) -> None:
    def of(unit: float) -> list[torch.Tensor]:
        image = (draw((40, 41)) * unit).requires_grad_()
        template = (image.detach()[9:20, 5:19] * (2 / unit)).requires_grad_()
        score = torchcorr.zncc(image, template, method=method)
        grads = torch.autograd.grad(score, (image, template), draw(tuple(score.shape), seed=1))
        return [score.detach(), grads[0] * unit, grads[1]]

    for got, want in zip(of(scale), of(1.0), strict=True):
        assert (got - want).abs().max() <= 1e-13 * want.abs().max()
