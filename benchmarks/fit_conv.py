"""Times of the ways in which a convolution layer is computed, beside those that are predicted.

``python -m benchmarks.fit_conv`` prints, for layers of many kinds and each of their three forms,
milliseconds of one core of PyTorch's convolution, of sliding sums and of spectra of tiles, then the
predictions of src/torchcorr/_plan/conv.py and what it chooses. The rates there were set from this
table so that PyTorch's time is not overestimated: no choice may be slower than PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from torchcorr._cpu import conv as engine
from torchcorr._plan.conv import FORMS, METHODS, Layer, way_of

_SECONDS = 0.25


class Shape(NamedTuple):
    items: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    side: int  # of the kernel, along each axis
    stride: int = 1
    groups: int = 1


SHAPES = (
    Shape(1, 1, 1, (1024, 1024), 3),
    Shape(1, 1, 1, (1024, 1024), 7),
    Shape(1, 1, 1, (256, 256), 31),
    Shape(8, 3, 16, (256, 256), 31),
    Shape(8, 3, 16, (128, 128), 7),
    Shape(8, 3, 16, (128, 128), 15),
    Shape(8, 3, 64, (224, 224), 7, 2),
    Shape(8, 64, 64, (56, 56), 3),
    Shape(8, 64, 64, (56, 56), 7),
    Shape(4, 64, 64, (64, 64), 11),
    Shape(4, 64, 64, (64, 64), 15),
    Shape(1, 64, 64, (128, 128), 31),
    Shape(4, 128, 128, (32, 32), 9),
    Shape(4, 128, 128, (32, 32), 15),
    Shape(2, 16, 16, (128, 128), 9),
    Shape(2, 16, 16, (128, 128), 21),
    Shape(2, 16, 16, (128, 128), 21, 2),
    Shape(2, 16, 16, (128, 128), 31, 4),
    Shape(8, 64, 64, (28, 28), 3, 1, 64),
    Shape(8, 64, 64, (112, 112), 5, 1, 64),
    Shape(8, 64, 64, (56, 56), 7, 1, 64),
    Shape(8, 64, 64, (56, 56), 13, 1, 64),
    Shape(8, 64, 64, (56, 56), 17, 1, 64),
    Shape(8, 64, 64, (56, 56), 31, 1, 64),
    Shape(8, 64, 64, (14, 14), 13, 1, 64),
    Shape(4, 32, 32, (64, 64), 21, 2, 32),
    Shape(1, 16, 16, (256, 256), 9, 1, 16),
    Shape(8, 64, 64, (56, 56), 15, 1, 16),
    Shape(8, 16, 16, (4096,), 9),
    Shape(8, 16, 16, (4096,), 129),
    Shape(8, 16, 16, (4096,), 1023),
    Shape(8, 16, 16, (4096,), 4095, 1, 16),
    Shape(8, 16, 16, (4096,), 65, 1, 16),
    Shape(8, 64, 64, (1024,), 33, 1, 64),
    Shape(1, 1, 1, (100_000,), 64),
    Shape(1, 1, 1, (100_000,), 1000),
    Shape(4, 1, 64, (16_000,), 251),
    Shape(1, 1, 1, (64, 64, 64), 9),
    Shape(1, 4, 4, (32, 32, 32), 9),
    Shape(1, 8, 8, (32, 32, 32), 5),
    Shape(1, 16, 16, (32, 32, 32), 7, 1, 16),
)


def milliseconds(call: Callable[[], object]) -> float:
    """The least time of this process in a few calls."""
    best, spent = float("inf"), 0.0
    while spent < _SECONDS or best == spent:
        start = time.process_time()
        call()
        taken = time.process_time() - start
        best, spent = min(best, taken), spent + taken
    return 1e3 * best


def forms(shape: Shape) -> Iterator[tuple[str, Layer, Callable[[str], object]]]:
    ndim = len(shape.size)
    x = torch.randn(shape.items, shape.channels, *shape.size)
    w = torch.randn(shape.outputs, shape.channels // shape.groups, *(shape.side,) * ndim)
    how = ([shape.stride] * ndim, [shape.side // 2] * ndim, [1] * ndim, shape.groups)
    grad = torch.randn_like(engine.conv(x, w, *how, "torch"))
    layer = Layer.of(tuple(x.shape), tuple(w.shape), *how, x.dtype)
    calls = (
        lambda method: engine.conv(x, w, *how, method),
        lambda method: engine.conv_input_grad(grad, w, x.shape, *how, method),
        lambda method: engine.conv_weight_grad(grad, x, w.shape, *how, method),
    )
    for form, call in zip(FORMS, calls, strict=True):
        yield form, layer, call


def main() -> None:
    torch.set_num_threads(1)
    names = "  ".join(f"{m:>8}" for m in METHODS)
    print(f"{'layer':56} {'form':7} {names}  the same, predicted")
    for shape in SHAPES:
        for form, layer, call in forms(shape):
            times = [milliseconds(lambda m=m, c=call: c(m)) for m in METHODS]
            way = way_of(layer, form)
            taken = times[METHODS.index(way.method)]
            verdict = "SLOWER" if taken > times[0] / 0.95 else f"{times[0] / taken:.1f} x"
            measured = "  ".join(f"{t:8.2f}" for t in times)
            costs = dict(way.costs)
            predicted = "  ".join(f"{costs.get(m, float('nan')):8.2f}" for m in METHODS)
            title = str(tuple(shape))
            print(
                f"{title:56} {form:7} {measured}  {predicted}  {way.method} {verdict}", flush=True
            )


if __name__ == "__main__":
    main()
