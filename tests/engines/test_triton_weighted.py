"""Windows with weights by Triton kernels: in its interpreter, or on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torture
import triton
import triton.language as tl
from inputs import array, draw, normal, tensor
from interpreter import on_device, run
from tolerances import GRADIENT_OF_FLOAT32, SCORE
from torch import Tensor

from torchcorr._definition import weighted as definition
from torchcorr._definition import weighted_grads as gradients
from torchcorr._definition.weighted_moments import ALLOWED
from torchcorr._plan import choose
from torchcorr._plan.predict import Problem
from torchcorr._plan.shapes import output_size
from torchcorr._triton.weighted import direct, scores, tiles
from torchcorr._triton.weighted.factors import Pair

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
METHODS = ("direct", "fft")
KINDS = ("template", "input", "both", "none")
# Input, template, their weights and strides in normal form.
SHAPES = {
    "1d": ((2, 37), (3, 1, 2, 6), (2, 37), (1, 6), [2]),
    "2d-paired": ((2, 2, 12, 13), (2, 2, 4, 3), (2, 1, 12, 13), (2, 1, 4, 3), [1, 1]),
    "2d-more-masks": ((2, 11, 10), (2, 3, 4), (2, 1, 1, 11, 10), (3, 1, 1, 1, 3, 4), [2, 1]),
    "3d": ((1, 7, 8, 9), (2, 1, 3, 4, 2), (1, 7, 8, 9), (2, 1, 3, 4, 2), [1, 2, 1]),
}


def soft(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    """Weights, a quarter of them 0."""
    weights = draw(shape, dtype, seed)
    return torch.where(weights < 0.25, 0.0, weights)


def tensors_of(shape: str, kind: str, dtype: torch.dtype) -> tuple[tuple[Any, ...], list[int]]:
    *sizes, stride = SHAPES[shape]
    image, template = normal(*sizes[0], seed=0).to(dtype) + 3, normal(*sizes[1], seed=1).to(dtype)
    there = soft(sizes[2], dtype, 2) if kind in ("input", "both") else None
    mask = soft(sizes[3], dtype, 3) if kind in ("template", "both") else None
    return (image, template, there, mask), stride


def exact_scores(args: tuple[Any, ...], stride: list[int], zero_mean: bool, pooled: bool) -> Any:
    """Of tensors in normal form, from NumPy."""
    plain = [None if x is None else array(x) for x in args]
    options = {"input_mask": plain[2], "template_mask": plain[3], "stride": stride}
    channels = "pooled" if pooled else "joint"
    options |= {"zero_mean": zero_mean, "eps": 0.01, "channels": channels}
    return oracle.zncc(plain[0], plain[1], ndim=len(stride), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_match_the_oracle(shape: str, method: str) -> None:
    for kind, dtype, zero_mean, pooled in (
        ("both", torch.float32, True, False),
        ("template", torch.float64, True, True),
        ("input", torch.float64, True, False),
        ("both", torch.float64, False, True),
        ("template", torch.float32, False, True),
        ("none", torch.float16, True, False),
    ):
        args, stride = tensors_of(shape, kind, dtype)
        how = (stride, zero_mean, pooled, 0.01, 0.3)
        if shape == "2d-more-masks":  # the oracle has masks of the tensors' shapes only
            if dtype != torch.float32:
                continue
            wide = (None if x is None else x.double() for x in args)
            exact = array(definition.weighted_ncc(*wide, *how, "direct"))
        else:
            exact = exact_scores(args, stride, zero_mean, pooled)
        got = run("weighted_ncc", *args, *how, method)
        assert got.dtype == dtype and tuple(got.shape) == exact.shape
        assert (np.abs(array(got) - exact) <= SCORE[dtype]).all()


@pytest.mark.parametrize("dtype", (np.float32, np.float64), ids=lambda d: d.__name__)
def test_survives_the_torture(dtype: type) -> None:
    """Holes in template and image, or two channels; by either method."""
    for number, case in enumerate(torture.cases(dtype)):
        if dtype == np.float64 and number % 3:
            continue
        # Small windows far apart, since the interpreter is slow.
        image, template = tensor(case.image), tensor(case.template)[:7, :6].contiguous()
        if case.name == "window is input":
            image = image[:7, :6].contiguous()
        stride = [max(1, (n - k) // 9) for n, k in zip(image.shape, template.shape, strict=True)]
        mask = (draw(tuple(template.shape), seed=4) > 0.2).to(image.dtype)[None]
        there = (draw(tuple(image.shape), seed=3) > 0.2).to(image.dtype)[None]
        args: tuple[Any, ...] = (image[None], template[None], there, mask)
        if number % 4 > 1:
            args = (*(torch.stack([x, x.flip(-1) * 3]) for x in (image, template)), None, mask)
        method = METHODS[(number + (dtype == np.float64)) % 2]
        got = run("weighted_ncc", *args, stride, True, False, 0.0, 0.3, method)
        plain = {"input_mask": args[2] if args[2] is None else array(args[2])}
        plain |= {"template_mask": array(mask), "stride": stride, "channels": "joint"}
        exact = oracle.zncc(array(args[0]), array(args[1]), **plain)
        assert torture.error(array(got), exact) <= SCORE[got.dtype], case.name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_definition(kind: str, method: str) -> None:
    args, stride = tensors_of("2d-paired", kind, torch.float64)
    for zero_mean, pooled in ((True, False), (True, True), (False, True)):
        of = definition.weighted(*on_device(*args), 2, zero_mean, pooled)
        got = scores._statistics(of, stride, method, 1e-10)
        want = definition.window_statistics(of, stride, "direct", 1e-10)
        count = want.count.clamp(min=0.1)
        for name, value in vars(want).items():
            found = getattr(got, name).expand(value.shape)
            error = (found - value).abs() * (1.0 if name == "count" else count)
            assert float(error.max()) < 1e-12, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ("window", "mask", "both"))
def test_moments(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pair, "is_direct", lambda self, _: method == "direct")
    for number, dtype in enumerate((torch.float32, torch.float64)):
        for size, window, stride in (
            ((2, 2, 19, 17), (2, 6, 5), [1, 2]),
            (((1, 40), (1, 9), [1]), ((1, 6, 7, 8), (1, 3, 2, 4), [1, 1, 2]))[number],
        ):
            ndim = len(stride)
            x = normal(*size, seed=0).to(dtype) + 1e3
            x[..., -4:] = 5.5
            there = soft((1, *size[-ndim:]), dtype, 1) if kind != "window" else None
            weight = soft(window, dtype, 2) if kind != "mask" else None
            plain = array(weight) if weight is not None else np.ones(window)
            exact = oracle.weighted_moments(
                array(x), plain, ndim=ndim, channels="joint", stride=stride,
                input_mask=None if there is None else array(there),
            )  # fmt: skip
            got = run("weighted_moments", x, there, weight, list(window[-ndim:]), stride)
            root = np.sqrt(exact["local_var"] + exact["local_mean"] ** 2)
            share = max(ALLOWED[number], 2e-12)
            bounds = (1e-12 * exact["count"].max(), share * root, share * exact["local_var"])
            for y, name, bound in zip(
                got, ("count", "local_mean", "local_var"), bounds, strict=True
            ):
                assert y.dtype == torch.float64 and tuple(y.shape) == exact[name].shape
                assert (np.abs(array(y) - exact[name]) <= bound).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_are_those_of_the_definition(method: str) -> None:
    for kind, pooled, dtype in (
        ("both", False, torch.float64),
        ("template", True, torch.float64),
        ("both", True, torch.float32),
    ):
        args, stride = tensors_of("2d-paired", kind, dtype)
        how = (stride, True, pooled, 0.01, 0.3, method)
        wide = tuple(None if x is None else x.double() for x in args)
        score = definition.weighted_ncc(*wide, *how)
        grad = normal(*score.shape, seed=4)
        needed = [x is not None for x in args]
        want = gradients.weighted_ncc_grads(grad, score, *wide, *how, needed)
        got = run("weighted_ncc_grads", grad.to(dtype), score.to(dtype), *args, *how, needed)
        share = 1e-9 if dtype == torch.float64 else GRADIENT_OF_FLOAT32
        for y, z in zip(got, want, strict=True):
            assert y.shape == z.shape
            bound = share * float(z.abs().max()) if z.numel() else 0
            torch.testing.assert_close(y.double(), z, rtol=0, atol=bound)


@pytest.mark.parametrize("method", METHODS)
def test_flat_windows_score_0_with_no_gradient(method: str) -> None:
    """All elements with weight are equal; those without are not."""
    image, template = normal(1, 9, 20, seed=0).float(), normal(1, 4, 3, seed=1).float()
    there, mask = soft((1, 9, 20), torch.float32), soft((1, 4, 3), torch.float32)
    there[:, :, :12].clamp_(min=0.1)
    there[:, 3::5, :12] = 0
    image[:, :, :12] = torch.where(there[:, :, :12] > 0, 0.1, math.nan)
    how = ([1, 1], True, True, 0.0, 0.2, method)
    got = run("weighted_ncc", image, template, there, mask, *how)
    assert bool((got[..., :10] == 0).all()) and bool((got[..., 12:] != 0).any())
    grad = torch.ones_like(got)
    grad[..., 10:] = 0
    needed = [True] * 4
    for g in run("weighted_ncc_grads", grad, got, image, template, there, mask, *how, needed):
        assert bool((g == 0).all())
    flat = run("weighted_ncc", image.nan_to_num(), torch.ones_like(template), there, mask, *how)
    assert bool((flat == 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_stays_in_its_windows(method: str) -> None:
    """A NaN makes the windows in which it has weight NaN, whatever their coverage."""
    image, template = normal(1, 13, 14, seed=0), normal(1, 5, 6, seed=1)
    there, mask = soft((1, 13, 14)), soft((1, 5, 6)) + 0.1
    there[:, 8, 9] = 0.5
    mask[:, 2, 3] = 0
    how = ([1, 1], True, True, 0.0, 0.3, method)
    want = run("weighted_ncc", image, template, there, mask, *how)
    touched = torch.zeros_like(want, dtype=torch.bool)
    touched[4:9, 4:10] = True
    touched[6, 6] = False  # under the hole
    for value in (math.nan, -math.inf):
        x = torch.where(there > 0, image, value)
        x[:, 8, 9] = value
        got = run("weighted_ncc", x, template, there, mask, *how)
        assert torch.equal(got.isnan(), touched)
        torch.testing.assert_close(got[~touched], want[~touched], rtol=0, atol=1e-10)
        count, mean, var = run("weighted_moments", x, there, mask, [5, 6], [1, 1])
        assert torch.equal(mean.isnan(), touched) and torch.equal(var.isnan(), touched)
        assert bool(count.isfinite().all())
    template[:, 0, 0] = math.inf
    assert bool(run("weighted_ncc", image, template, there, mask, *how).isnan().all())
    mask[:, 0, 0] = 0
    assert bool(run("weighted_ncc", image, template, there, mask, *how).isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_windows_are_scored_from_exactly_the_least_weight_on(method: str) -> None:
    image, template = normal(1, 12, 30, seed=0).float(), normal(1, 10, 10, seed=1).float()
    there = torch.ones(1, 12, 30)
    there[..., 15:] = 0
    for least, last in ((0.0, 14), (0.5, 10), (1.0, 5)):
        how = ([1, 1], True, True, 0.0, least, method)
        got = run("weighted_ncc", image, template, there, None, *how)
        assert bool((got[:, : last + 1] != 0).all()) and bool((got[:, last + 1 :] == 0).all())


@triton.jit
def _nothing(w, to, doubtful, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize("module", (direct, tiles))
def test_only_doubtful_windows_are_computed_again(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of noise are not; those of a faint patch are, or their scores are wrong."""
    method = "direct" if module is direct else "fft"
    args, stride = tensors_of("2d-paired", "both", torch.float32)
    faint = args[0].clone()
    faint[..., :7, :7] = 3 + 1e-7 * args[0].double()[..., :7, :7].round(decimals=2)
    faint = faint.float() + torch.where(args[0] > 4.5, 1e6, 0.0)
    how = (stride, True, False, 0.0, 0.3, method)
    want = [run("weighted_ncc", x, *args[1:], *how) for x in (args[0], faint)]
    monkeypatch.setattr(module, "settle", _nothing)
    same = [
        torch.equal(run("weighted_ncc", x, *args[1:], *how), y)
        for x, y in zip((args[0], faint), want, strict=True)
    ]
    assert same == [True, False]


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several tiles along each axis, few of them at once, and templates one by one."""

    def grids(problem: Problem) -> Iterator[tuple[int, ...]]:
        total = output_size(problem.size, problem.window, problem.stride)
        yield tuple(min(n, 2) for n in total)

    monkeypatch.setattr(choose, "_grids", grids)
    monkeypatch.setattr(tiles, "_ROOM", 1 << 16)
    choose._arranged.cache_clear()
    yield
    monkeypatch.undo()
    choose._arranged.cache_clear()


@pytest.mark.parametrize("shape", ("1d", "2d-paired"))
def test_pieces_give_the_same(shape: str, in_pieces: None) -> None:
    args, stride = tensors_of(shape, "both", torch.float64)
    how = (stride, True, False, 0.01, 0.3, "fft")
    want = definition.weighted_ncc(*args, *how[:-1], "direct")
    got = run("weighted_ncc", *args, *how)
    torch.testing.assert_close(got, want, rtol=0, atol=SCORE[torch.float64])


def test_large_templates_are_prepared_by_their_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchcorr._triton.weighted import factors

    args, stride = tensors_of("2d-paired", "both", torch.float64)
    args[3][0, 0, 0, 0] = 1.0
    how = (stride, True, False, 0.01, 0.3, "direct")
    want = run("weighted_ncc", *args, *how)
    monkeypatch.setattr(factors, "_LARGEST", 0)
    torch.testing.assert_close(run("weighted_ncc", *args, *how), want, rtol=0, atol=1e-14)
    args[1][0, 0, 0, 0] = math.nan
    got = run("weighted_ncc", *args, *how)
    assert bool(got[0].isnan().all()) and bool(got[1].isfinite().all())
