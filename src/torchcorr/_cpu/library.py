"""Loads the C++ kernels, which register themselves for the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from . import compile

PACKAGE = Path(__file__).parent.parent


def load() -> str | None:
    """Loads the library; without one, the cause and what to do about it, in one line."""
    if os.environ.get("TORCHCORR_NO_KERNELS") == "1":
        return "TORCHCORR_NO_KERNELS=1 is set"
    causes = []
    for library in candidates():
        if library.exists():
            try:
                torch.ops.load_library(str(library))
            except OSError as error:
                # PyTorch's error names the file, its cause is the loader's message.
                causes.append(f"{library} cannot be loaded: {error.__cause__ or error}")
            else:
                return None
    cause = causes[0] if causes else _cause_on_file() or "they were not compiled"
    return f"{cause}; to compile them: torchcorr build"


def candidates() -> list[Path]:
    """Where the library may be, the best first.

    ``torchcorr build`` names libraries by their sources, so none that is left over from another
    version is loaded. The one that was installed with the package comes before the user's.
    """
    installed = PACKAGE / compile.LIBRARY
    names = f"{installed.stem}-*"
    # Naming what was built reads all sources, which takes a part of the import.
    if not any(path for folder in _build_folders() for path in folder.glob(names)):
        return [installed]
    built = build_targets()
    return [*built[:1], installed, *built[1:]]


def build_targets() -> list[Path]:
    """Where ``torchcorr build`` may put the library: in the package, else in the user's cache."""
    sources = compile.source_folder(PACKAGE)
    if sources is None:
        return []
    stem, suffix = compile.LIBRARY.split(".")
    name = f"{stem}-{compile.key(sources)}.{suffix}"
    return [folder / name for folder in _build_folders()]


def _build_folders() -> list[Path]:
    cache = _user_cache()
    return [PACKAGE] if cache is None else [PACKAGE, cache / "torchcorr"]


def _user_cache() -> Path | None:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def _cause_on_file() -> str | None:
    """Why the installation built no library, as setup.py noted it."""
    try:
        lines = (PACKAGE / compile.REASON).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return lines[0] if lines else None
