"""Templates in parts give what whole ones do, for each kind of tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs import draw, normal

import torchcorr
from torchcorr._cpu import bytes as byte_scores
from torchcorr._cpu import correlate, scores
from torchcorr._plan import choose
from torchcorr._plan.choose import Arrangement, arrange
from torchcorr._plan.tiling import Tiling

# Size, window, stride, tiles and parts along each axis.
GEOMETRIES = {
    "1d": ((300,), (50,), (1,), (3,), (4,)),
    "1d-stride": ((301,), (37,), (2,), (2,), (3,)),
    "2d": ((60, 70), (21, 30), (1, 1), (2, 3), (2, 4)),
    "2d-one-axis": ((60, 70), (30, 9), (1, 2), (3, 1), (5, 1)),
    "3d": ((20, 22, 24), (9, 8, 7), (1, 1, 2), (1, 2, 1), (2, 2, 3)),
}


@pytest.fixture
def divided(request, monkeypatch):
    """The name of a geometry in whose tiles and parts everything is computed."""
    size, window, stride, grid, parts = GEOMETRIES[request.param]
    tiling = Tiling.cut(size, window, stride, grid, parts=parts)

    def in_parts(*args, **options):
        call = arrange(*args, **options)
        plan = replace(
            call.plan,
            method="fft",
            tile=tiling.outputs,
            transform=tiling.length,
            parts=tiling.parts,
            tiles=tiling.tiles,
            batch=2,
        )
        return Arrangement(call.problem, plan, tiling)

    def sums_in_parts(*args, **options):
        return in_parts(*args, normalised=False, **options)

    for module in (byte_scores, scores):
        monkeypatch.setattr(module, "arrange", in_parts)
    monkeypatch.setattr(correlate, "arrange_sums", sums_in_parts)
    return request.param


def operands(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict]:
    size, window, stride, *_ = GEOMETRIES[name]
    how = {"ndim": len(size), "stride": stride, "channels": "joint", "method": "fft"}
    if dtype == torch.uint8:
        return (draw((2, 3, *size)) * 256).to(dtype), (draw((3, *window)) * 256).to(dtype), how
    x = normal(2, 3, *size, seed=1, dtype=dtype)
    x[1, 0, 0] *= 100
    return x, normal(3, *window, seed=2, dtype=dtype), how


@pytest.mark.parametrize("divided", GEOMETRIES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_scores(divided, dtype):
    x, w, how = operands(divided, dtype)
    want = torchcorr.zncc(x.double(), w.double(), **{**how, "method": "direct"})
    got = torchcorr.zncc(x, w, **how)
    assert (got.double() - want).abs().max() <= (1e-10 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("divided", GEOMETRIES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums(divided, dtype):
    x, w, how = operands(divided, dtype)
    x[0, 0].view(-1)[7] = torch.nan
    want = torchcorr.correlate(x.double(), w.double(), **{**how, "method": "direct"})
    got = torchcorr.correlate(x, w, **how).double()
    assert torch.equal(got.isnan(), want.isnan())
    error = (got - want).nan_to_num(0).abs().max()
    assert error <= 10 * torch.finfo(dtype).eps * want.nan_to_num(0).abs().max()


# Leading axes of an input and of a template.
LEADS = [((), ()), ((2,), (3, 1)), ((1, 1), (2,)), ((2, 1), (1, 3)), ((), (2, 2)), ((2,), (2,))]


@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_complex_tensors_from_tiles_of_their_real_parts(leads, monkeypatch):
    """As whole transforms, and as their gradients, which are taken where scratch suffices."""
    shapes = ((*leads[0], 2, 70, 80), (*leads[1], 2, 20, 30))
    how = {"channels": "joint", "stride": (2, 1), "method": "fft"}
    results = []
    for allowed in (1e9, 1e4):
        monkeypatch.setattr(choose, "scratch_allowed", lambda _, allowed=allowed: allowed)
        choose._arranged.cache_clear()
        pair = [normal(*n, seed=1, dtype=torch.complex64).requires_grad_() for n in shapes]
        sums = torchcorr.correlate(*pair, **how)
        upstream = normal(*sums.shape, seed=2, dtype=torch.complex64)
        results.append([sums.detach(), *torch.autograd.grad(sums, pair, upstream)])
        options = {"normalised": False, "dtype": torch.complex64, "device": "cpu"}
        call = choose.arrange(*shapes, (2, 1), "fft", **options)
        assert call.problem.is_complex == (allowed == 1e9)
    choose._arranged.cache_clear()
    for want, got in zip(*results, strict=True):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 4e-7 * want.abs().max()
