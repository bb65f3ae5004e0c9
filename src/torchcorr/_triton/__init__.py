"""The CUDA engine: kernels in Triton. Its modules are imported at their first use.

Triton's interpreter (``TRITON_INTERPRET=1`` before triton is first imported) runs the kernels on
CPU tensors, as the tests do.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _contract

# For each operator, the module that computes it, in a function of the operator's name.
KERNELS: dict[str, str] = {
    "correlate": "correlate",
    "correlate_input_grad": "correlate",
    "correlate_template_grad": "correlate",
    "conv": "conv",
    "conv_input_grad": "conv",
    "conv_weight_grad": "conv",
    "standardise": "standardise",
    "standardise_grad": "standardise",
    "ncc": "scores",
    "ncc_grads": "tiles.score_grads",
    "weighted_ncc": "weighted.scores",
    "weighted_ncc_grads": "weighted.scores",
    "weighted_moments": "weighted.moments",
    "window_sum": "windows.windows",
    "window_spread": "windows.windows",
    "window_moments": "windows.windows",
    "window_combine": "windows.windows",
    "local_std": "windows.local_std",
    "local_std_prepare_grads": "windows.local_std",
    "lncc": "lncc.scores",
    "lncc_grads": "lncc.grads",
    "weighted_lncc": "lncc.weighted",
    "weighted_lncc_grads": "lncc.weighted",
    "medians": "medians",
    "overlap_scores": "overlap",
    "pick_peaks": "peaks",
    "pick_lowest": "peaks",
}


def kernel(name: str) -> Callable[..., Any]:
    """The function that computes an operator."""
    return getattr(importlib.import_module("." + KERNELS[name], __name__), name)


def _on_its_device(name: str) -> Callable[..., Any]:
    """A kernel that is imported when first called, and launched on its first tensor's device."""
    loaded: list[Callable[..., Any]] = []

    def call(first: Tensor, *args: Any) -> Any:
        if not loaded:
            loaded.append(kernel(name))
        with torch.cuda.device(first.device):
            return loaded[0](first, *args)

    return call


def register() -> str | None:
    """Implements the operators for CUDA; returns the reason if there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for operator in _contract.OPERATORS:
        if operator.name in KERNELS:
            operator.implement(_on_its_device(operator.name), "CUDA")
    return None
