"""How many launches a call on a GPU makes: for small batches launch overhead dominates.

Nothing is launched and tensors are fake; one dispatch of PyTorch that is no view counts as one
launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interpreter import DEVICE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchcorr._triton import kernel, standardise
from torchcorr._triton.tiles import correlate as fft_sums
from torchcorr._triton.tiles import score_grads
from torchcorr._triton.tiles import scores as fft_scores

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="launches are counted where none is made")
FREE = ("prim.device", "aten.empty", "aten.new_empty", "aten.empty_like", "aten._reshape_alias")
BATCH = ((12, 1, 256, 256), (12, 1, 64, 64))
LARGE = ((1, 4096, 4096), (1, 64, 64))
MANY = ((1, 1, 512, 512), (50, 1, 64, 64))


class Dispatches(TorchDispatchMode):
    def __init__(self, made: list[str]) -> None:
        super().__init__()
        self.made = made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func).rpartition(".")[0]
        if not func.is_view and name not in FREE:
            self.made.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of launches, in their order."""
    from triton.runtime.interpreter import GridExecutor

    names: list[str] = []
    monkeypatch.setattr(
        GridExecutor, "__call__", lambda self, *a, **k: names.append(self.fn.__name__)
    )
    with FakeTensorMode(), Dispatches(names):
        yield names


def score(x: Tensor, t: Tensor) -> Tensor:
    coefficients = standardise.standardise(t, 2, True)
    return fft_scores.ncc(x, coefficients, [1, 1], True, 0.0)


def total(x: Tensor, t: Tensor) -> Tensor:
    return fft_sums.correlate(x, t, [1, 1])


def tensors(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype) for shape in shapes]


# Tiles are cut out and centred, templates prepared, both transformed at once and multiplied, the
# product transformed back, its noise computed, and the result written.
ONCE = ["tile_sums_kernel", "gather_tiles_kernel", "prepare_templates_kernel", "aten._fft_r2c"]
ONCE += ["aten.mul_", "aten._fft_c2r", "tile_noise_kernel"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.float64), ids=str)
def test_a_small_batch_of_scores(dtype: torch.dtype, made: list[str]) -> None:
    score(*tensors(BATCH, dtype))
    assert made == ["_standardise_kernel", *ONCE, "score_kernel"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_small_batch_of_sums(dtype: torch.dtype, made: list[str]) -> None:
    total(*tensors(BATCH, dtype))
    assert made == [*ONCE, "write_sums_kernel"]


def weighted(x: Tensor, t: Tensor) -> Tensor:
    """With weights of both."""
    return kernel("weighted_ncc")(x, t, x, t, [1, 1], True, True, 0.0, 0.3, "auto")


def test_a_small_batch_of_scores_with_weights(made: list[str]) -> None:
    weighted(*tensors(BATCH, torch.float32))
    assert made == [
        *("factors_kernel", "plane_sums_kernel", "gather_planes_kernel", "aten._fft_r2c"),
        # A copy of the planes of factors that are transformed.
        *("aten.clone", "prepare_templates_kernel", "aten._fft_r2c", "plane_products_kernel"),
        *("aten._fft_c2r", "tile_content_kernel", "sums_noise_kernel", "weighted_tiles_kernel"),
    ]
    made.clear()
    weighted(*tensors(((12, 1, 256, 256), (12, 1, 9, 9)), torch.float32))
    assert made == ["factors_kernel", "weighted_kernel"]


MOST: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Any, torch.dtype, int]] = {
    "sums of float64": (total, BATCH, torch.float64, 15),
    "scores of a large image": (score, LARGE, torch.float32, 19),
    "sums of a large image": (total, LARGE, torch.float32, 26),
    "scores of many templates": (score, MANY, torch.float32, 10),
    "scores with weights of a large image": (weighted, LARGE, torch.float32, 43),
}


@pytest.mark.parametrize("name", MOST)
def test_launches_do_not_grow(name: str, made: list[str]) -> None:
    call, shapes, dtype, most = MOST[name]
    call(*tensors(shapes, dtype))
    assert len(made) <= most, made


def test_launches_of_gradients_do_not_grow(made: list[str]) -> None:
    image, template = tensors(BATCH, torch.float32)
    standard = standardise.standardise(template, 2, True)
    map_ = fft_scores.ncc(image, standard, [1, 1], True, 0.0)
    made.clear()
    score_grads.ncc_grads(map_, image, standard, map_, [1, 1], True, 0.0, "fft", True, True)
    assert len(made) <= 26, made
