"""The tile kernels against their definitions in plain torch, and tilings against each other."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import tile_definitions
import torch
from inputs import draw
from tolerances import SCORE

import torchcorr
from torchcorr._definition import scores as definition
from torchcorr._plan import choose
from torchcorr._plan.leads import Leads
from torchcorr._plan.shapes import output_size
from torchcorr._plan.tiling import EMPTY, Tiling, tile_length

ops = torch.ops.torchcorr_cpu
# size, window, stride, tiles along each axis
GEOMETRIES = {
    "1d": ((67,), (5,), (1,), (3,)),
    "1d-long": ((9001,), (400,), (3,), (4,)),
    "1d-one-tile": ((31,), (31,), (1,), (1,)),
    "2d": ((37, 41), (5, 8), (1, 1), (2, 3)),
    "2d-thin-last-tile": ((30, 33), (4, 3), (1, 1), (4, 6)),
    "2d-stride": ((37, 45), (6, 4), (2, 3), (3, 2)),
    "2d-stride-past-window": ((29, 31), (2, 3), (3, 5), (2, 2)),
    "2d-tall-window": ((90, 20), (70, 3), (1, 1), (2, 1)),
    "3d": ((13, 11, 19), (3, 4, 5), (1, 1, 1), (2, 2, 2)),
    "3d-stride": ((12, 17, 15), (4, 3, 2), (2, 3, 1), (2, 1, 3)),
}
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
LIMITS = {torch.float32: (5.5e-3, 1e-8), torch.float64: (2e-10, 3e-5)}


def tilings(name: str, pairs: bool) -> tuple[Tiling, list[int]]:
    size, window, stride, grid = GEOMETRIES[name]
    tiling = Tiling.cut(size, window, stride, grid, fast=pairs)
    ids = list(range(2 * tiling.tiles))
    return tiling, ids + [EMPTY] * (len(ids) % 2)


def image_of(name: str, dtype: torch.dtype, channels: int = 2) -> torch.Tensor:
    """Noise with a flat part, a faint part and an offset."""
    size = GEOMETRIES[name][0]
    image = draw((2, channels, *size), torch.float64)
    image[0, :, : size[0] // 3] = 0.25
    image[1, :, size[0] // 2 :] *= 1e-3
    return (image + 5).to(dtype)


def same(got: torch.Tensor, want: torch.Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


@every_geometry
@every_dtype
@pytest.mark.parametrize("pairs", (True, False))
@pytest.mark.parametrize("wide", (True, False))
def test_gather(name: str, dtype: torch.dtype, pairs: bool, wide: bool) -> None:
    tiling, ids = tilings(name, pairs)
    image = image_of(name, dtype)
    image[1, 0].view(-1)[3] = math.inf
    args = (image, ids, tiling.numbers, True, wide, pairs)
    tiles, stats = ops.gather_tiles(*args)
    _, want = tile_definitions.gather_tiles(*args)
    same(stats[:, 3], want[:, 3], 0)
    assert torch.equal(stats[:, 1].log2().frac(), torch.zeros(len(ids), dtype=torch.float64))
    # Level and scale may come from a sample; what they stand for must hold.
    level, scale = (stats[:, i].view(-1, *(1,) * (image.dim() - 1)) for i in (0, 1))
    raw, there = tile_definitions._cut(image, ids, tiling.numbers)
    exact = torch.where(there & raw.isfinite(), (raw.double() - level) * scale, 0.0)
    if pairs:
        tiles = tiles.movedim(-1, 1).flatten(0, 1)
    same(tiles.double(), exact.to(tiles.dtype).double(), 2e-7 if tiles.dtype != exact.dtype else 0)
    power = exact.square().flatten(1).mean(1)
    same(stats[:, 2], power, 1e-12)
    assert (power < 16).all()


@every_geometry
@every_dtype
@pytest.mark.parametrize("pairs", (True, False))
@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("bad", (0.0, math.nan))
def test_norms(name: str, dtype: torch.dtype, pairs: bool, zero_mean: bool, bad: float) -> None:
    tiling, ids = tilings(name, pairs)
    image = image_of(name, dtype)
    image[0, 1].view(-1)[image[0, 1].numel() * 2 // 3] += bad
    _, stats = ops.gather_tiles(image, ids, tiling.numbers, zero_mean, False, pairs)
    args = (stats, image, ids, tiling.numbers, list(tiling.window), list(tiling.stride))
    rest = (zero_mean, not pairs, 0.0, *LIMITS[dtype], True)
    norms, faint, means = ops.tile_norms(*args, *rest)
    want, _, want_means = tile_definitions.tile_norms(*args, *rest)
    for row, i in enumerate(ids):
        inside = _valid(tiling, i)
        got, exact = norms[row][inside], want[row][inside]
        # A window at the limit may fall on either side of it.
        agree = (got < 0) == (exact < 0)
        assert agree.float().mean() > 0.99 if agree.numel() else True
        same(got[agree], exact[agree], 2e-5 if dtype == torch.float32 else 1e-9)
        live = ~exact.isnan()
        same(means[row][inside][live], want_means[row][inside][live], 0, 1e-6)
        assert int((got < 0).sum()) == int(faint[row])
    if math.isnan(bad):
        assert norms.isnan().any()


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
@pytest.mark.parametrize("noise, budget", ((0.0, 10**6), (0.3, 10**6), (0.3, 3)))
def test_finish(name: str, dtype: torch.dtype, pairs: bool, noise: float, budget: int) -> None:
    tiling, ids = tilings(name, pairs)
    image, templates = image_of(name, dtype), 3
    count = 2 * math.prod(tiling.window)
    taps = draw((1, templates, 2, *tiling.window), seed=1)
    # A standardised template sums to zero.
    taps -= taps.mean(tuple(range(2, taps.dim())), keepdim=True)
    _, stats = ops.gather_tiles(image, ids, tiling.numbers, True, False, pairs)
    stride = list(tiling.stride)
    norms, _, _ = ops.tile_norms(
        stats, image, ids, tiling.numbers, list(tiling.window), stride, True, not pairs, 0.0,
        *LIMITS[dtype], False,
    )  # fmt: skip
    shape = (len(ids), templates, *norms.shape[1:])
    if pairs:
        shape = (len(ids) // 2, templates, *tiling.length, 2)
    numerators = (draw(shape, dtype, seed=2) - 0.5) * count
    rest = (norms, stats, image, taps, ids, tiling.numbers, stride, 1, True, 0.0, noise, budget)
    out = torch.full((2, templates + 1, *tiling.positions), math.nan, dtype=dtype)
    want = out.clone()
    more = torch.cat((taps, taps[:, :1]), 1)
    rest = (*rest[:3], more, *rest[4:])
    left = ops.finish_tiles(numerators, *rest, out)
    want_left = tile_definitions.finish_tiles(numerators, *rest, want)
    assert torch.equal(left, want_left)
    assert out[:, 0].isnan().all() and not out[:, 1:].isnan().any()
    same(out[:, 1:], want[:, 1:], 1e-6, 1e-7 if dtype == torch.float32 else 1e-11)


@every_geometry
@every_dtype
@pytest.mark.parametrize("at_once", (1, 3))
def test_direct_scores(name: str, dtype: torch.dtype, at_once: int) -> None:
    tiling, _ = tilings(name, False)
    ids, image = list(range(2 * tiling.tiles)), image_of(name, dtype)
    taps = definition.standardise(draw((2, 3, 2, *tiling.window), seed=1), len(tiling.window), True)
    place = (ids, tiling.numbers, list(tiling.window), list(tiling.stride), at_once, True, 0.0)
    out = torch.full((2, 3, *tiling.positions), math.nan, dtype=dtype)
    want = out.clone()
    args = (image, taps, taps.to(dtype).unsqueeze(1), *place, *LIMITS[dtype], 10**6)
    left, _ = ops.direct_scores(*args, out)
    want_left, _ = tile_definitions.direct_scores(*args, want)
    assert torch.equal(left, want_left) and not left.any()
    same(out, want, 0, 2e-6 if dtype == torch.float32 else 1e-10)
    left, _ = ops.direct_scores(*args[:-1], 0, out)
    assert int(left.sum()) == int(tile_definitions.direct_scores(*args[:-1], 0, want)[0].sum())


@every_geometry
@every_dtype
@pytest.mark.parametrize("budget", (0, 5, 10**6))
@pytest.mark.parametrize("bounded", (True, False))
def test_sums(name: str, dtype: torch.dtype, budget: int, bounded: bool) -> None:
    tiling, ids = tilings(name, True)
    image, templates = image_of(name, dtype) - 5, 3
    image[1, :, : image.shape[2] // 3] = 0
    taps = draw((1, templates + 1, 2, *tiling.window), seed=1)
    _, stats = ops.gather_tiles(image, ids, tiling.numbers, True, True, True)
    shape = (len(ids) // 2, templates, *tiling.length, 2)
    numerators = draw(shape, seed=2) - 0.5
    bound = draw(shape, torch.float32, 3) if bounded else None
    rest = (stats, bound, None, image, taps, ids, tiling.numbers, list(tiling.stride), 1)
    limits = (10.0, 1.0, budget)
    out = torch.full((2, templates + 1, *tiling.positions), math.nan, dtype=dtype)
    want = out.clone()
    left = ops.finish_sums(numerators, *rest, *limits, out)
    want_left = tile_definitions.finish_sums(numerators, *rest, *limits, want)
    assert torch.equal(left, want_left)
    assert (left > 0).any() or budget > 0 or name != "2d"
    assert budget < 10**6 or not (left > 0).any()
    same(out, want, 1e-6 if dtype == torch.float32 else 1e-12, 1e-12)


def _normed(name: str, dtype: torch.dtype, wide: bool):
    """Tiles of pairs with norms and means, in their own or in double precision."""
    tiling, ids = tilings(name, True)
    image = image_of(name, dtype)
    _, stats = ops.gather_tiles(image, ids, tiling.numbers, True, False, True)
    place = (image, ids, tiling.numbers, list(tiling.window), list(tiling.stride))
    norms, _, means = tile_definitions.tile_norms(
        stats, *place, True, False, 0.0, *LIMITS[dtype], True
    )
    if wide:
        norms, means = norms.double(), means.double()
    return tiling, ids, stats, place, norms, means


@every_geometry
@every_dtype
@pytest.mark.parametrize("wide", (True, False))
def test_repair(name: str, dtype: torch.dtype, wide: bool) -> None:
    tiling, ids, stats, place, norms, means = _normed(name, dtype, wide)
    norms.view(-1)[::3] *= -1
    norms.view(-1)[1::3] = -math.inf
    want = norms.clone(), means.clone()
    ops.repair_norms(norms, means, stats, *place, True, 0.0)
    tile_definitions.repair_norms(*want, stats, *place, True, 0.0)
    rtol = 1e-6 if norms.dtype == torch.float32 else 1e-9
    for row, i in enumerate(ids):
        inside = _valid(tiling, i)
        same(norms[row][inside], want[0][row][inside], rtol)
        same(means[row][inside], want[1][row][inside], 0, 1e-6)
        assert not (norms[row][inside] < 0).any()


@every_geometry
@every_dtype
@pytest.mark.parametrize("of_tiles", (True, False))
def test_upstream(name: str, dtype: torch.dtype, of_tiles: bool) -> None:
    tiling, ids, stats, place, norms, means = _normed(name, dtype, of_tiles)
    grad = draw((2, 4, *tiling.positions), dtype, 1)
    score = draw(grad.shape, dtype, 2)
    if of_tiles:
        score = draw((len(ids), 2, *norms.shape[1:]), seed=2)
    args = (grad, score, norms, means, ids, tiling.numbers, list(tiling.stride), 9.0, 1, 2)
    maps = [draw(norms.shape, norms.dtype, 3), draw(norms.shape, norms.dtype, 4)]
    want_maps = [m.clone() for m in maps]
    alpha, sums = ops.tile_upstream(*args, of_tiles, *maps)
    want, want_sums = tile_definitions.tile_upstream(*args, of_tiles, *want_maps)
    tight = 1e-6 if norms.dtype == torch.float32 else 1e-13
    same(alpha, want, tight)
    same(sums, want_sums, 1e-9, 1e-9 * float(want_sums.abs().max()))
    for got, exact in zip(maps, want_maps, strict=True):
        same(got, exact, tight, tight)


@every_geometry
@every_dtype
@pytest.mark.parametrize("wide", (True, False))
def test_back_to_the_input(name: str, dtype: torch.dtype, wide: bool) -> None:
    tiling, ids, stats, place, norms, _ = _normed(name, dtype, wide)
    found = draw((len(ids) // 2, 2, *tiling.length, 2), norms.dtype, 1)
    maps = draw(norms.shape, norms.dtype, 2), draw(norms.shape, norms.dtype, 3)
    for row, i in enumerate(ids):
        # Nothing goes to positions that are not there.
        inside = _valid(tiling, i)
        for m in maps:
            kept = m[row][inside].clone()
            m[row] = 0
            m[row][inside] = kept
    out = draw(place[0].shape, dtype, 4)
    want = out.double()
    ops.tile_input_grad(found.clone(), *maps, stats, *place, out)
    tile_definitions.tile_input_grad(found, *maps, stats, *place, want)
    tight = 1e-5 if dtype == torch.float32 else 1e-12
    same(out.double(), want, tight, tight * float(want.abs().max()))


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
    taps = draw((3, *window), torch.float32, seed=4)
    score = torchcorr.zncc if zero_mean else torchcorr.ncc
    args = {"ndim": len(size), "stride": stride, "method": method}
    whole = score(image, taps, **args)

    def cut(problem: choose.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(size, window, stride, grid, fast=method == "fft")
        return choose.Plan(method, tiling.outputs, tiling.length, tiling.tiles, 2, 1, 0, 0.0)

    choose._arranged.cache_clear()
    monkeypatch.setattr(choose, "make_plan", cut)
    request.addfinalizer(choose._arranged.cache_clear)
    torch.testing.assert_close(score(image, taps, **args), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ("direct", "fft"))
def test_hard_tiles_among_easy_ones(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, method: str
) -> None:
    """Tiles that need float64, pairs that lose a partner, windows computed again: all at once."""
    rng = np.random.default_rng(5)
    image = rng.random((2, 120, 130)).astype(np.float32)
    image[0, 5, 6] = 1e6
    image[1, 60:, 70:] = 0.5 + 1e-6 * image[1, 60:, 70:]
    image[1, :40, :40] = 0.25
    image[0, 100, 100] = np.nan
    taps = rng.random((2, 9, 9)).astype(np.float32)

    def cut(problem: choose.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(problem.size, (9, 9), (1, 1), (3, 3), fast=method == "fft")
        return choose.Plan(method, tiling.outputs, tiling.length, 9, 18, 1, 0, 0.0)

    choose._arranged.cache_clear()
    monkeypatch.setattr(choose, "make_plan", cut)
    request.addfinalizer(choose._arranged.cache_clear)
    got = torchcorr.zncc(torch.from_numpy(image), torch.from_numpy(taps), method=method).numpy()
    for i in range(2):
        want = oracle.zncc(image[i], taps[i])
        assert np.array_equal(np.isnan(got[i]), np.isnan(want))
        assert np.nanmax(np.abs(got[i] - want)) <= SCORE[torch.float32]


@pytest.mark.parametrize(
    ("a", "b"),
    (
        ((), ()),
        ((3,), ()),
        ((), (3,)),
        ((2, 3), (2, 3)),
        ((2, 1, 4), (3, 1)),
        ((4, 1), (1, 5)),
        ((1, 5), (4, 1)),
        ((2, 3, 1), (2, 1, 4)),
        ((1,), (1, 1)),
    ),
)
def test_leads_are_sorted_and_restored(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, w = draw((*a, 2)), draw((*b, 2), seed=1)
    leads = Leads.of(a, b)
    xs, ws = leads.input(x, 1), leads.template(w, 1)
    paired = xs.reshape(leads.paired, leads.inputs, 1, 2) + ws.reshape(
        leads.paired, 1, leads.templates, 2
    )
    found = leads.restored(paired.reshape(-1, leads.templates, 2), 1)
    assert torch.equal(found, x + w)
    assert torch.equal(leads.output(found, 1), paired.reshape(-1, leads.templates, 2))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_tiling_covers_every_position_once(name: str) -> None:
    size, window, stride, grid = GEOMETRIES[name]
    tiling = Tiling.cut(size, window, stride, grid, fast=True)
    assert tiling.positions == output_size(size, window, stride)
    seen = np.zeros(tiling.positions, int)
    for tile in range(tiling.tiles):
        index = np.unravel_index(tile, tiling.grid)
        at = tuple(
            slice(int(t) * m, (int(t) + 1) * m) for t, m in zip(index, tiling.outputs, strict=True)
        )
        assert seen[at].size > 0
        seen[at] += 1
    assert (seen == 1).all()
    for m, s, k, e, n in zip(
        tiling.outputs, stride, window, tiling.extent, tiling.length, strict=True
    ):
        assert e == (m - 1) * s + k <= n


def test_tile_lengths_are_tight_and_smooth() -> None:
    for ndim in (1, 2, 3):
        for n in range(1, 3000):
            length = tile_length(n, ndim)
            assert n <= length <= max(1.34 * n, n + 16)
            for prime in (2, 3, 5, 7):
                while length % prime == 0:
                    length //= prime
            assert length == 1
