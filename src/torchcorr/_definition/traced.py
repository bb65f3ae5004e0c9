"""Whether code runs on tensors that have no values yet."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether values must not be looked at: tensors may be those of a compiler or a transform."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
