"""Choices whose number depends on values: operators, so that a compiler need not look at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._definition import peaks as definition
from .registry import Dims, Operator, register


def _fake_points(values: Tensor, *_: Any) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return values.new_empty((size, values.dim()), dtype=torch.long)


def _fake_line(values: Tensor, *_: Any) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return values.new_empty(size, dtype=torch.long)


def _each(operator: Callable[..., Tensor], _: Any, dims: Dims, values: Tensor, *how: Any) -> Any:
    """One item after another, each of which must have as many."""
    dim = dims[0]
    found = [operator(x, *how) for x in values.unbind(0 if dim is None else dim)]
    numbers = [x.shape[0] for x in found]
    if len(set(numbers)) > 1:
        raise ValueError(
            f"vmap needs the same number of peaks or windows in each item: got {numbers}; ask for "
            "fewer, or call the function for each"
        )
    return torch.stack(found), 0


pick_peaks: Operator = register(
    "pick_peaks",
    "(Tensor values, int ndim, float? threshold, int? limit, SymInt[] min_distance) -> Tensor",
    definition.pick_peaks,
    _fake_points,
    batch=lambda *args: _each(pick_peaks, *args),
)
pick_lowest: Operator = register(
    "pick_lowest",
    "(Tensor values, SymInt zone, int? most, float limit) -> Tensor",
    definition.pick_lowest,
    _fake_line,
    batch=lambda *args: _each(pick_lowest, *args),
)
