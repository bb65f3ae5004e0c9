"""Scores of calls whose shapes, values, layouts, masks and options are drawn at random.

Each option has its own tests elsewhere; here they meet, as in the calls that nobody thought of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from inputs import array, tensor
from numpy.random import Generator
from tolerances import SCORE
from torch import Tensor

import torchcorr

SIZES = {1: (20, 400), 2: (10, 44), 3: (5, 11)}
DTYPES = (torch.float32, torch.float64, torch.uint8, torch.int8, torch.float16)
WEIGHTS = ("none", "none", "input", "template", "both", "box")


def values(rng: Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Noise, some of it faint, flat, steep, of few levels, or beside one large element."""
    x, half = rng.normal(size=shape), (..., slice(0, shape[-1] // 2))
    kind = rng.integers(6)
    if kind == 1:
        x[half] *= 10.0 ** -rng.integers(1, 7)
    elif kind == 2:
        x[half] = 1.7
    elif kind == 3:
        x = np.round(3 * x)
    elif kind == 4 and dtype != torch.float16:
        x = 0.01 * x + 10 * np.arange(shape[-1])
    elif kind == 5 and dtype != torch.float16:
        x.flat[rng.integers(x.size)] = 1e4
    if dtype.is_floating_point:
        return tensor(x, dtype)
    limits = torch.iinfo(dtype)
    level = (limits.min + limits.max + 1) // 2
    return tensor(np.clip(np.round(30 * x) + level, limits.min, limits.max), dtype)


def in_memory(rng: Generator, x: Tensor) -> Tensor:
    """x as a part of something larger, turned, with its channels last, or expanded."""
    kind = rng.integers(5)
    if kind == 1:
        around = x.new_full([n + 4 for n in x.shape], torch.nan if x.is_floating_point() else 1)
        return around[(slice(1, -3),) * x.dim()].copy_(x)
    if kind == 2 and x.dim() > 1:
        return x.mT.contiguous().mT
    if kind == 3 and x.dim() > 2:
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if kind == 4 and x.dim() > 2:
        return x[..., :1, :, :].expand(x.shape)
    return x


def masks(rng: Generator, size: tuple[int, ...], window: tuple[int, ...]) -> dict[str, Tensor]:
    kind, found = WEIGHTS[rng.integers(len(WEIGHTS))], {}
    if kind in ("input", "both"):
        found["input_mask"] = rng.random(size) < 0.8
    if kind == "box":
        there = np.zeros(size)
        there[tuple(slice(rng.integers(n // 3 + 1), n - rng.integers(n // 3)) for n in size)] = 1
        found["input_mask"] = there
    if kind in ("template", "both"):
        soft = rng.random(window) * (rng.random(window) < 0.7)
        found["template_mask"] = soft if rng.random() < 0.5 else soft > 0
    types = {name: torch.bool if m.dtype == bool else torch.float32 for name, m in found.items()}
    return {name: tensor(m, types[name]) for name, m in found.items() if m.any()}


@pytest.mark.parametrize("seed", range(200))
def test_scores_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng([seed, 1])

    def one_of(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    ndim = one_of(1, 2, 2, 3)
    size = tuple(int(n) for n in rng.integers(*SIZES[ndim], size=ndim))
    window = tuple(int(rng.integers(1, max(2, 2 * n // 3))) for n in size)
    channels = one_of("independent", "joint", "pooled")
    core = () if channels == "independent" else (one_of(1, 2, 3),)
    lead, of_template = one_of(((), ()), ((2,), ()), ((2, 3), (2, 1)), ((3,), (4, 1)))
    dtype = one_of(*DTYPES, torch.float32, torch.float32)
    input = in_memory(rng, values(rng, (*lead, *core, *size), dtype))
    template = in_memory(rng, values(rng, (*of_template, *core, *window), dtype))
    how: dict[str, Any] = {"ndim": ndim, "channels": channels, "stride": one_of(1, 1, 2, 3)}
    how |= {"mode": one_of("valid", "valid", "same", "full"), "eps": one_of(0.0, 0.05)}
    how |= {"min_overlap": one_of(0.0, 0.3, 0.7)}
    if how["mode"] != "valid":
        how["pad_mode"] = one_of("constant", "replicate", "ignore")
    weights = masks(rng, size, window)
    exact = {name: array(m).astype(np.float64) for name, m in weights.items()}
    name = one_of("zncc", "zncc", "ncc")
    pair = (array(x.double()) for x in (input, template))
    want = getattr(oracle, name)(*pair, **how, **exact)
    for method in ("direct", "fft", "auto"):
        got = getattr(torchcorr, name)(input, template, method=method, **how, **weights)
        assert got.shape == want.shape
        assert float(np.abs(array(got) - want).max()) <= SCORE.get(dtype, SCORE[torch.float32])
