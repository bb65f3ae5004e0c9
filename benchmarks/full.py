"""Row F1: all overlaps of two inputs of one size, in a child process with a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from inputs import draw

import torchcorr

from . import accuracy, peers
from .child import limited
from .measure import Row, Settings, alternate, at_least, ratio_row

CASES = (((1_000_000,), (5_000,)), ((384, 384), (48, 48)))


def _measure(row: Row, size: tuple[int, ...], rounds: int) -> Row:
    ndim = len(size)
    image, template = (draw(size, torch.float64, seed) for seed in (0, 1))
    timings = alternate(
        {
            "ours": partial(torchcorr.correlate, image, template, ndim=ndim, mode="full"),
            "theirs": peers.full_correlate(image, template),
        },
        rounds,
    )
    around = [pad for n in size for pad in (n - 1, n - 1)]
    kept, theirs = accuracy.transform_accuracy(
        timings["ours"].result,
        torch.from_numpy(timings["theirs"].result),
        F.pad(image, around),
        template,
    )
    measured = ratio_row(row.row, row.case, row.peer, timings, accuracy=kept, peer_error=theirs)
    return replace(measured, bound=row.bound)


def f1(settings: Settings) -> Iterator[Row]:
    for whole, small in CASES:
        size = small if settings.quick else whole
        one = f"{size[0]} samples" if len(size) == 1 else f"{size[0]}²"
        case = f"correlate full float64, {one} with as many"
        row = Row("F1", case, "scipy fft", "peer / ours", float("nan"), at_least(1.5))
        yield limited(row, settings.limit, _measure, size, settings.rounds)
