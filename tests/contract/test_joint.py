"""Joint channels have a mean each: whatever their offsets and scales, a score is Pearson's."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import oracle
import pytest
import skimage.data
import torch
from inputs import METHODS, array, draw, normal, tensor
from tolerances import GRADIENT_OF_FLOAT32, SCORE

import torchcorr

# Offsets and scales of three channels.
CHANNELS = {
    "colours": ((0.2, 0.5, 0.8), (0.05, 0.05, 0.05)),
    "far apart": ((0.0, 1e4, -1e6), (1.0, 1.0, 1.0)),
    "scales": ((0.0, 0.0, 0.0), (1.0, 1e-3, 1e3)),
    "both": ((1e5, 0.0, -3.0), (1.0, 1e-6, 10.0)),
    "one faint": ((7.0, 1e3, -1e3), (1e-4, 0.0, 0.0)),
    "one flat": ((7.0, 1e3, -1e3), (0.0, 1.0, 2.0)),
}
SHAPES = {
    "1d": ((1500,), (31,), 1),
    "2d": ((61, 66), (13, 14), 1),
    "2d-stride": ((61, 66), (13, 14), (2, 3)),
    "3d": ((16, 15, 17), (4, 5, 3), 1),
}


def mixed(name, size, dtype=torch.float64, seed=1):
    column = (3, *(1,) * len(size))
    offset, scale = (torch.tensor(x, dtype=torch.float64).view(column) for x in CHANNELS[name])
    return (offset.to(torch.get_default_device()) + normal(3, *size, seed=seed) * scale).to(dtype)


def direct_score(image, template):
    """Pearson's coefficient in float64, from the windows themselves."""
    h, w = template.shape[-2:]
    seen = image.double().unfold(-2, h, 1).unfold(-2, w, 1).permute(1, 2, 0, 3, 4)
    other = template.double()
    seen, other = (x - x.mean((-2, -1), keepdim=True) for x in (seen, other))
    axes = (-3, -2, -1)
    size = seen.square().sum(axes).sqrt() * other.square().sum().sqrt()
    return (seen * other).sum(axes) / size


@lru_cache
def scored(name, shape, dtype):
    """An image, a template that resembles a part of it, options and the exact scores."""
    size, window, stride = SHAPES[shape]
    image = mixed(name, size, dtype)
    template = image[(..., *(slice(3, 3 + n) for n in window))] * 0.5
    template = template + mixed(name, window, dtype, 2)
    how = {"ndim": len(size), "channels": "joint", "stride": stride}
    return image, template, how, oracle.zncc(array(image), array(template), **how)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHANNELS)
def test_channels_of_any_offset_and_scale(device, name, shape, dtype, method):
    image, template, how, exact = scored(name, shape, dtype)
    got = torchcorr.zncc(image.to(device), template.to(device), method=method, **how).cpu()
    assert (got.abs() <= 1).all()
    assert (np.abs(array(got) - exact) <= SCORE[dtype]).all()


def test_volumes_of_many_channels(device):
    """So many that sums of columns have no room near a core."""
    offset = torch.arange(190.0).view(-1, 1, 1, 1)
    image = normal(190, 5, 36, 40, seed=1, dtype=torch.float32) + offset.to(device)
    template = normal(190, 3, 33, 38, seed=2, dtype=torch.float32)
    got = torchcorr.zncc(image, template, ndim=3, channels="joint")
    axes = (-3, -2, -1)
    other = template.double() - template.double().mean(axes, keepdim=True)
    for place in np.ndindex(3, 4, 3):
        seen = image[(..., *(slice(i, i + n) for i, n in zip(place, (3, 33, 38), strict=True)))]
        seen = seen.double() - seen.double().mean(axes, keepdim=True)
        exact = (seen * other).sum() / (seen.norm() * other.norm())
        assert abs(float(got[place] - exact)) <= SCORE[torch.float32]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eps", (0.0, 0.3))
