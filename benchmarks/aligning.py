"""Rows of aligning: the shift of images and of long signals, few lags, masks, and distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from inputs import normal
from torch import Tensor

import torchcorr

from . import accuracy, loops, peers
from .measure import Accuracy, Bound, Row, Settings, alternate, at_least, at_most, ratio_row

# Seconds after which no thread of OpenBLAS waits for work any more.
PAUSE = 0.1
# Error of a shift in samples: a whole one is right or wrong.
WHOLE, PART = 1e-9, 0.01


def moved(size: tuple[int, ...], shift: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two cuts of one scene, and 10 % noise in both."""
    pairs = list(zip(size, shift, strict=True))
    scene = normal(*(n + abs(k) for n, k in pairs), seed=0)
    first, second = (
        scene[tuple(slice(max(0, sign * k), max(0, sign * k) + n) for n, k in pairs)]
        for sign in (-1, 1)
    )
    return tuple(v + 0.1 * normal(*size, seed=i) for i, v in ((1, first), (2, second)))


def shift_row(
    row: str,
    case: str,
    peer: str,
    functions: dict[str, Callable[[], Any]],
    true: tuple[int, ...],
    bound: Bound,
    settings: Settings,
) -> Row:
    """Functions return a `Shift`, and the peer a shift or scores that are not compared."""
    timings = alternate(functions, settings.rounds, pause=PAUSE)

    def error(shift: np.ndarray) -> float:
        return float(np.abs(np.asarray(shift, dtype=np.float64) - true).max())

    kept = Accuracy(error(timings["ours"].result.shift.numpy()), PART)
    theirs = np.asarray(timings["theirs"].result)
    other = error(theirs) if theirs.shape == (len(true),) else None
    return ratio_row(row, case, peer, timings, bound=bound, accuracy=kept, peer_error=other)


