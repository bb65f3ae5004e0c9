"""Exact results for the inputs of the rows, and how far ours are from them.

A row's exact result is torchcorr's in float64. It is checked in turn: at some positions the window
is cut out and given to the oracle of the tests, which shares no code with the package, and the
difference between the two counts as our error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import oracle
import torch
from tolerances import GRADIENT_OF_FLOAT32, SCORE
from torch import Tensor

import torchcorr

from .measure import Accuracy

SPOTS = 16
# Multiply-adds up to which float64 is computed by the direct method, without transforms.
DIRECT = 4e10


def positions(map_size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Both ends and some positions drawn between them."""
    yield (0,) * len(map_size)
    yield tuple(n - 1 for n in map_size)
    rng = np.random.default_rng(0)
    for _ in range(SPOTS - 2):
        yield tuple(int(rng.integers(n)) for n in map_size)


def disagreement(
    result: Tensor,
    image: Tensor,
    window: tuple[int, ...],
    definition: Callable[[np.ndarray], np.ndarray],
) -> float:
    """Largest distance of `result` from a definition applied to single windows of the image."""
    ndim, worst = len(window), 0.0
    for at in positions(tuple(result.shape[-ndim:])):
        cut = (..., *(slice(u, u + k) for u, k in zip(at, window, strict=True)))
        exact = definition(image[cut].numpy())
        here = result[(..., *at)].double().numpy()
        worst = max(worst, float(np.abs(here - exact.reshape(here.shape)).max()))
    return worst


def largest(error: Tensor) -> float:
    """The largest absolute value; infinite for a result that is not finite."""
    return float(error.abs().max().nan_to_num(nan=torch.inf))


def _float64_method(image: Tensor, template: Tensor) -> str:
    cheap = image.numel() * template.numel() <= DIRECT
    return "direct" if image.dtype == torch.float64 and cheap else "auto"


def score_accuracy(
    result: Tensor,
    image: Tensor,
    template: Tensor,
    *,
    ndim: int = 2,
    channels: str = "independent",
    template_mask: Tensor | None = None,
) -> tuple[Accuracy, Tensor]:
    """Error of a score map and its bound, and the exact map."""
    how: dict[str, Any] = {"ndim": ndim, "channels": channels}
    mask = None if template_mask is None else template_mask.numpy()
    exact = torchcorr.zncc(
        image.double(),
        template.double(),
        method=_float64_method(image, template),
        template_mask=template_mask,
        **how,
    )

    def definition(window: np.ndarray) -> np.ndarray:
        return oracle.zncc(window, template.numpy(), template_mask=mask, **how)

    doubt = disagreement(exact, image, tuple(template.shape[-ndim:]), definition)
    error = max(doubt, largest(result.double() - exact))
    return Accuracy(error, SCORE[result.dtype]), exact


def correlate_accuracy(
    result: Tensor, image: Tensor, template: Tensor, *, ndim: int = 2
) -> tuple[Accuracy, Tensor, Tensor]:
    """The same for sums of products, relative to the sum of |I| |T|, which is returned last."""
    method = _float64_method(image, template)
    wide, weights = image.double(), template.double()
    exact = torchcorr.correlate(wide, weights, ndim=ndim, method=method)
    scale = torchcorr.correlate(wide.abs(), weights.abs(), ndim=ndim)

    def definition(window: np.ndarray) -> np.ndarray:
        return oracle.correlate(window, template.numpy(), ndim=ndim)

    doubt = disagreement(exact, image, tuple(template.shape), definition) / float(scale.min())
    error = max(doubt, largest((result.double() - exact) / scale))
    return Accuracy(error, SCORE[result.dtype]), exact, scale


def transform_accuracy(
    ours: Tensor, theirs: Tensor, image: Tensor, template: Tensor
) -> tuple[Accuracy, float]:
    """The same for float64 sums by FFT, relative to the norms of both inputs; and the peer's error.

    Both are checked at some positions, and ours everywhere against the peer's.
    """
    size = tuple(template.shape)
    norms = float(image.norm() * template.norm())

    def definition(window: np.ndarray) -> np.ndarray:
        return oracle.correlate(window, template.numpy(), ndim=len(size))

    doubts = [disagreement(x, image, size, definition) / norms for x in (ours, theirs)]
    error = max(doubts[0], largest(ours - theirs) / norms)
    return Accuracy(error, 64 * torch.finfo(torch.float64).eps), doubts[1]


def std_accuracy(result: Tensor, image: Tensor, window: int) -> tuple[Accuracy, Tensor]:
    """The same for deviations in mode `same`, relative to the deviation itself."""
    exact = torchcorr.local_std(image.double(), window, mode="same")
    inner = tuple(slice(window // 2, window // 2 + n - window + 1) for n in image.shape)

    def definition(seen: np.ndarray) -> np.ndarray:
        return oracle.local_std(seen, window)

    doubt = disagreement(exact[inner], image, (window, window), definition)
    error = max(doubt / float(exact.min()), largest((result.double() - exact) / exact))
    return Accuracy(error, SCORE[result.dtype]), exact


def gradient_accuracy(result: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> Accuracy:
    """Error of gradients against float64, relative to the largest value of each."""
    errors = [
        largest(a.double() - b) / float(b.abs().max()) for a, b in zip(result, exact, strict=True)
    ]
    return Accuracy(max(errors), GRADIENT_OF_FLOAT32)