def test_items_and_templates_in_many_tiles(device, eps, method):
    images = torch.stack([mixed("colours", (300, 310), seed=seed) for seed in (1, 2)]).float()
    images[1] = images[1] * 1e3 + 50
    templates = torch.stack([images[0, :, 40:64, 50:75], images[1, :, 99:123, 7:32]])
    pair = images.unsqueeze(1).to(device), templates.to(device)
    got = torchcorr.zncc(*pair, channels="joint", eps=eps, method=method).cpu()
    for i, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image, template = images[i].double(), templates[k].double()
        want = torchcorr.zncc(image, template, channels="joint", eps=eps, method="direct")
        assert float((got[i, k] - want).abs().max()) <= SCORE[torch.float32]


@pytest.mark.parametrize("method", METHODS)
def test_a_window_is_flat_if_each_channel_is(device, method):
    image, template = mixed("far apart", (40, 44), torch.float32), draw((3, 9, 8), seed=3).float()
    image[:, 3:20, 5:24] = torch.tensor([1.0, 2e4, -3.0]).view(3, 1, 1)
    image[1, 25:, 25:] = 5.0  # only one channel
    image = image.to(device).requires_grad_()
    scores = torchcorr.zncc(image, template.to(device), channels="joint", method=method)
    flat = torch.zeros(32, 37, dtype=torch.bool)
    flat[3:12, 5:17] = True
    assert torch.equal(scores.cpu() == 0, flat)
    (grad,) = torch.autograd.grad(scores[3:12, 5:17].sum(), image)
    assert bool((grad == 0).all())
    alike = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 9, 8).to(device)
    assert bool((torchcorr.zncc(image, alike, channels="joint", method=method) == 0).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_what_is_not_finite_stays_in_its_windows(device, bad, method):
    image, template = mixed("colours", (60, 64), torch.float32), draw((3, 9, 8), seed=3).float()
    want = torchcorr.zncc(image.double(), template.double(), channels="joint", method="direct")
    image[1, 30, 33] = bad
    how = {"channels": "joint", "method": method}
    got = torchcorr.zncc(image.to(device), template.to(device), **how).cpu()
    touched = torch.zeros_like(want, dtype=torch.bool)
    touched[22:31, 26:34] = True
    assert torch.equal(got.isnan(), touched)
    assert float((got - want)[~touched].abs().max()) <= SCORE[torch.float32]
    template[0, 2, 3] = bad
    assert bool(torchcorr.zncc(image.to(device), template.to(device), **how).isnan().all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ("colours", "scales", "one flat"))
def test_gradients_are_those_of_the_windows(device, name, method):
    """Through many tiles, in float32 and float64, against autograd through all windows."""
    image, template = mixed(name, (70, 74), seed=4), mixed(name, (12, 13), seed=5)
    delta = normal(59, 62, seed=6)
    leaves = [x.clone().requires_grad_() for x in (image, template)]
    want = torch.autograd.grad(direct_score(*leaves), leaves, delta)
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, GRADIENT_OF_FLOAT32)):
        pair = [x.to(device, dtype).requires_grad_() for x in (image, template)]
        score = torchcorr.zncc(*pair, channels="joint", method=method)
        got = torch.autograd.grad(score, pair, delta.to(device, dtype))
        if dtype == torch.float32:
            leaves = [x.detach().cpu().double().requires_grad_() for x in pair]
            want = torch.autograd.grad(direct_score(*leaves), leaves, delta)
        for a, b in zip(got, want, strict=True):
            for of_channel, exact in zip(a.cpu().double(), b, strict=True):
                assert float((of_channel - exact).abs().max()) <= bound * float(b.abs().max())


def test_a_photograph_in_colour():
    picture = tensor(
        np.asarray(skimage.data.astronaut()).astype(np.float32).transpose(2, 0, 1).copy()
    )
    picture[0] += 1000  # an offset of one channel alone
    for window in (16, 48):
        template = picture[:, 60 : 60 + window, 200 : 200 + window]
        how = {"channels": "joint"}
        want = torchcorr.zncc(picture.double(), template.double(), method="direct", **how)
        for method in ("fft", "direct"):
            got = torchcorr.zncc(picture, template, method=method, **how)
            assert float((got - want).abs().max()) <= SCORE[torch.float32]
