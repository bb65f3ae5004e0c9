"""Each loop for bytes gives the same bits, whatever CPU it was written for."""

from __future__ import annotations

import pytest
import torch
from inputs import draw

import torchcorr
from torchcorr._cpu import bytes as scores
from torchcorr._cpu import steps
from torchcorr._plan import costs

KERNELS = range(steps.byte_kernels(torch.empty(0)))


def drawn(shape, seed=0):
    return (draw(shape, seed=seed) * 256).to(torch.uint8)


def test_this_cpu_has_a_plain_kernel_and_that_of_wide_vectors():
    assert len(KERNELS) >= 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((1, 1, 700), (1, 1, 33), (1,)),
        ((1, 40, 150), (1, 9, 10), (1, 1)),
        ((1, 3, 70), (1, 2, 65), (1, 1)),
        ((3, 40, 66), (3, 16, 3), (2, 3)),
        ((2, 9, 12, 70), (2, 3, 4, 7), (1, 1, 1)),
        # Lines that are long enough to be stretched over matrix tiles, and more rows than fit one.
        ((1, 1, 3000), (1, 1, 64), (1,)),
        ((1, 9, 1400), (1, 3, 49), (2, 1)),
        ((1, 75, 200), (1, 20, 128), (1, 1)),
        ((3, 300, 330), (3, 200, 220), (7, 5)),
    ],
)
def test_kernels_agree(size, window, stride, kernel):
    ndim = len(stride)
    x, w = drawn(size[-ndim - 1 :]), drawn(window[-ndim - 1 :], 1)
    want = scores.ncc(x, w, stride, True, 0.0, "fft")
    assert torch.equal(scores.ncc(x, w, stride, True, 0.0, "direct", kernel), want)


def test_extreme_bytes_do_not_overflow():
    """The largest products that a sum of 32 bits holds."""
    x, w = torch.full((1, 300, 300), 255, dtype=torch.uint8), torch.zeros(1, 256, 256)
    x[0, :, 150] = 0
    w[0, 0, :] = 255
    for kernel in KERNELS:
        got = scores.ncc(x, w.to(torch.uint8), [7, 7], False, 0.0, "direct", kernel)
        assert torch.equal(got, scores.ncc(x, w.to(torch.uint8), [7, 7], False, 0.0, "fft"))


def test_the_best_kernel_is_the_one_that_plans_count_on():
    none = torch.empty(0)
    names = ["cpu", "" if steps.has_own_transforms(none) else "generic"]
    names.append(steps.BYTE_LOOPS[steps.byte_loop(none)].replace("plain", ""))
    assert costs.costs_of("cpu") is costs._COSTS[" ".join(filter(None, names))]


def test_what_is_no_byte_is_refused():
    w = drawn((1, 4, 4)).float()
    for value in (256.0, -129.0, 0.5, float("nan"), float("inf")):
        x = drawn((1, 200, 200), 1).float()
        x[0, 150, 150] = value
        assert scores.ncc(x, w, [1, 1], True, 0.0, "auto") is None
    assert scores.ncc(x, w + 0.5, [1, 1], True, 0.0, "auto") is None


def test_a_coloured_copy_scores_1_whatever_computes_it():
    x = (draw((3, 200, 200)) * 2).floor().mul(255).to(torch.uint8)
    x[:, :70] = 200
    x[1, 100:] //= 3
    x[:, 140:, :100] = (128 + 2 * draw((3, 60, 100), seed=1)).to(torch.uint8)
    for side in (16, 64, 130):
        w = x[:, 60 : 60 + side, 50 : 50 + side].clone()
        found = [
            torchcorr.zncc(x, w, channels="joint", method=method)
            for method in ("direct", "fft", "auto")
        ]
        assert found[0][60, 50] == 1
        assert all(torch.equal(found[0], other) for other in found[1:])
