"""vmap of every operator: a batch axis is one more leading axis, so no loop is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._ops import METHODS, VMAP_RULES, library, ops

Dim = int | None


def _front(x: Tensor, dim: Dim, core: int, lead: int, batch: int | None = None) -> Tensor:
    """x with its batch axis first and `lead` leading axes behind it.

    Without a batch axis, x is left to broadcast, or is expanded when `batch` is given.
    """
    if dim is None:
        if batch is None:
            return x
        x, dim = x.expand(batch, *x.shape), 0
    x = x.movedim(dim, 0)
    missing = lead - (x.dim() - 1 - core)
    return x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:])


def _rank(x: Tensor, dim: Dim) -> int:
    return x.dim() - (dim is not None)


def _register(name: str, rule: Any) -> None:
    VMAP_RULES[name] = rule
    torch.library.register_vmap(f"torchcorr::{name}", rule, lib=library)


def _register_scores(name: str) -> None:
    operator = getattr(ops, name)

    def rule(info: Any, dims: Sequence[Dim], input: Tensor, template: Tensor, *args: Any) -> Any:
        core = len(args[0]) + 1
        lead = max(_rank(input, dims[0]), _rank(template, dims[1])) - core
        batched = (_front(x, d, core, lead) for x, d in zip((input, template), dims, strict=False))
        return operator(*batched, *args), 0

    _register(name, rule)


def _register_transpose(name: str) -> None:
    operator = getattr(ops, name)

    def rule(
        info: Any,
        dims: Sequence[Dim],
        grad: Tensor,
        other: Tensor,
        shape: Sequence[int],
        stride: Sequence[int],
    ) -> Any:
        ndim = len(stride)
        lead = max(_rank(grad, dims[0]) - ndim, _rank(other, dims[1]) - ndim - 1)
        size = info.batch_size
        grad = _front(grad, dims[0], ndim, lead, size)
        other = _front(other, dims[1], ndim + 1, lead)
        padded = (size, *(1,) * (lead - len(shape) + ndim + 1), *shape)
        return operator(grad, other, padded, stride).reshape(size, *shape), 0

    _register(name, rule)


def _register_windowed(name: str, outputs: int) -> None:
    """Operators of one lead: window(s) of tensors that all have the same leading axes."""
    operator = getattr(ops, name)

    def rule(info: Any, dims: Sequence[Dim], *args: Any) -> Any:
        size = info.batch_size
        batched = [
            _front(x, d, 0, x.dim() - (d is not None), size) if isinstance(x, Tensor) else x
            for x, d in zip(args, dims, strict=True)
        ]
        if name == "window_spread":
            batched[2] = (size, *batched[2])
        return operator(*batched), (0 if outputs == 1 else (0,) * outputs)

    _register(name, rule)


def _ncc_grads_rule(
    info: Any,
    dims: Sequence[Dim],
    grad: Tensor,
    score: Tensor,
    mean: Tensor,
    var: Tensor,
    *args: Any,
) -> Any:
    size, lead = info.batch_size, _rank(grad, dims[0])
    own = mean.shape if dims[2] is None else mean.movedim(dims[2], 0).shape[1:]
    grad, score, mean, var = (
        _front(x, d, 0, lead, size) for x, d in zip((grad, score, mean, var), dims[:4], strict=True)
    )
    numerator_grad, grad_s1, grad_s2 = ops.ncc_prepare_grads(grad, score, mean, var, *args)
    shape = (size, *own)
    return (numerator_grad, grad_s1.reshape(shape), grad_s2.reshape(shape)), (0, 0, 0)


for _method in METHODS:
    _register_scores(f"correlate_{_method}")
    _register_scores(f"ncc_{_method}")
    _register_transpose(f"correlate_{_method}_input_grad")
    _register_transpose(f"correlate_{_method}_template_grad")
for _name, _outputs in (
    ("window_sum", 1),
    ("window_spread", 1),
    ("window_moments", 2),
    ("window_combine", 1),
    ("local_std", 1),
    ("lncc", 1),
    ("standardise", 1),
    ("local_std_prepare_grads", 2),
):
    _register_windowed(_name, _outputs)
_register("ncc_prepare_grads", _ncc_grads_rule)
