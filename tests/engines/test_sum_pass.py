"""Plain sums in tiles, and the spectra of a template's gradient, against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tile_definitions
import torch
from inputs import draw, normal
from tile_geometries import GEOMETRIES, batch_of, image_of

import torchcorr
from torchcorr._cpu.rules import SumRule
from torchcorr._definition import correlate as correlation
from torchcorr._definition.spectra import template_spectra
from torchcorr._plan import rounding
from torchcorr._plan.tiling import Block, TileBatch

ops = torch.ops.torchcorr_cpu
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)


def same(got: torch.Tensor, want: torch.Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


def sum_tiles(
    image: torch.Tensor, weights: torch.Tensor, batch: TileBatch, block: Block, rule: SumRule
) -> tuple[torch.Tensor, list[list[int]]]:
    """The map of a block's sums, NaN elsewhere; tiles and templates with many unknown sums."""
    tiling = batch.tiling
    working = torch.float32 if rule.narrow_allowed > 0 else torch.float64
    spectra = template_spectra(weights[block.pairs, block.templates], tiling.length, working)
    spectra = spectra.flatten(0, 1).contiguous()
    lead = (image.shape[0], weights.shape[1])
    out = torch.full((*lead, *tiling.positions), math.nan, dtype=image.dtype)
    empty = TileBatch(tiling, []).numbers
    left = ops.sum_tiles(image, weights, spectra, empty, block.numbers, rule.numbers, out)
    return out, left.tolist()


def sum_rule(dtype: torch.dtype, narrow: bool, budget: float) -> SumRule:
    unit = rounding.unit(dtype)
    allowed = rounding.ALLOWED_ROUNDINGS_IN_FLOAT32 * unit if narrow else 0.0
    wide = math.inf if dtype == torch.float64 else rounding.ALLOWED_ROUNDINGS * unit
    noise = rounding.TRANSFORM_OF_SUMS * rounding.unit(torch.float64)
    return SumRule(rounding.TRANSFORM * unit, noise, allowed, wide, budget)


