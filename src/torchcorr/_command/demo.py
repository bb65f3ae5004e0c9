"""``torchcorr demo``: match, refine and align on real data."""

from __future__ import annotations

import argparse
import time

from .files import FileError, require_writable
from .outputs import save_figure


def run(options: argparse.Namespace) -> None:
    from ..demo import run as parts

    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{options.output}: cannot be made: {error.strerror}") from error
    require_writable(options.output / "1-matches.png", (".png",))
    start = time.perf_counter()
    for picture, figure in parts():
        save_figure(figure, options.output / picture)
        print(f"   picture: {options.output / picture}\n")
    print(f"done in {time.perf_counter() - start:.1f} s")
