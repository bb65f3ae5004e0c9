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
from .files import (
    FileError,
    Signal,
    is_image,
    read_image_and_alpha,
    read_signal,
    resampled,
    to_gray,
)
from .outputs import PLOT_SUFFIXES, UsageError, check_outputs, save_figure, write_json

NOTHING_FOUND = 1
# From this probability of a false alarm on the report says what it means.
_DOUBTFUL = 0.01


@dataclass(frozen=True)
class _Pair:
    """Two recordings at one rate, or two images, the weights of their elements (None where all
    count in full), and what was done to make them so.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    rate: float | None
    weights: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]
    remarks: list[str]


def run(options: argparse.Namespace) -> int:
    outputs = ((options.json, (".json",)), (options.plot, PLOT_SUFFIXES))
    check_outputs(outputs, (options.first, options.second))
    images = [is_image(path) for path in (options.first, options.second)]
    if images[0] != images[1]:
        raise UsageError(
            "both must be recordings, or both images: got one of each "
            "(an NPY array of more than one axis is an image)"
        )
    if images[0] and options.plot is not None:
        raise UsageError("--plot draws recordings: got images")
    pair = _images(options) if images[0] else _recordings(options)
    fixed, moved = (torch.from_numpy(np.ascontiguousarray(v)) for v in (pair.first, pair.second))
    of_fixed, of_moved = (None if w is None else torch.from_numpy(w) for w in pair.weights)
    shift = estimate_shift(
        fixed,
        moved,
        ndim=pair.first.ndim,
        reference_mask=of_fixed,
        moving_mask=of_moved,
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
    images, weights, remarks = [], [], []
    for path in (options.first, options.second):
        picture, alpha = read_image_and_alpha(path)
        gray = to_gray(picture).astype(np.float64)
        if options.ignore_alpha:
            alpha = None
        if alpha is not None:
            if not alpha.any():
                raise FileError(f"{path}: every pixel is transparent; try --ignore-alpha")
            remarks.append(f"the alpha channel of {path.name} weighs its pixels")
        images.append(gray)
        weights.append(_there(path, gray, alpha, remarks))
    return _Pair(images[0], images[1], None, (weights[0], weights[1]), remarks)


def _recordings(options: argparse.Namespace) -> _Pair:
    if options.ignore_alpha:
        raise UsageError("--ignore-alpha is for images: got recordings")
    paths = (options.first, options.second)
    signals = [read_signal(path, options.channel) for path in paths]
    rates = _rates(options, signals)
    remarks, weights = [], []
    for path, signal in zip(paths, signals, strict=True):
        if signal.is_cut:
            remarks.append(f"{path.name} ends before its header says: its last samples are missing")
        if signal.channels > 1:
            remarks.append(f"channel {signal.channel} of the {signal.channels} of {path.name}")
        weights.append(_there(path, signal.samples, None, remarks))
    first, second = (signal.samples for signal in signals)
    to, rate = rates
    if to is not None and rate is not None and to != rate:
        if weights[1] is not None:
            raise FileError(f"{paths[1]}: a recording with missing samples is not resampled")
        second = resampled(second, rate, to)
        remarks.append(f"{paths[1].name} resampled from {rate:.10g} Hz to {to:.10g} Hz")
    return _Pair(first, second, to if to is not None else rate, (weights[0], weights[1]), remarks)


def _rates(options: argparse.Namespace, signals: list[Signal]) -> list[float | None]:
    """That of each recording: from its header, or as the options say for those that have none."""
    given: float | None = options.rate
    if given is not None and not 0 < given < math.inf:
        raise UsageError(f"--rate must be positive: got {given:g}")
    known = [float(signal.rate) for signal in signals if signal.rate is not None]
    if given is not None and len(known) == len(signals) and given not in known:
        raise UsageError(
            f"--rate is for NPY signals: got {given:.10g}, the WAV says {known[0]:.10g}"
        )
    return [given if signal.rate is None else float(signal.rate) for signal in signals]


def _there(
    path: Path,
    values: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    remarks: list[str],
) -> NDArray[np.float64] | None:
    """The weights of the elements of a recording or an image, 0 for those that are NaN."""
    missing = np.isnan(values)
    if weights is not None:
        missing &= weights > 0
    if missing.any():
        remarks.append(f"{int(missing.sum())} of {values.size} elements of {path.name} are missing")
        weights = np.where(missing, 0.0, 1.0 if weights is None else weights)
        if not weights.any():
            raise FileError(f"{path}: every element is missing (NaN)")
    if np.isinf(values if weights is None else values[weights > 0]).any():
        raise FileError(f"{path}: contains infinity")
    return weights


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
        unit = "samples"
        (lag,) = shift.shift.tolist()
        seconds = "" if pair.rate is None else f" ({_signed(lag / pair.rate, 6)} s)"
        print(f"lag {_signed(lag, 3)} samples{seconds}, {score}")
        print(f"sample 0 of {names[1].name} lies at sample {_plain(lag)} of {names[0].name}")
    else:
        unit = "pixels"
        row, column = shift.shift.tolist()
        print(f"shift ({_signed(row, 3)}, {_signed(column, 3)}) pixels, {score}")
        print(
            f"pixel (0, 0) of {names[1].name} lies at ({_plain(row)}, {_plain(column)}) "
            f"of {names[0].name}"
        )
    chance = float(shift.false_alarm)
    print(f"{int(shift.overlap)} {unit} overlap; chance of a false alarm {chance:.1e}")
    if chance >= _DOUBTFUL:
        print("doubt it: unrelated recordings as smooth as these often agree as well by chance")
    if bool(shift.at_limit):
        print("the best lag is at the limit of the search: a better one may lie beyond")


def _signed(value: float, digits: int) -> str:
    """With a sign, but never -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _plain(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"
