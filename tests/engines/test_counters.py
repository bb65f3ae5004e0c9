"""Counters show that tiles take the cheapest way that is precise enough."""

from __future__ import annotations

import torch
from inputs import draw, normal

import torchcorr
from torchcorr._cpu import counters

SIZE, WINDOW = 300, 40


def ways_of(image, template, **how) -> counters.Ways:
    counters.take()
    torchcorr.zncc(image, template, **how)
    return counters.take()


def template_of(image):
    return image[100 : 100 + WINDOW, 80 : 80 + WINDOW].clone()


def test_noise_takes_float32():
    x = normal(SIZE, SIZE, seed=1, dtype=torch.float32)
    for method in ("direct", "fft"):
        ways = ways_of(x, template_of(x), method=method)
        assert ways.float32 > 0
        assert ways == counters.Ways(ways.float32, 0, 0, 0, 0)


def test_channels_far_apart_take_float32():
    """Each is centred on a level of its own."""
    x = normal(3, SIZE, SIZE, seed=1, dtype=torch.float32)
    x += torch.tensor([0.0, 1e3, -1e4]).view(3, 1, 1)
    for method in ("direct", "fft"):
        ways = ways_of(x, x[:, 50:90, 60:100].clone(), method=method, channels="joint")
        assert ways.float32 > 0
        assert ways == counters.Ways(ways.float32, 0, 0, 0, 0)


def test_plain_sums_of_noise_take_float32():
    for window in (24, 32, 48):
        for image, template in (
            (draw((SIZE, SIZE), torch.float32), draw((window, window), torch.float32, seed=1)),
            (draw((SIZE, SIZE), torch.float32) - 0.5, draw((window, window), torch.float32) - 0.5),
        ):
            counters.take()
            torchcorr.correlate(image, template, method="fft")
            ways = counters.take()
            assert ways.float32 > 0
            assert ways.float64 == 0


def test_float64_takes_float64():
    x = normal(SIZE, SIZE, seed=1)
    ways = ways_of(x, template_of(x), method="fft")
    assert ways.float64 > 0
    assert ways.float32 == 0


def test_faint_regions_take_a_second_look_and_few_faint_windows_their_definition():
    x = normal(SIZE, SIZE, seed=1, dtype=torch.float32)
    # Most rows of the first tiles, then half of these: plans differ from one CPU to another.
    rows = torchcorr.plan(x, template_of(x), method="fft").tile[0] + WINDOW - 1
    x[: 7 * rows // 8] *= 1e-6
    ways = ways_of(x, template_of(x), method="fft")
    assert ways.looked_again > 0
    assert ways.float64 == 0
    x[: 7 * rows // 16] *= 1e-6
    assert ways_of(x, template_of(x), method="fft").float64 > 0
    x = normal(SIZE, SIZE, seed=1, dtype=torch.float32)
    x[10 : 11 + WINDOW, 10 : 11 + WINDOW] *= 1e-6
    ways = ways_of(x, template_of(x), method="fft")
    assert ways.exact_windows > 0
    assert ways.float64 == 0


def test_bytes_take_integers_or_whole_transforms():
    x = (draw((SIZE, SIZE)) * 256).to(torch.uint8)
    assert ways_of(x, x[50:58, 50:58].clone()).integers > 0
    for image in (x // 16, x.float()):
        ways = ways_of(image, template_of(image), method="fft")
        assert ways == counters.Ways(ways.float32, 0, 0, 0, 0)
    # Their sums are too large for float32 alone.
    ways = ways_of(x, template_of(x), method="fft")
    assert ways == counters.Ways(0, 0, 0, ways.digits, 0)
    # A match of this template would be too large for digits, which are not tried.
    wide = (draw((1024, 1024)) * 256).to(torch.uint8)
    ways = ways_of(wide, wide[:128, :128].clone(), method="fft")
    assert ways == counters.Ways(0, ways.float64, 0, 0, 0)


def test_sums_count_too():
    x = normal(SIZE, SIZE, seed=1, dtype=torch.float32) + 100
    counters.take()
    torchcorr.correlate(x, template_of(x), method="fft")
    assert counters.take().float32 > 0
