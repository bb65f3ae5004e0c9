"""Schemas, fake kernels, autograd and vmap of every operator: the contract between the rooms.

The reference is registered for all devices; faster kernels register themselves on top of it for
theirs. A backward is made of operators of this file, or of the reference's plain torch where a
second derivative is wanted, so derivatives of any order follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import _reference
from ._geometry import output_size

NAMESPACE = "torchcorr"
METHODS = ("direct", "fft")
library = torch.library.Library(NAMESPACE, "DEF")

_SCHEMAS = {
    "correlate_{}": "(Tensor input, Tensor template, int[] stride) -> Tensor",
    "correlate_{}_input_grad": (
        "(Tensor grad, Tensor template, int[] input_shape, int[] stride) -> Tensor"
    ),
    "correlate_{}_template_grad": (
        "(Tensor grad, Tensor input, int[] template_shape, int[] stride) -> Tensor"
    ),
    "ncc_{}": (
        "(Tensor input, Tensor template, int[] stride, bool zero_mean, float eps) -> Tensor"
    ),
    "standardise": "(Tensor template, int ndim, bool zero_mean) -> Tensor",
    "window_sum": "(Tensor input, int[] window, int[] stride) -> Tensor",
    "window_spread": "(Tensor grad, int[] window, int[] input_shape, int[] stride) -> Tensor",
    "window_moments": "(Tensor input, int[] window, int[] stride) -> (Tensor, Tensor)",
    "window_combine": (
        "(Tensor grad_s1, Tensor grad_s2, Tensor input, int[] window, int[] stride) -> Tensor"
    ),
    "local_std": (
        "(Tensor input, int[] window, int[] stride, float correction, float eps) -> Tensor"
    ),
    "local_std_prepare_grads": (
        "(Tensor grad, Tensor mean, Tensor var, float count, float correction, float eps)"
        " -> (Tensor, Tensor)"
    ),
    "lncc": "(Tensor a, Tensor b, int[] window, int[] stride, float eps) -> Tensor",
    "lncc_grads": (
        "(Tensor grad, Tensor a, Tensor b, int[] window, int[] stride, float eps, bool need_a,"
        " bool need_b) -> (Tensor, Tensor)"
    ),
    "ncc_fft_grads": (
        "(Tensor grad, Tensor input, Tensor template, Tensor score, int[] stride, bool zero_mean,"
        " float eps, bool need_input, bool need_template) -> (Tensor, Tensor)"
    ),
    "ncc_prepare_grads": (
        "(Tensor grad, Tensor score, Tensor mean, Tensor var, float count, bool zero_mean,"
        " float eps) -> (Tensor, Tensor, Tensor)"
    ),
}


def qualified(name: str) -> str:
    return f"{NAMESPACE}::{name}"


def operator_names() -> list[str]:
    """Names of all operators, without the namespace."""
    return [name.format(m) for name in _SCHEMAS for m in (METHODS if "{}" in name else ("",))]


for _pattern, _schema in _SCHEMAS.items():
    for _method in METHODS if "{}" in _pattern else ("",):
        _name = _pattern.format(_method)
        library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
        _definition = getattr(_reference, _pattern.replace("_{}", "").replace("_fft", ""))
        library.impl(_name, _definition, "CompositeExplicitAutograd")

# The operators as the rest of the package calls them.
ops: Any = SimpleNamespace(
    **{name: getattr(torch.ops.torchcorr, name) for name in operator_names()}
)
# The same without what derivatives need, for engines, which run below them.
kernels: Any = SimpleNamespace(
    **{name: getattr(torch.ops.torchcorr, name).default for name in operator_names()}
)
# Types of devices whose kernels read half types as they are stored; they register themselves.
READ_HALF_TYPES: set[str] = set()
# vmap rule of each operator by name; `_vmap.py` fills it.
VMAP_RULES: dict[str, Callable[..., Any]] = {}


def nothing_to_record(x: Tensor) -> bool:
    """Whether operations on x need no derivative and are seen by no transform or compiler."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return type(x) is Tensor and not (torch.is_grad_enabled() and x.requires_grad)