def a1(settings: Settings) -> Iterator[Row]:
    size = 64 if settings.quick else 384
    true = (size // 30, -size // 12)
    first, second = moved((size, size), true)
    for part in (1, 100):
        functions = {
            "ours": partial(torchcorr.estimate_shift, first, second, subpixel=part > 1),
            "theirs": peers.phase_cross_correlation(first, second, part),
        }
        what = "whole pixels" if part == 1 else "1/100 pixel"
        case = f"estimate_shift {size}², {what}"
        yield shift_row("A1", case, "scikit-image", functions, true, at_least(1 / 3), settings)
    there = normal(size, size, seed=3) > -1
    functions = {
        "ours": partial(
            torchcorr.estimate_shift, first, second, reference_mask=there, subpixel=False
        ),
        "theirs": peers.phase_cross_correlation(first, second, 1, there),
    }
    case = f"estimate_shift {size}², a mask"
    yield shift_row("A1", case, "scikit-image", functions, true, at_least(1 / 3), settings)


def a2(settings: Settings) -> Iterator[Row]:
    size = 2000 if settings.quick else 1_000_000
    first, second = moved((size,), (size // 800,))
    functions = {
        "ours": partial(torchcorr.estimate_shift, first, second, ndim=1, subpixel=False),
        "theirs": peers.full_correlate(first, second),
    }
    case = f"estimate_shift {size} and {size} samples"
    true = (size // 800,)
    yield shift_row("A2", case, "scipy correlate", functions, true, at_least(1 / 4), settings)


def a3(settings: Settings) -> Iterator[Row]:
    """A search of few lags against reading both signals: the sum of each."""
    size = 2000 if settings.quick else 1_000_000
    first, second = moved((size,), (12,))
    timings = alternate(
        {
            "ours": partial(
                torchcorr.estimate_shift, first, second, ndim=1, max_shift=50, subpixel=False
            ),
            "theirs": lambda: (first.sum(), second.sum()),
        },
        settings.rounds,
    )
    ours, theirs = timings["ours"], timings["theirs"]
    error = abs(float(ours.result.shift) - 12)
    yield Row(
        "A3", f"estimate_shift {size} samples, lags ±50", "their sums", "ours / peer",
        ours.ms / theirs.ms, at_most(2), Accuracy(error, WHOLE), ours=ours, theirs=theirs,
    )  # fmt: skip


def a4(settings: Settings) -> Iterator[Row]:
    for whole, target in ((500, 60), (20_000, 600)):
        size, window = settings.small(1_000_000, whole)
        series = normal(size, seed=0)
        query = series[size // 3 :][:window].clone()
        timings = alternate(
            {
                "ours": partial(torchcorr.distance_profile, series, query),
                "theirs": peers.stumpy_mass(series, query),
            },
            settings.rounds,
        )
        r, theirs = (
            torch.from_numpy(peers.coefficients(np.asarray(timings[name].result), window))
            for name in ("ours", "theirs")
        )
        kept, exact = accuracy.score_accuracy(r, series, query, ndim=1)
        yield ratio_row(
            "A4", f"distance_profile {size}/{window}", "stumpy.mass", timings,
            bound=at_least(target), accuracy=kept, peer_error=accuracy.largest(theirs - exact),
        )  # fmt: skip


def a5(settings: Settings) -> Iterator[Row]:
    size, reach = (2000, 20) if settings.quick else (1_000_000, 1000)
    first, second = moved((size,), (12,))
    timings = alternate(
        {
            "ours": partial(
                torchcorr.cross_correlation, first, second, ndim=1, max_shift=reach, scale="coeff"
            ),
            "theirs": peers.obspy_correlate(first, second, reach),
        },
        settings.rounds,
    )
    ours = timings["ours"].result
    x = torch.nn.functional.pad(first, (reach, reach))
    kept, exact, scale = accuracy.correlate_accuracy(
        ours * first.norm() * second.norm(), x, second, ndim=1
    )
    theirs = torch.as_tensor(timings["theirs"].result) * first.norm() * second.norm()
    yield ratio_row(
        "A5", f"cross_correlation {size} samples, lags ±{reach}", "obspy", timings,
        bound=at_least(1), accuracy=kept, peer_error=accuracy.largest((theirs - exact) / scale),
    )  # fmt: skip


def a6(settings: Settings) -> Iterator[Row]:
    """Templates of three channels in a long record; the scores of both are kept."""
    size, length, count = (4000, 50, 2) if settings.quick else (1_000_000, 200, 8)
    record = normal(3, size, seed=0, dtype=torch.float32)
    moveouts = torch.arange(3 * count).reshape(count, 3) * 7 % 60
    templates = torch.stack(
        [
            torch.stack(
                [record[c, size // 9 * (t + 1) + int(moveouts[t, c]) :][:length] for c in range(3)]
            )
            for t in range(count)
        ]
    )
    # A threshold that is given, and one from medians of the scores.
    for threshold, what in ((0.5, ""), (None, ", medians")):
        timings = alternate(
            {
                "ours": partial(
                    torchcorr.match_filter,
                    record,
                    templates,
                    moveouts=moveouts,
                    threshold=threshold,
                    keep_stack=True,
                ),
                "theirs": loops.matched_filter(record, templates, moveouts),
            },
            settings.rounds,
        )
        scores = timings["ours"].result.stack.double()
        error, other = 0.0, 0.0
        for t in range(count):
            for u in (0, size // 9 * (t + 1), size // 2, scores.shape[1] - 1):
                seen = torch.stack(
                    [record[c, u + int(moveouts[t, c]) :][:length] for c in range(3)]
                ).double()
                pairs = zip(seen, templates[t].double(), strict=True)
                exact = float(sum(torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs)) / 3
                error = max(error, abs(float(scores[t, u]) - exact))
                other = max(other, abs(float(timings["theirs"].result[t, u]) - exact))
        case = f"match_filter {size}, {count} templates of 3 × {length}{what}"
        yield ratio_row(
            "A6", case, "a plain C loop", timings,
            bound=at_least(1), accuracy=Accuracy(error, 1e-5), peer_error=other,
        )  # fmt: skip


ALIGNING: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "A1": a1,
    "A2": a2,
    "A3": a3,
    "A4": a4,
    "A5": a5,
    "A6": a6,
}
