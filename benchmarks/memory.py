"""Peak memory of one call in a separate process: `python -m benchmarks.memory SIZE WINDOW PASS`.

PASS is `forward` or `backward` of a zncc; `lncc`, the loss of two volumes and both gradients;
`lncc-zeros`, the same with zeros around; `lncc-masks`, with a mask of either volume, whose
gradients are results too, and zeros around; or `align`, the shift of a short recording in a long
one.

MiB beyond input and result are printed: the peak of resident memory during the call, less what was
resident when it started, less what it returns. Inputs are resident at the start, and so is the
program, since a tiny call of each method came before. Scratch of the large call is not, so that all
of it counts, also what the allocator keeps afterwards. For the backward pass the inputs are image,
template and upstream gradient, the results are the score map and the gradients of image and
template, and the peak is that of forward and backward together.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import torchcorr

from . import ROOT

PASSES = ("forward", "backward")
LNCC_PASSES = ("lncc", "lncc-zeros", "lncc-masks")
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
        torchcorr.zncc(tiny, tiny[:8, :8].detach(), method=method).sum().backward()
    image = torch.rand(size, size)
    template = image[size // 3 :, size // 4 :][:window, :window].clone()
    leaves = (image, template)
    if which == "backward":
        upstream = torch.rand(size - window + 1, size - window + 1)
        for leaf in leaves:
            leaf.requires_grad_()

    def call() -> list[torch.Tensor]:
        score = torchcorr.zncc(image, template)
        if which == "backward":
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


def measured(size: int, window: int, which: str) -> float:
    """The same, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(size), str(window), which]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    side, box = int(sys.argv[1]), int(sys.argv[2])
    calls = dict.fromkeys(PASSES, beyond) | dict.fromkeys(LNCC_PASSES, beyond_lncc)
    calls["align"] = beyond_align
    print(calls[sys.argv[3]](side, box, sys.argv[3]))
