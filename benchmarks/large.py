"""Large rows, each in a process of its own: time, and peak scratch as `memory.py` measures it.

They are measured only where they are named: `python -m benchmarks.run --rows M1,large`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import oracle
import torch
from tolerances import SCORE
from torch import Tensor

import torchcorr

from . import accuracy, memory
from .child import limited
from .measure import Accuracy, Row, Settings, Timing, at_most

# A call that takes more seconds is not repeated.
LONG = 5.0
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """Shapes of a float32 call of `zncc` or `correlate`."""

    function: str
    image: tuple[int, ...]
    template: tuple[int, ...]
    ndim: int = 2
    channels: str = "independent"

    def __str__(self) -> str:
        image, template = ("×".join(map(str, shape)) for shape in (self.image, self.template))
        joint = " joint" if self.channels == "joint" else ""
        return f"{self.function}{joint} {image}/{template}"

    @property
    def options(self) -> dict[str, int | str]:
        return {"ndim": self.ndim, "channels": self.channels}

    @property
    def allowed(self) -> float:
        """MiB of scratch: 64, or where that is more eight float32 arrays of the template's size."""
        return max(64.0, 8 * 4 * math.prod(self.template[-self.ndim :]) / MIB)

    def small(self) -> Case:
        """A 64th of each axis, but no less than 32 elements of a longer one."""
        image, template = (
            tuple(max(n // 64, min(n, 32)) for n in shape) for shape in (self.image, self.template)
        )
        return replace(self, image=image, template=template)

    def inputs(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.image, generator=generator), torch.rand(
            self.template, generator=generator
        )

    def call(self, image: Tensor, template: Tensor, method: str = "auto") -> Tensor:
        return getattr(torchcorr, self.function)(image, template, method=method, **self.options)


def _accuracy(case: Case, result: Tensor, image: Tensor, template: Tensor) -> Accuracy:
    """Error at some positions; that of a sum relative to it, since no term is negative."""

    def definition(window: np.ndarray) -> np.ndarray:
        return getattr(oracle, case.function)(window, template.numpy(), **case.options)

    doubt = accuracy.disagreement(result, image, case.template[-case.ndim :], definition)
    scale = 1.0 if case.function == "zncc" else float(result.min())
    return Accuracy(doubt / scale, SCORE[torch.float32])


def _measure(row: Row, case: Case, rounds: int) -> Row:
    # The program is loaded before, by tiny calls.
    for method in ("direct", "fft"):
        case.small().call(*case.small().inputs(), method)
    image, template = case.inputs()
    results, times = [], []

    def call() -> list[Tensor]:
        start = time.perf_counter()
        results[:] = [case.call(image, template)]
        times.append(time.perf_counter() - start)
        return results

    used = memory.used_by(call)
    while times[0] <= LONG and len(times) <= rounds:
        call()
    # The first of several calls is a warm-up.
    spent = times[1:] or times
    return replace(
        row, value=used, accuracy=_accuracy(case, *results, image, template),
        ours=Timing(statistics.median(spent) * 1e3, len(spent), None),
    )  # fmt: skip


def large(cases: tuple[Case, ...], name: str, settings: Settings) -> Iterator[Row]:
    for whole in cases:
        case = whole.small() if settings.quick else whole
        plan = torchcorr.plan(
            torch.empty(case.image, device="meta"), torch.empty(case.template, device="meta"),
            normalised=case.function == "zncc", **case.options,
        )  # fmt: skip
        what = f"{case}, planned {plan.bytes / MIB:.0f} MiB"
        row = Row(name, what, "", "MiB", math.nan, at_most(case.allowed))
        yield limited(row, settings.limit, _measure, case, settings.rounds)


BOTH = ("zncc", "correlate")
ROWS = {
    "M1": (
        *(Case(f, (8192,) * 2, (k,) * 2) for k in (512, 1024, 2048, 4096) for f in BOTH),
        *(Case(f, (512,) * 3, (256,) * 3, ndim=3) for f in BOTH),
    ),
    "large": (
        *(Case(f, (100_000_000,), (1_000_000,), ndim=1) for f in BOTH),
        Case("zncc", (100_000, 32, 32), (8, 8)),
        Case("zncc", (512, 512), (2000, 32, 32)),
        Case("zncc", (512, 256, 256), (512, 16, 16), channels="joint"),
    ),
}
LARGE: dict[str, Callable[[Settings], Iterator[Row]]] = {
    name: partial(large, cases, name) for name, cases in ROWS.items()
}
