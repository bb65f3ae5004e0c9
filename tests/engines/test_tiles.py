"""The steps of the CPU engine against their definitions, and tilings against each other."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import tile_definitions
import torch
from inputs import draw
from tile_geometries import (
    GEOMETRIES,
    batch_of,
    every_dtype,
    every_geometry,
    every_line_too,
    every_tiling,
    image_of,
    rule_of,
    same,
)
from tolerances import SCORE

import torchcorr
from torchcorr._cpu.rules import ScoreRule
from torchcorr._definition import scores as definition
from torchcorr._definition.spectra import template_spectra
from torchcorr._plan import choose, predict, rounding
from torchcorr._plan.tiling import (
    Block,
    TileBatch,
    TileMoments,
    TileStats,
    Tiling,
    WindowState,
)

ops = torch.ops.torchcorr_cpu


def cut_stats(image: torch.Tensor, batch: TileBatch, centred: bool, pairs: bool) -> TileStats:
    return TileStats(ops.cut_tiles(image, batch.numbers, centred, False, pairs)[1])


def moments_of(
    image: torch.Tensor, stats: TileStats, batch: TileBatch, rule: ScoreRule, means: bool
) -> tuple[TileMoments, torch.Tensor]:
    *windows, doubtful = ops.tile_moments(image, stats.rows, batch.numbers, rule.numbers, means)
    return TileMoments(stats, *windows), doubtful


def test_states_have_the_values_of_the_kernels() -> None:
    header = (Path(__file__).parents[2] / "csrc" / "common" / "window_state.h").read_text()
    values = {name: int(value) for name, value in re.findall(r"k(\w+) = (\d+),", header)}
    names = {state.name.title().replace("_", ""): int(state) for state in WindowState}
    assert values == names


@every_geometry
@every_dtype
@pytest.mark.parametrize("pairs", (True, False))
@pytest.mark.parametrize("wide", (True, False))
def test_cut(name: str, dtype: torch.dtype, pairs: bool, wide: bool) -> None:
    batch, image = batch_of(name, pairs), image_of(name, dtype)
    image[1, 0].view(-1)[3] = math.inf
    tiles, rows = ops.cut_tiles(image, batch.numbers, True, wide, pairs)
    _, want = tile_definitions.cut_tiles(image, batch, True, wide, pairs)
    same(rows[:, 3], want[:, 3], 0)
    assert torch.equal(rows[:, 1].log2().frac(), torch.zeros(len(batch.tiles), dtype=torch.float64))
    # Level and scale may come from a sample; tiles must be cut by them.
    level, scale = (rows[:, i].view(-1, *(1,) * (image.dim() - 1)) for i in (0, 1))
    raw, there = tile_definitions.raw_tiles(image, batch)
    exact = torch.where(there & raw.isfinite(), (raw.double() - level) * scale, 0.0)
    if pairs:
        tiles = tiles.movedim(-1, 1).flatten(0, 1)
    same(tiles.double(), exact.to(tiles.dtype).double(), 2e-7 if tiles.dtype != exact.dtype else 0)
    power = exact.square().flatten(1).mean(1)
    # Squares of float32 tiles are added up in float32 along a row.
    same(rows[:, 2], power, 1e-6 if tiles.dtype == torch.float32 else 1e-12)
    assert (power < 16).all()


@every_line_too
@every_dtype
@pytest.mark.parametrize("pairs", (True, False))
@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("bad", (0.0, math.nan))
def test_moments(name: str, dtype: torch.dtype, pairs: bool, zero_mean: bool, bad: float) -> None:
    batch, image = batch_of(name, pairs), image_of(name, dtype)
    image[0, 1].view(-1)[image[0, 1].numel() * 2 // 3] += bad
    stats = cut_stats(image, batch, zero_mean, pairs)
    rule = rule_of(dtype, pairs, zero_mean=zero_mean)
    moments, doubtful = moments_of(image, stats, batch, rule, True)
    want, _ = tile_definitions.tile_moments(image, stats, batch, rule, True)
    assert moments.states.dtype == torch.uint8
    for row, i in enumerate(batch.tiles):
        inside = _valid(batch.tiling, i)
        got, exact = moments.states[row][inside], want.states[row][inside]
        # A window at a limit may fall on either side of it.
        agree = got == exact
        assert agree.float().mean() > 0.99 if agree.numel() else True
        assert torch.equal(got == WindowState.NON_FINITE, exact == WindowState.NON_FINITE)
        assert torch.equal(got == WindowState.FLAT, exact == WindowState.FLAT)
        norms, exact_norms = moments.norms[row][inside], want.norms[row][inside]
        same(norms[agree], exact_norms[agree], 2e-5 if dtype == torch.float32 else 1e-9)
        assert (norms[(got == WindowState.UNKNOWN) | (got == WindowState.FLAT)] == 0).all()
        assert torch.equal(norms.isnan(), got == WindowState.NON_FINITE)
        live = ~exact_norms.isnan()
        same(moments.means[row][inside][live], want.means[row][inside][live], 0, 1e-6)
        assert int(tile_definitions.is_doubtful(got).sum()) == int(doubtful[row])
        assert not moments.states[row].count_nonzero() > got.count_nonzero()
    if math.isnan(bad):
        assert (moments.states == WindowState.NON_FINITE).any()


@every_geometry
@every_dtype
@pytest.mark.parametrize("pairs", (True, False))
@pytest.mark.parametrize("zero_mean, eps", ((True, 0.0), (False, 0.0), (True, 1e-3)))
def test_merged_moments(
    name: str, dtype: torch.dtype, pairs: bool, zero_mean: bool, eps: float
) -> None:
    batch, image = batch_of(name, pairs), image_of(name, dtype)
    # So large a limit that it divides the windows.
    rule = rule_of(dtype, pairs, zero_mean=zero_mean)._replace(eps=eps, least_energy=0.4)
    stats = cut_stats(image, batch, zero_mean, pairs)
    numbers = (batch.numbers, rule.numbers, pairs)
    norms, states, means = ops.merged_moments(image, stats.rows, *numbers, True)
    want = tile_definitions.merged_moments(image, stats, batch, rule, pairs)
    assert norms.dtype == means.dtype == torch.float64
    same(norms, want.norms, 1e-6)
    same(means, want.means, 1e-9, 1e-11)
    assert torch.equal(states, want.states)
    *_, none = ops.merged_moments(image, stats.rows, *numbers, False)
    assert none.numel() == 0


def _valid(tiling: Tiling, tile: int) -> tuple[slice, ...]:
    if tile < 0:
        return tuple(slice(0, 0) for _ in tiling.grid)
    tile %= tiling.tiles
    index = np.unravel_index(tile, tiling.grid)
    return tuple(
        slice(0, max(0, min(m, n - int(t) * m)))
        for t, m, n in zip(index, tiling.outputs, tiling.positions, strict=True)
    )


@every_geometry
@every_dtype
@pytest.mark.parametrize("pairs", (True, False))
@pytest.mark.parametrize("noise, budget", ((0.0, math.inf), (0.3, 10**6), (0.3, 3)))
def test_normalise(name: str, dtype: torch.dtype, pairs: bool, noise: float, budget: float) -> None:
    batch, image, templates = batch_of(name, pairs, 1), image_of(name, dtype), 3
    tiling = batch.tiling
    count = 2 * math.prod(tiling.window)
    coefficients = draw((1, templates, 2, *tiling.window), seed=1)
    # A standardised template sums to zero.
    axes = tuple(range(2, coefficients.dim()))
    coefficients -= coefficients.mean(axes, keepdim=True)
    coefficients = torch.cat((coefficients, coefficients[:, :1]), 1)
    rule = rule_of(dtype, pairs, noise=noise, budget=budget)
    stats = cut_stats(image, batch, True, pairs)
    moments, _ = moments_of(image, stats, batch, rule, False)
    shape = (len(batch.tiles), templates, *tiling.outputs)
    if pairs:
        shape = (len(batch.tiles) // 2, templates, *tiling.length, 2)
    numerators = (draw(shape, dtype, seed=2) - 0.5) * count
    out = torch.full((2, templates + 1, *tiling.positions), math.nan, dtype=dtype)
    want = out.clone()
    operands = (image, coefficients, batch.numbers, rule.numbers)
    left = ops.normalise_tiles(numerators, moments.tensors, *operands, out)
    want_left = tile_definitions.normalise_tiles(
        numerators, moments, image, coefficients, batch, rule, want
    )
    assert torch.equal(left, want_left)
    assert out[:, 0].isnan().all() and not out[:, 1:].isnan().any()
    same(out[:, 1:], want[:, 1:], 1e-6, 1e-7 if dtype == torch.float32 else 1e-11)


def score_tiles(
    image: torch.Tensor,
    coefficients: torch.Tensor,
    batch: TileBatch,
    block: Block,
    *,
    transforms: bool,
    budget: float,
) -> torch.Tensor:
    """The map of a block's scores; NaN elsewhere."""
    tiling, dtype, spectra = batch.tiling, image.dtype, None
    limits = {t: rounding.transform_noise(dtype, t) for t in (dtype, torch.float64)}
    rule, wide = (
        rule_of(dtype, transforms, noise=limits[t] if transforms else 0.0, budget=budget)._replace(
            least_energy=(0.4 * limits[t]) ** 2
        )
        for t in (dtype, torch.float64)
    )
    wide = wide._replace(budget=math.inf)
    if transforms:
        part = coefficients[block.pairs, block.templates]
        spectra = template_spectra(part, tiling.length, dtype).flatten(0, 1).contiguous()
    lead = (image.shape[0], coefficients.shape[1])
    out = torch.full((*lead, *tiling.positions), math.nan, dtype=dtype)
    empty = TileBatch(tiling, []).numbers
    rules = (rule.numbers, wide.numbers)
    ops.score_tiles(image, coefficients, spectra, empty, block.numbers, *rules, None, [], out)
    return out


@every_tiling
@every_dtype
@pytest.mark.parametrize("transforms", (False, True), ids=("direct", "fft"))
@pytest.mark.parametrize("budget", (0, 10**6), ids=("wide", "exact"))
def test_score_tiles(name: str, dtype: torch.dtype, transforms: bool, budget: int) -> None:
    """Doubtful windows are right whether their tile is computed in float64 or they are alone."""
    batch, image = batch_of(name, transforms), image_of(name, dtype)
    tiling = batch.tiling
    ndim = len(tiling.window)
    coefficients = definition.standardise(draw((1, 3, 2, *tiling.window), seed=1), ndim, True)
    exact = definition.ncc(image.unsqueeze(1), coefficients, tiling.stride, True, 0.0, "direct")
    for units in (2, 1000):
        block = Block(slice(0, 1), slice(0, 3), units)
        out = score_tiles(image, coefficients, batch, block, transforms=transforms, budget=budget)
        same(out, exact, 0, SCORE[dtype])


@every_dtype
@pytest.mark.parametrize("transforms", (False, True), ids=("direct", "fft"))
def test_score_tiles_of_a_block(dtype: torch.dtype, transforms: bool) -> None:
    """Only the pairs and templates of the block are written, with the templates of each pair."""
    batch, image = batch_of("2d", transforms), image_of("2d", dtype)
    coefficients = definition.standardise(draw((2, 3, 2, 5, 8), seed=1), 2, True)
    options = {"transforms": transforms, "budget": 100}
    whole = score_tiles(image, coefficients, batch, Block(slice(0, 2), slice(0, 3), 2), **options)
    part = score_tiles(image, coefficients, batch, Block(slice(1, 2), slice(1, 3), 2), **options)
    assert torch.equal(part[1, 1:], whole[1, 1:]) and not whole.isnan().any()
    part[1, 1:] = math.nan
    assert part.isnan().all()


