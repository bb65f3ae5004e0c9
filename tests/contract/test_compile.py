"""torch.compile, torch.func, autocast and torch.export give the eager numbers."""

from __future__ import annotations

import warnings

import pytest
import torch
from inputs import METHODS, draw
from tolerances import SCORE

import torchcorr

PAIRS = ("correlate", "convolve", "zncc", "ncc")
MOMENTS = ("local_sum", "local_mean", "local_var", "local_std")


def tensors():
    return draw((2, 9, 10)).requires_grad_(), draw((4, 1, 3, 4), seed=1).requires_grad_()


def agree(call, compiled, *args):
    with warnings.catch_warnings():
        # The compiler's own imports warn; what it computes is compared below.
        warnings.simplefilter("ignore")
        results = [f(*args) for f in (call, compiled)]
        grads = [torch.autograd.grad(r.square().sum(), args) for r in results]
    for one, other in zip((results[0], *grads[0]), (results[1], *grads[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("name", PAIRS)
def test_compiled_pairs(name, method):
    def call(image, template):
        function = getattr(torchcorr, name)
        return function(image, template, method=method, mode="same", stride=(1, 2))

    torch.compiler.reset()
    agree(call, torch.compile(call, fullgraph=True, backend="aot_eager"), *tensors())


@pytest.mark.parametrize("name", MOMENTS)
def test_compiled_moments(name):
    def call(image):
        return getattr(torchcorr, name)(image, (3, 2), stride=2, mode="same")

    torch.compiler.reset()
    agree(call, torch.compile(call, fullgraph=True, backend="aot_eager"), tensors()[0])


def test_compiled_with_changing_sizes():
    def call(image, template):
        return torchcorr.zncc(image, template)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for height in (9, 11, 14):
        agree(call, compiled, draw((height, 12)).requires_grad_(), tensors()[1])


def test_compiled_by_inductor():
    def call(image, template):
        return torchcorr.zncc(image * 2, template).square()

    torch.compiler.reset()
    agree(call, torch.compile(call, fullgraph=True), *tensors())


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, 0)])
def test_vmap(name, dims, method):
    image = draw((3, 9, 10)) if dims[0] is not None else draw((9, 10))
    image = image.movedim(0, dims[0]) if dims[0] else image
    template = draw((3, 4, 3), seed=1) if dims[1] is not None else draw((4, 3), seed=1)

    def call(a, b):
        return getattr(torchcorr, name)(a, b, method=method)

    def at(x, dim, i):
        return x if dim is None else x.select(dim, i)

    got = torch.func.vmap(call, dims)(image, template)
    looped = [call(at(image, dims[0], i), at(template, dims[1], i)) for i in range(3)]
    torch.testing.assert_close(got, torch.stack(looped))


@pytest.mark.parametrize("name", [*MOMENTS, "flat_windows"])
def test_vmap_of_moments(name):
    image = draw((9, 3, 10))
    got = torch.func.vmap(lambda x: getattr(torchcorr, name)(x, 3), 1)(image)
    torch.testing.assert_close(got, getattr(torchcorr, name)(image.movedim(1, 0), 3))


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("name", PAIRS)
def test_func_grad_and_jacrev(name, method):
    image, template = draw((5, 6)), draw((3, 2), seed=1)

    def call(a, b):
        return getattr(torchcorr, name)(a, b, method=method)

    expected = torch.autograd.functional.jacobian(call, (image, template))
    got = torch.func.jacrev(call, argnums=(0, 1))(image, template)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    one = torch.func.grad(lambda a: call(a, template).square().sum())(image)
    two = torch.autograd.functional.jacobian(lambda a: call(a, template).square().sum(), image)
    torch.testing.assert_close(one, two)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("name", ["correlate", "convolve"])
def test_forward_mode_of_sums(name, method, dtype):
    """Tangents by finite differences, which a form that is linear in each tensor makes exact."""
    image, template = draw((5, 6), dtype), draw((3, 2), dtype, seed=1)
    steps = draw((5, 6), dtype, seed=2), draw((3, 2), dtype, seed=3)

    def call(a, b):
        return getattr(torchcorr, name)(a, b, method=method, mode="full", stride=(1, 2))

    ahead, behind = (call(image + s * steps[0], template + s * steps[1]) for s in (1.0, -1.0))
    out, tangent = torch.func.jvp(call, (image, template), steps)
    torch.testing.assert_close(out, call(image, template))
    torch.testing.assert_close(tangent, (ahead - behind) / 2)
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, (image, template), steps)
        again = torch.autograd.forward_ad.unpack_dual(call(*duals)).tangent
    torch.testing.assert_close(again, tangent)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_over_reverse():
    image, template = draw((5, 6)), draw((3, 2), seed=1)

    def total(b):
        return torchcorr.correlate(image, b).pow(3).sum()

    both = (torch.func.jacfwd(torch.func.grad(total)), torch.func.jacrev(torch.func.grad(total)))
    forward, reverse = (transform(template) for transform in both)
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("name", ["correlate", "zncc"])
def test_per_sample_gradients(name):
    images, template = draw((4, 7, 8)), draw((3, 3), seed=1)

    def loss(template, image):
        return getattr(torchcorr, name)(image, template).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(template, images)
    looped = [torch.func.grad(loss)(template, image) for image in images]
    torch.testing.assert_close(got, torch.stack(looped))


def test_dtypes_are_checked_again_behind_autocast():
    image, template = draw((9, 9), torch.float32), draw((3, 3), torch.float32, 1)
    pair = (image.bfloat16(), template)
    for _ in range(2):
        with torch.autocast(image.device.type, dtype=torch.bfloat16):
            torchcorr.zncc(*pair)
        with pytest.raises(TypeError, match="must share one dtype"):
            torchcorr.zncc(*pair)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PAIRS)
def test_autocast_keeps_float32(name, method):
    image = (draw((20, 21), torch.float32) + 1e3).requires_grad_()
    template = draw((5, 4), torch.float32, 1).requires_grad_()
    function = getattr(torchcorr, name)
    expected = function(image, template, method=method)
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        got = function(image, template, method=method)
        mixed = function(image.detach(), template.detach().bfloat16(), method=method)
    assert got.dtype == torch.float32
    scale = expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=SCORE[torch.float32] * scale)
    assert mixed.isfinite().all()
    got.sum().backward()
    assert image.grad.dtype == template.grad.dtype == torch.float32


class Match(torch.nn.Module):
    def forward(self, image, template):
        return torchcorr.zncc(image, template, mode="same", pad_mode="reflect")


def test_export():
    image, template = (x.detach() for x in tensors())
    with warnings.catch_warnings():
        # Exporting warns about its own internals.
        warnings.simplefilter("ignore")
        program = torch.export.export(Match(), (image, template))
    torch.testing.assert_close(program.module()(image, template), Match()(image, template))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any(target.startswith("torchcorr.ncc") for target in targets)
