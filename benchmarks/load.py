"""Row L1: how much a call slows down while another process has the same cores.

`python -m benchmarks.load NAME [--quick]` is the other process. It repeats the call of that name
until it is ended, or its parent is.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from inputs import draw

import torchcorr

from . import ROOT, accuracy, peers
from .cases import cut
from .measure import Accuracy, Bound, Call, Row, Settings, Timing, at_most

# Calls with the other process at work and then at rest, and for how many seconds they are repeated
# after each change: torchcorr takes half a second to see that PyTorch's threads are in time again.
CALLS, SETTLED = 5, 0.7
BUSY = "busy"


@dataclass(frozen=True)
class Contestant:
    """A call, the error of its result if it is ours, and the most that it may slow down."""

    case: str
    call: Call
    check: Callable[[], Accuracy] | None = None
    bound: Bound | None = None


def _ours(case: str, image: torch.Tensor, template: torch.Tensor, method: str) -> Contestant:
    ndim = image.dim()
    call = partial(torchcorr.zncc, image, template, ndim=ndim, method=method)

    def check() -> Accuracy:
        return accuracy.score_accuracy(call(), image, template, ndim=ndim)[0]

    return Contestant(f"zncc {case}, {method}", call, check, at_most(3))


def contestants(settings: Settings) -> dict[str, Contestant]:
    size, window = settings.small(1024, 64)
    short_size = settings.small(512, 64)[0]
    few = settings.small(1024, 16)[1]
    samples, short = settings.small(1_000_000, 500)
    image, series = draw((size, size), torch.float32), draw((samples,), torch.float64)
    template = cut(image, window)
    line = f"1-D float64 {samples}/{short}"

    def transforms() -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(image), s=image.shape)

    return {
        "fft": _ours(f"{size}²/{window}²", image, template, "fft"),
        "short": _ours(
            f"{short_size}²/{window}²", image[:short_size, :short_size], template, "fft"
        ),
        "direct": _ours(f"{size}²/{few}²", image, cut(image, few), "direct"),
        "line": _ours(line, series, series[samples // 3 :][:short].clone(), "fft"),
        "OpenCV": Contestant(f"OpenCV {size}²/{window}²", peers.opencv(image, template)),
        "torch.fft": Contestant(f"torch.fft, rfft2 and irfft2 of {size}²", transforms),
    }


class Neighbour:
    """Another process, which works or rests as it is told."""

    def __init__(self, name: str, settings: Settings) -> None:
        command = [sys.executable, "-m", "benchmarks.load", name]
        self.child = subprocess.Popen(
            command + ["--quick"] * settings.quick, cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self.child.stdout is not None
        if not self.child.stdout.readline():
            raise RuntimeError(f"the process that repeats {name!r} ended")

    def __enter__(self) -> Neighbour:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.kill()
        self.child.communicate()

    def works(self, working: bool) -> None:
        self.child.send_signal(signal.SIGCONT if working else signal.SIGSTOP)


def beside(neighbour: Neighbour, call: Call, rounds: int) -> tuple[Timing, Timing]:
    """Times of a call while the other process works, and while it rests."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for working, times in spent.items():
            neighbour.works(working)
            settled = time.perf_counter() + SETTLED
            while time.perf_counter() < settled:
                call()
            for _ in range(CALLS):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
    slow, quiet = (
        Timing(statistics.median(times) * 1e3, len(times), None) for times in spent.values()
    )
    return slow, quiet


def l1(settings: Settings) -> Iterator[Row]:
    """Beside a loop that uses one core, and beside a process that does the same on all cores."""
    for name, one in contestants(settings).items():
        exact = one.check and one.check()
        for other, what, bound in ((BUSY, "a busy process", one.bound), (name, "the same", None)):
            with Neighbour(other, settings) as neighbour:
                slow, quiet = beside(neighbour, one.call, settings.rounds)
            yield Row(
                "L1", f"{one.case}, beside {what}", "itself alone", "ours / peer",
                slow.ms / quiet.ms, bound, exact, ours=slow, theirs=quiet,
            )  # fmt: skip


def _busy() -> None:
    for _ in range(1_000_000):
        pass


def main(name: str, settings: Settings) -> None:
    call = _busy if name == BUSY else contestants(settings)[name].call
    call()
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        call()


if __name__ == "__main__":
    main(sys.argv[1], Settings(quick="--quick" in sys.argv))
