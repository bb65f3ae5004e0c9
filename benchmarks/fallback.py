"""Rows without the C++ library: what a user gets where nothing was compiled.

`python -m benchmarks.fallback SIZE WINDOW` is the process without the library. For each line of its
input that names a method it computes a score map and answers; for `accuracy` it answers with the
error of the map, and with the error allowed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from inputs import draw
from torch import Tensor

import torchcorr

from . import ROOT, accuracy
from .cases import cut
from .measure import Accuracy, Bound, Row, Settings, Timing, alternate, at_least, at_most

READY = "ready"


def pair(size: int, window: int) -> tuple[Tensor, Tensor]:
    image = draw((size, size), torch.float32)
    return image, cut(image, window)


class Process:
    """A process without the C++ library, which computes scores of one image when it is asked."""

    def __init__(self, size: int, window: int) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fallback", str(size), str(window)],
            cwd=ROOT,
            env={**os.environ, "TORCHCORR_NO_KERNELS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.communicate()

    def ask(self, request: str) -> str:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(request + "\n")
        answer = self.child.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process without kernels ended at {request!r}")
        return answer.strip()

    def scores(self, method: str) -> Callable[[], str]:
        return lambda: self.ask(method)

    def accuracy(self) -> Accuracy:
        error, allowed = map(float, self.ask("accuracy").split())
        return Accuracy(error, allowed)


def _row(
    case: str,
    peer: str,
    timings: dict[str, Timing],
    names: tuple[str, str],
    bound: Bound,
    exact: Accuracy,
) -> Row:
    """Time of the first over that of the second; a lower bound is for the second being ours."""
    first, second = (timings[name] for name in names)
    ours, theirs = (second, first) if bound.relation == ">=" else (first, second)
    quantity = "peer / ours" if bound.relation == ">=" else "ours / peer"
    return Row(
        "fallback", case, peer, quantity, first.ms / second.ms, bound, exact,
        ours=ours, theirs=theirs,
    )  # fmt: skip


def fallback(settings: Settings) -> Iterator[Row]:
    """Without the library: never slower than the loop of the definition, and near the kernels."""
    size, window = settings.small(1024, 64)
    image, template = pair(size, window)
    case = f"zncc {size}²/{window}², no library"
    with Process(size, window) as process:
        timings = alternate(
            {
                "ours": process.scores("auto"),
                "kernels": lambda: torchcorr.zncc(image, template),
            },
            settings.rounds,
        )
        exact = process.accuracy()
    yield _row(case, "the C++ library", timings, ("ours", "kernels"), at_most(4), exact)
    # The loop of the definition takes minutes for that size.
    size, window = settings.small(384, 8)
    with Process(size, window) as process:
        methods = {method: process.scores(method) for method in ("fft", "auto", "direct")}
        timings = alternate(methods, settings.rounds)
        exact = process.accuracy()
    for method in ("fft", "auto"):
        case = f"zncc {size}²/{window}², no library, method {method}"
        names = ("direct", method)
        yield _row(case, "the loop of the definition", timings, names, at_least(1), exact)


def main(size: int, window: int) -> None:
    image, template = pair(size, window)
    score = torch.empty(0)
    for line in sys.stdin:
        request = line.strip()
        if request == "accuracy":
            kept, _ = accuracy.score_accuracy(score, image, template)
            print(kept.error, kept.allowed, flush=True)
        else:
            score = torchcorr.zncc(image, template, method=request)
            print(READY, flush=True)


if __name__ == "__main__":
    # The library is missing on purpose.
    warnings.simplefilter("ignore", RuntimeWarning)
    main(int(sys.argv[1]), int(sys.argv[2]))