def test_geometry_is_checked() -> None:
    batch = batch_of("2d", False)
    image = image_of("2d", torch.float32)
    for numbers in ([], [0, 0], [4, 0], batch.numbers[:10]):
        with pytest.raises(RuntimeError, match="batch of tiles|nine numbers"):
            ops.cut_tiles(image, numbers, True, False, False)
    with pytest.raises(RuntimeError, match="cover its extent|lie in its tile"):
        wrong = replace(batch.tiling, extent=(0, 0))
        ops.cut_tiles(image, TileBatch(wrong, [0]).numbers, True, False, False)


@pytest.mark.parametrize("method", ("direct", "fft"))
@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("name", ("1d", "2d", "2d-stride", "3d", "3d-stride"))
def test_any_tiling_scores_the_same(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    name: str,
    zero_mean: bool,
    method: str,
) -> None:
    size, window, stride, grid = GEOMETRIES[name]
    image = image_of(name, torch.float32, 1)
    template = draw((3, *window), torch.float32, seed=4)
    score = torchcorr.zncc if zero_mean else torchcorr.ncc
    args = {"ndim": len(size), "stride": stride, "method": method}
    whole = score(image, template, **args)

    def cut(problem: predict.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(size, window, stride, grid, fast=method == "fft")
        return choose.Plan(
            method,
            tiling.outputs,
            tiling.length,
            tiling.parts,
            tiling.folds,
            tiling.tiles,
            2,
            1,
            0,
            0.0,
        )

    choose._arranged.cache_clear()
    monkeypatch.setattr(choose, "make_plan", cut)
    request.addfinalizer(choose._arranged.cache_clear)
    torch.testing.assert_close(score(image, template, **args), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ("direct", "fft"))
def test_hard_tiles_among_easy_ones(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, method: str
) -> None:
    """Tiles that need float64, pairs that lose a partner, recomputed windows: all at once."""
    rng = np.random.default_rng(5)
    image = rng.random((2, 120, 130)).astype(np.float32)
    image[0, 5, 6] = 1e6
    image[1, 60:, 70:] = 0.5 + 1e-6 * image[1, 60:, 70:]
    image[1, :40, :40] = 0.25
    image[0, 100, 100] = np.nan
    template = rng.random((2, 9, 9)).astype(np.float32)

    def cut(problem: predict.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(problem.size, (9, 9), (1, 1), (3, 3), fast=method == "fft")
        return choose.Plan(
            method, tiling.outputs, tiling.length, tiling.parts, tiling.folds, 9, 18, 1, 0, 0.0
        )

    choose._arranged.cache_clear()
    monkeypatch.setattr(choose, "make_plan", cut)
    request.addfinalizer(choose._arranged.cache_clear)
    got = torchcorr.zncc(torch.from_numpy(image), torch.from_numpy(template), method=method).numpy()
    for i in range(2):
        want = oracle.zncc(image[i], template[i])
        assert np.array_equal(np.isnan(got[i]), np.isnan(want))
        assert np.nanmax(np.abs(got[i] - want)) <= SCORE[torch.float32]
