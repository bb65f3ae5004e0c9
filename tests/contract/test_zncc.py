"""zncc and ncc: the oracle, and the promises of DESIGN section 3."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import torture
from inputs import (
    CASES,
    INTEGERS,
    METHODS,
    MODES,
    PAD_MODES,
    Case,
    array,
    draw,
    pair,
    result_dtype,
    tensor,
)
from tolerances import SCORE

import torchcorr

SCORES = ("zncc", "ncc")


def check(name, image, template, **options):
    got = getattr(torchcorr, name)(image, template, **options)
    wanted = {key: value for key, value in options.items() if key != "method"}
    exact = getattr(oracle, name)(array(image), array(template), **wanted)
    assert got.dtype == result_dtype(image.dtype)
    assert tuple(got.shape) == exact.shape
    assert (got.abs() <= 1).all()
    assert (np.abs(array(got) - exact) <= SCORE[got.dtype]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", SCORES)
def test_matches_the_definition(name, case, mode, method):
    options = {"mode": mode, "channels": case.channels, "method": method}
    check(name, *pair(case), ndim=case.ndim, **options)


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [2, (1, 3)])
@pytest.mark.parametrize("name", SCORES)
def test_strides(name, stride, mode, method):
    options = {"stride": stride, "mode": mode, "method": method}
    check(name, *pair(Case((2, 9, 11), (4, 3), 2)), **options)
    joint = Case((2, 3, 9, 11), (3, 4, 3), 2, "joint")
    check(name, *pair(joint), channels="joint", **options)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("mode", ["same", "full"])
@pytest.mark.parametrize("name", SCORES)
def test_pad_modes(name, mode, pad_mode):
    check(name, *pair(CASES["2d-paired"]), mode=mode, pad_mode=pad_mode)
    if pad_mode == "constant":
        check(name, *pair(CASES["2d"]), mode=mode, pad_value=0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, *INTEGERS], ids=str
)
@pytest.mark.parametrize("name", SCORES)
def test_dtypes(name, dtype, method):
    image, template = draw((2, 12, 13), dtype), draw((5, 4), dtype, 1)
    check(name, image, template, method=method)
    check(name, image, template, method=method, mode="same", stride=2)


@pytest.mark.parametrize("eps", [0.01, 2.0])
@pytest.mark.parametrize("name", SCORES)
def test_eps_is_added_to_the_variance(name, eps):
    for method in METHODS:
        check(name, *pair(CASES["2d"]), eps=eps, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", list(torture.cases(np.float64)), ids=lambda c: c.name)
def test_float64_torture(case, method):
    score = torchcorr.zncc(*map(tensor, case[1:]), method=method)
    assert score.abs().max() <= 1
    assert torture.error(array(score), torture.exact(case)) <= SCORE[torch.float64]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", list(torture.cases(np.float32)), ids=lambda c: c.name)
def test_float32_torture(case, method):
    score = torchcorr.zncc(*map(tensor, case[1:]), method=method)
    assert score.abs().max() <= 1
    assert torture.error(array(score), torture.exact(case)) <= SCORE[torch.float32]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32], ids=str)
def test_integer_pictures(dtype, method):
    rng = np.random.default_rng(3)
    top = 255 if dtype == torch.uint8 else 65535
    image = tensor(np.clip(rng.normal(0.95 * top, 0.1 * top, (48, 50)), 0, top), dtype)
    check("zncc", image, image[10:26, 12:27].clone(), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_perfect_match_scores_one(method):
    for scale in (1e-10, 1e-6, 1.0, 1e10):
        image = draw((40, 41), torch.float32) * scale
        score = torchcorr.zncc(image, image[11:24, 7:22].clone(), method=method)
        assert abs(float(score[11, 7]) - 1) <= SCORE[torch.float32]
        assert int(score.argmax()) == 11 * score.shape[1] + 7


def patch(dtype=torch.float64):
    """A textured image with a plateau, and the windows of the plateau."""
    image = draw((20, 22), dtype) + 3.3
    image[5:15, 6:17] = 0.7
    return image, oracle.flat_windows(array(image), (4, 5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_flat_windows_score_zero_with_zero_gradient(dtype, method, eps):
    image, flat = patch(dtype)
    assert flat.any()
    image.requires_grad_()
    template = draw((4, 5), dtype, 1).requires_grad_()
    score = torchcorr.zncc(image, template, method=method, eps=eps)
    assert (score[tensor(flat)] == 0).all()
    upstream = tensor(flat, dtype)
    for grad in torch.autograd.grad(score, (image, template), upstream, retain_graph=True):
        assert (grad == 0).all()
    grads = torch.autograd.grad(score.square().sum(), (image, template), create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in grads), (image, template))
    assert all(g.isfinite().all() for g in (*grads, *twice))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-20, 1e6])
def test_flat_templates_score_zero_with_zero_gradient(dtype, method, value):
    image = (draw((15, 16), dtype) + 100).requires_grad_()
    template = torch.full((2, 7, 5), value, dtype=dtype)
    template[1] = draw((7, 5), dtype, 1)
    template.requires_grad_()
    score = torchcorr.zncc(image, template, method=method)
    assert (score[0] == 0).all()
    assert (score[1] != 0).all()
    first = torch.autograd.grad(score[0].sum(), (image, template), create_graph=True)
    assert all((grad == 0).all() for grad in first)
    grads = torch.autograd.grad(score.square().sum(), (image, template), create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in grads), (image, template))
    assert all(g.isfinite().all() for g in (*grads, *twice))


@pytest.mark.parametrize("method", METHODS)
def test_zero_energy_scores_zero_in_ncc(method):
    image = draw((12, 12))
    image[3:9, 3:9] = 0
    image.requires_grad_()
    template = torch.stack([torch.zeros(3, 3), torch.ones(3, 3)]).double().requires_grad_()
    score = torchcorr.ncc(image, template, method=method)
    assert (score[0] == 0).all()
    assert (score[1, 3:7, 3:7] == 0).all()
    grads = torch.autograd.grad(score.square().sum(), (image, template), create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in grads), (image, template))
    assert all(g.isfinite().all() for g in (*grads, *twice))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-10, 1e10, 1e-30])
def test_extreme_scales_have_finite_gradients(scale, method):
    image = (draw((14, 15), torch.float32) * scale).requires_grad_()
    template = (draw((5, 4), torch.float32, 1) * scale).requires_grad_()
    score = torchcorr.zncc(image, template, method=method)
    exact = oracle.zncc(array(image), array(template))
    assert (np.abs(array(score) - exact) <= SCORE[torch.float32]).all()
    grads = torch.autograd.grad(score.square().sum(), (image, template))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", SCORES)
def test_a_bad_pixel_touches_only_its_windows(name, value, dtype, method):
    function = getattr(torchcorr, name)
    for place in ((0, 0), (8, 9), (16, 17)):
        image, template = draw((17, 18), dtype), draw((5, 4), dtype, 1)
        clean = function(image, template, method=method)
        image[place] = value
        got = function(image, template, method=method)
        hit = ~np.isfinite(oracle.local_sum(array(image), (5, 4)).astype(float))
        assert np.isnan(array(got)[hit]).all()
        assert array((got - clean).abs())[~hit].max() <= SCORE[dtype]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_pixel_outside_the_window_changes_nothing(dtype, method):
    image, template = draw((30, 31), dtype), draw((6, 5), dtype, 1)
    clean = torchcorr.zncc(image, template, method=method)
    for value in (1e6, -1e6, 1e3):
        image[29, 30] = value
        got = torchcorr.zncc(image, template, method=method)
        got[-1, -1] = clean[-1, -1]
        assert (got - clean).abs().max() <= 2 * SCORE[dtype]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cropping_changes_nothing(dtype, method):
    image, template = draw((40, 41), dtype) + 1e4, draw((6, 5), dtype, 1)
    whole = torchcorr.zncc(image, template, method=method)
    part = torchcorr.zncc(image[9:30, 7:33], template, method=method)
    assert (whole[9:25, 7:29] - part).abs().max() <= 2 * SCORE[dtype]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5, 1e6, -1e6])
def test_a_large_offset_is_harmless(offset, method):
    image = draw((2, 40, 41), torch.float32) + offset
    template = image[0, 5:18, 9:21].clone()
    check("zncc", image, template, method=method)
    check("zncc", image, template - offset, method=method)


@pytest.mark.parametrize("dtype", SCORE)
def test_rows_of_every_length(dtype):
    """As many scores as vectors hold, fewer and more."""
    for columns in range(4, 52):
        check("zncc", draw((6, columns), dtype, columns), draw((3, 3), dtype), method="direct")
