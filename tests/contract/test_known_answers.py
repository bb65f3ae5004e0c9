"""The numbers everyone can check by hand."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from inputs import METHODS, array, draw

import torchcorr


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def grads(output, delta, *inputs):
    return torch.autograd.grad(output, inputs, delta)


@pytest.mark.parametrize("method", METHODS)
def test_correlation_by_hand(method):
    # docs/math.md eq. (1).
    got = torchcorr.correlate(t(0, 1, 2, 3), t(1, 2), ndim=1, method=method)
    torch.testing.assert_close(got, t(2, 5, 8))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_four_inputs_and_three_weights(method):
    # docs/math.md eq. (2) and (3), one axis.
    x, w, d = t(0, 1, 2, 3).requires_grad_(), t(2, -3, 5).requires_grad_(), t(0.5, 7)
    out = torchcorr.correlate(x, w, ndim=1, method=method)
    grad_x, grad_w = grads(out, d, x, w)
    expected = t(d[0] * 2, d[0] * -3 + d[1] * 2, d[0] * 5 + d[1] * -3, d[1] * 5)
    torch.testing.assert_close(grad_x, expected)
    padded = torch.nn.functional.pad(d, (2, 2))
    flipped = torchcorr.correlate(padded, w.detach().flip(0), ndim=1, method=method)
    torch.testing.assert_close(flipped, expected)
    torch.testing.assert_close(grad_w, t(7, 0.5 + 14, 1 + 21))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("hits", "answer"),
    [
        ((0, 0, 0, 1, 0, 0, 0), (0, 0, 0, 3, 2, 1, 0, 0, 0)),
        ((0, 0, 1, 1, 0, 0), (0, 0, 3, 5, 3, 1, 0, 0)),
    ],
)
def test_full_convolution_answers_the_impulse_question(hits, answer, method):
    # docs/math.md eq. (5).
    got = torchcorr.convolve(t(*hits), t(3, 2, 1), ndim=1, mode="full", method=method)
    torch.testing.assert_close(got, t(*answer))


@pytest.mark.parametrize("method", METHODS)
def test_two_dimensions_by_hand(method):
    # docs/math.md eq. (1) to (3), two axes.
    x = torch.arange(9.0, dtype=torch.float64).reshape(3, 3).requires_grad_()
    w = torch.arange(4.0, dtype=torch.float64).reshape(2, 2).requires_grad_()
    out = torchcorr.correlate(x, w, method=method)
    torch.testing.assert_close(out, t(19, 25, 37, 43).reshape(2, 2))
    d = t(1, -2, 3, 5).reshape(2, 2)
    grad_x, grad_w = grads(out, d, x, w)
    padded = torch.nn.functional.pad(d, (1, 1, 1, 1))
    torch.testing.assert_close(grad_x, torchcorr.correlate(padded, w.detach().flip(0, 1)))
    torch.testing.assert_close(grad_w, torchcorr.correlate(x.detach(), d))
    torch.testing.assert_close(grad_x, torchcorr.convolve(d, w.detach(), mode="full"))


@pytest.mark.parametrize("method", METHODS)
def test_stride_two_touches_each_element_once(method):
    # docs/math.md eq. (4).
    x = (draw((4, 4)) + 1).requires_grad_()
    w = (draw((2, 2)) + 1).requires_grad_()
    d = t(2, 3, 5, 7).reshape(2, 2)
    out = torchcorr.correlate(x, w, stride=2, method=method)
    grad_x, grad_w = grads(out, d, x, w)
    expected = d[0, 0] * x[1, 0] + d[0, 1] * x[1, 2] + d[1, 0] * x[3, 0] + d[1, 1] * x[3, 2]
    torch.testing.assert_close(grad_w[1, 0], expected.detach())
    torch.testing.assert_close(grad_x, torch.kron(d, w.detach()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_zncc_gradients_written_out(method, offset):
    # docs/math.md eq. (9) to (12).
    x = draw((7, 8)) + offset
    x[2:6, 3:7] = 0.5 + offset
    w, d = draw((3, 2), seed=1) - offset, draw((5, 7), seed=2) - 0.5
    arrays = array(x).copy(), array(w).copy(), array(d)
    x.requires_grad_()
    w.requires_grad_()
    grad_x, grad_w = grads(torchcorr.zncc(x, w, method=method), d, x, w)
    for got, wanted in (
        (grad_x, oracle.zncc_input_gradient(*arrays)),
        (grad_w, oracle.zncc_template_gradient(*arrays)),
    ):
        assert np.abs(array(got) - wanted).max() <= 1e-10 * np.abs(wanted).max()


def deviation_by_fft(x, window):
    """S1 and S2 in one batch of transforms of [I, I^2]; the slow way, kept as a check."""
    padded = [n + k - 1 for n, k in zip(x.shape, window, strict=True)]
    spectra = torch.fft.rfft2(torch.stack([x, x * x]), s=padded)
    ones = torch.fft.rfft2(x.new_ones(window), s=padded)
    sums = torch.fft.irfft2(spectra * ones, s=padded)
    valid = tuple(slice(k - 1, n) for n, k in zip(x.shape, window, strict=True))
    first, second = sums[(slice(None), *valid)]
    count = window[0] * window[1]
    return ((second - first.square() / count).clamp_min(0) / count).sqrt()


def test_deviation_map_by_two_transforms():
    # docs/math.md eq. (13) to (16).
    a = draw((13, 15)).requires_grad_()
    b = a.detach().clone().requires_grad_()
    one, other = torchcorr.local_std(a, (4, 3)), deviation_by_fft(b, (4, 3))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    d = draw((10, 13), seed=3) - 0.5
    torch.testing.assert_close(*grads(one, d, a), *grads(other, d, b), rtol=1e-9, atol=1e-9)


def test_zncc_of_two_by_hand():
    # docs/math.md eq. (7) and (8). With zncc a window of two is 1, -1 or flat.
    score = torchcorr.zncc(t(0, 1, 1, 0, 5), t(3, 4), ndim=1)
    torch.testing.assert_close(score, t(1, 0, -1, 1))
    score = torchcorr.ncc(t(3, 4, 0, 0, 4), t(4, 3), ndim=1)
    torch.testing.assert_close(score, t(24 / 25, 16 / 20, 0, 12 / 20))
