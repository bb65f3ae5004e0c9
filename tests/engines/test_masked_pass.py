"""Scores with weights in tiles: which way tiles take, and that all of them give one answer."""

from __future__ import annotations

import oracle
import pytest
import torch
from inputs import array, draw, normal
from tolerances import SCORE

import torchcorr
from torchcorr._cpu import counters
from torchcorr._cpu import weighted as engine
from torchcorr._cpu.scores import Scores
from torchcorr._cpu.weighted import _score_exactly
from torchcorr._definition import weighted as definition
from torchcorr._definition.weighted import weighted_ncc
from torchcorr._definition.weights import weighted
from torchcorr._plan.choose import arrange_masked, scratch_allowed


def soft(shape, dtype, seed=5):
    """Weights, a quarter of them 0."""
    weights = draw(shape, dtype, seed)
    return torch.where(weights < 0.25, 0.0, weights)


def check(image, template, there, mask, stride=(1, 1), least=0.3, **how):
    """Scores of tensors in normal form against their definition, and the way tiles took."""
    counters.take()
    options = (how.get("zero_mean", True), how.get("pooled", True), how.get("eps", 0.0), least)
    args = (image, template, there, mask, stride, *options, "fft")
    got = torch.ops.torchcorr.weighted_ncc(*args)
    ways = counters.take()
    want = weighted_ncc(*(x.double() if isinstance(x, torch.Tensor) else x for x in args))
    assert got.dtype == image.dtype and got.shape == want.shape
    assert float((got - want).abs().max()) <= SCORE[image.dtype]
    assert float(want.abs().max()) > 0.1
    return ways


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("stride", ((1, 1), (2, 3)), ids=str)
@pytest.mark.parametrize("weights", ("input", "template", "both"))
def test_tiles_of_noise_need_no_second_transform(weights, stride, dtype):
    image, template = normal(1, 150, 163, seed=0).to(dtype), normal(1, 21, 24, seed=1).to(dtype)
    there = soft((1, 150, 163), dtype) if weights != "template" else None
    mask = soft((1, 21, 24), dtype) if weights != "input" else None
    ways = check(image, template, there, mask, stride)
    assert ways.exact_windows == 0
    assert (ways.float32 > 0, ways.float64 > 0) == (
        (dtype == torch.float32),
        dtype != torch.float32,
    )


@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("leads", ("templates", "inputs", "paired", "masks"))
def test_a_mask_for_each_template(leads, zero_mean):
    """Leading axes of masks may be those of their tensor, or more."""
    shapes = {
        "templates": ((2, 60, 61), (3, 1, 2, 12, 13), (1, 60, 61), (3, 1, 1, 12, 13)),
        "inputs": ((4, 2, 60, 61), (2, 12, 13), (4, 1, 60, 61), (2, 12, 13)),
        "paired": ((3, 2, 60, 61), (3, 2, 12, 13), (3, 2, 60, 61), (3, 1, 12, 13)),
        "masks": ((2, 60, 61), (2, 12, 13), (3, 1, 1, 60, 61), (2, 1, 12, 13)),
    }[leads]
    image, template = (normal(*s, seed=i).float() for i, s in enumerate(shapes[:2]))
    there, mask = (soft(s, torch.float32, i) for i, s in enumerate(shapes[2:]))
    assert check(image, template, there, mask, zero_mean=zero_mean, eps=0.01).float32 > 0


@pytest.mark.parametrize("weights", ("input", "both"))
@pytest.mark.parametrize("ndim", (1, 3))
def test_lines_and_volumes(ndim, weights):
    size, window = ((5000,), (300,)) if ndim == 1 else ((30, 31, 32), (8, 9, 10))
    image, template = normal(*size, seed=0).float() + 9, normal(*window, seed=1).float()
    options = {"input_mask": soft(size, torch.float32)}
    if weights == "both":
        options["template_mask"] = soft(window, torch.float32)
    plain = {key: array(value) for key, value in options.items()}
    exact = oracle.zncc(array(image), array(template), ndim=ndim, **plain)
    for stride in (1, 3):
        got = torchcorr.zncc(image, template, ndim=ndim, stride=stride, method="fft", **options)
        of_stride = exact[(slice(None, None, stride),) * ndim]
        assert float(abs(array(got) - of_stride).max()) <= SCORE[torch.float32]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("weights", ("input", "both", "templates"))
