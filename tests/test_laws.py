"""Laws that hold for any shape: Hypothesis draws the shapes, a seed draws the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import METHODS, MODES, draw
from tolerances import SCORE

import torchcorr

LAW = settings(deadline=None, derandomize=True, max_examples=12)
FUNCTIONS = ("correlate", "convolve", "zncc", "ncc")


@st.composite
def pairs(draw_value, most=12):
    """(image, template, ndim) in float64 with a window that fits."""
    ndim = draw_value(st.integers(1, 3))
    most = most if ndim < 3 else 7
    size = tuple(draw_value(st.integers(2, most)) for _ in range(ndim))
    window = tuple(draw_value(st.integers(1, n)) for n in size)
    if all(k == 1 for k in window):
        window = (2, *window[1:])
    lead = tuple(draw_value(st.lists(st.integers(1, 2), max_size=1)))
    seed = draw_value(st.integers(0, 99))
    return draw((*lead, *size), seed=seed), draw(window, seed=seed + 1), ndim


def close(one, other, bound=SCORE[torch.float64]):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= bound * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("name", FUNCTIONS)
@LAW
@given(pairs(), st.sampled_from(MODES), st.integers(1, 3))
def test_direct_is_fft(name, pair, mode, stride):
    image, template, ndim = pair
    options = {"ndim": ndim, "mode": mode, "stride": stride}
    function = getattr(torchcorr, name)
    close(
        function(image, template, method="direct", **options),
        function(image, template, method="fft", **options),
    )


@pytest.mark.parametrize("method", METHODS)
@LAW
@given(pairs(), st.integers(-5, 5))
def test_shift_equivariance(method, pair, shift):
    image, template, ndim = pair
    axes = tuple(range(-ndim, 0))

    def call(x):
        options = {"ndim": ndim, "mode": "same", "pad_mode": "circular", "method": method}
        return torchcorr.zncc(x, template, **options)

    moved = call(image.roll((shift,) * ndim, axes))
    close(moved, call(image).roll((shift,) * ndim, axes))


@pytest.mark.parametrize("method", METHODS)
@LAW
@given(pairs(), st.floats(0.01, 100), st.floats(-100, 100))
def test_zncc_ignores_gain_and_offset(method, pair, gain, offset):
    image, template, ndim = pair
    score = torchcorr.zncc(image, template, ndim=ndim, method=method)
    spread = torchcorr.local_std(image, tuple(template.shape), ndim=ndim)
    # Storing gain * x + offset rounds x, by this much of the faintest window's deviation.
    rounding = 2.0**-50 * (1 + abs(offset) / gain) / float(spread.min())
    bound = SCORE[torch.float64] + rounding
    close(torchcorr.zncc(gain * image + offset, template, ndim=ndim, method=method), score, bound)
    rounding = 2.0**-50 * (1 + abs(offset) / gain) / float(template.std(correction=0))
    bound = SCORE[torch.float64] + rounding
    close(torchcorr.zncc(image, gain * template + offset, ndim=ndim, method=method), score, bound)
    close(torchcorr.zncc(-image, template, ndim=ndim, method=method), -score)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
@LAW
@given(pairs(), st.data())
def test_cropping(name, method, pair, data):
    image, template, ndim = pair
    crop, kept = [], []
    for n, k in zip(image.shape[-ndim:], template.shape, strict=True):
        start = data.draw(st.integers(0, n - k))
        stop = data.draw(st.integers(start + k, n))
        crop.append(slice(start, stop))
        kept.append(slice(start, stop - k + 1))
    function = getattr(torchcorr, name)
    whole = function(image, template, ndim=ndim, method=method)
    part = function(image[(..., *crop)], template, ndim=ndim, method=method)
    close(part, whole[(..., *kept)])


@pytest.mark.parametrize("name", [*FUNCTIONS, "local_std", "local_sum"])
@LAW
@given(pairs(), st.sampled_from(MODES), st.integers(1, 4))
def test_a_stride_is_a_slice(name, pair, mode, stride):
    image, template, ndim = pair
    other = tuple(template.shape) if name.startswith("local") else template
    function = getattr(torchcorr, name)
    every = function(image, other, ndim=ndim, mode=mode)
    some = function(image, other, ndim=ndim, mode=mode, stride=stride)
    close(some, every[(..., *(slice(None, None, stride),) * ndim)])


@pytest.mark.parametrize("method", METHODS)
@LAW
@given(pairs(), st.sampled_from(MODES))
def test_convolution_is_correlation_with_the_flipped_kernel(method, pair, mode):
    image, kernel, ndim = pair
    flipped = kernel.flip(tuple(range(kernel.dim())))
    options = {"ndim": ndim, "mode": mode, "method": method}
    close(
        torchcorr.convolve(image, kernel, **options), torchcorr.correlate(image, flipped, **options)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wanted", [0, 1])
@LAW
@given(pairs(), st.sampled_from(MODES), st.integers(1, 3))
def test_backward_is_the_adjoint(wanted, method, pair, mode, stride):
    """<A x, y> = <x, A^T y> for the map that is linear in the input, and in the template."""
    tensors, ndim = [x.requires_grad_() for x in pair[:2]], pair[2]
    out = torchcorr.correlate(*tensors, ndim=ndim, mode=mode, stride=stride, method=method)
    y = draw(tuple(out.shape), seed=7) - 0.5
    (back,) = torch.autograd.grad(out, tensors[wanted], y)
    one, other = (out.detach() * y).sum(), (tensors[wanted].detach() * back).sum()
    assert abs(one - other) <= 1e-11 * (out.detach().abs() * y.abs()).sum()


@pytest.mark.parametrize("name", ["window_sum", "local_mean"])
@LAW
@given(pairs(), st.integers(1, 3))
def test_box_sums_and_their_adjoint(name, pair, stride):
    image, template, ndim = pair
    image.requires_grad_()
    function = torchcorr.local_sum if name == "window_sum" else torchcorr.local_mean
    out = function(image, tuple(template.shape), ndim=ndim, stride=stride)
    y = draw(tuple(out.shape), seed=7) - 0.5
    (back,) = torch.autograd.grad(out, image, y)
    one, other = (out.detach() * y).sum(), (image.detach() * back).sum()
    assert abs(one - other) <= 1e-11 * (out.detach().abs() * y.abs()).sum()


def everything(image, template, method):
    """Scores, moments and gradients of one pair, to be compared bit for bit."""
    image, template = (x.detach().clone().requires_grad_() for x in (image, template))
    results = [torchcorr.local_std(image, tuple(template.shape[-2:]))]
    for name in FUNCTIONS:
        out = getattr(torchcorr, name)(image, template, method=method)
        results += [out, *torch.autograd.grad(out.square().sum(), (image, template))]
    results += torch.autograd.grad(results[0].square().sum(), image)
    return [x.detach() for x in results]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_runs_and_thread_counts_agree_bit_for_bit(dtype, method):
    image, template = draw((3, 61, 83), dtype), draw((2, 1, 13, 11), dtype, 1)
    torch.set_num_threads(1)
    first, again = (everything(image, template, method) for _ in range(2))
    torch.set_num_threads(2)
    other = everything(image, template, method)
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
