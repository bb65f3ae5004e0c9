"""DistributedDataParallel: two processes learn what one does."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from inputs import draw, normal
from torch.nn.parallel import DistributedDataParallel

import torchcorr

pytestmark = [
    pytest.mark.cpu_only("both processes compute on the CPU"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo"),
]


def network():
    """A layer and the scores of a learnable template in what it gives, with the same numbers."""
    layer = torchcorr.nn.Conv2d(1, 2, 7, padding=3)
    with torch.no_grad():
        layer.weight.copy_(normal(*layer.weight.shape, seed=1))
        layer.bias.copy_(normal(2, seed=2))
    scores = torchcorr.nn.ZNCC(normal(3, 4, seed=3).float(), learnable=True)
    return torch.nn.Sequential(layer, scores).double()


def gradients(module, images):
    module(images).square().mean().backward()
    return [p.grad.clone() for p in module.parameters()]


def images():
    return draw((4, 1, 14, 15))


def work(rank, place):
    torch.set_num_threads(1)
    meet, limit = f"file://{place}/meet", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meet, timeout=limit, rank=rank, world_size=2)
    try:
        found = gradients(DistributedDataParallel(network()), images()[2 * rank :][:2])
        torch.save(found, os.path.join(place, f"{rank}.pt"))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def work_alone(rank, place):
    work(rank, place)
    # Threads of gloo that outlive the group may abort a process that ends in the usual way.
    os._exit(0)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    expected = gradients(network(), images())
    assert len(expected) == 3 and all(x.abs().max() > 0 for x in expected)
    other = processes.get_context("spawn").Process(target=work_alone, args=(1, str(tmp_path)))
    other.start()
    work(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    for rank in range(2):
        for got, one in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(got, one, rtol=1e-10, atol=1e-12)
