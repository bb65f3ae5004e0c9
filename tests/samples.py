"""Arguments on the CPU for every operator, for tests of all operators."""

from __future__ import annotations

import torch
from inputs import METHODS, draw

import torchcorr

STRIDE = [1, 2]


def grad(*shape, dtype=torch.float64, seed=0):
    return draw(shape, dtype, seed).requires_grad_()


def scores(method, dtype):
    image, template = grad(2, 3, 7, 8, dtype=dtype), grad(4, 1, 3, 3, 2, dtype=dtype, seed=1)
    delta = grad(4, 2, 5, 4, dtype=dtype, seed=2)
    yield "correlate", (image, template, STRIDE, method)
    yield "correlate", (image, template, STRIDE, method, None, (1, 0, 0, 2))
    yield "correlate_input_grad", (delta, template, [2, 3, 7, 8], STRIDE, method)
    yield "correlate_template_grad", (delta, image, [4, 1, 3, 3, 2], STRIDE, method)
    if not dtype.is_complex:
        yield "standardise", (template, 2, True)
        yield "standardise", (template, 2, False)
        for_standard = draw(template.shape, torch.float64, 3)
        yield "standardise_grad", (template.detach(), for_standard, 2, True)
        for zero_mean in (True, False):
            how = (STRIDE, zero_mean, 0.1, method)
            yield "ncc", (image, template, *how)
            args = (delta.detach(), image.detach(), template.detach(), delta.detach().tanh())
            yield "ncc_grads", (*args, *how, True, True)


def whole_scores(method):
    """Scores of integers, and of real numbers that hold them."""
    image, template = draw((2, 3, 7, 8)) * 255, draw((4, 1, 3, 3, 2), seed=1) * 255
    for dtype in (torch.uint8, torch.float32):
        x, w = image.to(torch.uint8).to(dtype), template.to(torch.uint8).to(dtype)
        standard = torchcorr._contract.standardise(w.float(), 2, True)
        yield "ncc", (x, standard, STRIDE, True, 0.1, method, None, w)


def weighted_scores(method, dtype):
    """Weights of both, of one, and of none."""
    image, template = grad(2, 3, 7, 8, dtype=dtype), grad(4, 1, 3, 3, 2, dtype=dtype, seed=1)
    there, mask = grad(2, 1, 7, 8, dtype=dtype, seed=2), grad(3, 3, 2, dtype=dtype, seed=3)
    score = draw((4, 2, 5, 4), dtype, 4)
    for weights, pooled in (((there, mask), False), ((None, mask), True), ((None, None), False)):
        how = (STRIDE, True, pooled, 0.1, 0.0, method)
        tensors = (image, template, *weights)
        yield "weighted_ncc", (*tensors, *how)
        plain = (None if x is None else x.detach() for x in tensors)
        needed = [True, True, weights[0] is not None, weights[1] is not None]
        yield "weighted_ncc_grads", (score, score.tanh(), *plain, *how, needed)


def windows(dtype):
    image, window, steps = grad(2, 3, 7, 8, dtype=dtype), [3, 2], [2, 1]
    delta, mean = grad(2, 3, 7, dtype=dtype, seed=1), draw((2, 3, 7), seed=2)
    var = draw((2, 3, 7), seed=3) + 0.5
    yield "window_sum", (image, window, steps)
    yield "window_spread", (delta, window, [2, 3, 7, 8], steps)
    yield "window_moments", (image, window, steps)
    s1, s2 = mean.clone().requires_grad_(), var.clone().requires_grad_()
    yield "window_combine", (s1, s2, image, window, steps)
    yield "local_std", (image, window, steps, 1.0, 0.1, (1, 0, 2, 1), 0.5)
    pair = (image, grad(2, 3, 7, 8, dtype=dtype, seed=7), window, steps, 0.1)
    yield "lncc", pair
    yield "lncc_grads", (delta.detach(), *(x.detach() for x in pair[:2]), *pair[2:], True, True)
    for weight in (None, draw((2, 3, 7, 8), dtype, 8).requires_grad_()):
        place = ([1.0, 2.0, 1.0, 1.0, 1.0], window, steps, "renormalize", 0.1)
        yield "weighted_lncc", (*pair[:2], weight, *place)
        upstream = draw((2, 4, 8), dtype, 9)
        inner = [None if x is None else x.detach() for x in (*pair[:2], weight)]
        yield "weighted_lncc_grads", (upstream, *inner, *place, [True, True, weight is not None])
    zeros = ([1.0] * 5, window, steps, "zeros", 0.1)
    yield "weighted_lncc", (*pair[:2], None, *zeros)
    yield "weighted_lncc_grads", (upstream, *inner[:2], None, *zeros, [True, True, False])
    there, weight = grad(2, 1, 7, 8, dtype=dtype, seed=10), grad(1, 3, 2, dtype=dtype, seed=11)
    deeper = grad(1, 1, 3, 2, dtype=dtype, seed=11)
    for weights in ((there, weight), (there, None), (None, deeper)):
        yield "weighted_moments", (image, *weights, window, steps)
    delta = delta.detach()
    yield "local_std_prepare_grads", (delta, mean, var, 18.0, 1.0, 0.1)


def overlaps(method, dtype):
    x, y = draw((7, 9), dtype), draw((5, 4), dtype, 1)
    yield "overlap_scores", (x, y, [-3, 0], [6, 5], method)


def choices(dtype):
    maps = draw((2, 7, 6), dtype, 2)
    for limit in (None, 2):
        yield "pick_peaks", (maps, 2, 0.3, limit, [3, 2])
        yield "pick_lowest", (draw((12,), dtype, 3), 2, limit, 0.7)


def layers(method, dtype):
    image, weight = grad(2, 4, 7, 8, dtype=dtype), grad(6, 2, 3, 2, dtype=dtype, seed=1)
    how = (STRIDE, [1, 0], [2, 1], 2, method)
    delta = grad(2, 6, 5, 4, dtype=dtype, seed=2)
    yield "conv", (image, weight, *how)
    yield "conv_input_grad", (delta, weight, [2, 4, 7, 8], *how)
    yield "conv_weight_grad", (delta, image, [6, 2, 3, 2], *how)


def samples():
    for dtype in (torch.float64, torch.float32):
        for method in METHODS:
            yield from scores(method, dtype)
            yield from weighted_scores(method, dtype)
            yield from overlaps(method, dtype)
        yield from windows(dtype)
        yield from choices(dtype)
        yield "medians", (draw((3, 50), dtype, 12),)
        for method in ("torch", "sums", "spectra"):
            yield from layers(method, dtype)
    for method in METHODS:
        yield from scores(method, torch.complex128)
        yield from whole_scores(method)


SAMPLES = list(samples())
