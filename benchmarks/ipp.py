"""Intel IPP, whose normalised cross-correlation is the fastest CPU code known: one thread.

The wheel `ipp` has a library for each kind of CPU and dispatchers that choose among them. Those
search for names ending in `.so.12.1`, which the wheel does not contain, so the library of this CPU
is loaded here without them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, RTLD_GLOBAL, byref, c_int, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np
import oracle
import torch
from torch import Tensor

# IPP's names of instruction sets; the last is SSE4.2.
INSTRUCTIONS = {"AVX512": "k0", "AVX2": "l9"}
SSE = "y8"
# ippAlgAuto | ippiNormCoefficient | ippiROIValid
ZERO_MEAN_VALID = 0x0 | 0x200 | 0x10000


class Size(ctypes.Structure):
    _fields_ = (("width", c_int), ("height", c_int))


def _size(x: Tensor) -> Size:
    return Size(x.shape[1], x.shape[0])


def _plane(x: Tensor) -> tuple[int, int]:
    """Address and bytes of a row."""
    return x.data_ptr(), x.stride(0) * x.element_size()


def _load(part: str) -> ctypes.CDLL:
    found = sorted((Path(sys.prefix) / "lib").glob(f"libipp{part}.so.*"))
    if not found:
        raise ImportError(f"no libipp{part} in {sys.prefix}/lib; pip install ipp")
    return ctypes.CDLL(str(found[0]), mode=RTLD_GLOBAL)


@lru_cache
def library() -> ctypes.CDLL:
    """The image library of this CPU, which needs the three before it."""
    cpu = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), SSE)
    *_, images = [_load(part) for part in ("core", f"vm{cpu}", f"s{cpu}", f"i{cpu}")]
    images.ippiCrossCorrNorm_32f_C1R.argtypes = (
        *(c_void_p, c_int, Size) * 2, c_void_p, c_int, c_int, c_void_p,
    )  # fmt: skip
    images.ippiCrossCorrNormGetBufferSize.argtypes = (Size, Size, c_int, POINTER(c_int))
    _check(images)
    return images


def _ready(images: ctypes.CDLL, image: Tensor, template: Tensor) -> Callable[[], Tensor]:
    sizes, needed = (_size(image), _size(template)), c_int()
    if images.ippiCrossCorrNormGetBufferSize(*sizes, ZERO_MEAN_VALID, byref(needed)):
        raise RuntimeError("ippiCrossCorrNormGetBufferSize failed")
    buffer = torch.empty(needed.value, dtype=torch.uint8)
    score = torch.empty([n - k + 1 for n, k in zip(image.shape, template.shape, strict=True)])

    def call() -> Tensor:
        status = images.ippiCrossCorrNorm_32f_C1R(
            *_plane(image), sizes[0], *_plane(template), sizes[1], *_plane(score),
            ZERO_MEAN_VALID, buffer.data_ptr(),
        )  # fmt: skip
        if status:
            raise RuntimeError(f"ippiCrossCorrNorm_32f_C1R returned {status}")
        return score

    return call


def _check(images: ctypes.CDLL) -> None:
    """Whether it computes what `zncc` does, before any of its times count."""
    image = torch.from_numpy(np.random.default_rng(0).random((24, 31), np.float32))
    template = image[5:12, 9:18].clone()
    exact = oracle.zncc(image.numpy(), template.numpy())
    error = np.abs(_ready(images, image, template)().numpy() - exact).max()
    if not error < 1e-5:
        raise RuntimeError(f"IPP computes another quantity than zncc: they differ by {error:.1e}")


def scores(image: Tensor, template: Tensor) -> Callable[[], Tensor]:
    """Scores of two contiguous float32 images, written to the same memory by each call."""
    return _ready(library(), image, template)
