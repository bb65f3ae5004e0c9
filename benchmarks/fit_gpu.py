"""Measures the constants of a GPU for the cost model in `_plan/costs.py`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from inputs import draw
from torch import Tensor

import torchcorr

from .measure import Call


def finished(call: Call, device: str) -> Call:
    """A call that includes the time the device takes for it."""
    if device == "cpu":
        return call

    def until_done() -> object:
        result = call()
        torch.cuda.synchronize()
        return result

    return until_done


def median_ns(call: Call, rounds: int, device: str = "cpu") -> float:
    """Median nanoseconds of a call, after a warm-up."""
    spent, timed = [], finished(call, device)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        timed()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:]) * 1e9


def direct_loop(
    function: Call, rounds: int, size: int = 1024, device: str = "cpu"
) -> tuple[float, float]:
    """(ns a position, ns a multiply-add) of a direct loop, by least squares over windows."""
    image = draw((size, size), torch.float32).to(device)
    rows, times = [], []
    for window in (3, 5, 7, 9, 11, 16, 24):
        template = draw((window, window), torch.float32, seed=1).to(device)
        scores = (size - window + 1) ** 2
        rows.append([scores, scores * window**2])
        call = partial(function, image, template, method="direct")
        times.append(median_ns(call, rounds, device))
    # Each window weighs the same: the fit is of relative errors.
    scaled = np.array(rows) / np.array(times)[:, None]
    position, product = np.linalg.lstsq(scaled, np.ones(len(times)), rcond=None)[0]
    return float(position), float(product)


def batch_overhead(rounds: int, device: str = "cpu") -> float:
    """ns of a batch of almost no work."""
    image, template = (draw((n, n), torch.float32, seed=n).to(device) for n in (16, 3))
    call = partial(torchcorr.zncc, image, template, method="fft")
    return median_ns(call, 20 * rounds, device)


def real_transforms(rounds: int, device: str, quick: bool) -> Iterator[tuple[int, int, float]]:
    """(ndim, length, ns an element) of a transform of real tiles: half of forward and inverse."""
    batch = 1 << (16 if quick else 24)
    for ndim, longest in ((1, 1 << 22), (2, 4096), (3, 256)):
        axes = tuple(range(-ndim, 0))
        length = 64
        while length <= longest and length**ndim <= batch:
            shape = (batch // length**ndim, *(length,) * ndim)
            tiles = draw(shape, torch.float32).to(device)

            def pair(tiles: Tensor = tiles, axes: tuple[int, ...] = axes) -> Tensor:
                spectrum = torch.fft.rfftn(tiles, dim=axes)
                return torch.fft.irfftn(spectrum, s=tiles.shape[1:], dim=axes, norm="forward")

            yield ndim, length, median_ns(pair, rounds, device) / (2 * tiles.numel())
            length *= 2


def fit_gpu(rounds: int, device: str, quick: bool) -> None:
    """Prints the constants of a GPU, as lines that can be pasted."""
    size = 256 if quick else 4096
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        print(f'# "cuda {major}.{minor}": {torch.cuda.get_device_name()}, in float32.')
    doublings: dict[int, list[float]] = {}
    for ndim, length, ns in real_transforms(rounds, device, quick):
        doublings.setdefault(ndim, []).append(ns / (ndim * math.log2(length)))
        print(f"# {ndim}-D, {length}: {ns:.4g} ns an element, {doublings[ndim][-1]:.3g} a doubling")
    medians = {ndim: statistics.median(found) for ndim, found in doublings.items()}
    listed = ", ".join(f"{found:.3g}" for found in medians.values())
    print(f"transform=({listed}),  # by doubling, one real transform")
    image, template = (draw((n, n), torch.float32, seed=n).to(device) for n in (size, 64))
    plan = torchcorr.plan(image, template, method="fft")
    elements = plan.tiles * math.prod(plan.transform)
    whole = median_ns(partial(torchcorr.zncc, image, template, method="fft"), rounds, device)
    through = 2 * medians[2] * math.log2(math.prod(plan.transform))
    print(f"tile_element={max(0.0, whole / elements - through):.3g}  # all but the transforms")
    position, product = direct_loop(torchcorr.correlate, rounds, size, device)
    _, scored = direct_loop(torchcorr.zncc, rounds, size, device)
    print(f"position={position:.3g}  # a position of the direct loop")
    print(f"product={product:.3g}  # a multiply-add of the direct loop")
    print(f"scored={scored / product:.3g}  # the same of a score, relative to it")
    print(f"batch={batch_overhead(rounds, device):.2g}  # a batch of tiles, whatever its size")
