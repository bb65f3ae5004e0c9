"""The host never waits for a GPU: no value is read back, forward or backward.

Without a GPU nothing is launched and tensors are fake, so that reading a value raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from inputs import draw
from interpreter import DEVICE
from samples import SAMPLES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import torchcorr
from torchcorr import _arguments, _contract
from torchcorr._triton import KERNELS, kernel

# Fake tensors are on the CPU, whose engine may be missing.
pytestmark = pytest.mark.filterwarnings("ignore:torchcorr has no kernels for cpu")
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f"{name}-{method}-{mode}": lambda x, t, name=name, method=method, mode=mode: getattr(
        torchcorr, name
    )(x, t, method=method, mode=mode)
    for name in ("correlate", "convolve", "zncc", "ncc")
    for method in ("direct", "fft", "auto")
    for mode in ("valid", "same")
}
CALLS |= {
    name: lambda x, t, name=name: getattr(torchcorr, name)(x, 5)
    for name in ("local_sum", "local_mean", "local_var", "local_std")
}
CALLS["lncc"] = lambda x, t: torchcorr.lncc(x, x.flip(0), 5, border="valid")
CALLS["lncc-weights"] = lambda x, t: torchcorr.lncc(x, x.flip(0), 5, weights="gaussian")
CALLS["LNCCLoss"] = lambda x, t: torchcorr.nn.LNCCLoss(5, ndim=2)(x, x.flip(0))
# Operators: functions read the values of masks that are not on a GPU.
CALLS |= {
    f"weighted_ncc-{method}": lambda x, t, method=method: _contract.weighted_ncc(
        x.expand(2, -1, -1),
        t.expand(2, -1, -1),
        x.sigmoid()[None],
        t.sigmoid()[None],
        [1, 2],
        True,
        method == "fft",
        0.1,
        0.3,
        method,
    )  # fmt: skip
    for method in ("direct", "fft")
}
CALLS |= {
    "weighted_moments": lambda x, t: _contract.weighted_moments(
        x[None], x.sigmoid()[None], t.sigmoid()[None], [9, 8], [1, 1]
    )[2],
    "weighted_moments-box": lambda x, t: _contract.weighted_moments(
        x[None], x.sigmoid()[None], None, [9, 8], [1, 1]
    )[2],
}


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """Raises where the host would wait; yields a function that makes tensors those of the test."""
    with contextlib.ExitStack() as stack:
        if DEVICE == "cpu":
            from triton.runtime.interpreter import GridExecutor

            monkeypatch.setattr(GridExecutor, "__call__", lambda *args, **kwargs: None)
            mode = stack.enter_context(FakeTensorMode())
            yield lambda x: mode.from_tensor(x).detach() if isinstance(x, Tensor) else x
        else:
            yield lambda x: x.detach().to(DEVICE) if isinstance(x, Tensor) else x
            torch.cuda.set_sync_debug_mode("default")


def no_waiting() -> None:
    if DEVICE != "cpu":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")


def test_reading_a_value_is_seen(waiting: Callable[[Any], Any]) -> None:
    x = waiting(torch.ones(3))
    no_waiting()
    with pytest.raises(Exception, match="_local_scalar_dense|synchroniz"):
        bool(x.sum() > 1)


# Definitions that read which overlaps are faint, or what has been taken (docs/gpu.md).
WAITING = {"overlap_scores", "pick_peaks", "pick_lowest"}


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in WAITING])
def test_kernels_do_not_wait(name: str, waiting: Callable[[Any], Any]) -> None:
    samples = [args for sample, args in SAMPLES if sample == name and not args[0].is_complex()]
    assert samples
    for args in samples:
        moved = [waiting(x) for x in args]
        kernel(name)(*moved)  # compiles
        no_waiting()
        kernel(name)(*moved)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_do_not_wait(
    call: Callable[[Tensor, Tensor], Tensor], waiting: Callable[[Any], Any]
) -> None:
    image, template = waiting(draw((40, 41), torch.float32)), waiting(draw((9, 8), torch.float32))
    leaves = [x.requires_grad_() for x in (image, template)]

    def everything() -> None:
        call(image.detach(), template.detach())
        result = call(*leaves).square().sum()
        grads = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
        twice = sum((g.square().sum() for g in grads if g is not None), torch.zeros_like(result))
        torch.autograd.grad(twice, leaves, allow_unused=True)

    everything()
    no_waiting()
    everything()


def test_half_types_are_not_widened_unless_a_gradient_is_wanted() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x, t = draw((9, 9), dtype), draw((3, 3), dtype)
        kept = _arguments.in_working_dtype(torch.float32, x, t)
        assert [y.dtype for y in kept] == [dtype] * 2
        # What a gradient is computed from is not rounded to a half type.
        wide = _arguments.in_working_dtype(torch.float32, x, t.requires_grad_())
        assert [y.dtype for y in wide] == [torch.float32] * 2
