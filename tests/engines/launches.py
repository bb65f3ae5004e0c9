"""Every launch as it is called, with its arguments bound for compute capability 9.0, without a GPU.

`python tests/engines/launches.py` prints the kernels' numbers that arrive as float32, as JSON; with
`--compile` it also compiles each launch with the types it is called with (some minutes).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

sys.path.append(os.path.dirname(os.path.dirname(__file__)))

import torch
import triton.runtime.jit as jit
from inputs import draw
from samples import SAMPLES
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from torchcorr._triton import KERNELS, kernel


class Absent:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def calls() -> list[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments: the samples, half types, lines and volumes."""
    table = [(name, args) for name, args in SAMPLES if name in KERNELS]
    table = [(name, args) for name, args in table if not args[0].is_complex()]
    for name, args in list(table):
        if args[0].dtype == torch.float32:
            for half in (torch.float16, torch.bfloat16):
                table.append((name, tuple(_as(x, half) for x in args)))
    for n, k in (((300,), (31,)), ((20, 24, 28), (5, 6, 7))):
        steps, window = [1] * len(n), list(k)
        size = [a - b + 1 for a, b in zip(n, k, strict=True)]
        for dtype in (torch.float32, torch.float64):
            x, wide = draw((2, 1, *n), dtype), draw((1, *k), seed=1)
            grad, template = draw((2, *size), dtype), wide.to(dtype)
            shape = [2, 1, *n]
            table += [
                ("window_sum", (x, window, steps)),
                ("window_moments", (x, window, steps)),
                ("window_spread", (grad, window, shape, steps)),
                ("window_combine", (grad.double(), grad.double(), x, window, steps)),
                ("local_std", (x, window, steps, 0.0, 0.1)),
                ("lncc", (x, x, window, steps, 0.0)),
                ("lncc_grads", (grad, x, x, window, steps, 0.0, True, True)),
                ("correlate_input_grad", (grad, template, shape, steps, "direct")),
                ("correlate_template_grad", (grad, x, [1, *k], steps, "direct")),
                ("ncc_grads", (grad, x, wide, grad.tanh(), steps, True, 0.0, "fft", True, True)),
            ]
            for method in ("direct", "fft"):
                table.append(("correlate", (x, template, steps, method)))
                table.append(("ncc", (x, wide, steps, True, 0.0, method)))
                how = (steps, True, True, 0.0, 0.3, method)
                table.append(("weighted_ncc", (x, template, x, template, *how)))
    return table


def _as(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def main(compiling: bool) -> None:
    driver.set_active(Absent())
    run, narrow, compiled = jit.JITFunction.run, set(), 0

    def bound(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        nonlocal compiled
        cache, binder = self.device_caches[0][0], self.device_caches[0][4]
        types = binder(*args, **options, debug=False, instrumentation_mode="")[1]
        for parameter, kind in zip(self.params, types, strict=True):
            if kind[0] == "fp32":
                narrow.add(f"{self.fn.__name__}.{parameter.name}")
        if compiling:
            before = len(cache)
            run(self, *args, grid=grid, warmup=True, **options)
            compiled += len(cache) - before

    jit.JITFunction.run = bound
    for name, args in calls():
        kernel(name)(*(x.detach() if isinstance(x, Tensor) else x for x in args))
    print(json.dumps({"float32": sorted(narrow), "compiled": compiled}))


if __name__ == "__main__":
    main("--compile" in sys.argv)
