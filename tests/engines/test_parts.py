"""Templates in parts give what whole ones do, for each kind of tile."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from inputs import draw, normal
from tile_geometries import rows_of_line

import torchcorr
from torchcorr._cpu import bytes as byte_scores
from torchcorr._cpu import correlate, counters, scores, steps
from torchcorr._plan import choose
from torchcorr._plan.choose import Arrangement, arrange
from torchcorr._plan.tiling import Tiling

# Size, window, stride, tiles and parts along each axis.
GEOMETRIES = {
    "1d": ((300,), (50,), (1,), (3,), (4,)),
    "1d-stride": ((301,), (37,), (2,), (2,), (3,)),
    "1d-whole": ((300,), (50,), (1,), (3,), (1,)),
    "1d-odd": ((300,), (50,), (1,), (3,), (4,)),
    "1d-prime": ((300,), (50,), (1,), (3,), (4,)),
    "2d": ((60, 70), (21, 30), (1, 1), (2, 3), (2, 4)),
    "2d-whole": ((60, 70), (21, 30), (1, 1), (2, 3), (1, 1)),
    "2d-one-axis": ((60, 70), (30, 9), (1, 2), (3, 1), (5, 1)),
    "3d": ((20, 22, 24), (9, 8, 7), (1, 1, 2), (1, 2, 1), (2, 2, 3)),
    "3d-whole": ((20, 22, 27), (9, 8, 7), (1, 1, 1), (1, 2, 1), (1, 1, 1)),
}
# Transforms of seven rows of fifteen elements, and of a single row.
LENGTHS = {"1d-odd": (105,), "1d-prime": (101,)}


@pytest.fixture(params=itertools.product(GEOMETRIES, (True, False)), ids=str)
def divided(request, monkeypatch):
    """The name of a geometry in whose tiles and parts everything is computed, from spectra that
    are kept or not."""
    name, kept = request.param
    size, window, stride, grid, parts = GEOMETRIES[name]
    tiling = Tiling.cut(size, window, stride, grid, parts=parts)
    tiling = replace(tiling, length=LENGTHS.get(name, tiling.length))

    def in_parts(*args, **options):
        call = arrange(*args, **options)
        plan = replace(
            call.plan,
            method="fft",
            tile=tiling.outputs,
            transform=tiling.length,
            parts=tiling.parts,
            tiles=tiling.tiles,
            batch=6,
            large=True,
            kept=kept,
        )
        return Arrangement(call.problem, plan, tiling)

    def sums_in_parts(*args, **options):
        return in_parts(*args, normalised=False, **options)

    for module in (byte_scores, scores):
        monkeypatch.setattr(module, "arrange", in_parts)
    monkeypatch.setattr(correlate, "arrange_sums", sums_in_parts)
    return name


def operands(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict]:
    size, window, stride, *_ = GEOMETRIES[name]
    how = {"ndim": len(size), "stride": stride, "channels": "joint", "method": "fft"}
    if dtype == torch.uint8:
        return (draw((2, 3, *size)) * 256).to(dtype), (draw((3, *window)) * 256).to(dtype), how
    x = normal(2, 3, *size, seed=1, dtype=dtype)
    x[1, 0, 0] *= 100
    return x, normal(3, *window, seed=2, dtype=dtype), how


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_scores(divided, dtype):
    x, w, how = operands(divided, dtype)
    want = torchcorr.zncc(x.double(), w.double(), **{**how, "method": "direct"})
    got = torchcorr.zncc(x, w, **how)
    assert (got.double() - want).abs().max() <= (1e-10 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums(divided, dtype):
    x, w, how = operands(divided, dtype)
    x[0, 0].view(-1)[7] = torch.nan
    want = torchcorr.correlate(x.double(), w.double(), **{**how, "method": "direct"})
    got = torchcorr.correlate(x, w, **how).double()
    assert torch.equal(got.isnan(), want.isnan())
    error = (got - want).nan_to_num(0).abs().max()
    assert error <= 10 * torch.finfo(dtype).eps * want.nan_to_num(0).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_one_channel(divided, dtype, monkeypatch):
    """Of a whole template they are multiplied between two transforms along the first axis."""
    monkeypatch.setattr(correlate, "_on_lattices", lambda *_: False)  # whose tiles are others
    x, w, how = operands(divided, dtype)
    x, w = x[:, :1], w[:1]
    want = torchcorr.correlate(x.double(), w.double(), **{**how, "method": "direct"})
    got = torchcorr.correlate(x, w, **how).double()
    assert (got - want).abs().max() <= 10 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_channels_with_a_mean_each(divided, dtype):
    x, w, how = operands(divided, dtype)
    how["channels"] = "pooled"
    want = torchcorr.zncc(x.double(), w.double(), **{**how, "method": "direct"})
    got = torchcorr.zncc(x, w, **how)
    assert (got.double() - want).abs().max() <= (1e-10 if dtype == torch.float64 else 1e-6)


def test_faint_windows(divided, monkeypatch):
    """Tiles with many are computed in float64."""
    monkeypatch.setattr(scores, "_RECOMPUTED", 0)
    x, w, how = operands(divided, torch.float32)
    x[1] *= torch.where(torch.arange(x.shape[-1]) < x.shape[-1] // 2, 1e-6, 1.0)
    counters.take()
    got = torchcorr.zncc(x, w, **how)
    assert counters.take().float64 > 0
    monkeypatch.undo()
    want = torchcorr.zncc(x.double(), w.double(), **{**how, "method": "direct"})
    assert (got.double() - want).abs().max() <= 1e-5


@pytest.mark.parametrize("infinite", (False, True))
def test_sums_that_are_not_determined(divided, infinite, monkeypatch):
    """Windows of zeros beside large elements, and infinite products of either sign."""
    x, w, how = operands(divided, torch.float32)
    half = x.shape[-1] // 2
    x[0, ..., :half] = 0
    x[0, ..., half:] *= 1e20
    if infinite:
        x[1, 0].view(-1)[11] = torch.inf
        w = w.abs()
    got = torchcorr.correlate(x, w, **how).double()
    monkeypatch.undo()
    want = torchcorr.correlate(x.double(), w.double(), **{**how, "method": "direct"})
    assert torch.equal(got.isinf(), want.isinf()) and not got.isnan().any()
    finite = want.isfinite()
    sizes = torchcorr.correlate(x.abs().double(), w.abs().double(), **{**how, "method": "direct"})
    allowed = 8 * 2.0**-24 * sizes[finite]
    assert bool(((got - want)[finite].abs() <= allowed).all())
    assert bool((got[want == 0] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_bits_do_not_depend_on_threads(divided, dtype):
    x, w, how = operands(divided, dtype)
    calls = [torchcorr.zncc] if dtype == torch.uint8 else [torchcorr.zncc, torchcorr.correlate]
    for call in calls:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(call(x, w, **how))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", [(33,), (70_000,), (40, 70), (6, 10, 16), (24, 3, 9), (1, 50)])
def test_transforms_in_place(size, dtype):
    axes = tuple(range(1, len(size) + 1))
    x = torch.zeros(3, *size, dtype=dtype)
    some = tuple(-(-n // 2) for n in size)
    inside = (slice(None), *(slice(0, n) for n in some))
    x[inside] = torch.complex(normal(3, *some, seed=1), normal(3, *some, seed=2)).to(dtype)
    rounding = 1.5e-6 if dtype == torch.complex64 else 5e-15
    close = {"rtol": 0, "atol": rounding * math.prod(size) ** 0.5, "check_dtype": False}
    wide = x.to(torch.complex128)
    for forward, wanted in ((True, torch.fft.fftn), (False, torch.fft.ifftn)):
        results = []
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(x.clone())
            steps.transform_in_place(results[-1], forward, some, 0)
        assert torch.equal(*results)
        norm = "backward" if forward else "forward"
        torch.testing.assert_close(results[0], wanted(wide, dim=axes, norm=norm), **close)
        # Back to what fills a part of each axis, or to a part of what fills them.
        spectra = wanted(wide, dim=axes, norm=norm).to(dtype)
        for part in (some, size):
            results = []
            for n in (1, 3):
                torch.set_num_threads(n)
                results.append(spectra.clone())
                steps.restore_in_place(results[-1], part)
            kept = (slice(None), *(slice(0, n) for n in part))
            assert torch.equal(results[0][kept], results[1][kept])
            back = torch.fft.ifftn(spectra.to(torch.complex128), dim=axes)[kept]
            of_back = close | {"atol": 3 * rounding}
            torch.testing.assert_close(results[0][kept] / math.prod(size), back, **of_back)
    # Real numbers, in rows with room for their spectra.
    half = torch.zeros(3, *size[:-1], size[-1] // 2 + 1, dtype=dtype)
    real = torch.view_as_real(half).flatten(-2)[..., : size[-1]]
    real[:] = x.real
    steps.transform_in_place(half, True, some, size[-1])
    torch.testing.assert_close(half, torch.fft.rfftn(wide.real, dim=axes), **close)
    steps.transform_in_place(half, False, size, size[-1])
    torch.testing.assert_close(real / math.prod(size), x.real, **close)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", (1, 2, 31, 105, 144, 6000, 70_000))
def test_long_lines_in_place(size, dtype):
    """Each as the transform of an array of rows, whose spectrum has an order of its own."""
    x = torch.complex(normal(3, size, seed=1), normal(3, size, seed=2)).to(dtype)
    close = {"rtol": 0, "atol": (3e-7 if dtype == torch.complex64 else 1e-15) * size**0.5 * 5}
    for conjugate in (False, True):
        results = []
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(x.clone())
            rows = steps.transform_lines_in_place(results[-1], True, conjugate)
        assert torch.equal(*results)
        assert rows == rows_of_line(size)
        wide = x.to(torch.complex128)
        wanted = torch.fft.ifft(wide, norm="forward") if conjugate else torch.fft.fft(wide)
        wanted = wanted.unflatten(1, (-1, rows)).mT.flatten(1)
        torch.testing.assert_close(results[0].to(torch.complex128), wanted, **close)
        steps.transform_lines_in_place(results[0], False, conjugate)
        torch.testing.assert_close(results[0] / size, x, **close)


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
