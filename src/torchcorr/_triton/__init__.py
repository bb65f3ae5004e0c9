"""GPU kernels in Triton, registered for CUDA; no module of this room is imported before its use.

Each function of the table has the signature of its operator. Triton's interpreter
(``TRITON_INTERPRET=1`` before triton is first imported) runs them on CPU tensors, as the tests do.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._ops import READ_HALF_TYPES, library

# Operator: the module of this room that computes it, in a function of the operator's name.
KERNELS: dict[str, str] = {
    "correlate_direct": "direct",
    "correlate_direct_input_grad": "direct",
    "correlate_direct_template_grad": "direct_grads",
    "correlate_fft": "fft_sums",
    "correlate_fft_input_grad": "fft_sums",
    "correlate_fft_template_grad": "fft_sums",
    "ncc_direct": "direct_scores",
    "ncc_fft": "fft_scores",
    "ncc_fft_grads": "score_grads",
    "ncc_prepare_grads": "score_parts",
    "standardise": "score_parts",
    "window_sum": "windows",
    "window_spread": "windows",
    "window_moments": "windows",
    "window_combine": "windows",
    "lncc": "lncc",
    "lncc_grads": "lncc_grads",
    "local_std": "local_std",
    "local_std_prepare_grads": "local_std",
}


def kernel(name: str) -> Callable[..., Any]:
    """The function that computes an operator."""
    return getattr(importlib.import_module(f"{__name__}.{KERNELS[name]}"), name)


def _on_its_device(name: str) -> Callable[..., Any]:
    """A kernel that is imported when first called, and launched where its first tensor lies."""
    found: list[Callable[..., Any]] = []

    def call(first: Tensor, *args: Any) -> Any:
        if not found:
            found.append(kernel(name))
        with torch.cuda.device(first.device):
            return found[0](first, *args)

    return call


def register() -> str | None:
    """Registers all kernels for CUDA; a reason if there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for name in KERNELS:
        library.impl(name, _on_its_device(name), "CUDA")
    READ_HALF_TYPES.add("cuda")
    return None
