"""Fits the constants of the cost model in `_plan/costs.py`: `python -m benchmarks.fit`.

With `--check` it times every method on a grid of problems and says how far `auto` is from the
best of them. Constants are nanoseconds of two cores; what counts is their ratios. With
`--device cuda` they are those of a GPU, to be kept under the name of its family.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from inputs import draw
from numpy.typing import NDArray
from torch import Tensor

import torchcorr
from torchcorr._checks import METHODS
from torchcorr._plan.choose import Arrangement, arrange
from torchcorr._plan.costs import _COSTS, Costs, costs_of
from torchcorr._plan.predict import cost

from .fit_gpu import finished, fit_gpu
from .measure import alternate

# Multiply-adds and results from which on a method is too slow to be measured, or takes too much.
MOST_PRODUCTS, MOST_RESULTS = 2e10, 3e7
# Elements of tiles that are transformed at once, if one has fewer.
ROW = 1 << 17
# Lengths whose transforms are measured alone, for one to three axes.
LENGTHS = (
    (512, 1024, 2048, 4096, 10240, 20480, 40960, 81920, 163840, 327680),
    (96, 128, 192, 240, 288, 320, 384, 448, 576, 640, 768, 960, 1152, 1536, 2304),
    (24, 32, 40, 48, 56, 64, 80, 96, 128, 160),
)
# Constants fitted to whole calls: fields of `Costs` and indices of those that are tuples.
FITTED = (
    *(("shape", i) for i in (0, 2)),
    *(("sums", i) for i in range(2)),
    *(("unit", i) for i in range(2)),
    *((name, None) for name in ("prepared", "tile_element", "emitted")),
    *((name, None) for name in ("score_element", "position", "scored_position", "product")),
)
DTYPES = (torch.float32, torch.float64)
CORES = 2


@dataclass(frozen=True)
class Sample:
    """A call that was measured, and the nanoseconds of one core."""

    name: str
    call: Arrangement
    ns: float


def problems(quick: bool) -> Iterator[tuple[int, int, int, int]]:
    """(ndim, size, window, templates) of the grid."""
    sizes = {1: (1000, 30_000, 1_000_000), 2: (64, 256, 1024), 3: (16, 48, 112)}
    windows = {1: (5, 50, 500, 5000), 2: (3, 7, 12, 16, 24, 48, 128), 3: (3, 5, 8, 16)}
    for ndim in (1, 2, 3):
        for size in sizes[ndim][: 1 if quick else None]:
            for window in windows[ndim]:
                if window <= size // 2:
                    yield from ((ndim, size, window, many) for many in (1, 8, 24))


def fitted_logs(errors: Callable[..., Any], start: Sequence[float]) -> NDArray[np.float64]:
    """Positive numbers of least errors, which are a function of their logarithms."""
    from scipy.optimize import least_squares

    found = least_squares(errors, np.log(start), loss="soft_l1", f_scale=0.2).x
    return np.asarray(np.exp(found))


def transforms(rounds: int, ndim: int, longest: int) -> tuple[float, tuple[float, float]]:
    """Cost of an element for each doubling of its tile, and `Costs.strain`: what each MiB of a tile
    beyond those that a core holds, which are given, adds to it.

    Of complex tiles, each two real ones; in whole calls their tile lengths hardly differ.
    """
    sizes, times = [], []
    for length in LENGTHS[ndim - 1]:
        elements = length**ndim
        batch = max(1, ROW // elements)
        if elements > longest:
            continue
        tiles = torch.view_as_complex(draw((batch, *(length,) * ndim, 2), torch.float32))
        axes = tuple(range(-ndim, 0))

        def pair(x: Tensor = tiles, axes: tuple[int, ...] = axes) -> Tensor:
            return torch.fft.ifftn(torch.fft.fftn(x, dim=axes), dim=axes, norm="forward")

        ms = alternate({"pair": pair}, rounds, clock=time.process_time)["pair"].ms
        sizes.append(8 * elements / 2**20)
        times.append(ms * 1e6 / (4 * CORES * batch * elements * math.log2(elements)))
    start = costs_of("cpu")
    held, per_mib = start.strain[ndim - 1]
    most, beyond = start.most_strain[ndim - 1], np.maximum(0.0, np.array(sizes) - held)
    ns = np.array(times)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        base, strain = np.exp(logs)
        return np.log(ns / base / (1 + np.minimum(most, strain * beyond)))

    base, per_mib = fitted_logs(errors, [start.transform[ndim - 1], per_mib])
    return float(base), (held, float(per_mib))


def arrangement(name: str, x: Tensor, w: Tensor, ndim: int, method: str) -> Arrangement:
    """How a call is computed, on a CPU without other instructions for 8-bit integers."""
    normalised = name == "zncc"
    shapes = ((1, *x.shape), (len(w), 1, *w.shape[1:]), (1,) * ndim)
    return arrange(*shapes, method, normalised=normalised, dtype=x.dtype, device="cpu")


def samples(rounds: int, quick: bool) -> Iterator[Sample]:
    """Times of calls on one thread, in which other processes take no part."""
    functions = {"correlate": torchcorr.correlate, "zncc": torchcorr.zncc}
    for name, function in functions.items():
        for dtype in DTYPES:
            for ndim, size, window, many in problems(quick):
                products = many * size**ndim * window**ndim
                if many * size**ndim > MOST_RESULTS:
                    continue
                x = draw((size,) * ndim, dtype)
                w = draw((many, *(window,) * ndim), dtype, seed=1)
                methods = ["fft", "direct"] if products < MOST_PRODUCTS / 4 else ["fft"]
                calls = {m: partial(function, x, w, ndim=ndim, method=m) for m in methods}
                times = alternate(calls, rounds, clock=time.process_time, reverse=True)
                for method, timing in times.items():
                    call = arrangement(name, x, w, ndim, method)
                    yield Sample(f"{name} {method}", call, timing.ms * 1e6)


def with_values(costs: Costs, values: Sequence[float]) -> Costs:
    """Costs with other values of what is fitted."""
    fields: dict[str, Any] = {}
    for (name, index), value in zip(FITTED, values, strict=True):
        if index is None:
            fields[name] = value
        else:
            before = fields.get(name, getattr(costs, name))
            fields[name] = (*before[:index], value, *before[index + 1 :])
    return costs._replace(**fields)


def predicted(sample: Sample, costs: Costs) -> float:
    """Nanoseconds of one core by the model, with these costs, for noise."""
    _COSTS["fit"] = costs._replace(smooth=1.0)
    problem, plan = sample.call.problem._replace(device="fit"), sample.call.plan
    args = (problem, sample.call.tiling, plan.method, plan.batch, plan.templates)
    return CORES * cost(*args)


def fitted(measured: Sequence[Sample], start: Costs) -> Costs:
    """The costs of least relative errors; what calls cost whatever their size is fitted too."""
    values = [getattr(start, n) if i is None else getattr(start, n)[i] for n, i in FITTED]
    names = sorted({sample.name.split()[0] for sample in measured})
    overhead = [5e4] * len(names)

    def errors(logs: NDArray[np.float64]) -> list[float]:
        found = np.exp(logs)
        costs, calls = with_values(start, found[: len(FITTED)].tolist()), found[len(FITTED) :]
        of = dict(zip(names, calls, strict=True))
        return [math.log(s.ns / (predicted(s, costs) + of[s.name.split()[0]])) for s in measured]

    found = fitted_logs(errors, [*values, *overhead])
    left = errors(np.log(found))
    for name in sorted({sample.name for sample in measured}):
        those = [e for e, s in zip(left, measured, strict=True) if s.name == name]
        spread = statistics.pstdev(those)
        print(f"# {name}: {len(those)} calls, off by a factor of {math.exp(spread):.2f}")
    return with_values(start, found[: len(FITTED)].tolist())


def fit(rounds: int, quick: bool) -> None:
    """Prints the constants, as lines that can be pasted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    longest = 1 << (16 if quick else 23)
    transform, strain = zip(*(transforms(rounds, n, longest) for n in (1, 2, 3)), strict=True)
    start = costs_of("cpu")._replace(transform=transform, strain=strain)
    costs = fitted(list(samples(rounds, quick)), start)
    torch.set_num_threads(threads)
    for name in ("transform", "strain", *dict.fromkeys(name for name, _ in FITTED)):
        print(f"{name}={_digits(getattr(costs, name))},")


def _digits(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_digits, value))})"
    return f"{value:.2g}"


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
        fit(rounds, args.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
