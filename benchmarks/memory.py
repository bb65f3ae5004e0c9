"""Peak memory of one call in a separate process: `python -m benchmarks.memory SIZE WINDOW PASS`.

PASS is `forward` or `backward` of a zncc, or either behind `cropped-`, of a part of a larger image,
or `expanded-`, of four images that are one; or either of a weighted one behind `template-mask-`,
`input-mask-` or `masks-`, whose gradients are also those of its masks; `lncc`, the loss of two
volumes and both gradients; `lncc-zeros`, the same with zeros around; `lncc-masks`, with a mask of
either volume, whose gradients are results too, and zeros around; `align`, the shift of a short
recording in a long one; or `conv2d`, the backward pass of a convolution layer, and `F.conv2d`, that
of PyTorch's, followed by items, channels, outputs and groups.

MiB beyond input and result are printed: the peak of resident memory during the call, less what was
resident when it started, less what it returns. Inputs are resident at the start, and so is the
program, since a tiny call of each method came before. Scratch of the large call is not, so that all
of it counts, also what the allocator keeps afterwards. For the backward pass the inputs are image,
template and upstream gradient, the results are the score map and the gradients of image and
template, and the peak is that of forward and backward together. Of a layer it is that of the
backward pass alone: the forward pass comes before, and what it leaves with the allocator is given
back to the system.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

import torchcorr

from . import ROOT

PASSES = ("forward", "backward")
MASKS = {
    "template-mask": ("template_mask",),
    "input-mask": ("input_mask",),
    "masks": ("input_mask", "template_mask"),
}
VIEWS = {
    "cropped": lambda size: torch.rand(size + 8, size + 16)[3:-5, 7:-9],
    "expanded": lambda size: torch.rand(size // 2, size // 2).expand(4, -1, -1),
}
VIEW_PASSES = tuple(f"{view}-{which}" for view in VIEWS for which in PASSES)
MASKED_PASSES = tuple(f"{masks}-{which}" for masks in MASKS for which in PASSES)
LNCC_PASSES = ("lncc", "lncc-zeros", "lncc-masks")
LAYERS = {"conv2d": torchcorr.conv2d, "F.conv2d": F.conv2d}
_STATUS = Path("/proc/self/status")


def _status(field: str) -> int:
    """Bytes of one line of the kernel's account of this process."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(f"{_STATUS} has no {field}")


def _forget_peak() -> None:
    """Sets the peak, VmHWM, to what is resident now, so that the next peak is that of the call.

    Linux only; `ru_maxrss` cannot be set back, and would hide a call below an earlier peak.
    """
    Path("/proc/self/clear_refs").write_text("5")


def used_by(call: Callable[[], Sequence[torch.Tensor]]) -> float:
    """MiB that a call uses beyond what was resident before and what it returns."""
    _forget_peak()
    before = _status("VmRSS")
    results = call()
    used = _status("VmHWM") - before - sum(r.numel() * r.element_size() for r in results)
    return used / (1 << 20)


