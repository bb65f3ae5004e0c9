"""The table of docs/pytorch.md: each cell is tested, whether it says yes, no or that it is void."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from inputs import draw, normal
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

import torchcorr

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "pytorch.md"
# Of these functions the arguments or the result are numbers, not tensors.
WITHOUT_TENSORS = {"plan", "plan_layer", "correlation_lags"}
IMAGE, PATCH, LINE = (7, 8), (3, 2), (20,)


def of(name, *, field=None, **options):
    def call(*tensors):
        out = getattr(torchcorr, name)(*tensors, **options)
        return out if field is None else getattr(out, field)

    return call


def shift_of_a_copy(x, noise):
    """The shift of a smooth image and its moved copy, a peak that finite differences follow."""
    x = torch.nn.functional.avg_pool2d(x[None], 3, 1)[0]
    return torchcorr.estimate_shift(x, x.roll((1, 2), (0, 1)) + 0.05 * noise).shift


# A function of tensors, and their shapes.
CALLS = {
    **{name: (of(name), (IMAGE, PATCH)) for name in ("correlate", "convolve", "zncc", "ncc")},
    "coverage": (of("coverage"), (IMAGE, PATCH)),
    **{f"local_{m}": (of(f"local_{m}", window=3), (IMAGE,)) for m in ("sum", "mean", "var", "std")},
    "flat_windows": (of("flat_windows", window=3), (IMAGE,)),
    "lncc": (of("lncc", window=3), (IMAGE, IMAGE)),
    "conv1d": (of("conv1d"), ((1, 2, 20), (3, 2, 4))),
    "conv2d": (of("conv2d"), ((1, 2, 7, 8), (3, 2, 3, 2))),
    "conv3d": (of("conv3d"), ((1, 2, 4, 5, 6), (3, 2, 2, 2, 3))),
    "conv_transpose1d": (of("conv_transpose1d"), ((1, 2, 9), (2, 3, 4))),
    "conv_transpose2d": (of("conv_transpose2d"), ((1, 2, 5, 6), (2, 3, 3, 2))),
    "conv_transpose3d": (of("conv_transpose3d"), ((1, 2, 3, 4, 5), (2, 3, 2, 2, 3))),
    "cross_correlation": (of("cross_correlation"), (IMAGE, PATCH)),
    "phase_correlation": (of("phase_correlation"), (IMAGE, IMAGE)),
    "soft_shift": (of("soft_shift", max_shift=2), (IMAGE, IMAGE)),
    "distance_profile": (of("distance_profile"), (LINE, (5,))),
    "find_peaks": (of("find_peaks", field="scores"), (IMAGE,)),
    "match_template": (of("match_template", field="scores", threshold=0.2), (IMAGE, PATCH)),
    "closest_windows": (of("closest_windows", field="distances", max_matches=2), (LINE, (5,))),
    "match_filter": (of("match_filter", field="scores", threshold=0.5), ((2, 30), (1, 2, 5))),
    "estimate_shift": (shift_of_a_copy, ((12, 13), (10, 11))),
    "estimate_pose": (of("estimate_pose", field="matrix"), ((16, 16), (16, 16))),
    "register_stack": (of("register_stack", field="shifts"), ((3, 12, 13),)),
}


def table():
    """Rows of the page: what each column says of each function."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    columns = rows[0][1:]
    names = [row for row in rows[2:] if row[0] in CALLS]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in names}


CELLS = [(name, column, cell) for name, row in table().items() for column, cell in row.items()]


def tensors(name, dtype=torch.float64):
    return tuple(normal(*s, seed=i + 3, dtype=dtype) for i, s in enumerate(CALLS[name][1]))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def compiled(call, args, *, dynamic):
    torch.compiler.reset()
    other = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    close(other(*args), call(*args))


def exported(call, args):
    class Module(torch.nn.Module):
        def forward(self, *args):
            return call(*args)

    program = torch.export.export(Module(), args)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    for other in (program, torch.export.load(stored)):
        close(other.module()(*args), call(*args))


def mapped(call, args):
    others = tuple(x.flip(-1) for x in args)
    got = torch.func.vmap(call)(*(torch.stack(pair) for pair in zip(args, others, strict=True)))
    close(got, torch.stack([call(*args), call(*others)]))


def directional(call, args):
    """Steps of the tensors, and the change of the result with them by finite differences."""
    steps = tuple(x.cos() for x in args)
    ends = (call(*(x + h * s for x, s in zip(args, steps, strict=True))) for h in (1e-5, -1e-5))
    ahead, behind = ends
    return steps, (ahead - behind) / 2e-5


