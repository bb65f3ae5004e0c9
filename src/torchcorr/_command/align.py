"""``torchcorr align``: find the lag between two recordings."""

from __future__ import annotations

import argparse

import torch

from ..align import Shift, estimate_shift
from .files import read_signal
from .outputs import PLOT_SUFFIXES, UsageError, check_outputs, save_figure, write_json


def run(options: argparse.Namespace) -> None:
    check_outputs(((options.json, (".json",)), (options.plot, PLOT_SUFFIXES)))
    (first, rate), (second, other) = read_signal(options.first), read_signal(options.second)
    if rate is not None and other is not None and rate != other:
        raise UsageError(f"recordings must have one rate: got {rate} Hz and {other} Hz")
    known = rate if rate is not None else other
    if options.rate is not None and not options.rate > 0:
        raise UsageError(f"--rate must be positive: got {options.rate:g}")
    if options.rate is not None and known is not None and options.rate != known:
        raise UsageError(f"--rate is for NPY signals: got {options.rate:g}, the WAV says {known}")
    hertz = options.rate if known is None else float(known)
    shift = estimate_shift(torch.from_numpy(first), torch.from_numpy(second), ndim=1)
    if options.plot is not None:
        from ..plot import draw_alignment

        names = (options.first.name, options.second.name)
        save_figure(draw_alignment(first, second, shift, rate=hertz, names=names), options.plot)
    _report_shift(options, shift, hertz)


def _report_shift(options: argparse.Namespace, shift: Shift, rate: float | None) -> None:
    lag, score = float(shift.shift), float(shift.score)
    seconds = None if rate is None else lag / rate
    if options.json is not None:
        result = {"lag_samples": lag, "lag_seconds": seconds, "rate": rate, "score": score}
        write_json(options.json, result)
    said = f"{lag:+.3f} samples" + ("" if seconds is None else f" ({seconds:+.6f} s)")
    print(f"lag {said}, score {score:.4f}")
    print(f"sample 0 of {options.second.name} lies at sample {lag:.3f} of {options.first.name}")
