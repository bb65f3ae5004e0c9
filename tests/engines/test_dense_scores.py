"""Scores of many templates and channels in one pass, and the steps of it and of its gradients."""

from __future__ import annotations

import oracle
import pytest
import torch
from inputs import array, draw
from tolerances import SCORE

import torchcorr
from torchcorr._cpu import dense_scores, scores, steps
from torchcorr._definition import scores as definition

# Images, templates and stride.
CASES = (
    ((3, 1, 5, 14, 17), (9, 5, 3, 4), (1, 1)),
    ((2, 1, 6, 13, 12), (17, 6, 4, 3), (2, 1)),
    ((6, 11, 10), (40, 6, 11, 10), (1, 1)),
    ((1, 4, 60), (8, 4, 7), (3,)),
    ((2, 1, 4, 7, 6, 8), (8, 4, 2, 3, 3), (1, 1, 1)),
    ((2, 1, 5, 19, 23), (9, 5, 2, 3), (3, 4)),
    ((1, 7, 9, 8, 10), (8, 7, 2, 1, 3), (4, 2, 1)),
    ((1, 1, 6, 70, 90), (8, 6, 5, 3), (1, 2)),
)
CHANNELS = ("joint", "pooled")
BOUND = SCORE[torch.float32]


@pytest.fixture
def alone(monkeypatch):
    """Fails a call that is left to tiles."""

    def run(*_):
        raise AssertionError("not in one pass")

    monkeypatch.setattr(scores.Scores, "run", run)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("offset", (0.0, 1e3))
@pytest.mark.usefixtures("alone")
def test_scores(case, channels, offset):
    shape, window, stride = case
    pair = (draw(shape, torch.float32) + offset, draw(window, torch.float32, seed=1))
    how = {"ndim": len(stride), "stride": stride, "channels": channels}
    got = torchcorr.zncc(*pair, **how, method="direct")
    assert abs(array(got) - oracle.zncc(*map(array, pair), **how)).max() <= BOUND


@pytest.mark.usefixtures("alone")
def test_without_means_and_with_eps():
    pair = (draw((2, 1, 5, 14, 17), torch.float32), draw((9, 5, 3, 4), torch.float32, seed=1))
    for function, eps in ((torchcorr.ncc, 0.0), (torchcorr.zncc, 0.3)):
        got = function(*pair, channels="pooled", eps=eps)
        exact = getattr(oracle, function.__name__)(*map(array, pair), channels="pooled", eps=eps)
        assert abs(array(got) - exact).max() <= BOUND


@pytest.mark.usefixtures("alone")
def test_images_are_centred_a_few_at_a_time(monkeypatch):
    pair = (draw((5, 1, 4, 9, 9), torch.float32), draw((8, 4, 3, 3), torch.float32, seed=1))
    whole = torchcorr.zncc(*pair, channels="joint")
    monkeypatch.setattr(dense_scores, "_CENTRED", 4 * 2 * 4 * 9 * 9)
    assert torch.equal(torchcorr.zncc(*pair, channels="joint"), whole)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.usefixtures("alone")
def test_images_are_centred_where_that_is_needed(channels):
    """Where means are large, or a window is faint beside them."""
    input = draw((2, 1, 6, 17, 18), torch.float32)
    template = draw((16, 6, 3, 3), torch.float32, seed=1)
    faint = input.clone()
    faint[..., 4:11, 4:11] = 0.5 + 0.02 * (input[..., 4:11, 4:11] - 0.5)
    how = (((3, 3), (1, 1)), (True, channels == "joint", 0.0))
    for x, first, then in ((input, True, True), (input + 10, False, False), (faint, True, False)):
        images = x[:, 0].contiguous()
        norms = dense_scores.Norms.of(images, *how, centred=False)
        assert (norms.centred is images) == first
        norms = dense_scores._clear_norms(images, *how, scores.LIMITS_OF_LOOP)
        assert (norms.centred is images) == then
        got = torchcorr.zncc(x, template, channels=channels)
        exact = oracle.zncc(array(x), array(template), channels=channels)
        assert abs(array(got) - exact).max() <= BOUND


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("what", ("flat", "hot", "nan", "level", "flat template", "bad template"))
def test_what_float32_cannot_score_is_left_to_tiles(channels, what):
    input = draw((2, 1, 4, 17, 18), torch.float32)
    template = draw((16, 4, 3, 3), torch.float32, seed=1)
    bad = {"hot": 1e6, "nan": torch.nan}
    if what == "flat":
        input[:, :, :, 4:11, 4:11] = 0.7
    elif what in bad:
        input[0, 0, 2, 7, 9] = bad[what]
    elif what == "level":
        input[..., 9:] += 1e4
    else:
        template[3] = 0.3 if what == "flat template" else torch.inf
    got = torchcorr.zncc(input, template, channels=channels)
    exact = torchcorr.zncc(input.double(), template.double(), channels=channels)
    assert torch.equal(got.isnan(), exact.isnan())
    assert torch.equal(got == 0, exact == 0)
    assert float((got - exact).nan_to_num().abs().max()) <= BOUND


@pytest.mark.parametrize("channels", CHANNELS)
def test_bits_do_not_depend_on_the_number_of_threads(channels):
    pair = (draw((3, 1, 16, 70, 90), torch.float32), draw((40, 16, 5, 4), torch.float32, seed=1))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in pair]
        score = torchcorr.zncc(*leaves, channels=channels)
        delta = draw(tuple(score.shape), torch.float32, seed=2) - 0.5
        found.append([score.detach(), *torch.autograd.grad(score, leaves, delta)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_standardised_channels(dtype):
    template = draw((3, 4, 30), dtype) * 7 + 100
    template[0, 1], template[1] = 0.3, 0.6
    got = steps.standardise_channels(template)
    wide = template.double() - template.double().mean(-1, keepdim=True)
    wide[0, 1], wide[1] = 0.0, 0.0
    size = wide.square().mean((1, 2)).sqrt()
    assert torch.allclose(got * size[:, None, None], wide, rtol=1e-10, atol=1e-10)
    assert not got[1].any() and not got[0, 1].any()
    template[2, 3, 4] = torch.nan
    assert steps.standardise_channels(template)[2].isnan().all()


def test_pooled_templates_are_those_of_the_definition():
    template = draw((3, 4, 6, 5), torch.float32) + 10
    for zero_mean in (True, False):
        got = torch.ops.torchcorr.standardise(template, 2, zero_mean)
        assert torch.allclose(got, definition.standardise(template, 2, zero_mean), atol=1e-11)