def similar(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0


def backward(call, args):
    steps, change = directional(call, args)
    leaves = [x.clone().requires_grad_() for x in args]
    weight = draw(tuple(change.shape), seed=9)
    grads = torch.autograd.grad(call(*leaves), leaves, weight)
    similar(sum((g * s).sum() for g, s in zip(grads, steps, strict=True)), (weight * change).sum())


def reverse(call, args):
    steps, change = directional(call, args)
    jacobians = torch.func.jacrev(call, tuple(range(len(args))))(*args)
    parts = (
        torch.tensordot(j, s, s.dim()) if s.dim() else j * s
        for j, s in zip(jacobians, steps, strict=True)
    )
    similar(sum(parts), change)


def forward(call, args):
    steps, change = directional(call, args)
    similar(torch.func.jvp(call, args, steps)[1], change)


def autocast(call, args):
    args = tuple(x.float() for x in args)
    expected = call(*args)
    with torch.autocast(args[0].device.type, dtype=torch.bfloat16):
        got = call(*args)
    if got.dtype == torch.bfloat16:  # as PyTorch's layers
        torch.testing.assert_close(got.float(), expected, rtol=3e-2, atol=6e-2)
    else:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def checkpointed(call, args):
    leaves = [x.clone().requires_grad_() for x in args]
    kept = checkpoint(call, *leaves, use_reentrant=False)
    both = (torch.autograd.grad(y.square().sum(), leaves) for y in (kept, call(*leaves)))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)


def deterministic(call, args):
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(call(*args), call(*args))
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def strided(call, args):
    """Every second element of a tensor, its axes in the opposite order."""
    others = []
    for x in args:
        x = x.permute(*reversed(range(x.dim()))).repeat_interleave(2, 0)[::2]
        others.append(x.permute(*reversed(range(x.dim()))))
    assert not any(x.is_contiguous() for x in others)
    close(call(*others), call(*args))


class Named(torch.Tensor):
    """A subclass whose `__torch_function__` is that of every tensor, as of torchvision's images."""


class Wrapped(torch.Tensor):
    """A tensor around another, which it computes with in `__torch_dispatch__`."""

    @staticmethod
    def __new__(cls, inner):
        how = {"dtype": inner.dtype, "device": inner.device, "strides": inner.stride()}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **how)

    def __init__(self, inner):
        # What is read of it is read without the bits that stand for a conjugate or a sign.
        self.inner = inner.resolve_conj().resolve_neg()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapped, function(*args, **kwargs))


def plain(x):
    return x.inner if isinstance(x, Wrapped) else x.as_subclass(torch.Tensor)


def of_a_class(call, args, made):
    others = [made(x.clone()) for x in args]
    got, expected = call(*others), call(*args)
    assert type(got) is type(others[0])
    close(plain(got.detach()), expected)
    leaves = [x.clone().requires_grad_() for x in args]
    expected = call(*leaves)
    if expected.requires_grad:
        others = [made(x.clone()).requires_grad_() for x in args]
        got = torch.autograd.grad(call(*others).square().sum(), others)
        for one, other in zip(
            got, torch.autograd.grad(expected.square().sum(), leaves), strict=True
        ):
            close(plain(one), other)


def subclassed(call, args):
    of_a_class(call, args, Wrapped)
    of_a_class(call, args, lambda x: x.as_subclass(Named))


CHECKS = {
    "compile": lambda call, args: compiled(call, args, dynamic=False),
    "dynamic": lambda call, args: compiled(call, args, dynamic=True),
    "export": exported,
    "vmap": mapped,
    "backward": backward,
    "jacrev": reverse,
    "jvp": forward,
    "autocast": autocast,
    "checkpoint": checkpointed,
    "deterministic": deterministic,
    "strides": strided,
    "subclass": subclassed,
}
DERIVATIVES = ("backward", "jacrev", "jvp", "checkpoint")


def test_the_table_has_every_public_function_and_check():
    public = (name for name in torchcorr.__all__ if inspect.isfunction(getattr(torchcorr, name)))
    rows = table()
    assert set(rows) == set(CALLS) == set(public) - WITHOUT_TENSORS
    assert all(list(row) == list(CHECKS) for row in rows.values())


def test_the_tests_of_modules_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    assert named
    for file, test in named:
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(), test


@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn; its numbers are compared
@pytest.mark.parametrize(("name", "column", "cell"), CELLS)
def test_cells(name, column, cell):
    call, args = CALLS[name][0], tensors(name)
    if name == "coverage":
        args = tuple(x.square() for x in args)
    if cell == "yes":
        CHECKS[column](call, args)
    elif cell == "no":
        with pytest.raises(RuntimeError):
            CHECKS[column](call, args)
    else:
        assert cell == "–" and column in DERIVATIVES
        assert not call(*(x.clone().requires_grad_() for x in args)).requires_grad


SEARCHES = ("match_filter", "estimate_shift", "estimate_pose", "register_stack")


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_take_named_tensors(name):
    call, args = CALLS[name][0], tensors(name)
    got = call(*(x.as_subclass(Named) for x in args))
    close(got.as_subclass(torch.Tensor), call(*args))


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_not_mapped_over_nothing_or_derivatives(name):
    call, args = CALLS[name][0], tensors(name)
    search = of("estimate_shift", field="shift") if name == "estimate_shift" else call
    with pytest.raises(ValueError, match="vmap needs at least one item.*: got 0"):
        torch.func.vmap(search)(*(x.new_empty((0, *x.shape)) for x in args))
    gradient = torch.func.grad(lambda *xs: call(*xs).sum())
    with pytest.raises(RuntimeError):
        torch.func.vmap(gradient)(*(torch.stack((x, x.flip(-1))) for x in args))