def exact_sums(
    image: torch.Tensor, weights: torch.Tensor, batch: TileBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of products and of absolute products, (items, templates, *positions), in float64."""
    paired = weights.repeat_interleave(image.shape[0] // weights.shape[0], 0)
    pair = image.double().unsqueeze(1), paired
    how = batch.tiling.stride
    sizes = tile_definitions.correlate(pair[0].abs(), pair[1].abs(), how)
    return tile_definitions.correlate(*pair, how), sizes


@every_geometry
@every_dtype
@pytest.mark.parametrize("narrow", (False, True), ids=("float64", "by-precision"))
@pytest.mark.parametrize("offset", (0.0, -5.0))
def test_sum_tiles(name: str, dtype: torch.dtype, narrow: bool, offset: float) -> None:
    if narrow and dtype == torch.float64:
        return
    batch, image = batch_of(name, True), image_of(name, dtype) + offset
    image[1, :, : image.shape[2] // 3] = 0
    weights = draw((1, 3, 2, *batch.tiling.window), torch.float32, seed=1).double()
    exact, sizes = exact_sums(image, weights, batch)
    for units in (2, 1000):
        block = Block(slice(0, 1), slice(0, 3), units)
        out, left = sum_tiles(image, weights, batch, block, sum_rule(dtype, narrow, 10**6))
        assert left == []
        if dtype == torch.float64:
            same(out, exact, 0, 1e-13 * float(sizes.max()))
        else:
            assert ((out.double() - exact).abs() <= 8 * rounding.unit(dtype) * sizes).all()


@every_dtype
def test_sum_tiles_of_a_block(dtype: torch.dtype) -> None:
    """Only the pairs and templates of the block are written, with the templates of each pair."""
    batch, image = batch_of("2d", True), image_of("2d", dtype)
    weights = draw((2, 3, 2, 5, 8), seed=1)
    rule = sum_rule(dtype, False, 100)
    whole, _ = sum_tiles(image, weights, batch, Block(slice(0, 2), slice(0, 3), 2), rule)
    part, _ = sum_tiles(image, weights, batch, Block(slice(1, 2), slice(1, 3), 2), rule)
    exact, _ = exact_sums(image, weights, batch)
    same(whole, exact.to(dtype), 4 * rounding.unit(torch.float32), 0)
    assert torch.equal(part[1, 1:], whole[1, 1:])
    part[1, 1:] = math.nan
    assert part.isnan().all()


@every_geometry
@every_dtype
@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_sums_that_are_not_finite(name: str, dtype: torch.dtype, bad: float) -> None:
    batch, image = batch_of(name, True), image_of(name, dtype) - 0.5
    image[1, 1].view(-1)[-3] = bad
    image[0, 0].view(-1)[:2] = torch.tensor([bad, -bad])
    weights = draw((1, 2, 2, *batch.tiling.window), seed=1) - 0.5
    weights[0, 0, 1, 0] = 0
    block = Block(slice(0, 1), slice(0, 2), 4)
    out, _ = sum_tiles(image, weights, batch, block, sum_rule(dtype, False, 10**6))
    exact, _ = exact_sums(image, weights, batch)
    assert torch.equal(out.isnan(), exact.isnan())
    infinite = exact.isinf()
    assert torch.equal(out[infinite].double(), exact[infinite])
    finite = exact.isfinite()
    same(out[finite].double(), exact[finite], 1e-6, 1e-6)


def test_sums_that_are_left() -> None:
    """Faint windows are recomputed, or left if they are more than the budget."""
    batch, image = batch_of("2d", True), image_of("2d", torch.float32)
    image[0, :, 12:] *= 1e-20
    weights = draw((1, 1, 2, *batch.tiling.window), seed=1)
    block = Block(slice(0, 1), slice(0, 1), 4)
    _, left = sum_tiles(image, weights, batch, block, sum_rule(torch.float32, False, 0))
    assert left and all(0 <= t < batch.tiling.tiles and k == 0 for t, k in left)
    out, none = sum_tiles(image, weights, batch, block, sum_rule(torch.float32, False, 10**6))
    exact, sizes = exact_sums(image, weights, batch)
    assert none == []
    assert ((out.double() - exact).abs() <= 8 * rounding.unit(torch.float32) * sizes).all()


@every_geometry
@pytest.mark.parametrize("groups, parts", ((1, 1), (3, 1), (1, 2)))
def test_template_grad_spectra(name: str, groups: int, parts: int) -> None:
    batch, image = batch_of(name, True), image_of(name, torch.float64)
    tiling = batch.tiling
    if any(s > 1 for s in tiling.stride):
        return
    upstream = draw((2, 3, *tiling.positions), seed=3) - 0.5
    ones = (1,) * len(tiling.window)
    of_upstream = replace(tiling, window=ones, extent=tiling.outputs)
    numbers = (TileBatch(of_upstream, []).numbers, TileBatch(tiling, []).numbers)
    total = ops.template_grad_spectra(upstream, image, *numbers, 1, groups, parts)
    lines = torch.fft.ifftn(total, dim=tuple(range(-len(ones), 0))).real
    got = lines[(..., *(slice(0, k) for k in tiling.window))][0]
    # Items are summed over.
    shape = (3, 2, *tiling.window)
    want = sum(
        correlation.correlate_template_grad(g, x.unsqueeze(0), shape, tiling.stride, "direct")
        for g, x in zip(upstream, image, strict=True)
    )
    same(got, want, 1e-10, 1e-10 * float(want.abs().max()))


@pytest.mark.parametrize("fade", (False, True))
def test_faint_values_at_the_ends_of_long_signals(fade: bool) -> None:
    """By the direct loop a call takes minutes; the first overlaps are of few faint samples."""
    n = 200_000
    shape = torch.hann_window(n, periodic=False, dtype=torch.float64) if fade else 1.0
    one, other = ((normal(n, seed=seed) * shape).float() for seed in (6, 7))
    got = torchcorr.correlate(one, other, ndim=1, mode="full")
    for k in (1, 2, 100, 5000):
        products = one[:k].double() * other[n - k :].double()
        error = abs(got[k - 1].double() - products.sum())
        assert error <= 8 * rounding.unit(torch.float32) * products.abs().sum()
