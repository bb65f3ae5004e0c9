"""Tilings against each other, and their arithmetic."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from inputs import draw
from tile_geometries import GEOMETRIES, image_of
from tolerances import SCORE

import torchcorr
from torchcorr._plan import choose
from torchcorr._plan.leads import Leads
from torchcorr._plan.shapes import output_size
from torchcorr._plan.tiling import Tiling, tile_length


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

    def cut(problem: choose.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(size, window, stride, grid, fast=method == "fft")
        return choose.Plan(method, tiling.outputs, tiling.length, tiling.tiles, 2, 1, 0, 0.0)

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

    def cut(problem: choose.Problem, method: str) -> choose.Plan:
        tiling = Tiling.cut(problem.size, (9, 9), (1, 1), (3, 3), fast=method == "fft")
        return choose.Plan(method, tiling.outputs, tiling.length, 9, 18, 1, 0, 0.0)

    choose._arranged.cache_clear()
    monkeypatch.setattr(choose, "make_plan", cut)
    request.addfinalizer(choose._arranged.cache_clear)
    got = torchcorr.zncc(torch.from_numpy(image), torch.from_numpy(template), method=method).numpy()
    for i in range(2):
        want = oracle.zncc(image[i], template[i])
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
    restored = leads.restored(paired.reshape(-1, leads.templates, 2), 1)
    assert torch.equal(restored, x + w)
    assert torch.equal(leads.output(restored, 1), paired.reshape(-1, leads.templates, 2))


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
