"""Loads the engines: what computes operators faster than their definitions on some devices."""

from __future__ import annotations

import importlib
import warnings
from functools import cache

import torch

# Each is a package whose `register` implements operators and returns why if it cannot.
ENGINES = {"cpu": "_cpu", "cuda": "_triton"}


class KernelsMissingWarning(RuntimeWarning):
    """There are no kernels for a device; results are the same, from the slower definitions.

    The message names the cause and, where there is one, the command that mends it.
    """


@cache
def load() -> dict[str, str | None]:
    """For each kind of device the reason why it has no engine, None if it has one.

    The first call loads them; an engine whose folder is missing is one that is not there.
    """
    reasons = {device: _load(name) for device, name in ENGINES.items()}
    _keep_scratch()
    return reasons


def _load(name: str) -> str | None:
    try:
        engine = importlib.import_module("." + name, __package__)
    except ModuleNotFoundError as error:
        return f"{error.name} is missing"
    reason: str | None = engine.register()
    return reason


@cache
def warn_if_slow(device: str) -> None:
    """Says once that a kind of device runs definitions because its engine is missing."""
    reason = load().get(device)
    if reason is not None:
        warnings.warn(
            f"torchcorr has no kernels for {device} and uses its slower definitions: {reason}",
            KernelsMissingWarning,
            stacklevel=6,
        )


def _keep_scratch() -> None:
    """Lets the C library keep freed scratch for the next call instead of giving it back.

    glibc raises its limits to the largest block that was ever freed, 32 MiB at most; below them
    memory is reused, above them every temporary tensor pays for fresh pages, which costs more than
    a transform of it. The block is never touched, so it takes no memory.
    """
    torch.empty((32 << 20) - 4096, dtype=torch.uint8)
