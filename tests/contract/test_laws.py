"""Laws for any shape: Hypothesis draws the shapes, a seed draws the values."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import METHODS, MODES, draw
from tolerances import SCORE

import torchcorr

LAW = settings(deadline=None, derandomize=True, max_examples=12)
FUNCTIONS = ("correlate", "convolve", "zncc", "ncc")
ENGINES = ("direct", "fft")
REALS = (torch.float32, torch.float64)
# A region, a window, and the width of the margin around the region.
SURROUNDED = {
    "1d": ((3000,), (40,), 900),
    "2d": ((70, 60), (9, 12), 60),
    "3d": ((12, 14, 13), (3, 4, 5), 6),
}
SURROUNDINGS = ("0", "one pixel", "bright", "nan", "inf")


@pytest.fixture(autouse=True)
def _one_thread():
    """Starting threads would dominate for inputs this small; test_threads.py uses all of them."""
    torch.set_num_threads(1)


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


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("method", ENGINES)
@LAW
@given(pairs(), st.integers(-40, 40), st.data())
def test_gain_and_offset_that_round_nothing(method, dtype, pair, power, data):
    """With integers, powers of two and offsets that lose no digit, the law is exact."""
    image, template = ((256 * x).floor().to(dtype) for x in pair[:2])
    most = 1_000_000 if dtype == torch.float32 else 1 << 40
    gain, offset = 2.0**power, data.draw(st.integers(-most, most))
    options = {"ndim": pair[2], "method": method}
    score = torchcorr.zncc(image, template, **options)
    for sign in (1, -1):
        x, w = (sign * gain * (x + offset) for x in (image, template))
        assert torch.equal(sign * (x / gain) - offset, image)
        for changed in ((x, template), (image, w)):
            close(torchcorr.zncc(*changed, **options), sign * score, SCORE[dtype])


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


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("name", ["zncc", "ncc"])
@pytest.mark.parametrize("size", SURROUNDED)
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_surroundings_of_a_region_do_not_change_its_scores(around, size, name, method, dtype):
    """Windows inside a region have the same scores with and without a margin around it."""
    shape, window, margin = SURROUNDED[size]
    region, template = draw(shape, dtype), draw(window, dtype, 1)
    whole = draw(tuple(n + 2 * margin for n in shape), dtype, 2)
    at = (slice(margin, -margin),) * len(shape)
    if around == "one pixel":
        whole[(margin - 1,) * len(shape)] = 1e6
    else:
        whole = whole * 1e6 if around == "bright" else torch.full_like(whole, float(around))
    whole[at] = region
    function, options = getattr(torchcorr, name), {"ndim": len(shape), "method": method}
    kept = tuple(slice(margin, margin + n - k + 1) for n, k in zip(shape, window, strict=True))
    alone = function(region, template, **options)
    close(function(whole, template, **options)[kept], alone, SCORE[dtype])


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("name", ["zncc", "ncc"])
def test_items_of_a_batch_do_not_change_one_another(name, method, dtype):
    """Images share batches and pairs of tiles share a transform, but scores are independent."""
    images, templates = draw((4, 70, 83), dtype), draw((2, 1, 9, 11), dtype, 1)
    images[1] *= 1e6
    images[2] = 0.5 + 1e-4 * images[2]
    images[3, 20, 30] = torch.nan
    images[3, 40, 10] = torch.inf
    templates[1] *= 1e-6
    function = getattr(torchcorr, name)
    together = function(images, templates, method=method)
    for i, t in itertools.product(range(4), range(2)):
        alone, shared = function(images[i], templates[t, 0], method=method), together[t, i]
        assert torch.equal(shared.isnan(), alone.isnan())
        assert alone.isnan().any() == (i == 3)
        close(shared.nan_to_num(), alone.nan_to_num(), SCORE[dtype])


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


@st.composite
def correlations(draw_value):
    """(image, template, options) in float64: broadcast leads, joint channels, modes, strides."""
    image, template, ndim = draw_value(pairs(most=9))
    size, window = image.shape[-ndim:], template.shape
    leads = [((), ()), ((2,), ()), ((), (3,)), ((2, 1), (3,)), ((2,), (2,)), ((1, 2), (3, 1))]
    channels = draw_value(st.sampled_from([(), (1,), (3,)]))
    mode, stride = draw_value(st.sampled_from(MODES)), draw_value(st.integers(1, 3))
    shapes = [
        (*lead, *channels, *space)
        for lead, space in zip(draw_value(st.sampled_from(leads)), (size, window), strict=True)
    ]
    seed = draw_value(st.integers(0, 99))
    image, template = (draw(shape, seed=seed + i) - 0.5 for i, shape in enumerate(shapes))
    kind = "joint" if channels else "independent"
    return image, template, {"ndim": ndim, "mode": mode, "stride": stride, "channels": kind}


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("name", ["correlate", "convolve"])
@settings(LAW, max_examples=20)
@given(correlations())
def test_backward_is_the_adjoint(name, method, case):
    """<A x, g> = <x, A^T g>: the map is linear in the input, and in the template."""
    tensors, options = [x.requires_grad_() for x in case[:2]], case[2]
    out = getattr(torchcorr, name)(*tensors, method=method, **options)
    g = draw(tuple(out.shape), seed=7) - 0.5
    wanted = (out.detach() * g).sum()
    for x, back in zip(tensors, torch.autograd.grad(out, tensors, g), strict=True):
        assert back.shape == x.shape
        product = (x.detach() * back).sum()
        assert abs(product - wanted) <= 1e-12 * out.detach().norm() * g.norm()


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


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("name", ["zncc", "ncc"])
@LAW
@given(correlations())
def test_gradients_of_scores_are_orthogonal_to_gain_and_offset(name, method, case):
    """A score does not change with a * x + b, so its gradient has no part along x, nor along 1.

    For the input this is true of the sum over windows, since it is true of each of them.
    """
    image, template, options = case
    # The score of two elements is always 1 or -1, so that its gradient is rounding alone.
    assume(template[(0,) * (template.dim() - options["ndim"])].numel() > 2)
    tensors = [x.requires_grad_() for x in (image, template)]
    options = {**options, "mode": "valid", "method": method}
    score = getattr(torchcorr, name)(*tensors, **options)
    g = draw(tuple(score.shape), seed=7) - 0.5
    axes = tuple(range(-options["ndim"] - (options["channels"] != "independent"), 0))
    for x, back in zip(tensors, torch.autograd.grad(score, tensors, g), strict=True):
        x, size = x.detach(), back.abs().sum(axes)
        assert ((x * back).sum(axes).abs() <= SCORE[torch.float64] * size).all()
        if name == "zncc":
            assert (back.sum(axes).abs() <= SCORE[torch.float64] * size).all()


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