def register_autograd(name: str, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Gives an operator its derivative, also under torch.func's transforms.

    PyTorch's own registration refuses torch.func.grad and jacrev; an autograd.Function with the
    same two functions and a vmap rule serves those.
    """
    operator = getattr(torch.ops.torchcorr, name)
    torch.library.register_autograd(qualified(name), backward, setup_context=setup, lib=library)

    def forward(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    def vmap(info: Any, dims: Sequence[int | None], *args: Any) -> Any:
        return VMAP_RULES[name](info, dims, *args)

    members = {"forward": forward, "setup_context": setup, "backward": backward, "vmap": vmap}
    members = {key: staticmethod(member) for key, member in members.items()}
    rule: Any = type(name, (torch.autograd.Function,), members)

    overload = operator.default

    def call(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return rule.apply(*args)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            for x in args[:3]:
                if isinstance(x, Tensor) and x.requires_grad:
                    return overload(*args)
            if torch.compiler.is_compiling():
                return overload(*args)
        # Nothing to record: past the autograd key, which costs as much as a small kernel.
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    setattr(ops, name, call)


# --- shapes -------------------------------------------------------------------------------------


def _score_shape(input: Tensor, template: Tensor, stride: Sequence[int]) -> tuple[int, ...]:
    ndim = len(stride)
    lead = torch.broadcast_shapes(input.shape[: -ndim - 1], template.shape[: -ndim - 1])
    return (*lead, *output_size(input.shape[-ndim:], template.shape[-ndim:], stride))


def _window_shape(input: Tensor, window: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    ndim = len(window)
    return (*input.shape[: -ndim - 1], *output_size(input.shape[-ndim:], window, stride))


def fake_score(input: Tensor, template: Tensor, stride: Sequence[int], *_: Any) -> Tensor:
    return input.new_empty(_score_shape(input, template, stride))


def fake_pair(_grad: Tensor, first: Tensor, second: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Both gradients of a pair, one that is not needed empty: the last two arguments say so."""
    need_first, need_second = args[-2:]
    return (
        first.new_empty(first.shape if need_first else (0,)),
        second.new_empty(second.shape if need_second else (0,)),
    )


def _fake_shaped(grad: Tensor, _: Any, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    return grad.new_empty(tuple(shape))


def fake_window_map(input: Tensor, window: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return input.new_empty(_window_shape(input, window, stride))


def _fake_moments(
    input: Tensor, window: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    shape = _window_shape(input, window, stride)
    wide = _reference.wide_dtype(input)
    return input.new_empty(shape, dtype=wide), input.new_empty(shape, dtype=wide)


def _fake_combine(_s1: Tensor, _s2: Tensor, input: Tensor, *_: Any) -> Tensor:
    return input.new_empty(input.shape)


def _fake_local_std_grads(
    grad: Tensor, mean: Tensor, var: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(mean)


# --- correlation: a bilinear form and its two transposes, each the gradient of the others ---------


def _no_work(ctx: Any, argument: int, compute: Callable[[], Tensor]) -> Tensor | None:
    return compute() if ctx.needs_input_grad[argument] else None


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.shapes = (tuple(inputs[0].shape), tuple(inputs[1].shape))
    ctx.stride = inputs[-1]


def transposes(method: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The two transposes of a method, looked up when called: they may call each other."""

    def input_grad(*args: Any) -> Tensor:
        return getattr(ops, f"correlate_{method}_input_grad")(*args)

    def template_grad(*args: Any) -> Tensor:
        return getattr(ops, f"correlate_{method}_template_grad")(*args)

    return input_grad, template_grad


def _register_correlation(method: str) -> None:
    def forward(*args: Any) -> Tensor:
        return getattr(ops, f"correlate_{method}")(*args)

    input_grad, template_grad = transposes(method)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, template = ctx.saved_tensors
        shape, window = ctx.shapes
        return (
            _no_work(ctx, 0, lambda: input_grad(grad, template, shape, ctx.stride)),
            _no_work(ctx, 1, lambda: template_grad(grad, input, window, ctx.stride)),
            None,
        )

    def backward_of_input_grad(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
        grad, template = ctx.saved_tensors
        window = ctx.shapes[1]
        return (
            _no_work(ctx, 0, lambda: forward(seed, template, ctx.stride)),
            _no_work(ctx, 1, lambda: template_grad(grad, seed, window, ctx.stride)),
            None,
            None,
        )

    def backward_of_template_grad(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
        grad, input = ctx.saved_tensors
        shape = ctx.shapes[1]
        return (
            _no_work(ctx, 0, lambda: forward(input, seed, ctx.stride)),
            _no_work(ctx, 1, lambda: input_grad(grad, seed, shape, ctx.stride)),
            None,
            None,
        )

    for suffix, rule in (
        ("", backward),
        ("_input_grad", backward_of_input_grad),
        ("_template_grad", backward_of_template_grad),
    ):
        name = f"correlate_{method}{suffix}"
        register_autograd(name, rule, _save_pair)
        fake = fake_score if suffix == "" else _fake_shaped
        torch.library.register_fake(qualified(name), fake, lib=library)


# --- windows --------------------------------------------------------------------------------------


def _save_window(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.window, ctx.stride = inputs[1], inputs[-1]
    ctx.shape = tuple(inputs[0].shape)


def _window_sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.window_spread(grad, ctx.window, ctx.shape, ctx.stride), None, None


def _window_spread_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    return ops.window_sum(seed, ctx.window, ctx.stride), None, None, None


def count_of(input_shape: Sequence[int], window: Sequence[int]) -> int:
    return int(input_shape[-len(window) - 1]) * torch.Size(window).numel()


def _save_input(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.window, ctx.stride, *ctx.options = inputs[1:]
    ctx.count = count_of(inputs[0].shape, ctx.window)


def _moments_backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Any, ...]:
    (input,) = ctx.saved_tensors
    mean, var = ops.window_moments(input, ctx.window, ctx.stride)
    grad_s2 = torch.where(var == 0, torch.zeros_like(grad_var), grad_var) / ctx.count
    grad_s1 = grad_mean / ctx.count - 2 * mean * grad_s2
    return ops.window_combine(grad_s1, grad_s2, input, ctx.window, ctx.stride), None, None


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.window, ctx.stride = inputs[3:]


def _combine_backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
    grad_s2, input = ctx.saved_tensors
    window, stride = ctx.window, ctx.stride
    wide_seed = _reference.widen(seed)

    def into_input() -> Tensor:
        return 2 * seed * ops.window_spread(grad_s2, window, tuple(input.shape), stride)

    return (
        _no_work(ctx, 0, lambda: ops.window_sum(wide_seed, window, stride)),
        _no_work(ctx, 1, lambda: ops.window_sum(2 * wide_seed * input, window, stride)),
        _no_work(ctx, 2, lambda: into_input().to(input.dtype)),
        None,
        None,
    )


def prepared(name: str) -> Callable[..., Any]:
    """The fused kernel, or its definition in plain torch where it will be differentiated."""
    return getattr(_reference, name) if torch.is_grad_enabled() else getattr(ops, name)


def _local_std_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (input,) = ctx.saved_tensors
    mean, var = ops.window_moments(input, ctx.window, ctx.stride)
    prepare = prepared("local_std_prepare_grads")
    grad_s1, grad_s2 = prepare(grad, mean, var, ctx.count, *ctx.options)
    combined = ops.window_combine(grad_s1, grad_s2, input, ctx.window, ctx.stride)
    return combined, None, None, None, None


for _method in METHODS:
    _register_correlation(_method)

for _name, _fake, _setup, _rule in (
    ("window_sum", fake_window_map, _save_window, _window_sum_backward),
    ("window_spread", _fake_shaped, _save_window, _window_spread_backward),
    ("window_moments", _fake_moments, _save_input, _moments_backward),
    ("window_combine", _fake_combine, _save_combine, _combine_backward),
    ("local_std", fake_window_map, _save_input, _local_std_backward),
):
    torch.library.register_fake(qualified(_name), _fake, lib=library)
    register_autograd(_name, _rule, _setup)
torch.library.register_fake(
    qualified("local_std_prepare_grads"), _fake_local_std_grads, lib=library
)