def test_channels_with_a_mean_each(weights, dtype):
    """Masks of all channels or of each, in which a channel may have no weight at all."""
    offsets = torch.tensor([0.0, 300.0, -40.0])[:, None, None]
    image = (normal(3, 150, 163, seed=0).float() + offsets).to(dtype)
    template = normal(2, 3, 21, 24, seed=1).to(dtype)
    there = soft((1 if weights == "input" else 3, 150, 163), dtype)
    mask = soft((2, 3, 21, 24), dtype, 6) if weights != "input" else None
    if weights == "both":
        there[1, :90] = 0
        there[2, :, 100:] = 1
    if weights == "templates":
        there = None
    options = {"pooled": False, "eps": 0.02}
    ways = check(image, template, there, mask, (1, 2), **options)
    assert ways.exact_windows == 0
    assert (ways.float32 > 0) == (dtype == torch.float32)
    assert (ways.float64 > 0) == (dtype == torch.float64)


def test_a_flat_channel_adds_nothing():
    """Its template's energy counts, and rounding of its own does not."""
    image, template = normal(3, 60, 60, seed=0).float() + 5, normal(3, 20, 20, seed=1).float()
    there, image[1] = soft((60, 60), torch.float32), 7.3
    options = {"input_mask": there, "channels": "joint"}
    got = torchcorr.zncc(image, template, method="fft", **options)
    exact = oracle.zncc(array(image), array(template), **{**options, "input_mask": array(there)})
    assert float(abs(array(got) - exact).max()) <= SCORE[torch.float32]


def test_one_faint_patch_takes_float64_in_its_tiles_only():
    image, template = normal(1, 700, 700, seed=0).float(), normal(1, 64, 64, seed=1).float()
    there, mask = soft((1, 700, 700), torch.float32), soft((1, 64, 64), torch.float32)
    image[:, 100:180, 80:160] *= 1e-4
    ways = check(image, template, there, mask)
    assert ways.float64 > 0 and ways.float32 > 0


@pytest.mark.parametrize("there", ("soft", "box"))
@pytest.mark.parametrize("zero_mean", (True, False))
def test_faint_parts_whose_energies_are_running_sums(zero_mean, there):
    """In float64 the other sums are of its type too."""
    image, template = normal(1, 300, 310, seed=0).float(), normal(1, 40, 41, seed=1).float()
    image[:, :, :200] *= 1e-7
    weights = soft((1, 300, 310), torch.float32)
    if there == "box":
        weights = torch.zeros(1, 300, 310)
        weights[:, 20:290, 10:300] = 1
    assert check(image, template, weights, None, zero_mean=zero_mean).float64 > 0


@pytest.mark.parametrize("weights", ("input", "template", "both", "channels"))
def test_tiles_with_faint_windows_are_transformed_once(weights):
    """As photographs have them: texture beside what is nearly flat."""
    channels, pooled = (2, False) if weights == "channels" else (1, True)
    image = normal(channels, 300, 310, seed=0).float() + 3
    template = normal(channels, 40, 41, seed=1).float()
    image[:, :, :120] = 0.1 * image[:, :, :120] + 2
    there = soft((1, 300, 310), torch.float32) if weights != "template" else None
    mask = soft((1, 40, 41), torch.float32) if weights != "input" else None
    ways = check(image, template, there, mask, pooled=pooled)
    assert ways.repeated == ways.exact_windows == 0
    # Without a mask over the template the energies of windows are running sums in float64.
    assert (ways.float64 > 0) == (weights != "input")


def test_running_sums_carry_what_float32_squares_do_not():
    """With equal weights of all elements of the template, and not if one of them differs."""
    image, template = normal(1, 300, 310, seed=0).float() + 3, normal(1, 40, 41, seed=1).float()
    image[:, :, :120] = 0.1 * image[:, :, :120] + 2
    there, mask = soft((1, 300, 310), torch.float32), torch.ones(1, 40, 41)
    boxes = check(image, template, there, 0.5 * mask)
    assert boxes.float32 > 0 and boxes.float64 == boxes.exact_windows == 0
    mask[:, 0, 0] = 0.5
    assert check(image, template, there, mask).float64 > 0


@pytest.mark.parametrize("offset", (0.0, 1e3))
def test_a_few_faint_windows_do_not_make_their_tile_float64(offset):
    image, template = normal(1, 200, 210, seed=0).float(), normal(1, 20, 21, seed=1).float()
    image[:, 100:125, 80:105] *= 1e-4
    image += offset
    ways = check(image, template, soft((1, 200, 210), torch.float32), None)
    assert 6 * 5 <= ways.exact_windows < 400
    assert ways.float32 > 0 and ways.float64 == ways.repeated == 0


