"""Large templates and their tiles take little more memory than they must."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from inputs import draw, normal
from torch import Tensor

import torchcorr
from torchcorr._cpu import score_grads
from torchcorr._plan import choose

# Sizes, window, stride, leading axes of the template.
CASES = {
    "1d": ((300_000,), (60_000,), 1, ()),
    "2d": ((1800, 1600), (500, 480), 1, ()),
    "2d-parts": ((1900, 1800), (800, 780), 1, ()),
    "2d-tall": ((2000, 1000), (900, 60), 1, ()),
    "2d-stride": ((2400, 2000), (500, 480), 3, ()),
    "2d-templates": ((1600, 1600), (500, 490), 1, (2,)),
}
every_case = pytest.mark.parametrize("name", CASES)


def pair(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, int]]:
    size, window, stride, leads = CASES[name]
    x, w = normal(*size, seed=1, dtype=dtype), normal(*leads, *window, seed=2, dtype=dtype)
    x[: size[0] // 3] *= 1e-2
    return x + 3, w, {"ndim": len(size), "stride": stride}


def places(out: Tensor) -> list[tuple[int, ...]]:
    """The first, the last and some positions between them along each axis."""
    return list(itertools.product(*({0, n // 3, 2 * n // 3, n - 1} for n in out.shape)))


def window_at(x: Tensor, at: tuple[int, ...], window: tuple[int, ...], stride: int) -> Tensor:
    return x[tuple(slice(i * stride, i * stride + k) for i, k in zip(at, window, strict=True))]


def standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std(correction=0)


@pytest.mark.cpu_only(reason="only the CPU's tiles are divided")
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parts_give_the_definition(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "1d":
        # Other tiles take as long.
        monkeypatch.setattr(choose, "_grids", lambda problem: iter(()))
        monkeypatch.setattr(choose, "_arranged", choose._arranged.__wrapped__)
    x, w, how = pair(name, dtype)
    plan = torchcorr.plan(x, w, method="fft", normalised=False, **how)
    # Sums with a stride are those of sub-lattices, whose templates are smaller.
    assert plan.large or how["stride"] > 1
    assert math.prod(plan.parts) > 1 or name not in ("2d-tall", "2d-parts")
    score = torchcorr.zncc(x, w, method="fft", **how)
    sums = torchcorr.correlate(x, w, method="fft", **how)
    x, w = x.double(), w.double()
    ndim, allowed = how["ndim"], 1e-5 if dtype == torch.float32 else 1e-10
    for at in places(score):
        template, position = w[at[:-ndim]], at[len(at) - ndim :]
        seen = window_at(x, position, CASES[name][1], how["stride"])
        want = (standard(seen) * standard(template)).mean()
        assert abs(float(score[at]) - float(want)) <= allowed
        terms = seen * template
        within = (
            8 * torch.finfo(dtype).eps * (float(terms.abs().sum()) if dtype == torch.float32 else 0)
        )
        within = within or 64 * 2.0**-53 * float(x.norm() * template.norm())
        assert abs(float(sums[at]) - float(terms.sum())) <= within


@pytest.mark.cpu_only(reason="only the CPU's tiles are divided")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["2d-parts", "2d-tall"])
def test_parts_of_an_image_with_a_faint_half(name: str, dtype: torch.dtype) -> None:
    """Moments of its windows are merged, for tiles that are larger than their transforms."""
    x, w, how = pair(name, torch.float32)
    rows = len(x) // 2
    x[:rows] = 1e-4 * x[:rows] + 10
    x[-20, -20] = torch.nan
    x, w = x.to(dtype), w.to(dtype)
    assert math.prod(torchcorr.plan(x, w, method="fft", **how).parts) > 1
    score = torchcorr.zncc(x, w, method="fft", **how)
    for at in places(score):
        seen = window_at(x, at, CASES[name][1], 1).double()
        want = (standard(seen) * standard(w.double())).mean()
        allowed = 1e-5 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(
            score[at].double(), want, rtol=0, atol=allowed, equal_nan=True, check_dtype=False
        )


@pytest.mark.cpu_only(reason="bits are promised on the CPU")
def test_bytes_and_threads() -> None:
    x = (draw((1500, 1400)) * 256).to(torch.uint8)
    w = x[200:600, 100:500].clone()
    assert torchcorr.plan(x, w).large
    score = torchcorr.zncc(x, w)
    assert score[200, 100] == 1
    for at in places(score):
        seen = window_at(x, at, (400, 400), 1).double()
        assert abs(float(score[at]) - float((standard(seen) * standard(w.double())).mean())) < 1e-7
    threads, real = torch.get_num_threads(), (x.float() + 0.5, w.float() + 0.5)
    want = torchcorr.zncc(*real)
    torch.testing.assert_close(want, score, rtol=0, atol=1e-5)
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert torch.equal(torchcorr.zncc(x, w), score)
            assert torch.equal(torchcorr.zncc(*real), want)
    finally:
        torch.set_num_threads(threads)


# Sizes of an image and of a template.
LARGE = [((8192, 8192), (k, k)) for k in (512, 1024, 2048, 4096)] + [
    ((512,) * 3, (256,) * 3),
    *(((10**8,), (k,)) for k in (10**5, 3 * 10**5, 10**6, 10**7)),
    ((4000, 3000), (2500, 40)),
]


@pytest.mark.cpu_only(reason="a GPU has more memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("size, window", LARGE, ids=str)
def test_scratch(
    size: tuple[int, ...], window: tuple[int, ...], normalised: bool, dtype: torch.dtype
) -> None:
    """At most 64 MiB, or eight arrays that hold the template where that is more, for sums of lines
    in float64."""
    x, w = (torch.empty(n, dtype=dtype, device="meta") for n in (size, window))
    plan = torchcorr.plan(x, w, normalised=normalised, ndim=len(size))
    width = dtype.itemsize if normalised or len(size) > 1 else 8
    assert plan.bytes <= max(64 << 20, 8 * width * math.prod(window))


# Sizes, window, stride and channels of gradients whose tiles are large.
GRADIENTS = {
    "1d": ((400_000,), (120_000,), 1, 1),
    "2d": ((900, 800), (400, 380), 1, 1),
    "2d-tall": ((1200, 300), (700, 30), 1, 1),
    "2d-joint": ((700, 680), (300, 250), 1, 2),
    "3d": ((110, 100, 90), (70, 64, 20), 1, 1),
}
EXPENSIVE = choose.Plan("fft", (1,), (1,), (1,), (1,), 1, 2, 1, 0, math.inf)


@pytest.mark.cpu_only(reason="only the CPU's tiles are shared")
@pytest.mark.parametrize("hard", [False, True], ids=["easy", "hard"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_large_tiles(name: str, hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 along a direction, in float32 relative to their largest element, and the same bits
    for any number of threads. Where they are hard, tiles are transformed in float64."""
    ways = []

    def arranged(*args: Any, wide: bool, **how: Any) -> choose.Arrangement:
        ways.append(wide)
        return choose.arrange_gradients(*args, wide=wide, **how)

    monkeypatch.setattr(score_grads, "arrange_gradients", arranged)
    size, window, stride, channels = GRADIENTS[name]
    if name == "1d":
        # Other tiles take less time.
        monkeypatch.setattr(choose, "gradient_plan", lambda *_: EXPENSIVE)
        monkeypatch.setattr(choose, "_arranged_gradients", choose._arranged_gradients.__wrapped__)
    x, w = normal(channels, *size, seed=1), normal(channels, *window, seed=2)
    how = {"ndim": len(size), "stride": stride, "channels": "joint"}
    if hard:
        x[..., : size[-1] // 2] = 1e-4 * x[..., : size[-1] // 2] + 30
        x = x.float().double()  # both precisions see the same image
    sizes = (x.shape, w.shape, (stride,) * len(size))
    for dtype in (torch.float32, torch.float64):
        assert choose.arrange_gradients(*sizes, dtype=dtype, device="cpu").plan.large
    delta = normal(*torchcorr.zncc(x, w, **how).shape, seed=3)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [v.to(dtype, copy=True).requires_grad_() for v in (x, w)]
        return torch.autograd.grad(torchcorr.zncc(*leaves, **how), leaves, delta.to(dtype))

    want, got = gradients(torch.float64), gradients(torch.float32)
    assert ways == [False, False, True] if hard else [False, False]
    # Where a step changes all windows as much.
    step = [1e-5 * normal(*v.shape, seed=4) for v in (x, w)]
    step[0][..., : size[-1] // 2] *= float(x[..., : size[-1] // 2].std())
    ends = [
        (torchcorr.zncc(x + s * step[0], w + s * step[1], **how) * delta).sum() for s in (1, -1)
    ]
    along = sum(float((g * d).sum()) for g, d in zip(want, step, strict=True))
    size_of_terms = sum(float((g * d).norm()) for g, d in zip(want, step, strict=True))
    assert abs(float(ends[0] - ends[1]) / 2 - along) <= 1e-4 * size_of_terms
    for exact, single in zip(want, got, strict=True):
        assert (single - exact).abs().max() <= 1e-4 * exact.abs().max()
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            for first, again in zip(got, gradients(torch.float32), strict=True):
                assert torch.equal(first, again)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.cpu_only(reason="a GPU has more memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size, window", [pair for pair in LARGE if len(pair[0]) > 1], ids=str)
def test_scratch_of_gradients(
    size: tuple[int, ...], window: tuple[int, ...], wide: bool, dtype: torch.dtype
) -> None:
    """At most 64 MiB, or eight transforms that hold the template, and one image more. Lengths that
    are transformed quickly are at most an eighth longer."""
    call = choose.arrange_gradients(
        (1, *size), (1, *window), (1,) * len(size), dtype=dtype, device="cpu", wide=wide
    )
    width = 8 if wide else dtype.itemsize
    transforms = 8 * 2 * width * math.prod(1.125 * k for k in window)
    image = dtype.itemsize * math.prod(size)
    assert call.plan.bytes <= max(64 << 20, transforms) + image


def test_gradients(device: str) -> None:
    """Those of whole transforms."""
    x, w, how = pair("2d", torch.float64)
    leaves = [v.to(device).requires_grad_() for v in (x[:700, :600], w[:300, :250])]
    score = torchcorr.zncc(*leaves, method="fft", **how)
    delta = normal(*score.shape, seed=3).to(device)
    got = torch.autograd.grad(score, leaves, delta)
    step = [normal(*v.shape, seed=4).to(device) * 1e-5 for v in leaves]
    with torch.no_grad():
        ends = [
            (
                torchcorr.zncc(*(v + s * d for v, d in zip(leaves, step, strict=True)), **how)
                * delta
            ).sum()
            for s in (1, -1)
        ]
    along = sum(float((g * d).sum()) for g, d in zip(got, step, strict=True))
    assert abs(float(ends[0] - ends[1]) / 2 - along) <= 1e-5 * abs(along)
