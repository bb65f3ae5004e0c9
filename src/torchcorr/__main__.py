"""The command line: ``torchcorr`` or ``python -m torchcorr``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from ._command import align, build, demo, info, match
from ._command.files import FileError
from ._command.outputs import UsageError

# Packages as pip knows them, where a module has another name.
_PACKAGES = {"PIL": "Pillow", "pywt": "PyWavelets", "skimage": "scikit-image"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status of the command line: 0, or 1 if `align` found no common pattern, or 2
    after one line on standard error, or 130 if it was interrupted.

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
        status: int | None = options.run(options)
        sys.stdout.flush()
    except (UsageError, FileError, ValueError, TypeError) as error:
        print(f"torchcorr: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of standard output left, as `head` does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        print(f"torchcorr: {_missing(error.name or str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("torchcorr: interrupted", file=sys.stderr)
        return 130
    return 0 if status is None else status


def _missing(module: str) -> str:
    """What to install for a module that cannot be found."""
    top = module.split(".")[0]
    package = _PACKAGES.get(top, top)
    extras = "pip install 'torchcorr[cli,plot]'"
    return f"this needs {package}: pip install {package}, or all that the commands need: {extras}"


def _add_aligning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A")
    parser.add_argument("second", type=Path, metavar="B")
    parser.add_argument(
        "--rate", type=float, metavar="HZ",
        help="samples per second of NPY signals (default: that of the other recording)",
    )  # fmt: skip
    parser.add_argument(
        "--channel", type=int, metavar="N",
        help="channel of recordings that have several (default: the loudest)",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-alpha",
        action="store_true",
        help="let transparent pixels count (by default the alpha of images weighs them)",
    )
    parser.add_argument(
        "--lags", type=int, nargs=2, metavar=("LOW", "HIGH"),
        help="lags to search, in samples, along every axis (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--min-overlap", type=float, metavar="FRACTION",
        help="smallest overlap, of the smaller one; the best score above it wins",
    )  # fmt: skip
    parser.add_argument(
        "--polarity", choices=("same", "either"), default="same",
        help="either: find inverted copies too",
    )  # fmt: skip
    parser.add_argument(
        "--weighting", choices=("phat", "scot", "roth", "ml"),
        help="rank by the weighed cross-spectrum, for delays under echoes",
    )  # fmt: skip
    parser.add_argument(
        "--subsample", choices=("fourier", "gauss", "parabola"), default="fourier",
        help="how the part of a sample is found (default fourier)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of the result as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both recordings, aligned")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="torchcorr", description="Find a template in a picture; align two recordings."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"torchcorr {__version__}",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    searching = commands.add_parser("match", help="find TEMPLATE in IMAGE (PNG, JPEG, TIFF or NPY)")
    searching.add_argument("image", type=Path, metavar="IMAGE")
    searching.add_argument("template", type=Path, metavar="TEMPLATE")
    searching.add_argument(
        "--threshold", type=float, default=0.8, help="smallest score (default 0.8)"
    )
    searching.add_argument(
        "--max-matches", type=int, metavar="N", help="at most N matches (default all)"
    )
    searching.add_argument(
        "--channels", choices=("gray", "joint"), default="gray",
        help="colour: converted to gray (default), or matched jointly",
    )  # fmt: skip
    searching.add_argument(
        "--mask", type=Path, metavar="FILE",
        help="weights of the template's pixels, a gray picture of its size: black does not count",
    )  # fmt: skip
    searching.add_argument(
        "--ignore-alpha", action="store_true",
        help="let transparent pixels of TEMPLATE count (by default its alpha weighs them)",
    )  # fmt: skip
    searching.add_argument("--json", type=Path, metavar="FILE", help="write the matches as JSON")
    searching.add_argument("--csv", type=Path, metavar="FILE", help="write the matches as CSV")
    searching.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the matches (PNG, PDF, SVG)"
    )
    searching.add_argument(
        "--score-map", type=Path, metavar="FILE",
        help="write the score at every position: NPY (float32), or PNG (-1 black, 1 white)",
    )  # fmt: skip

    aligning = commands.add_parser(
        "align", help="find the lag between two recordings (WAV or NPY), or the shift of two images"
    )
    _add_aligning(aligning)

    showing = commands.add_parser("demo", help="run three examples on real data")
    showing.add_argument("--output", type=Path, default=Path("demo-output"), metavar="FOLDER")

    informing = commands.add_parser("info", help="versions, threads and the kernels in use")
    building = commands.add_parser("build", help="compile the C++ kernels for the CPU (a minute)")
    for parser_of, command in (
        (searching, match),
        (aligning, align),
        (showing, demo),
        (informing, info),
        (building, build),
    ):
        parser_of.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