def test_windows_that_a_mask_makes_flat_are_seen_to_be(monkeypatch):
    """No window of score 0 is computed from its elements: only its corners are not flat."""
    image, template = normal(1, 200, 210, seed=0).float(), normal(1, 40, 40, seed=1).float()
    place = (2 * torch.arange(40) + 1 - 40).square()
    mask = (place[:, None] + place <= 40**2).float()[None]
    image[:, :100] = 0.3
    image[:, :, :105] = 0.3
    exactly, found = engine.steps.score_weighted_windows, []

    def spy(*args):
        found.append(exactly(*args))
        return found[-1]

    monkeypatch.setattr(engine.steps, "score_weighted_windows", spy)
    check(image, template, None, mask)
    assert all(bool((scores != 0).all()) for scores in found)
    scores = torchcorr.zncc(image[0], template[0], template_mask=mask[0], method="fft")
    # The square of window (62, 67) reaches the texture and the disk does not.
    assert float(scores[62, 67]) == 0 != float(scores[70, 75])


def test_faint_windows_without_enough_weight_cost_nothing():
    image, template = normal(1, 300, 310, seed=0).float() + 3, normal(1, 40, 41, seed=1).float()
    there = (soft((1, 300, 310), torch.float32) > 0).float()
    image[:, :, :120] = 0.02 * image[:, :, :120] + 2
    there[:, :, :145] = 0
    image[:, 200:240, 200:241] = template + 3
    ways = check(image, template, there, None, least=0.4999)
    assert ways.float32 > 0 and ways.float64 == ways.repeated == 0


def test_flat_windows_score_0_and_take_no_quadratic_time():
    """All elements with weight are equal; those without are not."""
    image, template = normal(1, 500, 500, seed=0).float(), normal(1, 60, 60, seed=1).float()
    there, mask = soft((1, 500, 500), torch.float32), soft((1, 60, 60), torch.float32)
    image[:, :, :300] = torch.where(there[:, :, :300] > 0, 0.1, image[:, :, :300])
    got = torch.ops.torchcorr.weighted_ncc(
        image, template, there, mask, (1, 1), True, True, 0.0, 0.3, "fft"
    )
    assert bool((got[:, :241] == 0).all()) and bool((got[:, 241:] != 0).all())


def test_a_mask_of_ones_costs_and_scores_what_none_does():
    image, template = normal(1, 150, 160, seed=0).float(), normal(1, 20, 20, seed=1).float()
    mask, ones = soft((1, 20, 20), torch.float32), torch.ones(1, 150, 160)
    args = (mask, (1, 1), True, True, 0.0, 0.3, "fft")
    got = torch.ops.torchcorr.weighted_ncc(image, template, ones, *args)
    assert torch.equal(got, torch.ops.torchcorr.weighted_ncc(image, template, None, *args))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("mask", ("none", "own", "of each"))
@pytest.mark.parametrize("pooled", (True, False))
@pytest.mark.parametrize(
    "box",
    (
        ((5, 140), (23, 160)),
        ((0, 150), (0, 90)),
        ((60, 71), (30, 38)),  # smaller than a window
        ((143, 150), (0, 9)),
    ),
    ids=str,
)
def test_weights_of_1_in_a_box(box, pooled, mask, dtype):
    """What windows have of them is known from where they are. Hidden elements are large."""
    image, template = normal(2, 150, 163, seed=0).to(dtype) + 2, normal(2, 2, 21, 24, seed=1)
    (top, bottom), (left, right) = box
    there = torch.zeros(1, 150, 163, dtype=dtype)
    there[0, top:bottom, left:right] = 1
    image = torch.where(there > 0, image, 1e5)
    shape = {"none": None, "own": (1, 21, 24), "of each": (2, 2, 21, 24)}[mask]
    weights = None if shape is None else soft(shape, dtype)
    args = (image, template.to(dtype), there, weights)
    check(*args, (1, 2) if pooled else (1, 1), 0.05, pooled=pooled)
    check(*args, (2, 1), 1e-4, pooled=pooled, zero_mean=False, eps=0.02)


@pytest.mark.parametrize("ndim", (1, 3))
def test_weights_of_1_in_a_box_of_lines_and_volumes(ndim):
    size, window, box = {
        1: ((5000,), (300,), (slice(40, 4000),)),
        3: ((30, 31, 32), (8, 9, 10), (slice(3, 27), slice(0, 20), slice(5, 32))),
    }[ndim]
    image, template = normal(*size, seed=0).float() + 9, normal(*window, seed=1).float()
    there = torch.zeros(size)
    there[box] = 1
    exact = oracle.zncc(array(image), array(template), ndim=ndim, input_mask=array(there))
    for stride in (1, 3):
        how = {"ndim": ndim, "stride": stride, "method": "fft"}
        got = torchcorr.zncc(image, template, input_mask=there, **how)
        of_stride = exact[(slice(None, None, stride),) * ndim]
        assert float(abs(array(got) - of_stride).max()) <= SCORE[torch.float32]


