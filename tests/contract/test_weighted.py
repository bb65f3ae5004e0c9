"""Scores with weights: masks, missing data, what surrounds an input, channels with a mean each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import CASES, METHODS, array, draw, normal, pair, tensor
from tolerances import SCORE

import torchcorr

MODES = ("valid", "same", "full")
SCORES = ("zncc", "ncc")


def masks_of(image, template, dtype=torch.float64):
    """Soft weights, a quarter of them 0."""
    masks = (draw(tuple(x.shape), dtype, seed) for seed, x in ((5, image), (6, template)))
    return [torch.where(mask < 0.25, 0.0, mask) for mask in masks]


def check(name, image, template, device=None, **options):
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    got = getattr(torchcorr, name)(image.to(device), template.to(device), **moved).cpu()
    wanted = {
        key: array(value) if isinstance(value, torch.Tensor) else value
        for key, value in options.items()
        if key != "method"
    }
    exact = getattr(oracle, name)(array(image), array(template), **wanted)
    assert tuple(got.shape) == exact.shape
    assert (got.abs() <= 1).all()
    assert (np.abs(array(got) - exact) <= SCORE[got.dtype]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", SCORES)
def test_both_weights(device, name, case, mode, method):
    image, template = pair(case)
    there, mask = masks_of(image, template)
    options = {"ndim": case.ndim, "mode": mode, "channels": case.channels, "method": method}
    check(name, image, template, device, input_mask=there, template_mask=mask, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("channels", ("joint", "pooled", "independent"))
@pytest.mark.parametrize("kind", ("disk", "soft", "ones", "none"))
@pytest.mark.parametrize("name", SCORES)
def test_a_mask_over_the_template(device, name, kind, channels, dtype, method):
    """One mask for all templates and channels, the case that engines are quick at."""
    image, template = draw((2, 3, 40, 43), dtype), draw((3, 9, 11), dtype, 1)
    y, x = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(11.0) - 5, indexing="ij")
    masks = {
        "disk": x * x + y * y < 21,
        "soft": torch.exp(-(x * x + y * y) / 9).to(dtype),
        "ones": torch.ones(9, 11, dtype=dtype),
        "none": None,
    }
    options = {} if masks[kind] is None else {"template_mask": masks[kind]}
    for stride in (1, (2, 3)):
        how = {"channels": channels, "method": method, "stride": stride, "eps": 0.01}
        check(name, image, template, device, **options, **how)


def test_many_runs_and_volumes(device):
    """Masks of so many runs that their sums are transforms, and tiles of more than one unit."""
    for size, window, ndim in (
        ((60, 62), (24, 25), 2),
        ((20, 21, 22), (7, 8, 9), 3),
        ((900,), (200,), 1),
    ):
        image = draw(size, torch.float32) + 7
        template = draw(window, torch.float32, 1)
        mask = draw(window, torch.float32, 2)
        check("zncc", image, template, device, ndim=ndim, template_mask=mask, method="fft")
        check("zncc", image, template, device, ndim=ndim, template_mask=mask > 0.5, method="fft")


TORTURE = {
    f"{case.name}, {dtype.__name__}": case
    for dtype in (np.float32, np.float64)
    for case in torture.cases(dtype)
}


@pytest.mark.parametrize("weights", ("template", "both", "soft", "channels"))
@pytest.mark.parametrize("name", TORTURE)
def test_survives_the_torture(device, name, weights):
    image, template = (tensor(x) for x in TORTURE[name][1:])
    options = {}
    if weights == "channels":
        image, template = (torch.stack([x, x.flip(-1) * 3]) for x in (image, template))
        options["channels"] = "joint"
    elif weights == "soft":
        options["input_mask"], options["template_mask"] = masks_of(image, template, image.dtype)
    else:
        height, width = template.shape
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = (2 * y + 1 - height) / height, (2 * x + 1 - width) / width
        options["template_mask"] = x * x + y * y <= 1.02
    if weights == "both":
        options["input_mask"] = draw(tuple(image.shape), seed=3) > 0.2
    check("zncc", image, template, device, **options)


@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_weight_may_be_anything(device, method):
    image, template = normal(40, 41, seed=1).float(), normal(9, 8, seed=2).float()
    there, mask = (m.float() for m in masks_of(image, template))
    want = torchcorr.zncc(image, template, input_mask=there, template_mask=mask)
    for hidden in (math.nan, math.inf, 1e30, -3.0):
        x, t = torch.where(there > 0, image, hidden), torch.where(mask > 0, template, hidden)
        how = {"input_mask": there.to(device), "template_mask": mask.to(device)}
        got = torchcorr.zncc(x.to(device), t.to(device), method=method, **how).cpu()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_under_a_hole_of_the_template_is_not_seen(device, method):
    image, template = normal(30, 31, seed=1), normal(7, 7, seed=2)
    mask = torch.ones(7, 7, dtype=torch.float64)
    mask[3, 3] = 0
    want = torchcorr.zncc(image, template, template_mask=mask)
    image[15, 16] = math.nan
    got = torchcorr.zncc(
        image.to(device), template.to(device), template_mask=mask.to(device), method=method
    )
    touched = torch.zeros_like(want, dtype=torch.bool)
    touched[9:16, 10:17] = True
    touched[12, 13] = False
    assert bool((got.cpu().isnan() == touched).all())
    torch.testing.assert_close(got.cpu()[~touched], want[~touched], rtol=0, atol=1e-10)


def test_missing_data_is_ignored_or_propagates(device):
    image, template = normal(30, 31, seed=1).to(device), normal(7, 6, seed=2).to(device)
    image[5:9, 20] = math.nan
    template[0, 0] = math.nan
    got = torchcorr.zncc(image, template, nan="ignore")
    want = torchcorr.zncc(
        image, template, input_mask=~image.isnan(), template_mask=~template.isnan()
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert bool(got.isfinite().all())
    assert bool(torchcorr.zncc(image, template).isnan().all())
    whole = torchcorr.zncc(image.nan_to_num(), template.nan_to_num(), nan="ignore")
    assert bool(whole.isfinite().all())


def test_windows_with_too_few_elements_score_0(device):
    image, template = normal(30, 31, seed=1).to(device), normal(8, 8, seed=2).to(device)
    there = torch.ones(30, 31, device=device)
    there[:, 12:20] = 0
    share = torchcorr.coverage(there, torch.ones(8, 8, device=device))
    for least in (0.0, 0.5, 0.76, 1.0):
        got = torchcorr.zncc(image, template, input_mask=there, min_overlap=least)
        assert bool(((got != 0) == (share >= max(least, 1e-6))).all()), least


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_coverage_is_the_share_of_the_weight_that_is_there(device, ndim, mode):
    size, window = (13, 11, 9)[:ndim], (4, 3, 5)[:ndim]
    there, mask = masks_of(torch.empty(2, *size), torch.empty(window))
    got = torchcorr.coverage(there.to(device), mask.to(device), ndim=ndim, mode=mode)
    exact = oracle.correlate(array(there), array(mask), ndim=ndim, mode=mode)
    share = (exact / array(mask).sum()).astype(float)
    np.testing.assert_allclose(array(got.cpu()), share, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ("same", "full"))
def test_what_surrounds_an_input_is_ignored(device, mode):
    """A copy of the template that leaves the input scores 1 at the border."""
    image = normal(40, 44, seed=1)
    wider = torch.nn.functional.pad(image, (20,) * 4)
    template = image[:9, :10].clone()
    check("zncc", image, template, device, mode=mode, pad_mode="ignore", min_overlap=0.1)
    shifted = torch.nn.functional.pad(template, (5, 0, 4, 0))[:9, :10]
    scores = torchcorr.zncc(image, shifted, mode="full", pad_mode="ignore", min_overlap=0.1)
    assert math.isclose(float(scores[4, 4]), 1.0, abs_tol=1e-12)
    assert wider.shape == (80, 84)


def test_flat_windows_and_templates_score_0_with_no_gradient(device):
    image, template = normal(24, 25, seed=1).to(device), normal(6, 6, seed=2).to(device)
    image[3:15, 4:16] = 2.5
    mask = draw((6, 6)).to(device)
    mask[2, 2] = 0
    image[9, 9] = 7.0  # seen by all windows around it but the one whose hole is there
    image.requires_grad_()
    scores = torchcorr.zncc(image, template, template_mask=mask)
    assert scores[7, 7].item() == 0 and scores[3, 4].item() == 0
    (grad,) = torch.autograd.grad(scores[7, 7] + scores[3, 4], image)
    assert bool((grad == 0).all())
    scores = torchcorr.zncc(image, torch.ones_like(template), template_mask=mask)
    assert bool((scores == 0).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("channels", ("joint", "pooled"))
def test_gradients(device, channels, method):
    tensors = [
        draw(shape, seed=seed).to(device).requires_grad_()
        for seed, shape in enumerate([(2, 7, 8), (2, 2, 3, 3), (7, 8), (2, 3, 3)])
    ]

    def score(image, template, there, mask):
        return torchcorr.zncc(
            image, template, input_mask=there + 0.1, template_mask=mask + 0.1,
            channels=channels, method=method, stride=(2, 1), eps=0.01, mode="same",
        )  # fmt: skip

    assert torch.autograd.gradcheck(score, tensors)
    if method != "auto":
        n = 5 if method == "direct" else 3
        parts = [x[..., :n, :n].detach().requires_grad_() for x in tensors]
        assert torch.autograd.gradgradcheck(score, parts)


def test_float32_gradients_are_those_of_float64(device):
    image, template = normal(60, 64, seed=1) + 100, normal(12, 13, seed=2)
    there, mask = masks_of(image, template)
    grads = []
    for dtype in (torch.float64, torch.float32):
        tensors = [
            x.detach().clone().to(device, dtype).requires_grad_()
            for x in (image, template, there, mask)
        ]
        x, t, g, m = tensors
        torchcorr.zncc(x, t, input_mask=g, template_mask=m).square().sum().backward()
        grads.append([y.grad.double().cpu() for y in tensors])
    for wide, narrow in zip(*grads, strict=True):
        assert float((wide - narrow).abs().max()) <= 1e-4 * float(wide.abs().max())


def test_colours_have_a_mean_each(device):
    """Two patches that share nothing but their tint do not look alike."""
    tint = tensor([0.1, 0.5, 0.9])[:, None, None]
    image, template = normal(3, 30, 31, seed=1) * 0.01 + tint, normal(3, 9, 9, seed=2) * 0.01 + tint
    own = torchcorr.zncc(image.to(device), template.to(device), channels="joint")
    assert float(own.abs().max()) < 0.5
    assert float(torchcorr.zncc(image, template, channels="pooled").min()) > 0.9


def test_vmap_and_compile():
    images, templates = draw((3, 20, 21)), draw((3, 5, 6), seed=1)
    mask = draw((5, 6), seed=2)
    want = torch.stack(
        [torchcorr.zncc(x, t, template_mask=mask) for x, t in zip(images, templates, strict=True)]
    )
    got = torch.func.vmap(lambda x, t: torchcorr.zncc(x, t, template_mask=mask))(images, templates)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", (-1.0, math.nan, math.inf))
def test_masks_are_checked(bad):
    image, template = draw((20, 21)), draw((5, 6))
    mask = torch.ones(5, 6)
    with pytest.raises(ValueError, match="template_mask must broadcast"):
        torchcorr.zncc(image, template, template_mask=torch.ones(4, 6))
    with pytest.raises(ValueError, match="input_mask must not be zero everywhere"):
        torchcorr.zncc(image, template, input_mask=torch.zeros(20, 21))
    with pytest.raises(TypeError, match="input_mask must be boolean or of floating-point"):
        torchcorr.zncc(image, template, input_mask=torch.ones(20, 21, dtype=torch.int32))
    with pytest.raises(ValueError, match="nan must be one of"):
        torchcorr.zncc(image, template, nan="drop")
    with pytest.raises(ValueError, match="min_overlap must lie in"):
        torchcorr.zncc(image, template, min_overlap=1.5)
    mask[2, 2] = bad
    with pytest.raises(ValueError, match="template_mask must be finite and not negative"):
        torchcorr.zncc(image, template, template_mask=mask)


def test_applications_take_masks():
    image = normal(60, 70, seed=1)
    template = image[20:29, 30:42].clone()
    mask = torch.ones(9, 12)
    mask[3:6] = 0
    template[3:6] = 50.0
    assert len(torchcorr.match_template(image, template).scores) == 0
    found = torchcorr.match_template(image, template, template_mask=mask, subpixel=False)
    assert found.positions.tolist() == [[20, 30]]
    layer = torchcorr.nn.ZNCC(template, template_mask=mask)
    want = torchcorr.zncc(image, template, template_mask=mask)
    torch.testing.assert_close(layer(image), want, rtol=0, atol=1e-12)
    assert "template_mask" in layer.state_dict()


@pytest.mark.parametrize("method", ("direct", "fft"))
@pytest.mark.parametrize("function", (torchcorr.zncc, torchcorr.ncc))
@pytest.mark.parametrize("masked", ("input", "template"))
def test_windows_that_score_0_without_being_flat_have_gradients(
    function: Callable[..., torch.Tensor], method: str, masked: str
) -> None:
    """Those whose products cancel: of whole numbers they do so exactly."""
    image = tensor(np.array([1.0, -1, -1, 1, 5, 5, 5, 5, 2, 0])).requires_grad_()
    template = tensor(np.array([1.0, -1, 1, -1])).requires_grad_()
    weights = torch.ones_like(image if masked == "input" else template)
    how = {"ndim": 1, "method": method, f"{masked}_mask": weights}

    def score(x, t):
        return function(x, t, **how)[:1]

    assert float(score(image, template).detach().abs()) < 1e-15
    want = torch.autograd.grad(function(image, template, ndim=1)[:1].sum(), (image, template))
    assert want[0].abs().max() > 0.1
    for again in (False, True):
        got = torch.autograd.grad(
            score(image, template).sum(), (image, template), create_graph=again
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert torch.autograd.gradgradcheck(score, (image, template))
