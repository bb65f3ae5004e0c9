"""Tiles and transforms for GPUs against the definition: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torture
from inputs import CASES, draw
from interpreter import DEVICE, on_device
from tolerances import GRADIENT_OF_FLOAT32, SCORE
from torch import Tensor

from torchcorr._definition import correlate as sums_definition
from torchcorr._definition import scores as scores_definition
from torchcorr._plan import choose, costs
from torchcorr._plan.costs import Costs
from torchcorr._plan.dtypes import widen
from torchcorr._plan.predict import Problem
from torchcorr._plan.shapes import output_size
from torchcorr._plan.tiling import TileStats, Tiling
from torchcorr._triton.tiles import correlate as fft_sums
from torchcorr._triton.tiles import cut as cutting
from torchcorr._triton.tiles import noise, products, score_grads, templates
from torchcorr._triton.tiles import scores as fft_scores

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = (torch.float32, torch.float64)
SEVERAL = ("1d-joint", "2d-paired", "2d-joint-templates", "3d-joint")
TIGHT = {torch.float32: 2e-6, torch.float64: 1e-13}
# Tiles an axis, and bytes at once: the whole, several tiles, a few of an item at a time.
CUTS = {"whole": (1, 1 << 30), "tiles": (3, 1 << 30), "parts": (3, 1 << 10)}


@pytest.fixture
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    most, cache = CUTS[request.param]
    values = costs._COSTS["cuda"]._asdict() | {"cache": cache, "near_cache": cache}

    def grids(problem: Problem) -> Iterator[tuple[int, ...]]:
        total = output_size(problem.size, problem.window, problem.stride)
        yield tuple(min(n, most) for n in total)

    monkeypatch.setitem(costs._COSTS, "cuda", Costs(**values))
    monkeypatch.setattr(choose, "_grids", grids)
    choose._arranged.cache_clear()
    yield request.param
    monkeypatch.undo()
    choose._arranged.cache_clear()


def pair_of(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    case = CASES[name]
    input, template = draw(case.input, dtype, 1) - 0.5, draw(case.template, dtype, 2) - 0.5
    if case.channels != "joint":
        input, template = (x.unsqueeze(-case.ndim - 1) for x in (input, template))
    return *on_device(input, template), [1] * case.ndim


def close(got: Tensor, want: Tensor, scale: float = 1.0) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    bound = TIGHT[want.dtype] * scale
    torch.testing.assert_close(got, want, rtol=0, atol=bound, equal_nan=True)


def cut_by_definition(x: Tensor, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """All tiles of items (I, C, *size) as they are, and which of their elements are the input's."""
    tiles = x.new_zeros((x.shape[0] * tiling.tiles, x.shape[1], *tiling.length))
    inside = torch.zeros_like(tiles, dtype=torch.bool)
    for row in range(len(tiles)):
        item, tile = divmod(row, tiling.tiles)
        to, source = [], []
        for axis in reversed(range(len(tiling.grid))):
            tile, index = divmod(tile, tiling.grid[axis])
            first = index * tiling.outputs[axis] * tiling.stride[axis]
            last = min(first + tiling.extent[axis], tiling.size[axis])
            to.insert(0, slice(0, last - first))
            source.insert(0, slice(first, last))
        tiles[(row, slice(None), *to)] = x[(item, slice(None), *source)]
        inside[(row, slice(None), *to)] = True
    return tiles, inside


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_gather(ndim: int, dtype: torch.dtype) -> None:
    size, window = (61, 23, 11)[:ndim], (5, 4, 3)[:ndim]
    tiling = Tiling.cut(size, window, (1,) * ndim, (3, 2, 2)[:ndim], powers=True)
    x = draw((2, 2, *size), dtype, 3) + 100
    x[1, 0].view(-1)[7] = math.inf
    x[0] *= 1e-12
    (x,) = on_device(x)
    tiles, stats = cutting.gather(x, tiling, dtype, centred=True)
    raw, inside = cut_by_definition(x, tiling)
    finite = inside & raw.isfinite()
    # The mean in float32, and the power of two that brings the deviation into [0.5, 1).
    wide = torch.where(finite, widen(raw).double(), 0.0)
    count = finite.flatten(1).sum(1)
    mean = (wide.flatten(1).sum(1) / count).to(torch.float32).double()
    column = (slice(None), *(None,) * (ndim + 1))
    want = torch.where(finite, (wide - stats.level[column]) * stats.scale[column], 0.0)
    torch.testing.assert_close(tiles, want.to(dtype), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.level, mean, rtol=1e-6, atol=0)
    assert torch.equal(stats.non_finite, (inside & ~finite).flatten(1).sum(1).double())
    assert torch.equal(stats.scale.log2().frac(), torch.zeros_like(stats.scale))
    power = want.square().flatten(1).sum(1) / count
    torch.testing.assert_close(stats.mean_square, power, rtol=1e-6, atol=0)
    assert bool((power < 1).all()) and bool((power > 0.2).all())


