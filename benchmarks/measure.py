"""How a row is measured: contestants in turn in one process, medians, a verdict."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]

ROUNDS = 7
# Quick calls get more rounds than asked for, until they were timed for this long or this often.
SECONDS, MOST_ROUNDS = 0.4, 51
LIMIT = 120.0
# A contestant whose warm-up took longer than this many seconds is timed in fewer rounds.
SLOW = ((20.0, 1), (5.0, 3))


@dataclass(frozen=True)
class Settings:
    """Rounds at least, and whether sizes are shrunk to see only that everything runs.

    A row that is measured in a child process may take `limit` seconds.
    """

    rounds: int = ROUNDS
    quick: bool = False
    limit: float = LIMIT

    def small(self, size: int, window: int) -> tuple[int, int]:
        """Sizes of one case, shrunk in a quick run."""
        if not self.quick:
            return size, window
        window = max(3, min(window, size) // 16)
        return max(48, size // 16, 2 * window), window


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of one contestant, in how many rounds, and what its warm-up returned."""

    ms: float
    rounds: int
    result: Any


def rounds_for(seconds: float, rounds: int) -> int:
    """Rounds of a contestant whose warm-up took that long."""
    for limit, fewer in SLOW:
        if seconds > limit:
            return min(fewer, rounds)
    if rounds < ROUNDS:
        return rounds
    return max(rounds, min(MOST_ROUNDS, int(SECONDS / max(seconds, 1e-9))))


def alternate(
    contestants: Mapping[str, Call],
    rounds: int = ROUNDS,
    *,
    clock: Callable[[], float] = time.perf_counter,
    reverse: bool = False,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Calls all contestants once to warm them up, then in turn, and times each call.

    With `reverse`, every other round goes backwards, so that the order does not favour any. Before
    each call there is a pause of so many seconds: threads of OpenBLAS, which NumPy calls, keep
    their cores busy for some time after they have finished, in which others cannot use them.

    Slow contestants take part in the first rounds only. The others have as many rounds as the
    slowest of them.
    """
    results, seconds = {}, {}
    for name, call in contestants.items():
        start = clock()
        results[name] = call()
        seconds[name] = clock() - start
    wanted = {name: rounds_for(spent, rounds) for name, spent in seconds.items()}
    steady = [n for n in wanted.values() if n >= rounds]
    wanted = {name: min([n, *steady]) for name, n in wanted.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(max(wanted.values())):
        order = list(contestants)
        for name in reversed(order) if reverse and number % 2 else order:
            if number >= wanted[name]:
                continue
            time.sleep(pause)
            start = clock()
            contestants[name]()
            times[name].append(clock() - start)
    return {
        name: Timing(statistics.median(kept) * 1e3, len(kept), results[name])
        for name, kept in times.items()
    }


@dataclass(frozen=True)
class Bound:
    """Target of a row: a lower or an upper bound of its value."""

    relation: str
    value: float

    def is_met(self, value: float) -> bool:
        return value >= self.value if self.relation == ">=" else value <= self.value

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"


def at_least(value: float) -> Bound:
    return Bound(">=", value)


def at_most(value: float) -> Bound:
    return Bound("<=", value)


@dataclass(frozen=True)
class Accuracy:
    """Largest error of our result on the row's input, and the error that the contract allows."""

    error: float
    allowed: float

    @property
    def within(self) -> bool:
        """Whether the error is allowed; NaN is not."""
        return self.error <= self.allowed


def verdict(value: float, bound: Bound | None, accuracy: Accuracy | None) -> str:
    """`reached`, `short`, `inexact` or, for a row without a bound, `informative`."""
    if accuracy is not None and not accuracy.within:
        return "inexact"
    if bound is None:
        return "informative"
    return "reached" if bound.is_met(value) else "short"


@dataclass(frozen=True)
class Row:
    """One line of the table: `value` is the bounded number, and `quantity` its name."""

    row: str
    case: str
    peer: str
    quantity: str
    value: float
    bound: Bound | None = None
    accuracy: Accuracy | None = None
    peer_error: float | None = None
    ours: Timing | None = None
    theirs: Timing | None = None

    @property
    def verdict(self) -> str:
        return verdict(self.value, self.bound, self.accuracy)

    def record(self) -> dict[str, str]:
        """The row as it stands in the CSV."""
        error = self.accuracy
        return {
            "row": self.row,
            "case": self.case,
            "peer": self.peer,
            "ours_ms": _number(self.ours and self.ours.ms, 4),
            "peer_ms": _number(self.theirs and self.theirs.ms, 4),
            "quantity": self.quantity,
            "value": _number(self.value, 3),
            "bound": str(self.bound or ""),
            "verdict": self.verdict,
            "error": _number(error and error.error, 2),
            "allowed": _number(error and error.allowed, 2),
            "peer_error": _number(self.peer_error, 2),
            "rounds": str(self.ours.rounds if self.ours else ""),
            "peer_rounds": str(self.theirs.rounds if self.theirs else ""),
        }


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.{digits}g}"


def ratio_row(row: str, case: str, peer: str, timings: Mapping[str, Timing], **kept: Any) -> Row:
    """Their time over ours, from the timings of `ours` and `theirs`."""
    ours, theirs = timings["ours"], timings["theirs"]
    value = theirs.ms / ours.ms
    return Row(row, case, peer, "peer / ours", value, ours=ours, theirs=theirs, **kept)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _caches() -> str:
    """Sizes of the data caches that a core sees, such as `L1 48K L2 1024K L3 32768K`."""
    caches = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            level = (index / "level").read_text().strip()
            caches.append(f"L{level} {(index / 'size').read_text().strip()}")
    return " ".join(caches)


PACKAGES = (
    ("torchcorr", "torchcorr"),
    ("torch", "torch"),
    ("numpy", "numpy"),
    ("opencv", "opencv-python-headless"),
    ("scikit_image", "scikit-image"),
    ("scipy", "scipy"),
    ("stumpy", "stumpy"),
    ("monai", "monai"),
    ("ipp", "ipp"),
    ("torch_fftconv", "torch-fftconv"),
)


def machine() -> dict[str, str]:
    """Machine, versions and date of a measurement, with which every line of a CSV ends."""
    return {
        "machine": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "caches": _caches(),
        **{column: _version(package) for column, package in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }
