"""Loads the C++ and Triton kernels, once, and says which operators have one for which device."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_kernels.so")
DISPATCH_KEYS = ("CPU", "CUDA", "MPS", "XPU", "CompositeExplicitAutograd")


class KernelsMissingWarning(RuntimeWarning):
    """The C++ kernels are not there; results are the same, from the slower reference."""


@dataclass(frozen=True)
class NativeStatus:
    """Whether the C++ kernels are in use, the file they are in, and why not if they are not."""

    loaded: bool
    path: Path
    reason: str | None


_status: NativeStatus | None = None
_triton_reason: str | None = None


def _load() -> NativeStatus:
    if os.environ.get("TORCHCORR_NO_KERNELS") == "1":
        return NativeStatus(False, LIBRARY, "TORCHCORR_NO_KERNELS=1 is set")
    if not LIBRARY.exists():
        reason = f"{LIBRARY.name} was not built; building needs a C++ compiler"
    else:
        try:
            torch.ops.load_library(str(LIBRARY))
        except OSError as error:
            reason = f"{LIBRARY.name} cannot be loaded: {error}"
        else:
            return NativeStatus(True, LIBRARY, None)
    warnings.warn(
        f"torchcorr: C++ kernels not found ({reason}); the slower reference is used",
        KernelsMissingWarning,
        stacklevel=4,
    )
    return NativeStatus(False, LIBRARY, reason)


def _keep_scratch() -> None:
    """Lets the C library keep freed scratch for the next call instead of giving it back.

    glibc raises its limits to the largest block that was ever freed, 32 MiB at most; below them
    memory is reused, above each batch of tiles pays for fresh pages, which costs more than its
    transforms. The block is never touched, so it takes no memory.
    """
    torch.empty((32 << 20) - 4096, dtype=torch.uint8)


def _load_triton() -> str | None:
    """Registers the kernels for CUDA; the reason if there are none."""
    try:
        triton = importlib.import_module("._triton", __package__)
    except ModuleNotFoundError as error:
        return f"{error.name} is missing"
    return triton.register()


def load() -> NativeStatus:
    """The status of the C++ kernels; the first call loads them and those in Triton."""
    global _status, _triton_reason
    if _status is None:
        _status = _load()
        _triton_reason = _load_triton()
        _keep_scratch()
    return _status


def status() -> NativeStatus:
    """The status of the kernels, for people to read."""
    return load()


def triton_reason() -> str | None:
    """Why no Triton kernel is registered for CUDA; None if they are."""
    load()
    return _triton_reason


def registered_kernels(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The dispatch keys that have a kernel of their own, for each torchcorr operator named."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name: tuple(key for key in DISPATCH_KEYS if has_kernel(f"torchcorr::{name}", key))
        for name in names
    }