def lanes(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_templates_are_reversed_modulo_the_length(ndim: int, dtype: torch.dtype) -> None:
    window, length = (
        ((2300,), (61, 47), (5, 18, 13))[ndim - 1],
        ((2304,), (64, 96), (8, 18, 16))[ndim - 1],
    )
    whole = draw((3, 4, 2, *window), dtype, 5) - 0.5
    whole[1, 2, 0].view(-1)[3] = math.inf
    (whole,) = on_device(whole)
    part, out_type = whole[1:, 1:3], torch.float64 if dtype == torch.float64 else torch.float32
    for absolute in (False, True):
        wide = part.double().abs() if absolute else part.double()
        out = torch.full((4, 2, *length), math.nan, dtype=out_type, device=DEVICE)
        moments = templates.prepare(part, out, absolute=absolute).sum(1)
        padded = wide.new_zeros((2, 2, 2, *length))
        padded[(..., *(slice(0, k) for k in window))] = wide
        # Element v goes to -v, element 0 to 0.
        want = padded.flip(lanes(ndim)).roll((1,) * ndim, lanes(ndim)) / math.prod(length)
        assert torch.equal(out, want.to(out_type).flatten(0, 1))
        if not absolute:
            exact = torch.stack(
                (part.double().flatten(2).sum(2), wide.square().flatten(2).sum(2)), 2
            )
            torch.testing.assert_close(moments, exact.flatten(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whole", (0, 1 << 16))
def test_noise(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one launch or in two, of two pairs with three tiles and two templates each."""
    monkeypatch.setattr(noise, "_WHOLE", whole)
    numerators = draw((6, 2, 33, 97), torch.float32, 1) - 0.5
    coefficients = draw((2, 2, 1, 50, 60)).double()
    rows = draw((6, 4), torch.float64, 3) + 0.5
    numerators, coefficients, rows = on_device(numerators, coefficients, rows)
    moments = templates.prepare(coefficients, coefficients.new_empty((4, 1, 64, 64)))
    got = noise.noise_of(numerators, TileStats(rows), moments, 0.25)
    wide, repeated = numerators.double(), coefficients.flatten(2).repeat_interleave(3, 0)
    spread = (rows[:, 2:3] * repeated.square().sum(2) + wide.square().mean((2, 3))).sqrt()
    want = 0.25 * (spread + wide.abs().amax((2, 3)) / 2) / rows[:, 1:2]
    torch.testing.assert_close(got[..., 0], want, rtol=1e-12, atol=0)
    torch.testing.assert_close(got[..., 1], rows[:, :1] * repeated.sum(2), rtol=1e-12, atol=0)


SUMS = [(name, torch.float64, "whole", 1) for name in CASES]
SUMS += [(name, torch.float32, "tiles", 2) for name in SEVERAL]
SUMS += [(name, torch.float32, "parts", 1) for name in ("1d-joint", "2d-joint-templates")]


@pytest.mark.parametrize(("name", "dtype", "cut", "step"), SUMS, indirect=["cut"])
def test_sums(name: str, dtype: torch.dtype, cut: str, step: int) -> None:
    input, template, ones = pair_of(name, dtype)
    stride = [step for _ in ones]
    want = sums_definition.correlate(input, template, stride, "direct")
    close(fft_sums.correlate(input, template, stride), want)
    grad = draw(tuple(want.shape), dtype, 4).to(DEVICE) - 0.5
    args = (grad, template, list(input.shape), stride)
    got, want = (
        fft_sums.correlate_input_grad(*args),
        sums_definition.correlate_input_grad(*args, "direct"),
    )
    close(got, want, 8)
    args = (grad, input, list(template.shape), stride)
    got = fft_sums.correlate_template_grad(*args)
    close(got, sums_definition.correlate_template_grad(*args, "direct"), 8)


@pytest.mark.parametrize("programs", (1, 48, 1000))
def test_products(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles in one program, two in each, one in each."""
    monkeypatch.setattr(products, "PROGRAMS", programs)
    spectra, upstream, total = (
        draw(shape, torch.complex128, seed).to(DEVICE)
        for seed, shape in enumerate(((2, 5, 3, 9, 31), (2, 5, 2, 9, 31), (3, 4, 3, 9, 31)))
    )
    want = total.clone()
    want[1:, 1:3] += torch.einsum("ptchw,ptkhw->pkchw", spectra, upstream.conj())
    products.add_products(total[1:, 1:3], spectra, upstream)
    torch.testing.assert_close(total, want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_local(dtype: torch.dtype, cut: str) -> None:
    """A pixel larger than all others, a NaN, an Inf and zeros affect their windows only."""
    image, template = draw((1, 40, 34), dtype, 1) - 0.5, draw((1, 5, 4), dtype, 2) - 0.5
    image[0, 30, 28] = 1e12
    image[0, 5, 6], image[0, 6, 30] = math.nan, math.inf
    image[0, 14:24, 10:22] = 0
    image, template = on_device(image, template)
    got = fft_sums.correlate(image, template, [1, 1])
    want = sums_definition.correlate(image, template, [1, 1], "direct")
    sizes = sums_definition.correlate(
        image.double().abs(), template.double().abs(), [1, 1], "direct"
    )
    live = sizes.isfinite()
    assert torch.equal(got[~live].isfinite(), want[~live].isfinite())
    bound = 32 * torch.finfo(dtype).eps / 2
    assert bool(((got - want).abs()[live] <= bound * sizes[live]).all())
    assert bool((got[live & (sizes == 0)] == 0).all())
    args = (torch.where(live, want, torch.nan).to(dtype), template, list(image.shape), [1, 1])
    got, want = (
        fft_sums.correlate_input_grad(*args),
        sums_definition.correlate_input_grad(*args, "direct"),
    )
    assert torch.equal(got.isnan(), want.isnan())


def score_pair(name: str, dtype: torch.dtype, zero_mean: bool) -> tuple[Tensor, Tensor, int]:
    input, template, ones = pair_of(name, dtype)
    return input, scores_definition.standardise(template, len(ones), zero_mean), len(ones)


SCORES = [(name, torch.float32, "tiles") for name in SEVERAL]
SCORES += [("2d-batch-templates", torch.float64, "parts"), ("3d", torch.float64, "whole")]


@pytest.mark.parametrize(("name", "dtype", "cut"), SCORES, indirect=["cut"])
def test_scores(name: str, dtype: torch.dtype, cut: str) -> None:
    for zero_mean, step in ((True, 1), (False, 2)):
        input, template, ndim = score_pair(name, dtype, zero_mean)
        args = (input, template, [step] * ndim, zero_mean, 0.01)
        got, want = fft_scores.ncc(*args), scores_definition.ncc(*args, "direct")
        assert got.shape == want.shape and got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=SCORE[dtype])


HARD = ("offset 1e+06", "one pixel 1e+06", "flat patch", "faint patch 1e-06", "steep ramp 1e6")


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
@pytest.mark.parametrize(
    "case", [c for c in torture.cases() if c.name in HARD], ids=lambda c: c.name
)
def test_scores_of_torture(case: torture.Torture, cut: str) -> None:
    small = case._replace(image=case.image[16:58, 16:58], template=case.template[3:12, :7])
    image, template = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in small[1:])
    image, template = on_device(image, scores_definition.standardise(template, 2, True))
    got = fft_scores.ncc(image, template, [1, 1], True, 0.0)
    assert torture.error(got.cpu().numpy(), torture.exact(small)) <= SCORE[torch.float32]


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
def test_scores_keep_a_nan_in_its_windows(cut: str) -> None:
    image, template = draw((1, 30, 26), torch.float32, 1), draw((1, 5, 4), torch.float32, 2)
    image[0, 12, 9], image[0, 3, 20] = math.nan, math.inf
    image, template = on_device(image, scores_definition.standardise(template, 2, True))
    got = fft_scores.ncc(image, template, [1, 1], True, 0.0)
    want = scores_definition.ncc(image, template, [1, 1], True, 0.0, "direct")
    assert torch.equal(got.isnan(), want.isnan())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5, equal_nan=True)


def test_half_types_are_read_as_they_are() -> None:
    for dtype, bound in ((torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-7)):
        image, template = draw((1, 14, 12), dtype, 1), draw((1, 5, 4), dtype, 2)
        image, template = on_device(image, scores_definition.standardise(template, 2, True))
        got = fft_scores.ncc(image, template, [1, 1], True, 0.0)
        want = scores_definition.ncc(image.double(), template, [1, 1], True, 0.0, "direct")
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)
        image, template = image - 0.5, draw((1, 5, 4), dtype, 3).to(DEVICE) - 0.5
        got = fft_sums.correlate(image, template, [1, 1])
        want = sums_definition.correlate(image.double(), template.double(), [1, 1], "direct")
        torch.testing.assert_close(got, want.to(dtype), rtol=bound, atol=bound / 8)


GRADS = [
    ("1d-joint", torch.float32, "parts", 2, True),
    ("2d-paired", torch.float16, "tiles", 1, True),
    ("2d-templates", torch.float32, "parts", 1, True),
    ("2d-batch-templates", torch.float64, "parts", 1, False),
    ("2d-joint-templates", torch.float32, "tiles", 1, True),
    ("2d-joint-templates", torch.float32, "parts", 3, False),
    ("2d-images", torch.bfloat16, "whole", 2, True),
    ("2d-window-is-input", torch.float64, "whole", 1, True),
    ("3d-joint", torch.float64, "tiles", 2, True),
    ("3d", torch.float32, "parts", 1, True),
]
# Of the largest element: float64, and one rounding of other types.
GRADIENT = {torch.float64: 1e-12, torch.float32: 2.0**-23, torch.float16: 2.0**-10}
GRADIENT[torch.bfloat16] = 2.0**-7


def scored(
    input: Tensor, template: Tensor, stride: list[int], zero_mean: bool, eps: float = 0.0
) -> tuple[Any, ...]:
    """Arguments of the gradients of a score, without which of them are wanted."""
    score = scores_definition.ncc(input, template, stride, zero_mean, eps, "direct")
    grad = draw(tuple(score.shape), torch.float64, 5).to(score) - 0.5
    return grad, input, template, score, stride, zero_mean, eps


def near(got: Tensor, want: Tensor, bound: float) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous()
    largest = float(want.double().abs().max())
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=bound * largest)


