"""Times torchcorr on a GPU: `python -m benchmarks.gpu`, on a machine that has one.

Absolute milliseconds, synchronised, medians of at least forty calls, with those of
plain PyTorch. They are written to `results/gpu.csv` with card, versions and date. With
`--device cpu --quick` everything runs once, to test the code; the times mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from inputs import draw
from torch import Tensor

import torchcorr

from . import RESULTS, accuracy, peers
from .cases import _with_gradients, cut
from .measure import Accuracy, Bound, Row, Settings, Timing, at_least, at_most, machine
from .report import read, write
from .run import line, merged

TABLE = RESULTS / "gpu.csv"
ROUNDS = 40
Call = Callable[[], Any]


def milliseconds(call: Call, device: str, rounds: int) -> Timing:
    """Median time of a call from an idle device to an idle device, after three to warm up."""
    result = call()
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        if device == "cpu":
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return Timing(statistics.median(times), rounds, result)


def captured(call: Call, device: str) -> Call:
    """The call as a CUDA graph that is replayed."""
    if device == "cpu":
        return call
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak(call: Call, device: str) -> float:
    """Bytes that a call takes at most, beyond what was there before."""
    if device == "cpu":
        return 0.0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


class Table:
    """The rows, on one device."""

    def __init__(self, settings: Settings, device: str) -> None:
        self.settings, self.device = settings, device

    def image(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Noise; a sixteenth of the size in a quick run."""
        small = tuple(max(48, n // 64) if n > 64 else n for n in size)
        return draw(small if self.settings.quick else size, dtype).to(self.device)

    def window(self, size: int) -> int:
        return min(size, 12) if self.settings.quick else size

    def time(self, call: Call) -> Timing:
        return milliseconds(call, self.device, self.settings.rounds)

    def row(
        self,
        name: str,
        case: str,
        ours: Call,
        bound: Bound | None,
        kept: Callable[[Any], Accuracy] | None,
        theirs: tuple[str, Call] = ("", lambda: None),
    ) -> Row:
        """Milliseconds of our call, and of a peer's if there is one."""
        mine = self.time(ours)
        peer = self.time(theirs[1]) if theirs[0] else None
        error = kept(mine.result) if kept is not None else None
        return Row(name, case, theirs[0], "ms", mine.ms, bound, error, ours=mine, theirs=peer)


def _scores(image: Tensor, template: Tensor) -> Callable[[Tensor], Accuracy]:
    def check(result: Tensor) -> Accuracy:
        return accuracy.score_accuracy(result.cpu(), image.cpu(), template.cpu())[0]

    return check


def g1(t: Table) -> Iterator[Row]:
    image, window = t.image(8192, 8192), t.window(31)

    def check(result: Tensor) -> Accuracy:
        return accuracy.std_accuracy(result.cpu(), image.cpu(), window)[0]

    def plain() -> Tensor:
        mean = peers.fourier_boxes(image, (window, window)) / window**2
        square = peers.fourier_boxes(image.square(), (window, window)) / window**2
        return (square - mean.square()).clamp_min(0).sqrt()

    ours = partial(torchcorr.local_std, image, window, mode="same")
    yield t.row("G1", "local_std 8192²/31²", ours, at_most(0.18), check, ("plain torch", plain))


def g2(t: Table) -> Iterator[Row]:
    image = t.image(4096, 4096)
    template = cut(image, t.window(64))
    ours = partial(torchcorr.zncc, image, template)
    peer = ("plain torch", partial(peers.plain_zncc, image, template))
    check = _scores(image, template)
    yield t.row("G2", "zncc 4096²/64²", ours, at_most(0.45), check, peer)


def g3(t: Table) -> Iterator[Row]:
    image = t.image(4096, 4096)
    template = cut(image, t.window(64))
    upstream = torch.rand_like(torchcorr.zncc(image, template))
    leaves = [x.clone().requires_grad_() for x in (image, template)]
    wide = [x.double().cpu().requires_grad_() for x in (image, template)]

    def check(result: tuple[Tensor, ...]) -> Accuracy:
        exact = _with_gradients(torchcorr.zncc, *wide, upstream.double().cpu())
        return accuracy.gradient_accuracy(tuple(g.cpu() for g in result[1:]), exact[1:])

    ours = partial(_with_gradients, torchcorr.zncc, *leaves, upstream)
    peer = ("plain torch", partial(_with_gradients, peers.plain_zncc, *leaves, upstream))
    yield t.row("G3", "zncc and both gradients 4096²/64²", ours, at_most(1.0), check, peer)


def g4(t: Table) -> Iterator[Row]:
    images = t.image(12, 256, 256)
    k = t.window(64)
    templates = images[:, 20 : 20 + k, 30 : 30 + k].contiguous()
    for name, function, eager, graph in (
        ("correlate", torchcorr.correlate, 0.050, 0.025),
        ("zncc", torchcorr.zncc, 0.060, 0.030),
    ):
        call = partial(function, images, templates)
        kept = None
        if name == "zncc":
            kept = _scores(images, templates)
        yield t.row("G4", f"{name} 12 × 256²/64²", call, at_most(eager), kept)
        case = f"{name} 12 × 256²/64², CUDA graph"
        yield t.row("G4", case, captured(call, t.device), at_most(graph), None)


def g5(t: Table) -> Iterator[Row]:
    image, k = t.image(4096, 4096), t.window(64)
    many = torch.stack([cut(image.roll(i * 17, 0), k) for i in range(9)])
    one = t.time(partial(torchcorr.zncc, image, many[:1]))
    all_nine = t.time(partial(torchcorr.zncc, image, many))
    each = (all_nine.ms - one.ms) / 8
    kept = _scores(image, many)(all_nine.result)
    yield Row("G5", "zncc 4096²/64², each further template", "", "ms", each, at_most(0.2), kept)


def g6(t: Table) -> Iterator[Row]:
    a, window = t.image(160, 192, 160), t.window(9)
    b = (a + 0.5 * a.roll(1, -1)) / 1.5
    lncc = partial(torchcorr.lncc, window=window, ndim=3, border="valid")
    upstream = torch.rand_like(lncc(a, b))
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    wide = [x.double().cpu().requires_grad_() for x in (a, b)]

    def check(result: tuple[Tensor, ...]) -> Accuracy:
        exact = _with_gradients(lncc, *wide, upstream.double().cpu())
        return accuracy.gradient_accuracy(tuple(g.cpu() for g in result[1:]), exact[1:])

    ours = partial(_with_gradients, lncc, *leaves, upstream)
    plain = partial(peers.pooled_lncc, window=window)
    peer = ("plain torch", partial(_with_gradients, plain, *leaves, upstream))
    yield t.row("G6", "lncc and both gradients 160×192×160/9³", ours, at_most(0.25), check, peer)


def g7(t: Table) -> Iterator[Row]:
    image = t.image(4096, 4096)
    for window in (3, 5, 7, 11, 16):
        template = draw((window, window), torch.float32, seed=1).to(t.device)

        def check(result: Tensor, used: Tensor = template) -> Accuracy:
            return accuracy.correlate_accuracy(result.cpu(), image.cpu(), used.cpu())[0]

        bound = at_most(0.1) if window == 11 else None
        ours = partial(torchcorr.correlate, image, template)
        peer = ("F.conv2d", peers.conv2d(image, template))
        yield t.row("G7", f"correlate 4096²/{window}²", ours, bound, check, peer)


def g8(t: Table) -> Iterator[Row]:
    images = t.image(8, 1024, 1024, dtype=torch.float64)
    template = cut(images[0], t.window(256))
    ours = partial(torchcorr.zncc, images, template)

    def plain() -> Tensor:
        return torch.stack([peers.plain_zncc(x, template) for x in images])

    case = "zncc 8 × 1024²/256², float64"
    kept = _scores(images, template)
    row = t.row("G8", case, ours, None, kept, ("plain torch", plain))
    if row.theirs is not None:
        ratio = row.theirs.ms / row.value
        yield Row(
            "G8", case, "plain torch", "peer / ours", ratio, at_least(5), row.accuracy,
            ours=row.ours, theirs=row.theirs,
        )  # fmt: skip
    share = peak(ours, t.device) / max(peak(plain, t.device), 1.0)
    yield Row("G8", case + ", peak memory", "plain torch", "ours / peer", share, at_most(0.5))


ROWS: dict[str, Callable[[Table], Iterator[Row]]] = {
    "G1": g1,
    "G2": g2,
    "G3": g3,
    "G4": g4,
    "G5": g5,
    "G6": g6,
    "G7": g7,
    "G8": g8,
}


def card(device: str) -> dict[str, str]:
    """The GPU and the versions of its software, in addition to the machine."""
    if device == "cpu":
        return {"card": "none", "cuda": "", "triton": ""}
    import triton

    return {
        "card": torch.cuda.get_device_name(),
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rows", help="names of rows, between commas; all by default")
    parser.add_argument("--rounds", type=int, help=f"calls of each contestant, default {ROUNDS}")
    parser.add_argument("--device", default="cuda", help="device that is timed, default cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one call, nothing kept")
    parser.add_argument("--output", type=Path, help="the CSV to keep the rows in")
    args = parser.parse_args(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device is available", file=sys.stderr)
        return 2
    wanted = args.rows.split(",") if args.rows else list(ROWS)
    settings = Settings(args.rounds or (1 if args.quick else ROUNDS), args.quick)
    table = Table(settings, args.device)
    output = args.output or (None if args.quick else TABLE)
    records: list[dict[str, str]] = []
    for name in wanted:
        for row in ROWS[name](table):
            print(line(row), flush=True)
            records.append(row.record() | machine() | card(args.device))
        if output is not None:
            write(output, merged(read(output), records, list(ROWS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
