"""The arithmetic of tilings and of leading axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inputs import draw
from tile_geometries import GEOMETRIES

from torchcorr._plan.leads import Leads
from torchcorr._plan.shapes import output_size
from torchcorr._plan.tiling import Tiling, tile_length


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
