"""Measures the constants of the cost model in `_plan/costs.py`: `python -m benchmarks.fit`.

With `--check` it times every method on a grid of problems and says how far `auto` is from the
best of them. Constants are nanoseconds with all threads; what counts is their ratios. With
`--device cuda` they are those of a GPU, to be kept under the name of its family.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from inputs import draw
from torch import Tensor

import torchcorr
from torchcorr._checks import METHODS
from torchcorr._cpu.rules import ScoreRule
from torchcorr._plan.tiling import TileBatch, Tiling, tile_length

from .measure import Call, alternate

# Bytes of a batch of tiles as complex numbers: what stays in cache together with the templates.
BATCH = int(2.4e6)
# The longest tiles that are measured, for each number of axes.
LONGEST = {1: 1 << 19, 2: 1536, 3: 160}
SHORTEST = {1: 512, 2: 32, 3: 8}
# Multiply-adds from which on the direct loop is too slow to be measured.
MOST_PRODUCTS = 2e10


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


def lengths(ndim: int) -> list[int]:
    """Lengths that tiles can have: those that `tile_length` returns."""
    tried = SHORTEST[ndim]
    all_lengths = []
    while tried <= LONGEST[ndim]:
        length = tile_length(tried, ndim)
        all_lengths.append(length)
        tried = length + (length // 8 & ~1 if ndim == 3 else length // 4) + 1
    return [n for n in dict.fromkeys(all_lengths) if n <= LONGEST[ndim]]


def transforms(rounds: int) -> Iterator[tuple[int, int, float]]:
    """(ndim, length, ns an element) of fftn and ifftn of complex tiles, each two real ones."""
    for ndim in (1, 2, 3):
        axes = tuple(range(-ndim, 0))
        for length in lengths(ndim):
            elements = length**ndim
            batch = max(2, BATCH // (8 * elements) // 2 * 2)
            tiles = torch.view_as_complex(draw((batch, *(length,) * ndim, 2), torch.float32))

            def pair(tiles: Tensor = tiles, axes: tuple[int, ...] = axes) -> Tensor:
                return torch.fft.ifftn(torch.fft.fftn(tiles, dim=axes), dim=axes, norm="forward")

            yield ndim, length, median_ns(pair, rounds) / (batch * elements)


def operators(rounds: int) -> Iterator[tuple[int, str, float]]:
    """(ndim, operator, ns an element of a tile) of the other steps of a score."""
    ops = torch.ops.torchcorr_cpu
    sizes = {1: (1 << 20, 1000, 1 << 14), 2: (1024, 33, 192), 3: (96, 9, 40)}
    for ndim, (size, window, length) in sizes.items():
        image = draw((1, 1, *(size,) * ndim), torch.float32)
        template = draw((1, 1, 1, *(window,) * ndim), torch.float64, seed=1)
        step, box = [1] * ndim, [window] * ndim
        grid = [-(-(size - window + 1) // (length - window + 1))] * ndim
        tiling = Tiling.cut(image.shape[2:], box, step, grid)
        elements = math.prod(tiling.length)
        count = max(2, min(BATCH // (4 * elements), tiling.tiles) // 2 * 2)
        batch = TileBatch(tiling, list(range(count))).numbers
        rule = ScoreRule(True, 0.0, 1e-6, False, 1e-8, 0.0, math.inf).numbers
        out = image.new_empty(1, 1, *tiling.positions)
        cut = partial(ops.cut_tiles, image, batch, True, False, True)
        tiles, stats = cut()
        moments = partial(ops.tile_moments, image, stats, batch, rule, False)
        *windows, _ = moments()
        normalise = partial(
            ops.normalise_tiles, tiles, [stats, *windows], image, template, batch, rule, out
        )
        calls = {"cut_tiles": cut, "tile_moments": moments, "normalise_tiles": normalise}
        for name, call in calls.items():
            yield ndim, name, median_ns(call, rounds) / (count * elements)


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
    doublings = []
    for ndim, length, ns in real_transforms(rounds, device, quick):
        doublings.append(ns / (ndim * math.log2(length)))
        print(f"# {ndim}-D, {length}: {ns:.4g} ns an element, {doublings[-1]:.3g} a doubling")
    doubling = statistics.median(doublings)
    print(f"transform={doubling:.3g}  # by doubling, one real transform")
    image, template = (draw((n, n), torch.float32, seed=n).to(device) for n in (size, 64))
    plan = torchcorr.plan(image, template, method="fft")
    elements = plan.tiles * math.prod(plan.transform)
    whole = median_ns(partial(torchcorr.zncc, image, template, method="fft"), rounds, device)
    through = 2 * doubling * math.log2(math.prod(plan.transform))
    print(f"tile_element={max(0.0, whole / elements - through):.3g}  # all but the transforms")
    position, product = direct_loop(torchcorr.correlate, rounds, size, device)
    _, scored = direct_loop(torchcorr.zncc, rounds, size, device)
    print(f"position={position:.3g}  # a position of the direct loop")
    print(f"product={product:.3g}  # a multiply-add of the direct loop")
    print(f"scored={scored / product:.3g}  # the same of a score, relative to it")
    print(f"batch={batch_overhead(rounds, device):.2g}  # a batch of tiles, whatever its size")


def fit(rounds: int) -> None:
    """Prints the constants, as lines that can be pasted."""
    print(f"# Nanoseconds of {torch.get_num_threads()} threads, by benchmarks/fit.py, in float32.")
    print("# Forward and inverse transform of a complex tile of two real ones, an element of it.")
    print("_PAIR = {")
    table: dict[int, dict[int, float]] = {}
    for ndim, length, ns in transforms(rounds):
        table.setdefault(ndim, {})[length] = ns
    for ndim, entries in table.items():
        print(f"    {ndim}: {{{', '.join(f'{n}: {ns:.2f}' for n, ns in entries.items())}}},")
    print("}")
    doublings = [
        ns / 4 / (ndim * math.log2(length))
        for ndim, entries in table.items()
        for length, ns in entries.items()
    ]
    doubling = statistics.median(doublings)
    print(f"transform={doubling:.3f}  # by doubling, half of one complex transform")
    shares: dict[int, float] = {}
    for ndim, name, ns in operators(rounds):
        print(f"# {name} in {ndim}-D: {ns:.2f} an element of a real tile")
        shares[ndim] = shares.get(ndim, 0.0) + ns
    listed = ", ".join(f"{ndim}-D {ns:.2f}" for ndim, ns in shares.items())
    print(f"tile_element={shares[2]:.2f}  # {listed}")
    position, product = direct_loop(torchcorr.correlate, rounds)
    print(f"position={position:.3g}  # a position of the direct loop")
    print(f"product={product:.3g}  # a multiply-add of the direct loop")
    print(f"batch={batch_overhead(rounds):.2g}  # a batch of tiles, whatever its size")


def problems(quick: bool) -> Iterator[tuple[int, int, int, int]]:
    """(ndim, size, window, templates) of the grid."""
    sizes = {1: (1000, 30_000, 1_000_000), 2: (64, 256, 1024), 3: (16, 48, 112)}
    windows = {1: (5, 50, 500, 5000), 2: (3, 7, 12, 16, 24, 48, 128), 3: (3, 5, 8, 16)}
    for ndim in (1, 2, 3):
        for size in sizes[ndim][: 1 if quick else None]:
            for window in windows[ndim]:
                if window <= size // 2:
                    yield from ((ndim, size, window, many) for many in (1, 8))


Function = Callable[..., Tensor]


def distances(
    function: Function, methods: Sequence[str], rounds: int, quick: bool, device: str
) -> Iterator[tuple[str, str, float]]:
    """(problem, best method, time of auto over that of the best) on the grid."""
    for ndim, size, window, many in problems(quick):
        image = draw((size,) * ndim, torch.float32).to(device)
        templates = draw((many, *(window,) * ndim), torch.float32, seed=1).to(device)
        candidates = list(methods)
        if many * size**ndim * window**ndim > MOST_PRODUCTS:
            candidates.remove("direct")
        calls = {
            m: finished(partial(function, image, templates, ndim=ndim, method=m), device)
            for m in candidates
        }
        times = {name: timing.ms for name, timing in alternate(calls, rounds, reverse=True).items()}
        best = min((m for m in candidates if m != "auto"), key=times.__getitem__)
        name = f"{ndim}-D, size {size}, window {window}, templates {many}"
        yield name, best, times["auto"] / times[best]


def check(rounds: int, quick: bool, device: str) -> None:
    """Prints how far `auto` is from the best method, for both functions that choose."""
    for function in (torchcorr.correlate, torchcorr.zncc):
        entries = list(distances(function, METHODS, rounds, quick, device))
        for name, best, ratio in entries:
            print(f"{function.__name__:10} {name:46} best {best:7} auto takes {ratio:.2f} × it")
        ratios = [ratio for _, _, ratio in entries]
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
        worst = max(entries, key=lambda entry: entry[2])
        print(f"{function.__name__}: geometric mean {mean:.3f}, worst {worst[2]:.2f} ({worst[0]})")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument("--check", action="store_true", help="how far is auto from the best?")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one round, the smallest problems")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.fit: no CUDA device is available", file=sys.stderr)
        return 2
    rounds = 1 if args.quick else args.rounds
    if args.check:
        check(rounds, args.quick, args.device)
    elif args.device == "cuda":
        fit_gpu(rounds, args.device, args.quick)
    else:
        fit(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
