"""Which threads the small operators of PyTorch take that an engine's call is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from . import steps

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Elements of a tensor from which on a call may contain operators that PyTorch shares among threads,
# which it does with 32 768: tiles may be larger than an input.
_SHARED = 1 << 13


def without_late_threads(kernel: Kernel) -> Kernel:
    """A kernel whose small operators run on the calling thread while PyTorch's threads come late.

    Each of them would wait for all threads, as long as other programs keep these from their cores
    (csrc/common/threads.h).
    """

    @wraps(kernel)
    def call(first: Tensor, *args: Any) -> Any:
        largest = max(x.numel() for x in (first, *args) if isinstance(x, Tensor))
        if largest < _SHARED or not steps.hold_threads(first):
            return kernel(first, *args)
        try:
            return kernel(first, *args)
        finally:
            steps.release_threads(first)

    return call  # type: ignore[return-value]
