"""Searches as operators: compilers and `torch.func.vmap` call them without looking at values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Fields", "empty_fields", "is_needed", "register"]

Fields = tuple[Tensor, ...]
NAMESPACE = "torchcorr_align"
# Of the fields of records that are no numbers of float64.
_KINDS = {"found": torch.bool, "at_limit": torch.bool, "overlap": torch.int64, "count": torch.int64}
# What PyTorch leaves out while a kernel runs: derivatives, and in a compiled program also views
# that are conjugate or negative, which would then be taken for what they are views of.
_LEFT_OUT = (
    torch._C.DispatchKey.AutogradCPU,
    torch._C.DispatchKey.AutogradCUDA,
    torch._C.DispatchKey.AutogradOther,
    torch._C.DispatchKey.ADInplaceOrView,
    torch._C.DispatchKey.Conjugate,
    torch._C.DispatchKey.Negative,
    torch._C.DispatchKey.ZeroTensor,
)


def is_needed(*tensors: Tensor | None) -> bool:
    """Whether values must not be looked at: these are tensors of a compiler, or mapped over."""
    return torch.compiler.is_compiling() or any(
        x is not None and torch._C._functorch.is_batchedtensor(x) for x in tensors
    )


def empty_fields(like: Tensor, sizes: Mapping[str, Sequence[int]]) -> Fields:
    """Fields of a record, of these sizes, without values."""
    return tuple(
        like.new_empty(tuple(size), dtype=_KINDS.get(name, torch.float64))
        for name, size in sizes.items()
    )


def register(
    name: str,
    schema: str,
    results: int,
    call: Callable[..., Fields],
    fake: Callable[..., Fields],
    differentiable: Sequence[int] = (),
) -> Callable[..., Fields]:
    """An operator of these arguments that returns so many tensors, by `call`.

    Results with the numbers `differentiable` have gradients for the first two arguments, those of
    `call`, which is called again for them.
    """
    returned = f"({', '.join(['Tensor'] * results)})"

    def kernel(*args: Any) -> Fields:
        # A search may follow a gradient of its own.
        with _AsOutside():
            return tuple(x.detach() for x in call(*map(_detached, args)))

    operator = torch.library.custom_op(
        f"{NAMESPACE}::{name}", kernel, mutates_args=(), schema=f"({schema}) -> {returned}"
    )
    operator.register_fake(fake)
    operator.register_vmap(lambda info, dims, *args: _each(operator, info, dims, args))
    if not differentiable:
        return operator

    def gradients(upstream: list[Tensor], *args: Any) -> Fields:
        with _AsOutside():
            leaves = [x.detach().requires_grad_() for x in args[:2]]
            found = call(*leaves, *args[2:])
            outputs = [found[i] for i in differentiable]
            pairs = [(y, g) for y, g in zip(outputs, upstream, strict=True) if y.requires_grad]
            if not pairs:
                return tuple(torch.zeros_like(x) for x in leaves)
            ends, weights = zip(*pairs, strict=True)
            grads = torch.autograd.grad(ends, leaves, weights, materialize_grads=True)
        return tuple(g.contiguous() for g in grads)

    backward = torch.library.custom_op(
        f"{NAMESPACE}::{name}_grads",
        gradients,
        mutates_args=(),
        schema=f"(Tensor[] upstream, {schema}) -> (Tensor, Tensor)",
    )
    backward.register_fake(lambda _, *args: tuple(torch.empty_like(x) for x in args[:2]))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Fields) -> None:
        tensors = [x if isinstance(x, Tensor) else None for x in inputs]
        ctx.save_for_backward(*tensors)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def back(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        args = [other if x is None else x for x, other in pairs]
        grads = backward([upstream[i] for i in differentiable], *args)
        return (*grads, *(None,) * (len(args) - 2))

    operator.register_autograd(back, setup_context=keep)
    return operator


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


class _AsOutside:
    """Inside the kernel of an operator everything is dispatched as outside of it."""

    def __enter__(self) -> None:
        excluded = torch._C._dispatch_tls_local_exclude_set()
        for key in _LEFT_OUT:
            excluded = excluded.remove(key)
        included = torch._C._dispatch_tls_local_include_set()
        self.keys = torch._C._ForceDispatchKeyGuard(included, excluded)
        self.mode = torch.enable_grad()
        self.keys.__enter__()
        self.mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        self.keys.__exit__(*error)


def _each(
    operator: Callable[..., Fields], info: Any, dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Fields, tuple[int, ...]]:
    """One item after another; each must have as many results."""
    if info.batch_size == 0:
        raise ValueError("vmap needs at least one item, which says what a search finds: got 0")
    found = [
        operator(
            *(
                x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x
                for x, dim in zip(args, dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    fields = list(zip(*found, strict=True))
    for values in fields:
        numbers = [x.shape[0] if x.dim() > 0 else 1 for x in values]
        if len(set(numbers)) > 1:
            raise ValueError(
                f"vmap needs the same number of results in each item: got {numbers}; call the "
                "function for each"
            )
    return tuple(torch.stack(values) for values in fields), (0,) * len(fields)
