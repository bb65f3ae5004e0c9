"""Loads the C++ kernels, which register themselves for the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent.parent / "_kernels.so"


def load() -> str | None:
    """Loads the library; the reason if it is not there."""
    if os.environ.get("TORCHCORR_NO_KERNELS") == "1":
        return "TORCHCORR_NO_KERNELS=1 is set"
    if not LIBRARY.exists():
        return f"{LIBRARY.name} was not built; building needs a C++ compiler"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} cannot be loaded: {error}"
    return None


def keep_scratch() -> None:
    """Lets the C library keep freed scratch for the next call instead of giving it back.

    glibc raises its limits to the largest block that was ever freed, 32 MiB at most; below them
    memory is reused, above each batch of tiles pays for fresh pages, which costs more than its
    transforms. The block is never touched, so it takes no memory.
    """
    torch.empty((32 << 20) - 4096, dtype=torch.uint8)
