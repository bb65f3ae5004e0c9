"""Deterministic inputs that several test files and the benchmarks share.

Tensors are created on the default device, which is that of the session while a test runs
(tests/conftest.py). Between NumPy and tensors on that device go `tensor` and `array`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32)
METHODS = ("direct", "fft", "auto")
MODES = ("valid", "same", "full")
PAD_MODES = ("constant", "reflect", "replicate", "circular")


class Case(NamedTuple):
    """Shapes of one pair, and how many of the last axes are window axes."""

    input: tuple[int, ...]
    template: tuple[int, ...]
    ndim: int
    channels: str = "independent"

    @property
    def window(self) -> tuple[int, ...]:
        return self.template[-self.ndim :]


CASES = {
    "1d": Case((11,), (4,), 1),
    "1d-joint": Case((2, 3, 11), (2, 3, 5), 1, "joint"),
    "2d": Case((9, 10), (3, 4), 2),
    "2d-paired": Case((2, 3, 7, 8), (2, 3, 4, 3), 2),
    "2d-templates": Case((8, 7), (5, 2, 3), 2),
    "2d-batch-templates": Case((2, 1, 7, 8), (3, 3, 2), 2),
    "2d-images": Case((3, 7, 8), (3, 3), 2),
    "2d-joint": Case((2, 3, 7, 8), (3, 3, 4), 2, "joint"),
    "2d-joint-templates": Case((2, 1, 3, 7, 8), (4, 3, 3, 2), 2, "joint"),
    "2d-pooled": Case((2, 3, 7, 8), (3, 3, 4), 2, "pooled"),
    "2d-window-is-input": Case((5, 7), (5, 7), 2),
    "2d-window-one": Case((5, 6), (1, 1), 2),
    "3d": Case((5, 6, 7), (2, 3, 4), 3),
    "3d-joint": Case((2, 2, 5, 4, 6), (2, 2, 3, 3), 3, "joint"),
}


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Values in [0, 1), integers over a small range, complex numbers in the unit square."""
    rng = np.random.default_rng([seed, *shape])
    if dtype.is_complex:
        return tensor(rng.random(shape) + 1j * rng.random(shape), dtype)
    if dtype.is_floating_point:
        return tensor(rng.random(shape), dtype)
    lowest = 0 if dtype in (torch.uint8, torch.uint16) else -100
    return tensor(rng.integers(lowest, 101, shape), dtype)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed values, the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
    return values.to(torch.get_default_device())


def pair(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw(case.input, dtype, seed), draw(case.template, dtype, seed + 1)


def tensor(values: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    """An array as a tensor on the default device."""
    return torch.from_numpy(np.asarray(values)).to(torch.get_default_device(), dtype)


def array(x: Tensor) -> np.ndarray:
    """A tensor of any device as the oracle reads it: the same numbers, widened; booleans stay."""
    x = x.detach().cpu().resolve_conj()
    if x.dtype == torch.bool:
        return x.numpy()
    return x.to(torch.complex128 if x.is_complex() else torch.float64).numpy()


def other_of(image: np.ndarray) -> np.ndarray:
    """An image as difficult as the first: a mixture of its shifted and its mirrored rows."""
    mixed = np.roll(image, 1, 1).astype(np.float64) + 0.3 * image.astype(np.float64)[::-1]
    return mixed.astype(image.dtype)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in INTEGERS else dtype


def says(*words: object) -> str:
    """A pattern for match=: the message contains all of the words, in any order."""
    return "(?s)" + "".join(f"(?=.*{re.escape(str(word))})" for word in words)
