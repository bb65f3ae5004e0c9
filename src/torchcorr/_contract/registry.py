"""Registers an operator: its schema, definition, fake, derivative and batching rule together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .._plan.shapes import output_size

NAMESPACE = "torchcorr"
library = torch.library.Library(NAMESPACE, "DEF")

Shape = tuple[int, ...]
# The axis of each argument that vmap maps over, and None for the others.
Dims = Sequence[int | None]

_Key, _Keys = torch._C.DispatchKey, torch._C.DispatchKeySet
# What the dispatcher knows of a tensor on the CPU that is no view with a conjugation or a negation
# due, no subclass, and of no transform; and of a thread without modes and transforms.
_PLAIN = _Keys(_Key.CPU).add(_Key.ADInplaceOrView).add(_Key.AutogradCPU).add(_Key.AutocastCPU)
_NO_MODES = _Keys(_Key.BackendSelect).add(_Key.ADInplaceOrView)


class Operator:
    """A registered operator: what the package calls, and what engines implement."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Without what derivatives need: for engines, which run below them.
        self.kernel: Callable[..., Any] = getattr(torch.ops.torchcorr, name).default
        self._rules: dict[str, Callable[..., Any]] = {}  # of its derivative
        self._on_cpu: Callable[..., Any] | None = None
        # Of an engine for the CPU: what computes plain calls with some shapes and options in one
        # step, or None.
        self.at_once: Callable[..., Callable[..., Any] | None] = _never
        # Of the same: the spectra of (pairs, templates, C, *window) for tiles that its calls take,
        # in float64 or not, or None.
        self.spectra: Callable[..., Tensor | None] = _never

    def __call__(self, *args: Any) -> Any:
        if not self._rules:
            return self.kernel(*args)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return self._under_transforms(*args)
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self.kernel(*args)
        if torch.is_grad_enabled():
            for x in args[:4]:
                if isinstance(x, Tensor) and x.requires_grad:
                    return self._recorded(*args) if _are_plain(args) else self.kernel(*args)
        # Nothing to record: past the autograd key, which costs as much as a small kernel.
        return self._forward(*args)

    def implement(self, kernel: Callable[..., Any], key: str) -> None:
        """Registers an engine's kernel for a dispatch key."""
        library.impl(self.name, kernel, key)
        if key == "CPU":
            self._on_cpu = kernel

    def kernels(self) -> tuple[str, ...]:
        """The dispatch keys for which an engine has registered a kernel."""
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        name = NAMESPACE + "::" + self.name
        return tuple(key for key in ("CPU", "CUDA", "MPS", "XPU") if has_kernel(name, key))

    def _jvp(self, tangent: Callable[..., Any], ctx: Any, *tangents: Any) -> Any:
        # PyTorch switches forward mode off here, which would also drop the tangents of any outer
        # transform; primals have none of this one.
        with forward_ad._set_fwd_grad_enabled(True):
            saved = ctx.saved_tensors
            primals = [None if x is None else forward_ad.unpack_dual(x).primal for x in saved]
            return tangent(self, ctx, primals, *tangents)

    def differentiate(
        self,
        setup: Callable[..., None],
        backward: Callable[..., Any],
        batch: Callable[..., Any] | None,
        tangent: Callable[..., Any] | None = None,
    ) -> None:
        """Registers a derivative, also under torch.func's transforms and in forward mode.

        torch.library.register_autograd does not support torch.func.grad, jacrev and jvp; an
        autograd.Function made of the same functions and the batching rule does. Outside of
        transforms and compilers one without `setup_context` records in a fraction of the time that
        either takes, which shows on tiny inputs.
        """
        qualified = NAMESPACE + "::" + self.name
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=library)

        rules: dict[str, Callable[..., Any] | None]
        rules = {"setup_context": setup, "backward": backward, "vmap": batch}
        rules["jvp"] = None if tangent is None else partial(self._jvp, tangent)
        self._rules = {name: rule for name, rule in rules.items() if rule is not None}

    def _forward(self, *args: Any) -> Any:
        """The operator without its derivative; where the dispatcher would only find the engine's
        kernel for the CPU, that is called, since the way through it shows on tiny inputs."""
        kernel = self._on_cpu
        if kernel is None or not _dispatch_is_plain(args):
            kernel = self.kernel
        with torch._C._AutoDispatchBelowAutograd():
            return kernel(*args)

    # Classes are made when they are first needed: making all of them takes a part of the import.

    @cached_property
    def _under_transforms(self) -> Callable[..., Any]:
        return self._function({"forward": self._forward, **self._rules})

    @cached_property
    def _recorded(self) -> Callable[..., Any]:
        setup = self._rules["setup_context"]

        def forward(ctx: Any, *args: Any) -> Any:
            output = self._forward(*args)
            setup(ctx, args, output)
            return output

        return self._function({"forward": forward, "backward": self._rules["backward"]})

    def _function(self, rules: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
        members = {name: staticmethod(rule) for name, rule in rules.items()}
        function: Any = type(self.name, (torch.autograd.Function,), members)
        apply: Callable[..., Any] = function.apply
        return apply


def _never(*_: Any) -> None:
    """What an engine may do is not done."""


def is_plain(*tensors: Tensor) -> bool:
    """Whether an operator of these is no more than a kernel for the CPU: nothing is recorded,
    traced or transformed, and no subclass or mode has a say."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    recorded = torch.is_grad_enabled()
    for x in tensors:
        if type(x) not in (Tensor, Parameter) or (recorded and x.requires_grad):
            return False
    return _dispatch_is_plain(tensors)


def _are_plain(args: Sequence[Any]) -> bool:
    """Whether no tensor is of a subclass, which may have rules of its own for operators."""
    return all(type(x) in (Tensor, Parameter) for x in args if isinstance(x, Tensor))


def _dispatch_is_plain(args: Sequence[Any]) -> bool:
    """Whether no mode, transform, profiler or kind of tensor has a say in what an operator does."""
    if torch._C._dispatch_tls_local_include_set() != _NO_MODES:
        return False
    if torch._C._autograd._profiler_enabled():
        return False
    keys = torch._C._dispatch_keys
    return all(keys(x) == _PLAIN for x in args if isinstance(x, Tensor))


def register(
    name: str,
    schema: str,
    definition: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    batch: Callable[..., Any] | None = None,
    tangent: Callable[..., Any] | None = None,
) -> Operator:
    """Defines an operator and returns it as the rest of the package calls it.

    `definition` runs on every device that no engine implements it for, `fake` gives shapes,
    `setup` and `backward` are those of torch.library.register_autograd, and `batch` is the rule
    of torch.library.register_vmap. A backward is made of registered operators, so that derivatives
    of any order follow. `tangent` is the rule of forward mode, made of them too: it is called with
    the operator, the context that `setup` filled, the tensors that it saved for forward mode and
    the tangents of the arguments.
    """
    qualified = NAMESPACE + "::" + name
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, definition, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=library)
    operator = Operator(name)
    if batch is not None:
        torch.library.register_vmap(qualified, batch, lib=library)
    if setup is not None and backward is not None:
        operator.differentiate(setup, backward, batch, tangent)
    return operator


def tangent_of_form(
    operator: Operator, ctx: Any, primals: Sequence[Tensor], first: Any, second: Any, *_: Any
) -> Any:
    """Forward mode of a form that is linear in both tensors: either is replaced by its tangent.

    The context has both tensors, saved for forward mode, and all other arguments as `how`.
    """
    one, other = primals
    parts = []
    if first is not None:
        parts.append(operator(first, other, *ctx.how))
    if second is not None:
        parts.append(operator(one, second, *ctx.how))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def tangent_by_gradients(
    gradients: Callable[..., Any], outputs: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Forward mode of an operator whose gradients are many sums: the transpose of their map.

    `gradients` takes upstream gradients, of which it is linear, and which tensors need one.
    """
    wanted = tuple(x is not None for x in tangents)

    def pulled(*grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x, want in zip(gradients(grads, wanted), wanted, strict=True) if want)

    zeros = (torch.zeros_like(x) for x in outputs)
    transpose: Callable[..., Any] = torch.func.vjp(pulled, *zeros)[1]
    result: tuple[Tensor, ...] = transpose(tuple(x for x in tangents if x is not None))
    return result


def differentiated_again() -> bool:
    """Whether a backward is itself differentiated, and must be made of operators."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


# --- shapes ---------------------------------------------------------------------------------------


def score_shape(input: Tensor, template: Tensor, stride: Sequence[int]) -> Shape:
    ndim = len(stride)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    return (*lead, *output_size(input.shape[-ndim:], template.shape[-ndim:], stride))


def map_shape(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> Shape:
    ndim = len(window)
    return (*input.shape[: -ndim - 1], *output_size(input.shape[-ndim:], window, stride))


def fake_score(input: Tensor, template: Tensor, stride: Sequence[int], *_: Any) -> Tensor:
    return input.new_empty(score_shape(input, template, stride))


def fake_map(input: Tensor, window: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return input.new_empty(map_shape(input, window, stride))


def fake_like_shape(grad: Tensor, _: Any, shape: Sequence[int], *__: Any) -> Tensor:
    return grad.new_empty(tuple(shape))


def fake_pair(_grad: Tensor, first: Tensor, second: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Both gradients of a pair, one that is not needed empty: the last two arguments say so."""
    need_first, need_second = args[-2:]
    return (
        first.new_empty(first.shape if need_first else (0,)),
        second.new_empty(second.shape if need_second else (0,)),
    )


# --- batching: a batch axis is one more leading axis, so no loop is needed -----------------------


def front(x: Tensor, dim: int | None, core: int, lead: int, batch: int | None = None) -> Tensor:
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


def rank(x: Tensor, dim: int | None) -> int:
    """Axes of x without its batch axis."""
    return x.dim() - (dim is not None)


def batched(size: int, dims: Dims, args: Sequence[Any]) -> list[Any]:
    """Arguments whose tensors all have the same leading axes, the batch axis in front of them."""
    return [
        front(x, d, 0, rank(x, d), size) if isinstance(x, Tensor) else x
        for x, d in zip(args, dims, strict=True)
    ]