@pytest.mark.parametrize(("name", "dtype", "cut", "step", "zero_mean"), GRADS, indirect=["cut"])
def test_gradients_of_scores(
    name: str, dtype: torch.dtype, cut: str, step: int, zero_mean: bool
) -> None:
    input, template, ndim = score_pair(name, dtype, zero_mean)
    args = scored(input, template, [step] * ndim, zero_mean, 0.01)
    want = scores_definition.ncc_grads(*args, "direct", True, True)
    got = score_grads.ncc_grads(*args, "fft", True, True)
    for grad, exact in zip(got, want, strict=True):
        near(grad, exact, GRADIENT[grad.dtype if grad.dtype == dtype else torch.float32])


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_gradient_alone(dtype: torch.dtype, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    input, template, _ = score_pair("2d", dtype, True)
    args = scored(input, template, [1, 1], True)
    both = score_grads.ncc_grads(*args, "fft", True, True)
    made: list[str] = []
    for name in ("forward_fft", "inverse_fft", "add_products", "window_combine_onto"):
        function = getattr(score_grads, name)
        monkeypatch.setattr(
            score_grads, name, lambda *a, n=name, f=function: (made.append(n), f(*a))[1]
        )
    for_input, none = score_grads.ncc_grads(*args, "fft", True, False)
    assert torch.equal(for_input, both[0]) and none.shape == (0,)
    scores = ["forward_fft", "inverse_fft"] if dtype == torch.float32 else []
    assert made == [*scores, "forward_fft", "inverse_fft", "window_combine_onto"]
    made.clear()
    none, for_template = score_grads.ncc_grads(*args, "fft", False, True)
    assert torch.equal(for_template, both[1]) and none.shape == (0,)
    assert made == ["forward_fft", "forward_fft", "add_products"]


GRADED = (*HARD, "scale 1e10", "strange template, offset 1e5", "patch on zeros")


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
@pytest.mark.parametrize(
    "case", [c for c in torture.cases() if c.name in GRADED], ids=lambda c: c.name
)
def test_gradients_of_torture(case: torture.Torture, cut: str) -> None:
    image, template = (
        torch.from_numpy(np.ascontiguousarray(x))[None]
        for x in (case.image[16:50, 16:46], case.template[3:12, :7])
    )
    image, template = on_device(image, scores_definition.standardise(template, 2, True))
    args = scored(image, template, [1, 1], True)
    exact = scores_definition.ncc_grads(
        args[0].double(), image.double(), *args[2:], "direct", True, True
    )
    for got, want in zip(score_grads.ncc_grads(*args, "fft", True, True), exact, strict=True):
        near(got.double(), want, GRADIENT_OF_FLOAT32)


def test_flat_inputs_have_no_gradient() -> None:
    image, template = torch.full((1, 14, 12), 0.3), draw((1, 5, 4), torch.float32, 2)
    image, template = on_device(image, scores_definition.standardise(template, 2, True))
    for x, standard in ((image, template), (draw((1, 14, 12)).to(image), template * 0)):
        args = scored(x, standard, [1, 1], True)
        for_input, for_template = score_grads.ncc_grads(*args, "fft", True, True)
        assert bool((for_input == 0).all())
        assert bool((for_template == 0).all()) == (x is image)


@pytest.mark.parametrize("cut", ("tiles",), indirect=True)
def test_gradients_keep_a_nan_in_its_windows(cut: str) -> None:
    image, template = draw((1, 30, 26), torch.float32, 1), draw((2, 1, 5, 4), torch.float32, 2)
    image, template = on_device(image, scores_definition.standardise(template, 2, True))
    args = scored(image, template, [1, 1], True)
    args[0][0, 20, 3], args[0][0, 2, 20] = math.nan, math.inf
    want = scores_definition.ncc_grads(*args, "direct", True, True)
    got = score_grads.ncc_grads(*args, "fft", True, True)
    for grad, exact in zip(got, want, strict=True):
        live = exact.isfinite()
        assert torch.equal(grad.isfinite(), live)
        near(torch.where(live, grad, 0.0), torch.where(live, exact, 0.0), 2.0**-22)
    image[0, 12, 9] = math.nan
    want = scores_definition.ncc_grads(*args, "direct", True, True)
    got = score_grads.ncc_grads(*args, "fft", True, True)
    assert all(torch.equal(x.isfinite(), y.isfinite()) for x, y in zip(got, want, strict=True))
