"""Loads the engines: what computes operators faster than their definitions on some devices."""

from __future__ import annotations

import importlib
import warnings
from functools import cache

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
    return {device: _load(name) for device, name in ENGINES.items()}


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
