"""Scores of 8-bit integers are exact but for one rounding: the same bits whatever computes them.

The oracle below uses Python's integers, which have any length.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from inputs import METHODS, array, draw, tensor
from torch import Tensor

import torchcorr

BYTES = (torch.uint8, torch.int8)


def draw_bytes(shape, dtype=torch.uint8, seed=0, top=256) -> Tensor:
    low = 0 if dtype == torch.uint8 else -128
    return ((draw(shape, seed=seed) * top).floor() + low).to(dtype)


def exact(window: np.ndarray, template: np.ndarray, zero_mean: bool, eps: float = 0.0) -> float:
    """A score in float64, from integers."""
    x, w = ([int(v) for v in a.ravel()] for a in (window, template))
    n = len(x) if zero_mean else 1
    mean_x, mean_w = (sum(a) if zero_mean else 0 for a in (x, w))
    product = n * sum(a * b for a, b in zip(x, w, strict=True)) - mean_x * mean_w
    of_x = n * sum(a * a for a in x) - mean_x**2
    of_w = n * sum(a * a for a in w) - mean_w**2
    if of_x == 0 or of_w == 0:
        return 0.0
    return product * (1 / math.sqrt(of_x + eps * len(x) * n)) * (1 / math.sqrt(of_w))


def oracle(x: Tensor, w: Tensor, stride, zero_mean: bool, eps: float = 0.0) -> Tensor:
    """Scores of one input and one template whose axes are all window axes."""
    image, template = array(x), array(w)
    sizes = [(n - k) // s + 1 for n, k, s in zip(image.shape, template.shape, stride, strict=True)]
    out = np.zeros(sizes, np.float32)
    for u in itertools.product(*map(range, sizes)):
        places = zip(u, stride, template.shape, strict=True)
        window = image[tuple(slice(i * s, i * s + k) for i, s, k in places)]
        out[u] = np.float32(exact(window, template, zero_mean, eps))
    return tensor(out).clamp_(-1, 1)


@pytest.mark.parametrize("zero_mean", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((90,), (7,), (1,)),
        ((90,), (11,), (3,)),
        ((37, 41), (5, 6), (1, 1)),
        ((33, 40), (1, 9), (2, 3)),
        ((24, 70), (16, 13), (1, 1)),
        ((9, 12, 13), (3, 4, 5), (1, 1, 1)),
        ((9, 12, 13), (2, 3, 3), (2, 1, 3)),
    ],
)
def test_bits_are_those_of_integers(device, size, window, stride, dtype, method, zero_mean):
    x, w = draw_bytes(size, dtype), draw_bytes(window, dtype, 1)
    function = torchcorr.zncc if zero_mean else torchcorr.ncc
    how = {"ndim": len(size), "stride": stride, "method": method}
    got = function(x.to(device), w.to(device), **how).cpu()
    want = oracle(x, w, stride, zero_mean)
    assert got.dtype == torch.float32
    if device == "cpu":
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def saturated(size: int = 200, dtype=torch.uint8) -> Tensor:
    """Black and white blocks with grey levels that differ by one, and flat parts."""
    low = 0 if dtype == torch.uint8 else -128
    x = draw_bytes((size // 8, size // 8), seed=3, top=2).repeat_interleave(8, 0)
    x = x.repeat_interleave(8, 1).to(torch.int64) * 255
    x[: size // 3] = 200
    x[size // 6, size // 3 :] += draw_bytes((size - size // 3,), seed=4, top=2)
    x[-size // 3 :, : size // 2] = 128 + draw_bytes((1,), seed=5, top=2)
    return (x + low).to(dtype)


@pytest.mark.cpu_only(reason="bits are promised on the CPU")
@pytest.mark.parametrize("side", [16, 40, 64, 130])
@pytest.mark.parametrize("dtype", BYTES, ids=str)
@pytest.mark.parametrize("zero_mean", [True, False])
def test_methods_threads_and_tiles_give_the_same_bits(side, dtype, zero_mean):
    """With templates whose sums float32 holds, holds in two parts, and does not hold."""
    x = saturated(dtype=dtype)
    w = x[60 : 60 + side, 50 : 50 + side].clone()
    function = torchcorr.zncc if zero_mean else torchcorr.ncc
    whole = function(x, w, method="fft")
    assert torch.equal(whole, function(x, w, method="direct"))
    assert whole[60, 50] == 1
    # Others tiles lie in crops, and in an image that is part of a batch.
    assert torch.equal(whole[:, 3:], function(x[:, 3:], w, method="fft"))
    both = torch.stack((x, x.flip(0)))
    assert torch.equal(whole, function(both, w, method="fft")[0])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for method in ("direct", "fft"):
                assert torch.equal(whole, function(x, w, method=method)), (n, method)
    finally:
        torch.set_num_threads(threads)


def exact_of_channels(windows: np.ndarray, template: np.ndarray, eps: float = 0.0) -> float:
    """A score in float64 whose channels have a mean each, from integers."""
    n = template[0].size
    product = of_x = of_w = 0
    for x, w in zip(windows, template, strict=True):
        x, w = ([int(v) for v in a.ravel()] for a in (x, w))
        product += n * sum(a * b for a, b in zip(x, w, strict=True)) - sum(x) * sum(w)
        of_x += n * sum(a * a for a in x) - sum(x) ** 2
        of_w += n * sum(a * a for a in w) - sum(w) ** 2
    if of_x == 0 or of_w == 0:
        return 0.0
    return product * (1 / math.sqrt(of_x + eps * template.size * n)) * (1 / math.sqrt(of_w))


@pytest.mark.cpu_only(reason="bits are promised on the CPU")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", (*BYTES, torch.float32), ids=str)
@pytest.mark.parametrize(
    ("size", "window", "stride", "eps"),
    [
        ((3, 90), (3, 7), (1,), 0.0),
        ((2, 37, 41), (2, 5, 6), (1, 1), 0.0),
        ((3, 40, 33), (3, 9, 16), (2, 3), 0.5),
        ((4, 9, 12, 13), (4, 3, 4, 5), (1, 1, 1), 0.0),
    ],
)
def test_channels_with_a_mean_each_are_exact(size, window, stride, eps, dtype, method):
    kind = torch.uint8 if dtype.is_floating_point else dtype
    x, w = draw_bytes(size, kind), draw_bytes(window, kind, 1)
    x[0], x[1:, ..., : size[-1] // 2] = 7, x[1, ..., :1]  # one flat channel, and flat windows
    w[0, ..., 0] = 255 if kind == torch.uint8 else 127
    image, template = array(x), array(w)
    how = {"ndim": len(stride), "stride": stride, "method": method, "eps": eps}
    got = array(torchcorr.zncc(x.to(dtype), w.to(dtype), channels="joint", **how))
    for u in np.ndindex(got.shape):
        places = zip(u, stride, window[1:], strict=True)
        inside = (slice(None), *(slice(i * s, i * s + k) for i, s, k in places))
        assert got[u] == np.float32(np.clip(exact_of_channels(image[inside], template, eps), -1, 1))


@pytest.mark.cpu_only(reason="bits are promised on the CPU")
def test_large_templates():
    """Sums that exceed 32 bits, and products that exceed what float64 holds exactly."""
    x = saturated(720)
    w = x[100:660, 90:610].clone()
    got = torchcorr.zncc(x, w, stride=40)
    assert torch.equal(got, oracle(x, w, (40, 40), True))
    assert torchcorr.zncc(x, w)[100, 90] == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_rows_whose_sum_of_squares_exceeds_32_bits(device, dtype, method):
    """66052 squares of 255 are more than 2 to the power 32."""
    x = torch.full((140_000,), torch.iinfo(dtype).max, dtype=dtype)
    x[::1000] = torch.iinfo(dtype).min
    w = x[5:133_005].roll(3)
    scores = torchcorr.zncc(x.to(device), w.to(device), ndim=1, method=method).cpu()
    for start in (0, 7, 1000, 6999):
        window = array(x[start : start + len(w)])
        assert scores[start] == np.float32(exact(window, array(w), True)), start


@pytest.mark.parametrize("method", METHODS)
def test_channels_leads_padding_and_eps(device, method):
    image, template = draw_bytes((2, 3, 20, 21), top=200), draw_bytes((4, 1, 3, 5, 4), seed=1)
    got = torchcorr.zncc(
        image.to(device), template.to(device), channels="pooled", method=method, eps=2.5
    )
    images, templates = array(image), array(template)
    one = torch.tensor(
        [
            [
                exact(images[1, :, y : y + 5, x : x + 4], templates[2, 0], True, 2.5)
                for x in range(18)
            ]
            for y in range(16)
        ]
    )
    assert got.shape == (4, 2, 16, 18)
    torch.testing.assert_close(got[2, 1].cpu(), one.float(), rtol=0, atol=1e-7)
    x, w = image[0].to(device), template[0, 0].to(device)
    for mode, pad_mode, value in (
        ("same", "reflect", 0), ("full", "constant", 7), ("same", "constant", 0.5),
        ("same", "circular", 0), ("full", "constant", 300),
    ):  # fmt: skip
        how = {"mode": mode, "pad_mode": pad_mode, "pad_value": value, "method": method}
        want = torchcorr.zncc(x.double(), w.double(), **how)
        got = torchcorr.zncc(x, w, **how)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [6, 40, 100])
def test_real_numbers_that_are_whole(device, method, side):
    """A picture that was converted to float32 is scored within the promise, flat windows as 0."""
    x = saturated()
    w = x[70 : 70 + side, 60 : 60 + side]
    want = torchcorr.zncc(x, w)
    got = torchcorr.zncc(x.float().to(device), w.float().to(device), method=method).cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    flat = torchcorr.flat_windows(x, side).cpu()
    assert bool((got[flat] == 0).all())
    # Shifted to negative numbers, and to some that a byte does not hold.
    for offset in (-128.0, -300.0, 0.25):
        moved = torchcorr.zncc(x.float() + offset, w.float() + offset, method=method)
        torch.testing.assert_close(moved, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_real_numbers_that_are_shares_of_255(device, method):
    """Scores are those of the float32 numbers, not only of the bytes that they were made of."""
    # Windows of few levels near white, where rounding is largest relative to the contrast.
    level = (draw((90, 96)) * 40).clamp(max=2).floor() + 253
    for x in (draw_bytes((90, 96)), level.to(torch.uint8)):
        w = x[30:42, 20:33].clone()
        w[0, 0] = 0
        shares = [y.float() / 255 for y in (x, w)]
        got = torchcorr.zncc(*(y.to(device) for y in shares), method=method).cpu()
        want = torchcorr.zncc(*(y.double() for y in shares))
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)
        soft = torchcorr.zncc(*(y.to(device) for y in shares), method=method, eps=1e-4).cpu()
        want = torchcorr.zncc(*(y.double() for y in shares), eps=1e-4)
        torch.testing.assert_close(soft.double(), want, rtol=0, atol=1e-5)


def test_rounding_of_shares_is_as_small_as_said():
    """Half the range of slopes between any two of 256 rounded shares."""
    bytes = torch.arange(256, dtype=torch.float64)
    error = (bytes.float() / 255).double() * 255 - bytes
    first, second = torch.triu_indices(256, 256, 1)
    slopes = (error[second] - error[first]) / (bytes[second] - bytes[first])
    assert (slopes.max() - slopes.min()) / 2 <= 3.8e-6


def test_a_bad_pixel_makes_its_windows_nan(device):
    x = draw_bytes((30, 30)).float().to(device)
    w = x[3:9, 4:9].clone()
    want = torchcorr.zncc(x, w)
    x[15, 20] = math.nan
    got = torchcorr.zncc(x, w)
    touched = torch.zeros_like(got, dtype=torch.bool)
    touched[10:16, 16:21] = True
    assert bool(got[touched].isnan().all())
    torch.testing.assert_close(got[~touched], want[~touched], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_whole_numbers(device, method):
    x, w = draw_bytes((40, 41)).double(), draw_bytes((9, 8), seed=1).double()
    delta = draw_bytes((32, 34), seed=2).double() / 255 - 0.5
    grads = []
    for dtype in (torch.float64, torch.float32):
        leaves = [v.to(device, dtype).requires_grad_() for v in (x, w)]
        score = torchcorr.zncc(*leaves, method=method)
        grads.append(torch.autograd.grad(score, leaves, delta.to(device, dtype)))
    for want, got in zip(*grads, strict=True):
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_vmap_over_whole_numbers(device):
    x, w = draw_bytes((3, 20, 20)).to(device), draw_bytes((3, 5, 5), seed=1).to(device)
    for images, templates in ((x, w), (x.float(), w.float())):
        got = torch.func.vmap(torchcorr.zncc)(images, templates)
        want = torch.stack([torchcorr.zncc(a, b) for a, b in zip(images, templates, strict=True)])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