def beyond(size: int, window: int, which: str) -> float:
    """MiB that one call uses beyond input and result."""
    for method in ("direct", "fft"):
        tiny = torch.rand(64, 64, requires_grad=True)
        score = torchcorr.zncc(tiny, tiny[:8, :8].detach(), method=method)
        # With an upstream gradient, for which PyTorch imports 30 MiB of its modules once.
        torch.autograd.grad(score, tiny, torch.rand_like(score))
    kind = which.rpartition("-")[0]
    image = VIEWS[kind](size) if kind in VIEWS else torch.rand(size, size)
    template = image[..., size // 3 :, size // 4 :][..., :window, :window]
    template = template.reshape(-1, window, window)[0].clone()
    patch = tiny[:8, :8].detach()
    masks, small = {}, {}
    for name in MASKS.get(kind, ()):
        masks[name] = torch.rand_like(image if name == "input_mask" else template)
        small[name] = torch.rand_like(tiny if name == "input_mask" else patch)
    torchcorr.zncc(tiny, patch, method="fft", **small).sum().backward()
    leaves = (image, template, *masks.values())
    if which.endswith("backward"):
        positions = [n - window + 1 for n in image.shape[-2:]]
        upstream = torch.rand(*image.shape[:-2], *positions)
        for leaf in leaves:
            leaf.requires_grad_()

    def call() -> list[torch.Tensor]:
        score = torchcorr.zncc(image, template, **masks)
        if which.endswith("backward"):
            return [score, *torch.autograd.grad(score, leaves, upstream)]
        return [score]

    return used_by(call)


def beyond_lncc(size: int, window: int, which: str) -> float:
    """The same of the loss of registration and all its gradients."""
    border = "renormalize" if which == "lncc" else "zeros"
    loss = torchcorr.nn.LNCCLoss(window, border=border, squared=True)
    tiny = torch.rand(12, 12, 12, requires_grad=True)
    torchcorr.nn.LNCCLoss(3)(tiny, tiny.detach().flip(0)).backward()
    names = ["input", "target", *(["input_mask", "target_mask"] if which == "lncc-masks" else [])]
    leaves = {name: torch.rand(size, size, size, requires_grad=True) for name in names}
    return used_by(lambda: torch.autograd.grad(loss(**leaves), tuple(leaves.values())))


def beyond_align(size: int, window: int, which: str) -> float:
    """The same of the shift of `window` samples in a record of so many."""
    record = torch.rand(size)
    part = record[size // 3 :][:window].clone()
    torchcorr.estimate_shift(record[:64], record[16:64], ndim=1)
    found: list[torchcorr.Shift] = []

    def call() -> list[torch.Tensor]:
        found.append(torchcorr.estimate_shift(record, part, ndim=1))
        return []

    used = used_by(call)
    if int(found[0].shift) != size // 3:
        raise ArithmeticError(f"the shift must be {size // 3}: got {found[0].shift.tolist()}")
    return used


def beyond_layer(
    size: int, window: int, which: str, items: int, channels: int, outputs: int, groups: int
) -> float:
    """MiB that the backward pass of a layer uses beyond its input, weight and gradients."""
    function, how = LAYERS[which], {"groups": groups, "padding": window // 2 if groups > 1 else 0}
    for kernel in (3, 13, 31):  # of one channel and of several, so that each way has run once
        for wide in (1, 16):
            x = torch.rand(1, wide, 64, 64, requires_grad=True)
            w = torch.rand(wide, wide, kernel, kernel, requires_grad=True)
            # With an upstream gradient, for which PyTorch imports 30 MiB of its modules once.
            tiny = function(x, w)
            torch.autograd.grad(tiny, (x, w), torch.rand_like(tiny))
    x = torch.rand(items, channels, size, size, requires_grad=True)
    w = torch.rand(outputs, channels // groups, window, window, requires_grad=True)
    out = function(x, w, **how)
    upstream = torch.rand_like(out)
    ctypes.CDLL(None).malloc_trim(0)
    return used_by(lambda: torch.autograd.grad(out, (x, w), upstream))


def measured(size: int, window: int, which: str, *shape: int) -> float:
    """The same, in a fresh process."""
    numbers = (str(n) for n in shape)
    command = [sys.executable, "-m", "benchmarks.memory", str(size), str(window), which, *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    side, box = int(sys.argv[1]), int(sys.argv[2])
    calls = dict.fromkeys(PASSES + VIEW_PASSES + MASKED_PASSES, beyond) | dict.fromkeys(
        LNCC_PASSES, beyond_lncc
    )
    calls |= {"align": beyond_align} | dict.fromkeys(LAYERS, beyond_layer)
    print(calls[sys.argv[3]](side, box, sys.argv[3], *map(int, sys.argv[4:])))
