"""The rows of convolution layers against PyTorch's: large kernels, small ones, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from inputs import draw
from tolerances import SCORE
from torch import Tensor

import torchcorr

from . import memory
from .accuracy import largest, positions
from .measure import Accuracy, Bound, Row, Settings, alternate, at_least, at_most, ratio_row

# Items, channels, outputs, side of the image, side of the kernel.
Sizes = tuple[int, int, int, int, int]
LARGE: tuple[Sizes, ...] = ((1, 1, 1, 1024, 31), (8, 3, 16, 256, 31), (1, 64, 64, 256, 31))
SMALL: tuple[Sizes, ...] = (
    (8, 64, 64, 56, 7),
    (4, 64, 64, 64, 15),
    (8, 64, 64, 56, 3),
    (8, 3, 64, 224, 3),
)
DENSE: tuple[Sizes, ...] = ((8, 16, 64, 56, 7), (8, 64, 64, 28, 7), (8, 64, 64, 56, 3))
DEPTHWISE: Sizes = (8, 64, 64, 56, 31)
# With the number of groups; scratch may have the MiB that `zncc` has.
BACKWARD: tuple[tuple[Sizes, int], ...] = (
    (LARGE[0], 1),
    (LARGE[1], 1),
    (DEPTHWISE, DEPTHWISE[1]),
    ((1, 64, 64, 160, 31), 1),
)
SCRATCH = 64
Function = Callable[..., Tensor]


def _step(function: Function, x: Tensor, w: Tensor, **how: int) -> tuple[Tensor, ...]:
    out = function(x, w, **how)
    return out.detach(), *torch.autograd.grad(out, (x, w), torch.ones_like(out))


def _exact(x: Tensor, w: Tensor, groups: int, padding: int) -> Tensor:
    """Ours in float64, if single windows agree with sums of products; else NaN."""
    out = torchcorr.conv2d(x, w, padding=padding, groups=groups)
    padded = F.pad(x, [padding] * 4).unflatten(1, (groups, -1))
    for row, column in positions(tuple(out.shape[-2:])):
        window = padded[..., row : row + w.shape[-2], column : column + w.shape[-1]]
        here = torch.einsum("ngcyx,gocyx->ngo", window, w.unflatten(0, (groups, -1)))
        if not torch.allclose(out[..., row, column], here.flatten(1), rtol=1e-9, atol=1e-9):
            return out * torch.nan
    return out


def _error(result: Tensor, exact: Tensor, scale: Tensor) -> float:
    return largest((result.double() - exact) / scale)


def _row(
    settings: Settings,
    row: str,
    sizes: Sizes,
    bound: Bound,
    *,
    groups: int = 1,
    step: bool = False,
    peer: tuple[str, Function] = ("F.conv2d", F.conv2d),
) -> Row:
    items, channels, outputs, side, kernel = sizes
    if settings.quick:
        side = max(kernel, side // 8)
    x = draw((items, channels, side, side), torch.float32)
    w = draw((outputs, channels // groups, kernel, kernel), torch.float32, seed=1) - 0.5
    how = {"groups": groups, "padding": kernel // 2 if groups > 1 else 0}
    ours: Callable[[], object] = partial(torchcorr.conv2d, x, w, **how)
    theirs: Callable[[], object] = partial(peer[1], x, w, **how)
    if step:
        leaves = (x.requires_grad_(), w.requires_grad_())
        ours = partial(_step, torchcorr.conv2d, *leaves, **how)
        theirs = partial(_step, peer[1], *leaves, **how)
    timings = alternate({"ours": ours, "theirs": theirs}, settings.rounds)
    wide = (x.detach().double(), w.detach().double())
    exact, scale = _exact(*wide, **how), _exact(*(t.abs() for t in wide), **how)
    results = [t.result[0] if step else t.result for t in (timings["ours"], timings["theirs"])]
    error, their_error = (_error(result, exact, scale) for result in results)
    kept = Accuracy(error, SCORE[torch.float32])
    shape = "×".join(map(str, sizes[:3]))
    kind = "depthwise " if groups > 1 else ""
    name = f"conv2d {kind}{shape}, {side}²/{kernel}²" + (" and gradients" if step else "")
    return ratio_row(
        row, name, peer[0], timings, bound=bound, accuracy=kept, peer_error=their_error
    )


def c12(settings: Settings) -> Iterator[Row]:
    for sizes in LARGE:
        yield _row(settings, "C12", sizes, at_least(8))
    for sizes in LARGE:
        yield _row(settings, "C12", sizes, at_least(8), step=True)
    yield _row(settings, "C12", DEPTHWISE, at_least(8), groups=DEPTHWISE[1], step=True)


def c12f(settings: Settings) -> Iterator[Row]:
    from torch_fftconv import fft_conv2d

    for sizes, least in zip(LARGE, (1.5, 4, 15), strict=True):
        yield _row(settings, "C12F", sizes, at_least(least), peer=("torch-fftconv", fft_conv2d))


def c13(settings: Settings) -> Iterator[Row]:
    for sizes in SMALL:
        for step in (False, True):
            yield _row(settings, "C13", sizes, at_least(0.95), step=step)
    for sizes in DENSE:
        for name in ("correlate", "zncc joint", "zncc pooled"):
            for step in (False, True):
                yield _dense(settings, sizes, name, step)


def _dense(settings: Settings, sizes: Sizes, name: str, step: bool) -> Row:
    """A layer of small templates through `correlate` or `zncc` of joint channels."""
    items, channels, outputs, side, kernel = sizes
    items = 1 if settings.quick else items
    x = draw((items, 1, channels, side, side), torch.float32)
    w = draw((outputs, channels, kernel, kernel), torch.float32, seed=1)
    kind = "pooled" if name == "zncc pooled" else "joint"
    function = torchcorr.correlate if name == "correlate" else torchcorr.zncc

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b, channels=kind)

    def theirs(a: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(a[:, 0], b)

    exact = ours(x.double(), w.double())
    scale = ours(x.double().abs(), w.double().abs()) if name == "correlate" else exact.new_ones(())
    leaves = (x.requires_grad_(), w.requires_grad_()) if step else (x, w)
    calls: dict[str, Callable[[], object]] = {
        key: partial(_step, f, *leaves) if step else partial(f, *leaves)
        for key, f in (("ours", ours), ("theirs", theirs))
    }
    timings = alternate(calls, settings.rounds)
    result = timings["ours"].result[0] if step else timings["ours"].result
    kept = Accuracy(_error(result, exact, scale), SCORE[torch.float32])
    shape = "×".join(map(str, sizes[:3]))
    title = f"{name} {shape}, {side}²/{kernel}²" + (" and gradients" if step else "")
    return ratio_row("C13", title, "F.conv2d", timings, bound=at_least(1 / 1.3), accuracy=kept)


def c13m(settings: Settings) -> Iterator[Row]:
    """Peak memory of a backward pass, each contestant in a process of its own."""
    for sizes, groups in BACKWARD:
        items, channels, outputs, side, kernel = sizes
        if settings.quick:
            side = max(kernel, side // 8)
        kind = "depthwise " if groups > 1 else ""
        shape = f"{kind}{items}×{channels}×{outputs}, {side}²/{kernel}²"
        for name, bound in (("conv2d", at_most(SCRATCH)), ("F.conv2d", None)):
            used = memory.measured(side, kernel, name, items, channels, outputs, groups)
            case = f"{name} {shape}, backward, beyond input, weight and gradients"
            yield Row("C13M", case, "", "MiB", used, bound)


CASES: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "C12": c12,
    "C12F": c12f,
    "C13": c13,
    "C13M": c13m,
}