@pytest.mark.parametrize("least", (0.0, 0.5, 1.0))
def test_windows_are_scored_from_exactly_the_least_weight_on(least):
    image, template = normal(70, 80, seed=0).float(), normal(10, 10, seed=1).float()
    there = torch.ones(70, 80, dtype=torch.bool)
    there[:, 40:] = False
    scores = torchcorr.zncc(image, template, input_mask=there, min_overlap=least, method="fft")
    last = {0.0: 39, 0.5: 35, 1.0: 30}[least]
    assert bool((scores[:, : last + 1] != 0).all()) and bool((scores[:, last + 1 :] == 0).all())


@pytest.mark.parametrize("method", ("direct", "auto", "fft"))
def test_one_tile_and_many_runs_of_weights(method):
    image, template = normal(40, 43, seed=0).float(), normal(12, 12, seed=1).float()
    mask = soft((12, 12), torch.float32)
    got = torchcorr.zncc(image, template, template_mask=mask, method=method)
    exact = oracle.zncc(array(image), array(template), template_mask=array(mask))
    assert float(abs(array(got) - exact).max()) <= SCORE[torch.float32]


@pytest.mark.parametrize("size", ((1024, 1024), (4000, 4000), (128, 128, 128), (1 << 20,)), ids=str)
@pytest.mark.parametrize("window", (32, 120))
def test_scratch_is_bounded(size, window):
    if window >= size[0] // 2:
        window = size[0] // 4
    ndim = len(size)
    template = (1, *(window,) * ndim)
    call = arrange_masked((1, *size), template, (1,) * ndim, dtype=torch.float32, device="cpu")
    assert call.plan.bytes <= max(64 << 20, scratch_allowed(call.problem))


def test_threads_give_the_same_bits():
    image, template = normal(1, 300, 310, seed=0).float(), normal(1, 40, 41, seed=1).float()
    there, mask = soft((1, 300, 310), torch.float32), soft((1, 40, 41), torch.float32)
    args = (image, template, there, mask, (1, 1), True, True, 0.0, 0.3, "fft")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(torch.ops.torchcorr.weighted_ncc(*args))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("pooled", (True, False))
@pytest.mark.parametrize("zero_mean", (True, False))
@pytest.mark.parametrize("weights", ("input", "template", "both"))
@pytest.mark.parametrize("leads", ("none", "paired", "all"))
def test_windows_from_their_definition(leads, weights, zero_mean, pooled):
    """Of some windows, part of which are flat, as the definition computes them."""
    of_inputs, of_templates = {"none": ((), ()), "paired": ((2,), (2,)), "all": ((2, 1), (1, 3))}[
        leads
    ]
    image, template = draw((*of_inputs, 2, 13, 14)) + 5, draw((*of_templates, 2, 4, 3), seed=1)
    image[..., 3:9, 2:8] = 1.5
    there = soft((*of_inputs, 1, 13, 14), torch.float64) if weights != "template" else None
    mask = soft((*of_templates, 2, 4, 3), torch.float64, 6) if weights != "input" else None
    of = weighted(image, template, there, mask, 2, zero_mean, pooled)
    shape = (*definition.lead_of(of), *definition.output_of(of, (2, 1)))
    chosen = draw(shape, seed=7) > 0.3
    want, got = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    definition._score_exactly(of, want, chosen, (2, 1), 0.1, 0.3)
    _score_exactly(of, got, chosen, (2, 1), 0.1, 0.3)
    assert float((got - want).abs().max()) <= 1e-14
    assert float(want.abs().max()) > 0.1


@pytest.mark.parametrize("weights", ("input", "template", "both"))
def test_windows_at_the_edge_of_float64(weights):
    """Offsets that leave a few bits of contrast, and an outlier."""
    image, template = draw((1, 24, 35)), draw((1, 9, 11), seed=1)
    image[:, :12] = image[:, :12] * 1e-5 + 1e6
    image[:, 16, 20] = 1e9
    there, mask = (soft(x.shape, torch.float64, i + 2) for i, x in enumerate((image, template)))
    there = there if weights != "template" else None
    mask = mask if weights != "input" else None
    of = weighted(image, template, there, mask, 2, True, True)
    got = torch.zeros(1, 16, 25, dtype=torch.float64).squeeze(0)
    _score_exactly(of, got, torch.ones_like(got, dtype=torch.bool), (1, 1), 0.0, 0.3)
    options = {}
    if there is not None:
        options["input_mask"] = array(there[0])
    if mask is not None:
        options["template_mask"] = array(mask[0])
    exact = oracle.zncc(array(image[0]), array(template[0]), min_overlap=0.3, **options)
    assert float(abs(array(got) - exact).max()) <= SCORE[torch.float64]


