"""``torchcorr demo``: run the first examples of the gallery and keep their pictures."""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path

from .files import FileError, require_writable
from .outputs import save_figure

_PARTS = ("1_find_coins", "2_refine_pose", "3_align_recordings")
_PACKAGE = Path(__file__).resolve().parent.parent


def run(options: argparse.Namespace) -> None:
    """Each example prints what it found and leaves a picture in its variable ``figure``."""
    folder = _examples()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{options.output}: cannot be made: {error.strerror}") from error
    pictures = [options.output / f"{part.replace('_', '-')}.png" for part in _PARTS]
    for picture in pictures:
        require_writable(picture, (".png",))
    start = time.perf_counter()
    for part, picture in zip(_PARTS, pictures, strict=True):
        save_figure(runpy.run_path(str(folder / f"{part}.py"))["figure"], picture)
        print(f"   picture: {picture}\n")
    print(f"done in {time.perf_counter() - start:.1f} s")


def _examples() -> Path:
    """The scripts: copied into an installed package, in ``examples/`` of a clone."""
    for folder in (_PACKAGE / "_examples", _PACKAGE.parent.parent / "examples"):
        if (folder / f"{_PARTS[0]}.py").exists():
            return folder
    raise FileError(f"{_PACKAGE / '_examples'}: the examples are missing from this installation")
