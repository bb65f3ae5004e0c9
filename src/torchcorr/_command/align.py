"""``torchcorr align``: find the lag between two recordings, or the shift between two images."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..align import Shift, estimate_shift
from .files import is_image, read_image, read_signal, resampled, to_gray
from .outputs import PLOT_SUFFIXES, UsageError, check_outputs, save_figure, write_json

NOTHING_FOUND = 1


@dataclass(frozen=True)
class _Pair:
    """Two recordings at one rate, or two images, and what was done to make them so."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    rate: float | None
    remarks: list[str]


def run(options: argparse.Namespace) -> int:
    check_outputs(((options.json, (".json",)), (options.plot, PLOT_SUFFIXES)))
    images = [is_image(path) for path in (options.first, options.second)]
    if images[0] != images[1]:
        raise UsageError("both must be recordings, or both images: got one of each")
    if images[0] and options.plot is not None:
        raise UsageError("--plot draws recordings: got images")
    pair = _images(options) if images[0] else _recordings(options)
    shift = estimate_shift(
        *(torch.from_numpy(np.ascontiguousarray(v)) for v in (pair.first, pair.second)),
        ndim=pair.first.ndim,
        lags=options.lags,
        min_overlap=options.min_overlap,
        polarity=options.polarity,
        weighting=options.weighting,
        subsample=options.subsample,
    )
    for remark in pair.remarks:
        print(remark)
    if options.json is not None:
        write_json(options.json, _content(options, pair, shift))
    if not bool(shift.found):
        print("no common pattern")
        return NOTHING_FOUND
    if options.plot is not None:
        from ..plot import draw_alignment

        names = (options.first.name, options.second.name)
        figure = draw_alignment(pair.first, pair.second, shift, rate=pair.rate, names=names)
        save_figure(figure, options.plot)
    _report(options, pair, shift)
    return 0


def _images(options: argparse.Namespace) -> _Pair:
    for name in ("rate", "channel"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} is for recordings: got images")
    first, second = (
        to_gray(read_image(p)).astype(np.float64) for p in (options.first, options.second)
    )
    return _Pair(first, second, None, [])


def _recordings(options: argparse.Namespace) -> _Pair:
    paths = (options.first, options.second)
    signals = [read_signal(path, options.channel) for path in paths]
    remarks = [
        f"channel {signal.channel} of the {signal.channels} of {path.name}"
        for signal, path in zip(signals, paths, strict=True)
        if signal.channels > 1
    ]
    rates = [signal.rate for signal in signals]
    known = next((rate for rate in rates if rate is not None), None)
    if options.rate is not None and not options.rate > 0:
        raise UsageError(f"--rate must be positive: got {options.rate:g}")
    if options.rate is not None and known is not None and options.rate != known:
        raise UsageError(f"--rate is for NPY signals: got {options.rate:g}, the WAV says {known}")
    first, second = (signal.samples for signal in signals)
    to, rate = rates
    if to is not None and rate is not None and to != rate:
        second = resampled(second, rate, to)
        remarks.append(f"{options.second.name} resampled from {rate} Hz to {to} Hz")
    return _Pair(first, second, options.rate if known is None else float(known), remarks)


def _content(options: argparse.Namespace, pair: _Pair, shift: Shift) -> dict[str, object]:
    """All of the result; None for what is not known."""
    result: dict[str, object] = {
        "found": bool(shift.found),
        "shift": shift.shift.tolist(),
        "score": float(shift.score),
        "overlap": int(shift.overlap),
        "runner_up": [_known(k) for k in shift.runner_up.tolist()],
        "runner_up_score": _known(float(shift.runner_up_score)),
        "at_limit": bool(shift.at_limit),
        "significance": float(shift.significance),
        "false_alarm": float(shift.false_alarm),
        "lags": [list(ends) for ends in shift.ranges],
        "polarity": options.polarity,
        "weighting": options.weighting,
        "subsample": options.subsample,
        "remarks": pair.remarks,
    }
    if pair.first.ndim == 1:
        lag = float(shift.shift) if bool(shift.found) else None
        seconds = None if pair.rate is None or lag is None else lag / pair.rate
        result |= {"lag_samples": lag, "lag_seconds": seconds, "rate": pair.rate}
    return result


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _report(options: argparse.Namespace, pair: _Pair, shift: Shift) -> None:
    score = f"score {float(shift.score):.4f}"
    names: tuple[Path, Path] = (options.first, options.second)
    if pair.first.ndim == 1:
        lag = float(shift.shift)
        seconds = "" if pair.rate is None else f" ({lag / pair.rate:+.6f} s)"
        print(f"lag {lag:+.3f} samples{seconds}, {score}")
        print(f"sample 0 of {names[1].name} lies at sample {lag:.3f} of {names[0].name}")
    else:
        row, column = shift.shift.tolist()
        print(f"shift ({row:+.3f}, {column:+.3f}) pixels, {score}")
        print(
            f"pixel (0, 0) of {names[1].name} lies at ({row:.3f}, {column:.3f}) of {names[0].name}"
        )
    chance = float(shift.false_alarm)
    print(f"{int(shift.overlap)} samples overlap; chance of a false alarm {chance:.1e}")
    if bool(shift.at_limit):
        print("the best lag is at the limit of the search: a better one may lie beyond")
