"""First and second derivatives are those of the formula; one that is not needed costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torture
from inputs import METHODS, Case, draw, normal, tensor
from tolerances import GRADIENT_OF_FLOAT32
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import torchcorr

PAIRS = ("correlate", "convolve", "zncc", "ncc")
MOMENTS = ("local_sum", "local_mean", "local_var", "local_std")
SMALL = {
    "1d": (Case((2, 6), (3,), 1), {}),
    "1d-stride-same": (Case((7,), (3,), 1), {"stride": 2, "mode": "same"}),
    "2d": (Case((4, 4), (2, 3), 2), {}),
    "2d-templates": (Case((4, 4), (2, 2, 2), 2), {}),
    "2d-images": (Case((2, 1, 3, 4), (2, 2, 2), 2), {"stride": (1, 2)}),
    "2d-same": (Case((3, 4), (2, 2), 2), {"mode": "same", "pad_mode": "replicate"}),
    "2d-full": (Case((3, 3), (2, 2), 2), {"mode": "full", "pad_value": 0.5}),
    "2d-stride": (Case((5, 5), (2, 2), 2), {"stride": (2, 3)}),
    "2d-joint": (Case((2, 3, 4), (2, 2, 2), 2), {"channels": "joint"}),
    "2d-joint-stride": (Case((2, 2, 5, 4), (2, 2, 2), 2), {"channels": "joint", "stride": 2}),
    "3d": (Case((3, 3, 3), (2, 2, 2), 3), {}),
}
CALLS = pytest.mark.parametrize(("case", "options"), SMALL.values(), ids=SMALL)


def pair(case, dtype=torch.float64):
    """Values far from flat, so that finite differences stay on the smooth part."""
    image, template = normal(*case.input, seed=1), normal(*case.template, seed=2)
    return image.to(dtype).requires_grad_(), template.to(dtype).requires_grad_()


@pytest.mark.parametrize("method", ["direct", "fft"])
@CALLS
@pytest.mark.parametrize("name", PAIRS)
def test_first_and_second_derivatives(name, case, options, method):
    def call(image, template):
        function = getattr(torchcorr, name)
        return function(image, template, ndim=case.ndim, method=method, **options)

    tensors = pair(case)
    assert gradcheck(call, tensors, fast_mode=True)
    assert gradgradcheck(call, tensors, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("name", ["zncc", "ncc"])
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_slow_mode_and_eps(name, method):
    def call(image, template):
        return getattr(torchcorr, name)(image, template, method=method, eps=0.3)

    tensors = pair(Case((4, 3), (2, 2), 2))
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)


@pytest.mark.parametrize("name", ["correlate", "convolve"])
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_complex_derivatives(name, method):
    shapes = ((4, 4), (2, 3))
    tensors = [normal(*n, seed=1, dtype=torch.complex128).requires_grad_() for n in shapes]

    def call(image, template):
        return getattr(torchcorr, name)(image, template, method=method, stride=(1, 1))

    assert gradcheck(call, tensors, fast_mode=True)
    assert gradgradcheck(call, tensors, fast_mode=True)


@CALLS
@pytest.mark.parametrize("name", MOMENTS)
def test_derivatives_of_moments(name, case, options):
    def call(image):
        return getattr(torchcorr, name)(image, case.window, ndim=case.ndim, **options)

    image = pair(case)[0]
    assert gradcheck(call, image, fast_mode=True)
    assert gradgradcheck(call, image, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("name", ["local_var", "local_std"])
def test_derivatives_of_moments_with_correction_and_eps(name):
    def call(image):
        return getattr(torchcorr, name)(image, 2, correction=1, eps=0.2)

    image = pair(Case((4, 4), (2, 2), 2))[0]
    assert gradcheck(call, image)
    assert gradgradcheck(call, image)


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_of_flat_windows_have_finite_second_derivatives(name):
    x = draw((9, 9))
    x[1:7, 2:8] = 0.3
    x.requires_grad_()
    out = getattr(torchcorr, name)(x, 3)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(grad.square().sum(), x)
    assert grad.isfinite().all()
    assert twice.isfinite().all()


def float_gradients(name, image, template, method):
    wide = [tensor(a, torch.float64).requires_grad_() for a in (image, template)]
    narrow = [x.detach().float().requires_grad_() for x in wide]
    delta = None
    results = []
    for tensors in (wide, narrow):
        score = getattr(torchcorr, name)(*tensors, method=method)
        if delta is None:
            delta = draw(tuple(score.shape), seed=5).sub(0.5)
        results.append(torch.autograd.grad(score, tensors, delta.to(score.dtype)))
    return zip(*results, strict=True)


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("name", PAIRS)
def test_float32_gradients(name, method):
    rng = np.random.default_rng(0)
    image, template = (rng.random(size).astype(np.float32) for size in ((40, 41), (9, 8)))
    for exact, got in float_gradients(name, image, template, method):
        assert (got - exact).abs().max() <= GRADIENT_OF_FLOAT32 * exact.abs().max()


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("case", list(torture.cases(np.float32)), ids=lambda c: c.name)
def test_float32_gradients_on_the_torture_list(case, method):
    for exact, got in float_gradients("zncc", case.image, case.template, method):
        assert got.isfinite().all()
        assert (got - exact).abs().max() <= GRADIENT_OF_FLOAT32 * exact.abs().max()


class Calls(TorchDispatchMode):
    """Names of the package's operators that are called, and sizes of what they return."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "torchcorr":
            self.names.append(func._schema.name.split("::")[1])
            self.sizes.append([x.numel() for x in out] if isinstance(out, tuple) else [])
        return out


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("wanted", ["input", "template"])
def test_a_gradient_that_is_not_needed_is_not_computed(name, wanted, method):
    image, template = pair(Case((9, 9), (3, 3), 2))
    (template if wanted == "input" else image).requires_grad_(False)
    out = getattr(torchcorr, name)(image, template, method=method)
    with Calls() as calls:
        out.sum().backward()
    spared = "template" if wanted == "input" else "input"
    if "ncc_grads" in calls.names:
        # One operator computes both and returns an empty tensor for what is not needed.
        for_input, for_template = calls.sizes[calls.names.index("ncc_grads")]
        assert (for_input > 0) == (wanted == "input") and (for_template > 0) == (spared == "input")
        return
    assert any(f"_{wanted}_grad" in call for call in calls.names)
    assert not any(f"_{spared}_grad" in call for call in calls.names)
    if wanted == "template":
        assert not any(call in ("window_combine", "window_spread") for call in calls.names)


@pytest.mark.parametrize("method", METHODS)
def test_no_operator_of_backward_runs_in_forward(method):
    image, template = pair(Case((9, 9), (3, 3), 2))
    with Calls() as calls:
        torchcorr.zncc(image, template, method=method)
    assert calls.names
    assert not any("grad" in call for call in calls.names)


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_at_most_two_maps_are_kept_for_backward(name, dtype, method):
    image, template = pair(Case((2, 40, 41), (5, 4), 2), dtype)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        score = getattr(torchcorr, name)(image, template, method=method)
    kept.pop(image.untyped_storage().data_ptr(), None)
    maps = [x for x in kept.values() if x.numel() > 2 * template.numel()]
    assert len(maps) <= 2
    assert all(x.numel() <= score.numel() for x in maps)


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_keep_at_most_two_maps(name):
    image = pair(Case((2, 40, 41), (5, 4), 2))[0]
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        getattr(torchcorr, name)(image, (5, 4))
    kept.pop(image.untyped_storage().data_ptr(), None)
    assert len(kept) <= 2