def test_flat_windows_of_many_elements_score_0_by_their_definition():
    """Rounding of their mean is several units, and so deviations from it are."""
    template = draw((1, 60, 90), seed=1)
    for seed in range(8):
        there = soft((1, 62, 93), torch.float64, seed)
        image = torch.where(there > 0, 0.1 + seed, draw((1, 62, 93)))
        of = weighted(image, template, there, None, 2, True, True)
        got = torch.ones(3, 4, dtype=torch.float64)
        _score_exactly(of, got, got > 0, (1, 1), 0.0, 0.3)
        assert bool((got == 0).all())


def test_flat_windows_are_not_counted_among_those_left(monkeypatch):
    """A dark margin under soft weights takes no sums along runs."""
    image = draw((1, 300, 310), torch.float32)
    image[:, :, 60:200] = 0.25
    mask = soft((1, 60, 60), torch.float32)
    monkeypatch.setattr(Scores, "run", None)
    monkeypatch.setattr("torchcorr._cpu.weighted._EXACT", 1 << 22)
    monkeypatch.setattr("torchcorr._cpu.weighted._EXACT_OF_RUN", 0.0)
    args = (image, draw((1, 60, 60), torch.float32, 1), None, mask)
    got = torch.ops.torchcorr.weighted_ncc(*args, (1, 1), True, True, 0.0, 0.3, "fft")
    assert bool((got[:, 60:141] == 0).all()) and bool((got[:, 141:200] != 0).all())


@pytest.mark.parametrize("kind", ("disk", "soft"))
def test_many_doubtful_windows_take_sums_along_runs(kind, monkeypatch):
    """Faint texture beside noise, which no transform of the tile determines."""
    image = draw((1, 150, 160), torch.float32)
    image[:, :, 60:] = image[:, :, 60:] * 2e-6 + 0.5
    template = draw((1, 21, 24), torch.float32, 1)
    mask = soft((1, 21, 24), torch.float32)
    if kind == "disk":
        mask = (mask > 0.5).float()
    args = (image, template, None, mask, (1, 1), True, True, 0.0, 0.3, "fft")
    exact = weighted_ncc(*(x.double() if isinstance(x, torch.Tensor) else x for x in args))
    windows = torch.ops.torchcorr.weighted_ncc(*args)
    monkeypatch.setattr("torchcorr._cpu.weighted._EXACT", 0)
    monkeypatch.setattr("torchcorr._cpu.weighted._EXACT_OF_RUN", 0.0)
    called = []
    monkeypatch.setattr(
        Scores, "run", lambda *given, run=Scores.run: called.append(1) or run(*given)
    )
    runs = torch.ops.torchcorr.weighted_ncc(*args)
    assert called
    for got in (windows, runs):
        assert float((got - exact).abs().max()) <= SCORE[torch.float32]


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_gradients_in_parts_are_those_of_the_whole(ndim, monkeypatch):
    size, window, stride = ((90,), (41, 38), (13, 12, 20))[ndim - 1], (7, 6, 4)[:ndim], (2, 1, 3)
    tensors = [normal(2, *size, seed=0), normal(3, 1, *window, seed=1)]
    tensors += [soft((1, *size), torch.float64), soft(window, torch.float64)]
    names = ("input_mask", "template_mask")

    def gradients():
        leaves = [x.clone().requires_grad_() for x in tensors]
        masks = dict(zip(names, leaves[2:], strict=True))
        score = torchcorr.zncc(*leaves[:2], ndim=ndim, stride=stride[:ndim], **masks)
        return torch.autograd.grad((score * normal(*score.shape, seed=2)).sum(), leaves)

    whole = gradients()
    calls = []
    kernels = engine.grads_by_kernels
    monkeypatch.setattr(engine, "_AT_ONCE", 1)
    monkeypatch.setattr(engine, "grads_by_kernels", lambda *a: calls.append(a) or kernels(*a))
    for want, got in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * float(want.abs().max()))
    assert len(calls) > 2
