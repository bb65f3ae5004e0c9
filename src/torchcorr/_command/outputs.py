"""What the commands share: errors of use, checks of output files, and writing them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


class UsageError(Exception):
    """A request that cannot be met; the message becomes the one line on standard error."""


def check_outputs(
    outputs: Sequence[tuple[Path | None, tuple[str, ...]]], inputs: Sequence[Path | None]
) -> None:
    """Outputs can be written, and are neither one another nor a file that is read."""
    read = {path.resolve() for path in inputs if path is not None}
    written: set[Path] = set()
    for path, suffixes in outputs:
        if path is None:
            continue
        require_writable(path, suffixes)
        if path.resolve() in read:
            raise UsageError(f"{path}: is read by this command and would be overwritten")
        if path.resolve() in written:
            raise UsageError(f"{path}: two outputs have this name")
        written.add(path.resolve())


def save_figure(figure: Figure, path: Path) -> None:
    kind = path.suffix.lower().lstrip(".")
    write_whole(path, lambda stream: figure.savefig(stream, format=kind))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda stream: stream.write(text.encode()))
