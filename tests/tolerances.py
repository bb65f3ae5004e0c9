"""The one table of promised errors (DESIGN section 3), from which tests take every bound."""

from __future__ import annotations

import math

import numpy as np
import torch

SCORE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    # Half types are computed in float32 and rounded once: half a unit in the last place of 1.
    torch.float16: 1e-5 + 2.0**-12,
    torch.bfloat16: 1e-5 + 2.0**-9,
}
GRADIENT_OF_FLOAT32 = 1e-4
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.complex128: 2.0**-53,
    torch.complex64: 2.0**-24,
}
ACCUMULATED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def sum_bound(
    result: torch.dtype, exact: np.ndarray, input_norm: float, template_norm: float, size: int
) -> np.ndarray:
    """Bound of a sum of products: three transforms of about log2(size) stages, one final rounding.

    A transform's error is relative to the norm of everything it transforms: the norms are global.
    """
    unit = ROUNDING[ACCUMULATED_IN.get(result, result)]
    stages = 3 * (2 + math.log2(max(size, 2)))
    return unit * stages * input_norm * template_norm + ROUNDING[result] * np.abs(exact)


def moment_bound(
    name: str, result: torch.dtype, exact: np.ndarray, peak: float, count: float
) -> np.ndarray:
    """Moments are summed in float64 over count elements of at most peak, then rounded once.

    A deviation is a difference of two numbers of the peak's size, so it carries its rounding;
    the sum of squares carries it times the deviation.
    """
    unit = ROUNDING[torch.float64]
    if name in ("local_sum", "local_mean"):
        summed = unit * count * peak * (count if name == "local_sum" else 1.0)
    elif name == "local_std":
        summed = unit * (count * np.abs(exact) + 4 * peak)
    else:
        summed = unit * (count * np.abs(exact) + 8 * peak * np.sqrt(np.abs(exact)))
    half_subnormal = 2.0**-25 if result == torch.float16 else 0.0
    return summed + 2 * ROUNDING[result] * np.abs(exact) + half_subnormal
