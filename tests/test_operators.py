"""Every operator passes opcheck; a list shows that none is left out."""

from __future__ import annotations

import warnings

import pytest
import torch
from inputs import draw

import torchcorr
from torchcorr._geometry import Tiling

ops = torch.ops.torchcorr
METHODS = ("direct", "fft")
STRIDE = [1, 2]


def grad(*shape, dtype=torch.float64, seed=0):
    return draw(shape, dtype, seed).requires_grad_()


def scores(method, dtype):
    image, template = grad(2, 3, 7, 8, dtype=dtype), grad(4, 1, 3, 3, 2, dtype=dtype, seed=1)
    delta = grad(4, 2, 5, 4, dtype=dtype, seed=2)
    name = f"correlate_{method}"
    yield name, (image, template, STRIDE)
    yield f"{name}_input_grad", (delta, template, [2, 3, 7, 8], STRIDE)
    yield f"{name}_template_grad", (delta, image, [4, 1, 3, 3, 2], STRIDE)
    if not dtype.is_complex:
        yield "standardise", (template, 2, True)
        yield "standardise", (template, 2, False)
        for zero_mean in (True, False):
            yield f"ncc_{method}", (image, template, STRIDE, zero_mean, 0.1)
            if method == "fft":
                args = (delta.detach(), image.detach(), template.detach(), delta.detach().tanh())
                yield "ncc_fft_grads", (*args, STRIDE, zero_mean, 0.1, True, True)


def windows(dtype):
    image, window, steps = grad(2, 3, 7, 8, dtype=dtype), [3, 2], [2, 1]
    delta, mean = grad(2, 3, 7, dtype=dtype, seed=1), draw((2, 3, 7), seed=2)
    var = draw((2, 3, 7), seed=3) + 0.5
    yield "window_sum", (image, window, steps)
    yield "window_spread", (delta, window, [2, 3, 7, 8], steps)
    yield "window_moments", (image, window, steps)
    s1, s2 = mean.clone().requires_grad_(), var.clone().requires_grad_()
    yield "window_combine", (s1, s2, image, window, steps)
    yield "local_std", (image, window, steps, 1.0, 0.1)
    pair = (image, grad(2, 3, 7, 8, dtype=dtype, seed=7), window, steps, 0.1)
    yield "lncc", pair
    yield "lncc_grads", (delta.detach(), *(x.detach() for x in pair[:2]), *pair[2:], True, True)
    delta, score = delta.detach(), draw((4, 2, 3, 7), dtype, 5)
    yield "local_std_prepare_grads", (delta, mean, var, 18.0, 1.0, 0.1)
    for zero_mean in (True, False):
        args = (draw((4, 2, 3, 7), dtype, 6), score, mean, var, 18.0, zero_mean, 0.1)
        yield "ncc_prepare_grads", args


def tiles(dtype):
    # As many positions as tiles cover: norms that are not asked for are not set.
    tiling = Tiling.cut((7, 8), (3, 2), (2, 1), (3, 1), fast=True)
    geometry, ids, window, steps = tiling.numbers, [0, 3, 5, 2], [3, 2], [2, 1]
    image, taps = draw((2, 3, 7, 8), dtype), draw((1, 4, 3, 3, 2), seed=1)
    yield "take_large_pages", (draw((9, 9), dtype),)
    for pairs in (True, False):
        yield "gather_tiles", (image, ids, geometry, True, False, pairs)
        _, stats = ops.gather_tiles(image, ids, geometry, True, False, pairs)
        limits = (True, not pairs, 0.1, 1e-3, 1e-8, pairs)
        yield "tile_norms", (stats, image, ids, geometry, window, steps, *limits)
        norms, _, means = ops.tile_norms(stats, image, ids, geometry, window, steps, *limits)
        shape = (4, 4, *norms.shape[1:]) if not pairs else (2, 4, *tiling.length, 2)
        out = torch.zeros(2, 4, *tiling.positions, dtype=dtype)
        rest = (stats, image, taps, ids, geometry, steps, 0, True, 0.1, 0.1, 3, out)
        yield "finish_tiles", (draw(shape, dtype, 2), norms, *rest)
        if not pairs:
            parts = (image, taps, taps.to(dtype)[:, None], ids, geometry, window, steps, 2)
            yield "direct_scores", (*parts, True, 0.1, 1e-3, 1e-8, 3, torch.zeros_like(out))
            continue
        yield (
            "repair_norms",
            (norms.neg(), means, *rest[:2], ids, geometry, window, steps, True, 0.1),
        )
        sums = (draw((2, 4, *tiling.length, 2), seed=8), stats)
        for bound in (None, draw(sums[0].shape, torch.float32, 9)):
            args = (image, taps, ids, geometry, steps, 0, 1e-15, 1e-7, 3, torch.zeros_like(out))
            yield "finish_sums", (*sums, bound, None, *args)
        grad, score = draw(out.shape, dtype, 3), draw(out.shape, dtype, 4)
        square, mean = torch.zeros_like(norms), torch.zeros_like(norms)
        upstream = (grad, score, norms, means, ids, geometry, steps, 18.0, 1, 2, False)
        yield "tile_upstream", (*upstream, square, mean)
        found = draw((2, 3, *tiling.length, 2), dtype, 5)
        maps = (draw(norms.shape, dtype, 6), draw(norms.shape, dtype, 7))
        back = (found, *maps, stats, image, ids, geometry, window, steps)
        yield "tile_input_grad", (*back, torch.zeros_like(image))


def samples():
    for dtype in (torch.float64, torch.float32):
        for method in METHODS:
            yield from scores(method, dtype)
        yield from windows(dtype)
        yield from tiles(dtype)
    for method in METHODS:
        yield from scores(method, torch.complex128)


SAMPLES = list(samples())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s[0]}-{s[1][0].dtype}")
def test_opcheck(sample):
    name, args = sample
    with warnings.catch_warnings():
        # opcheck itself touches deprecated corners of PyTorch.
        warnings.simplefilter("ignore")
        torch.library.opcheck(getattr(torch.ops.torchcorr, name).default, args)


def test_every_operator_has_a_sample():
    names = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torchcorr::")
    }
    assert names == {name for name, _ in SAMPLES}


def test_the_input_is_never_written():
    image, template = draw((9, 9)), draw((3, 3), seed=1)
    before = image.clone(), template.clone()
    for name in ("correlate", "convolve", "zncc", "ncc"):
        for method in METHODS:
            getattr(torchcorr, name)(image, template, method=method)
    for name in ("local_sum", "local_mean", "local_var", "local_std"):
        getattr(torchcorr, name)(image, 3)
    assert torch.equal(image, before[0])
    assert torch.equal(template, before[1])
