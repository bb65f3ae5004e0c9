"""Inputs that are parts of others, expanded or permuted give the bits of their copies."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from inputs import draw, normal
from tile_geometries import batch_of, image_of
from tolerances import SCORE

import torchcorr
from torchcorr._cpu import counters, steps


def within(x: torch.Tensor) -> torch.Tensor:
    """x as a part of a larger tensor, among NaN or the largest integers."""
    around = torch.nan if x.is_floating_point() or x.is_complex() else torch.iinfo(x.dtype).max
    sizes = [n + 5 for n in x.shape]
    part = torch.full(sizes, around, dtype=x.dtype)[(slice(2, -3),) * x.dim()]
    return part.copy_(x)


def with_strides(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """x in memory in every way that a step may find it; what is expanded repeats the first."""
    last = x.dim() - 1
    views = {"part": within(x), "even": x.repeat_interleave(2, last)[..., ::2]}
    if last > 0:
        views["rows"] = x.repeat_interleave(2, last - 1)[..., ::2, :]
        views["turned"] = x.mT.contiguous().mT
        views["expanded"] = x[:1].expand(x.shape)
    if last > 1:
        views["channels_last"] = x.movedim(-3, -1).contiguous().movedim(-1, -3)
        views["swapped"] = x.transpose(0, 1).contiguous().transpose(0, 1)
        views["expanded inside"] = x[:, :1].expand(x.shape)
        views["expanded parts"] = within(x[:, :1]).expand(x.shape)
    return views


def same_bits(call: Callable[..., torch.Tensor], x: torch.Tensor, *others: torch.Tensor) -> None:
    for name, view in with_strides(x).items():
        got, want = call(view, *others), call(view.contiguous(), *others)
        torch.testing.assert_close(got, want, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert not got.isnan().any() and got.is_contiguous()


# Input, template, window axes and options.
CASES = {
    "1d": ((3, 600), (40,), {"ndim": 1}),
    "1d-joint": ((2, 3, 300), (3, 20), {"ndim": 1, "channels": "joint"}),
    "2d": ((70, 90), (9, 11), {}),
    "2d-items": ((2, 3, 40, 50), (7, 6), {}),
    "2d-paired": ((2, 3, 40, 50), (2, 1, 7, 6), {"stride": (2, 1)}),
    "2d-templates": ((2, 1, 40, 50), (4, 7, 6), {}),
    "2d-unsorted": ((3, 1, 2, 30, 30), (4, 1, 8, 8), {}),
    "2d-joint": ((2, 3, 40, 50), (3, 7, 6), {"channels": "joint"}),
    "2d-pooled": ((2, 3, 40, 50), (3, 7, 6), {"channels": "pooled", "stride": 2}),
    "3d": ((2, 14, 20, 24), (5, 6, 7), {"ndim": 3}),
    "3d-joint": ((2, 2, 12, 14, 16), (2, 5, 4, 6), {"ndim": 3, "channels": "joint"}),
}
every_case = pytest.mark.parametrize("name", CASES)
every_method = pytest.mark.parametrize("method", ["direct", "fft"])


@every_case
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_and_sums(name, method, dtype):
    shape, window, how = CASES[name]
    x, template = draw(shape, dtype), draw(window, dtype, seed=1)
    functions = [torchcorr.zncc, torchcorr.ncc]
    # Direct loops read all strides, in an order that is theirs, and so do PyTorch's transforms,
    # which lone tensors of float64 take.
    is_lone = dtype == torch.float64 and name == "2d"
    if method == "fft" and how.get("channels") != "pooled" and not is_lone:
        functions.append(torchcorr.correlate)
    for function in functions:
        same_bits(lambda v, t, f=function: f(v, t, method=method, **how), x, template)


@every_case
@every_method
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float32])
def test_bytes(name, method, dtype):
    shape, window, how = CASES[name]
    x, template = (draw(s, torch.int8, i).to(torch.int16) for i, s in enumerate((shape, window)))
    x, template = ((v + 100 * (dtype == torch.uint8)).to(dtype) for v in (x, template))
    same_bits(lambda v, t: torchcorr.zncc(v, t, method=method, **how), x, template)


def test_complex_sums():
    x, template = draw((3, 40, 50), torch.complex64), draw((7, 6), torch.complex64, seed=1)
    for view in with_strides(x).values():
        got = torchcorr.correlate(view, template, method="fft")
        want = torchcorr.correlate(view.contiguous(), template, method="fft")
        torch.testing.assert_close(got, want)


@every_case
@pytest.mark.parametrize("function", [torchcorr.zncc, torchcorr.correlate])
def test_gradients(name, function):
    shape, window, how = CASES[name]
    x, template = draw(shape, torch.float32), draw(window, torch.float32, seed=1)

    def gradients(view):
        leaves = (view.detach().requires_grad_(), template.clone().requires_grad_())
        score = function(*leaves, method="fft", **how)
        upstream = draw(tuple(score.shape), torch.float32, seed=2)
        return torch.cat([g.flatten() for g in torch.autograd.grad(score, leaves, upstream)])

    if how.get("channels") != "pooled":
        last = (slice(None),) * (x.dim() - how.get("ndim", 2))
        x[(*last, *(slice(0, n + 1) for n in window[-how.get("ndim", 2) :]))] *= 1e-6
        same_bits(gradients, x)


def ways_of(x: torch.Tensor, template: torch.Tensor, function=torchcorr.zncc) -> counters.Ways:
    counters.take()
    same_bits(lambda v, t: function(v, t, method="fft"), x, template)
    return counters.take()


def test_windows_that_are_looked_at_again():
    """Faint and flat ones, and those of tiles that take float64: all that read an input twice."""
    x = normal(2, 220, 230, seed=1, dtype=torch.float32)
    template = x[0, 100:140, 80:120].clone()
    x[0, :110] *= 1e-5
    assert ways_of(x, template).looked_again > 0
    x[0, :110] *= 0.1
    x[0, :60] *= 1e-6
    x[1, 10:51, 10:51] *= 1e-6
    x[1, 100:141, 100:141] = 3
    x[1, 150:192, 20:62] = 1e4
    ways = ways_of(x, template)
    assert ways.float64 > 0 and ways.exact_windows > 0
    how = {"channels": "joint", "method": "fft"}
    same_bits(
        lambda v, t: torchcorr.zncc(v, t, **how), x[None, :, :180], template.expand(2, -1, -1)
    )


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_exact_windows_of_several_leading_axes(method):
    x, template = (normal(*n, seed=1, dtype=torch.float32) for n in ((2, 3, 64, 64), (8, 8)))
    x[..., 20:40, 20:40] = 1e4 + 1e-2 * x[..., 20:40, 20:40]
    counters.take()
    got = torchcorr.zncc(x, template, method=method).flatten(0, 1)
    assert counters.take().exact_windows > 0
    for item, score in zip(x.flatten(0, 1), got, strict=True):
        want = torchcorr.zncc(item, template, method=method)
        torch.testing.assert_close(score, want, rtol=0, atol=SCORE[torch.float32])


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("hidden", [False, True])
def test_exact_windows_of_channels_with_a_mean_each(method, hidden):
    """Also of a grey picture that is expanded to three channels."""
    x, template = (normal(*n, seed=1, dtype=torch.float32) for n in ((2, 3, 90, 100), (3, 5, 5)))
    x[..., 50:] *= 1e-4
    if hidden:
        template[0] = 0
    counters.take()
    same_bits(lambda v, t: torchcorr.zncc(v, t, channels="joint", method=method), x, template)
    assert counters.take().exact_windows > 0


def test_sums_that_are_computed_again():
    x = draw((3, 220, 230), torch.float32)
    x[:2, :70] *= 1e-9
    x[2, 10:51, 10:51] *= 1e-13
    x[0, 80:130, 60:130] = 0
    x[1, 150, 100] = 1e9
    ways = ways_of(x, draw((40, 40), torch.float32, seed=1) - 0.5, torchcorr.correlate)
    assert ways.float64 > 0


def test_template_masks():
    x, template = draw((2, 60, 70), torch.float32), draw((9, 11), torch.float32, seed=1)
    mask = (draw((9, 11), seed=2) > 0.3).float()
    same_bits(lambda v, t: torchcorr.zncc(v, t, template_mask=mask), x, template)


def test_nothing_is_copied():
    """Where the last axis has no step, whatever the others have."""
    x = draw((2, 3, 20, 30))
    for name, view in with_strides(x).items():
        is_read = name not in ("even", "turned", "channels_last")
        assert (steps.readable(view) is view) == is_read, name
    signal = draw((200,)).unfold(0, 64, 16)
    assert steps.readable(signal) is signal and math.prod(signal.shape) > 200
    same_bits(lambda v, t: torchcorr.zncc(v, t, ndim=1), signal, signal[0, :9].clone())


def test_steps_refuse_a_step_of_the_last_axis():
    x = image_of("2d", torch.float32).repeat_interleave(2, -1)[..., ::2]
    with pytest.raises(RuntimeError, match="the last axis of an input must have no step"):
        steps.cut_tiles(x, batch_of("2d", False).numbers, True, False, False)
