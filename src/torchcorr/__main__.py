"""The command line: ``torchcorr`` or ``python -m torchcorr``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._files import FileError, read_image, read_signal, require_writable, to_gray, write_whole
from .align import Shift, estimate_shift
from .functional import zncc
from .match import Matches, find_peaks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLOT_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
_MAP_SUFFIXES = (".npy", ".png")
# Above this many pixels the image is searched in bands of rows, so that progress can be shown.
_BAND_PIXELS = 1 << 23


class _UsageError(Exception):
    """A request that cannot be met; the message becomes the one line on standard error."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status of the command line: 0, or 2 after one line on standard error.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; by default those of the process.

    Examples
    --------
    >>> from torchcorr.__main__ import main
    >>> main(["info"])  # doctest: +ELLIPSIS
    torchcorr ...
    """
    try:
        options = _parser().parse_args(arguments)
        _COMMANDS[options.command](options)
        sys.stdout.flush()
    except (_UsageError, FileError, ValueError, TypeError) as error:
        print(f"torchcorr: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of standard output left, as `head` does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        print(f"torchcorr: this needs {error.name}: pip install {error.name}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="torchcorr", description="Find a template in a picture; align two recordings."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    match = commands.add_parser("match", help="find TEMPLATE in IMAGE (PNG, JPEG, TIFF or NPY)")
    match.add_argument("image", type=Path, metavar="IMAGE")
    match.add_argument("template", type=Path, metavar="TEMPLATE")
    match.add_argument("--threshold", type=float, default=0.8, help="smallest score (default 0.8)")
    match.add_argument(
        "--max-matches", type=int, metavar="N", help="at most N matches (default all)"
    )
    match.add_argument(
        "--channels", choices=("gray", "joint"), default="gray",
        help="colour: converted to gray (default), or matched jointly",
    )  # fmt: skip
    match.add_argument("--json", type=Path, metavar="FILE", help="write the matches as JSON")
    match.add_argument("--csv", type=Path, metavar="FILE", help="write the matches as CSV")
    match.add_argument("--plot", type=Path, metavar="FILE", help="draw the matches (PNG, PDF, SVG)")
    match.add_argument(
        "--score-map", type=Path, metavar="FILE",
        help="write the score at every position: NPY (float32), or PNG (-1 black, 1 white)",
    )  # fmt: skip

    align = commands.add_parser("align", help="find the lag between two recordings (WAV or NPY)")
    align.add_argument("first", type=Path, metavar="A")
    align.add_argument("second", type=Path, metavar="B")
    align.add_argument("--rate", type=float, metavar="HZ", help="samples per second of NPY signals")
    align.add_argument("--json", type=Path, metavar="FILE", help="write the lag as JSON")
    align.add_argument("--plot", type=Path, metavar="FILE", help="draw both recordings, aligned")

    demo = commands.add_parser("demo", help="match, refine and align on real data (20 seconds)")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), metavar="FOLDER")

    commands.add_parser("info", help="versions, threads and the kernels in use")
    return parser


def _match(options: argparse.Namespace) -> None:
    outputs = (
        (options.json, (".json",)),
        (options.csv, (".csv",)),
        (options.plot, _PLOT_SUFFIXES),
        (options.score_map, _MAP_SUFFIXES),
    )
    _check_outputs(outputs)
    image, template = read_image(options.image), read_image(options.template)
    joint = options.channels == "joint" and not image.ndim == template.ndim == 2
    if joint and image.ndim != template.ndim:
        raise _UsageError(
            "--channels joint needs a colour image and a colour template: "
            f"got shapes {image.shape} and {template.shape}"
        )
    if not joint:
        image, template = to_gray(image), to_gray(template)
    if any(small > large for small, large in zip(template.shape, image.shape, strict=True)):
        raise _UsageError(
            f"template is larger than image: got {_size(template)}, image is {_size(image)}"
        )
    searched, sought = _tensors(image, template)
    scores = _score_map(searched, sought, joint)
    size = (template.shape[0], template.shape[1])
    peaks = find_peaks(
        scores, threshold=options.threshold, max_peaks=options.max_matches, min_distance=size
    )
    matches = Matches(positions=peaks.positions, scores=peaks.scores, size=size)
    _write_matches(options, matches, image, template, scores.numpy())
    _print_matches(matches, options.threshold, float(scores.max()))


def _score_map(image: Tensor, template: Tensor, joint: bool) -> Tensor:
    channels = "joint" if joint else "independent"
    height, width = image.shape[-2:]
    window = template.shape[-2]
    if height * width <= _BAND_PIXELS:
        return zncc(image, template, channels=channels)
    from tqdm import tqdm

    # A band's last window reaches window - 1 rows into the next band.
    step = max(4 * window, _BAND_PIXELS // width, 1)
    starts = range(0, height - window + 1, step)
    bands = tqdm(starts, desc="searching", unit="band", delay=1, disable=None)
    return torch.cat(
        [
            zncc(image[..., start : start + step + window - 1, :], template, channels=channels)
            for start in bands
        ]
    )


def _write_matches(
    options: argparse.Namespace,
    matches: Matches,
    image: NDArray[np.generic],
    template: NDArray[np.generic],
    scores: NDArray[np.float32],
) -> None:
    height, width = matches.size
    rows = [
        {"y": y, "x": x, "height": height, "width": width, "score": score}
        for (y, x), score in zip(matches.positions.tolist(), matches.scores.tolist(), strict=True)
    ]
    if options.plot is not None:
        from .plot import draw_matches

        title = f"{options.template.name} in {options.image.name}: {len(rows)} found"
        figure = draw_matches(image, matches, template=template, score_map=scores, title=title)
        _save(figure, options.plot)
    if options.score_map is not None:
        write_whole(options.score_map, lambda stream: _write_map(stream, options.score_map, scores))
    if options.csv is not None:
        text = io.StringIO()
        table = csv.DictWriter(text, ["y", "x", "height", "width", "score"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(options.csv, lambda stream: stream.write(text.getvalue().encode()))
    if options.json is not None:
        _write_json(options.json, {"matches": rows})


def _print_matches(matches: Matches, threshold: float, best: float) -> None:
    if len(matches) == 0:
        print(f"no match with a score of {threshold:g} or more; the best score is {best:.3f}")
        return
    height, width = matches.size
    noun = "match" if len(matches) == 1 else "matches"
    print(f"{len(matches)} {noun} of {height} x {width} pixels, top-left corners:")
    print(f"{'y':>10} {'x':>10} {'score':>8}")
    for (y, x), score in zip(matches.positions.tolist(), matches.scores.tolist(), strict=True):
        print(f"{y:10.2f} {x:10.2f} {score:8.4f}")


def _align(options: argparse.Namespace) -> None:
    _check_outputs(((options.json, (".json",)), (options.plot, _PLOT_SUFFIXES)))
    (first, rate), (second, other) = read_signal(options.first), read_signal(options.second)
    if rate is not None and other is not None and rate != other:
        raise _UsageError(f"recordings must have one rate: got {rate} Hz and {other} Hz")
    known = rate if rate is not None else other
    if options.rate is not None and not options.rate > 0:
        raise _UsageError(f"--rate must be positive: got {options.rate:g}")
    if options.rate is not None and known is not None and options.rate != known:
        raise _UsageError(f"--rate is for NPY signals: got {options.rate:g}, the WAV says {known}")
    hertz = options.rate if known is None else float(known)
    shift = estimate_shift(torch.from_numpy(first), torch.from_numpy(second), ndim=1)
    if options.plot is not None:
        from .plot import draw_alignment

        names = (options.first.name, options.second.name)
        _save(draw_alignment(first, second, shift, rate=hertz, names=names), options.plot)
    _report_shift(options, shift, hertz)


def _report_shift(options: argparse.Namespace, shift: Shift, rate: float | None) -> None:
    lag, score = float(shift.shift), float(shift.score)
    seconds = None if rate is None else lag / rate
    if options.json is not None:
        found = {"lag_samples": lag, "lag_seconds": seconds, "rate": rate, "score": score}
        _write_json(options.json, found)
    said = f"{lag:+.3f} samples" + ("" if seconds is None else f" ({seconds:+.6f} s)")
    print(f"lag {said}, score {score:.4f}")
    print(f"sample 0 of {options.second.name} lies at sample {lag:.3f} of {options.first.name}")


def _demo(options: argparse.Namespace) -> None:
    from .demo import run

    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{options.output}: cannot be made: {error.strerror}") from error
    require_writable(options.output / "1-matches.png", (".png",))
    start = time.perf_counter()
    for picture, figure in run():
        _save(figure, options.output / picture)
        print(f"   picture: {options.output / picture}\n")
    print(f"done in {time.perf_counter() - start:.1f} s")


def _info(options: argparse.Namespace) -> None:
    del options
    from . import __version__, _native, _ops, _tile_ops

    print(f"torchcorr {__version__}")
    print(f"torch     {torch.__version__}, {torch.get_num_threads()} threads")
    status = _native.status()
    print(f"kernels   {status.path.name if status.loaded else f'none: {status.reason}'}")
    reason = _native.triton_reason()
    print(f"triton    {'registered for CUDA' if reason is None else f'none: {reason}'}")
    names = [*_ops.operator_names(), *_tile_ops.tile_operator_names()]
    for operator, keys in _native.registered_kernels(names).items():
        print(f"          {operator:30} {', '.join(keys)}")


def _check_outputs(outputs: Sequence[tuple[Path | None, tuple[str, ...]]]) -> None:
    for path, suffixes in outputs:
        if path is not None:
            require_writable(path, suffixes)


def _tensors(*images: NDArray[np.generic]) -> list[Tensor]:
    """``(H, W)`` as it is, ``(H, W, 3)`` as ``(3, H, W)``; float32, or float64 where an image
    needs it.
    """
    exact = all(np.can_cast(image.dtype, np.float32) for image in images)
    dtype = np.float32 if exact else np.float64
    return [
        torch.from_numpy(
            np.moveaxis(image, -1, 0).astype(dtype) if image.ndim == 3 else image.astype(dtype)
        )
        for image in images
    ]


def _size(image: NDArray[np.generic]) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix.lower().lstrip(".")
    write_whole(path, lambda stream: figure.savefig(stream, format=kind))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda stream: stream.write(text.encode()))


def _write_map(stream: BinaryIO, path: Path, scores: NDArray[np.float32]) -> None:
    if path.suffix.lower() == ".npy":
        np.save(stream, scores.astype(np.float32), allow_pickle=False)
        return
    from PIL import Image

    # NaN (a window that holds one) has no grey of its own: black, the lowest.
    levels = np.rint((np.nan_to_num(scores, nan=-1.0) + 1) * 127.5)
    Image.fromarray(levels.astype(np.uint8)).save(stream, format="PNG")


_COMMANDS = {"match": _match, "align": _align, "demo": _demo, "info": _info}

if __name__ == "__main__":
    sys.exit(main())
