"""Times torchcorr against its peers: same input, same dtype, alternating, all cores for both.

A row counts only if our scores on that very input are within the float32 promise; the verdict says
so. Results are kept as CSV with machine, versions and date.
"""

from __future__ import annotations

import csv
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

import torchcorr

RESULTS = Path(__file__).with_name("results")
ROUNDS = 7
PROMISE = 1e-5

Row = dict[str, str | float]


def alternate(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of both, called in turn after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(ROUNDS + 1):
        for kept, contestant in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            contestant()
            if round_number > 0:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3


def score_error(image: torch.Tensor, template: torch.Tensor) -> float:
    """Largest error of a float32 score, against the same data in float64."""
    exact = torchcorr.zncc(image.double(), template.double())
    return float((torchcorr.zncc(image, template).double() - exact).abs().max())


def zncc_rows() -> list[Row]:
    rows: list[Row] = []
    for size, window in ((256, 16), (512, 32), (1024, 16), (1024, 64), (1024, 256), (2048, 128)):
        image = torch.rand(size, size)
        template = image[size // 3 :, size // 4 :][:window, :window].clone()
        picture, patch = image.numpy(), template.numpy()
        ours, theirs = alternate(
            lambda i=image, t=template: torchcorr.zncc(i, t),
            lambda i=picture, t=patch: cv2.matchTemplate(i, t, cv2.TM_CCOEFF_NORMED),
        )
        error = score_error(image, template)
        rows.append(row("C1", f"zncc {size}/{window}", "OpenCV", ours, theirs, 2.5, error))
    return rows


def correlate_rows() -> list[Row]:
    rows: list[Row] = []
    image = torch.rand(1024, 1024)
    for window in (3, 5, 7, 11, 16):
        template = torch.rand(window, window)
        ours, theirs = alternate(
            lambda t=template: torchcorr.correlate(image, t),
            lambda t=template: F.conv2d(image[None, None], t[None, None]),
        )
        exact = torchcorr.correlate(image.double(), template.double())
        got = torchcorr.correlate(image, template)
        error = float(((got - exact) / exact).abs().max())
        rows.append(row("C7", f"correlate 1024/{window}", "F.conv2d", ours, theirs, 8, error))
    return rows


def local_std_rows() -> list[Row]:
    rows: list[Row] = []
    for size, window in ((1024, 31), (4096, 31), (4096, 101)):
        image = torch.rand(size, size)
        picture, box = image.numpy(), (window, window)

        def boxes(picture: np.ndarray = picture, box: tuple[int, int] = box) -> np.ndarray:
            mean = cv2.boxFilter(picture, cv2.CV_32F, box)
            square = cv2.sqrBoxFilter(picture, cv2.CV_32F, box)
            return np.sqrt(np.maximum(square - mean * mean, 0))

        ours, theirs = alternate(
            lambda i=image, w=window: torchcorr.local_std(i, w, mode="same"), boxes
        )
        exact = torchcorr.local_std(image.double(), window)
        error = float((torchcorr.local_std(image, window) - exact).abs().max())
        rows.append(row("C8", f"local_std {size}/{window}", "OpenCV", ours, theirs, 4, error))
    return rows


def row(
    name: str, case: str, peer: str, ours: float, theirs: float, target: float, error: float
) -> Row:
    ratio = theirs / ours
    kept = error <= PROMISE
    verdict = "reached" if ratio >= target and kept else "short" if kept else "inexact"
    return {
        "row": name,
        "case": case,
        "peer": peer,
        "ours_ms": round(ours, 3),
        "peer_ms": round(theirs, 3),
        "ratio": round(ratio, 2),
        "target": target,
        "error": float(f"{error:.2g}"),
        "verdict": verdict,
    }


def machine() -> Row:
    return {
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "torchcorr": torchcorr.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> int:
    torch.manual_seed(0)
    rows = [*zncc_rows(), *correlate_rows(), *local_std_rows()]
    for found in rows:
        print("  ".join(f"{key} {value}" for key, value in found.items()))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "cpu.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], *machine()])
        writer.writeheader()
        writer.writerows(found | machine() for found in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
