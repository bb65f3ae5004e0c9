"""What only a GPU can show: graphs, streams, other devices, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import draw
from torch import Tensor

import torchcorr

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f"{name}-{method}": lambda x, t, name=name, method=method: getattr(torchcorr, name)(
        x, t, method=method
    )
    for name in ("correlate", "zncc")
    for method in ("direct", "fft")
}
CALLS["local_std"] = lambda x, t: torchcorr.local_std(x, 31)
CALLS["lncc"] = lambda x, t: torchcorr.lncc(x, x.flip(0), 9, border="valid")
CALLS["lncc-weights"] = lambda x, t: torchcorr.lncc(x, x.flip(0), 9, weights="gaussian")
CALLS |= {
    f"zncc-masks-{method}": lambda x, t, method=method: torchcorr.zncc(
        x, t, input_mask=x.detach(), template_mask=t.detach(), method=method
    )
    for method in ("direct", "fft")
}
CALLS["local_std-masks"] = lambda x, t: torchcorr.local_std(x, 31, input_mask=x.detach() > 0.1)
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def tensors(device: str = "cuda") -> tuple[Tensor, Tensor]:
    image, template = draw((500, 600), torch.float32), draw((21, 20), torch.float32, 1)
    return image.to(device).requires_grad_(), template.to(device).requires_grad_()


def results(call: Callable[[Tensor, Tensor], Tensor], *leaves: Tensor) -> list[Tensor]:
    out = call(*leaves)
    grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
    return [out.detach(), *(g for g in grads if g is not None)]


@every_call
def test_two_runs_agree_bit_for_bit(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    leaves = tensors()
    first = results(call, *leaves)
    for _ in range(3):
        for one, other in zip(first, results(call, *leaves), strict=True):
            assert torch.equal(one, other)


@every_call
def test_a_graph_repeats_it_on_new_data(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    leaves = tensors()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(call, *leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(call, *leaves)
    with torch.no_grad():
        leaves[0].copy_(leaves[0].flip(1) + 1)
    graph.replay()
    for one, other in zip(captured, results(call, *leaves), strict=True):
        assert torch.equal(one, other)


@every_call
def test_work_goes_to_the_current_stream(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    leaves = tensors()
    want = results(call, *leaves)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # Nothing but the order on this stream makes the copy come first.
        torch.cuda._sleep(50_000_000)
        copies = [x.detach().clone().requires_grad_() for x in leaves]
        got = results(call, *copies)
    side.synchronize()
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@every_call
def test_the_tensors_device_counts(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    want = results(call, *tensors("cuda:0"))
    got = results(call, *tensors("cuda:1"))
    for one, other in zip(want, got, strict=True):
        assert other.device == torch.device("cuda:1")
        torch.testing.assert_close(one, other.to(one.device))


def test_the_kernels_are_in_use() -> None:
    from torchcorr import _contract, _engines

    reason = _engines.load()["cuda"]
    assert all("CUDA" in operator.kernels() for operator in _contract.OPERATORS), reason
