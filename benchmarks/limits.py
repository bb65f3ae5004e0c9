"""The rows against limits: one transform, one core, memory, overhead, import, no compiler."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from inputs import draw
from torch import Tensor

import torchcorr

from . import ROOT, accuracy, memory
from .cases import cut
from .fallback import fallback
from .measure import ROUNDS, Row, Settings, Timing, alternate, at_least, at_most, ratio_row

CALLS = 200


def _pair(size: int, window: int) -> tuple[Tensor, Tensor]:
    image = draw((size, size), torch.float32)
    return image, cut(image, window)


def one_transform(settings: Settings) -> Iterator[Row]:
    """The whole of C1 at 1024/64 against one transform of its image and its inverse."""
    size, window = settings.small(1024, 64)
    image, template = _pair(size, window)
    timings = alternate(
        {
            "ours": lambda: torchcorr.zncc(image, template),
            "theirs": lambda: torch.fft.irfft2(torch.fft.rfft2(image), s=image.shape),
        },
        settings.rounds,
    )
    ours, theirs = timings["ours"], timings["theirs"]
    kept, _ = accuracy.score_accuracy(ours.result, image, template)
    case = f"zncc {size}²/{window}²"
    yield Row(
        "transform", case, "rfft2 and irfft2", "ours / peer", ours.ms / theirs.ms,
        at_most(1.6), kept, ours=ours, theirs=theirs,
    )  # fmt: skip


def growth(settings: Settings) -> Iterator[Row]:
    """Time for each pixel of a large image against that of a small one."""
    small, large, window = (128, 256, 8) if settings.quick else (1024, 8192, 64)
    pairs = {size: _pair(size, window) for size in (small, large)}
    timings = alternate(
        {str(s): lambda p=pair: torchcorr.zncc(*p) for s, pair in pairs.items()},
        settings.rounds,
    )
    ours, theirs = timings[str(large)], timings[str(small)]
    kept, _ = accuracy.score_accuracy(ours.result, *pairs[large])
    value = ours.ms / theirs.ms * (small / large) ** 2
    case = f"zncc, time per pixel, {large}² against {small}², template {window}²"
    yield Row(
        "growth", case, f"our own {small}²", "ours / peer, a pixel", value,
        at_most(1.3), kept, ours=ours, theirs=theirs,
    )  # fmt: skip


def _with_threads(
    threads: int, operator: Callable[..., Tensor], *pair: Tensor
) -> Callable[[], Tensor]:
    def call() -> Tensor:
        torch.set_num_threads(threads)
        return operator(*pair)

    return call


def threads(settings: Settings) -> Iterator[Row]:
    """Two threads against one; and the same of a product of matrices, since two cores of a virtual
    machine may be threads of one core."""
    size, window = settings.small(2048, 128)
    image, template = _pair(size, window)
    part = image[: size // 2, : size // 2].contiguous()
    usual = torch.get_num_threads()
    try:
        timings = alternate(
            {
                "ours": _with_threads(2, torchcorr.zncc, image, template),
                "theirs": _with_threads(1, torchcorr.zncc, image, template),
                "product": _with_threads(2, torch.mm, part, part),
                "slow product": _with_threads(1, torch.mm, part, part),
            },
            settings.rounds,
        )
    finally:
        torch.set_num_threads(usual)
    ours, theirs = timings["ours"], timings["theirs"]
    kept, _ = accuracy.score_accuracy(ours.result, image, template)
    yield Row(
        "threads", f"zncc {size}²/{window}², two threads", "our own one thread", "peer / ours",
        theirs.ms / ours.ms, at_least(1.7), kept, ours=ours, theirs=theirs,
    )  # fmt: skip
    products = {"ours": timings["product"], "theirs": timings["slow product"]}
    case = f"torch.mm of {size // 2}², two threads"
    yield ratio_row("threads", case, "its own one thread", products)


_LNCC_GRADIENTS = (
    "both gradients",
    "both gradients with zeros around",
    "four gradients, with zeros around and two masks",
)


def memory_rows(settings: Settings) -> Iterator[Row]:
    """Peak memory beyond input and result; see `memory.py` for what is counted."""
    size, window = (512, 16) if settings.quick else (8192, 64)
    image_mib = size * size * 4 / (1 << 20)
    for which in memory.PASSES + memory.VIEW_PASSES:
        value = memory.measured(size, window, which)
        case = f"zncc {size}²/{window}², {which.replace('-', ', ')}, beyond input and result"
        limit = 64 + (image_mib if which.endswith("backward") else 0)
        yield Row("memory", case, "", "MiB", value, at_most(limit))
    size, window = (512, 16) if settings.quick else (4096, 64)
    image_mib = size * size * 4 / (1 << 20)
    for which in memory.MASKED_PASSES:
        value = memory.measured(size, window, which)
        masks, _, direction = which.rpartition("-")
        name = {"template-mask": "a template mask", "input-mask": "an input mask"}
        case = f"zncc {size}²/{window}² with {name.get(masks, 'both masks')}, {direction}"
        limit = 64 + (image_mib if direction == "backward" else 0)
        yield Row("memory", case + ", beyond input and result", "", "MiB", value, at_most(limit))
    size, window = (48, 5) if settings.quick else (160, 9)
    for which, gradients in zip(memory.LNCC_PASSES, _LNCC_GRADIENTS, strict=True):
        value = memory.measured(size, window, which) / (size**3 * 4 / (1 << 20))
        case = f"lncc loss {size}³/{window}³ and {gradients}, beyond input and result"
        yield Row("memory", case, "", "volumes", value, at_most(5))


def tiny(settings: Settings) -> Iterator[Row]:
    """The overhead of a call: the median of many."""
    image, template = _pair(64, 8)
    score = torchcorr.zncc(image, template)
    spent = []
    for number in range(CALLS + 20):
        start = time.perf_counter()
        torchcorr.zncc(image, template)
        if number >= 20:
            spent.append(time.perf_counter() - start)
    kept, _ = accuracy.score_accuracy(score, image, template)
    value = statistics.median(spent) * 1e6
    ours = Timing(value * 1e-3, CALLS, score)
    yield Row("tiny", "zncc 64²/8²", "", "µs", value, at_most(60), kept, ours=ours)


_IMPORT = """
import time, torch
start = time.perf_counter()
import torchcorr
print(time.perf_counter() - start)
"""


def import_cost(settings: Settings) -> Iterator[Row]:
    """Time of `import torchcorr` once torch is imported, in fresh processes."""
    rounds = min(settings.rounds, ROUNDS) + 1
    # An installed package has its modules compiled, whatever the environment of the benchmark.
    with_bytecode = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    spent = [
        float(
            subprocess.run(
                [sys.executable, "-c", _IMPORT], cwd=ROOT, env=with_bytecode, **_TEXT
            ).stdout
        )
        for _ in range(rounds)
    ]
    # The first one reads the files from disk.
    value = statistics.median(spent[1:])
    ours = Timing(value * 1e3, rounds - 1, None)
    case = "import torchcorr, beyond import torch"
    yield Row("import", case, "", "s", value, at_most(0.1), ours=ours)


_TEXT = {"capture_output": True, "text": True, "check": True}

LIMITS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "transform": one_transform,
    "growth": growth,
    "threads": threads,
    "memory": memory_rows,
    "tiny": tiny,
    "import": import_cost,
    "fallback": fallback,
}
