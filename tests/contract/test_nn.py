"""Prepared templates: the same numbers, each transform computed once, and none that is stale."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from inputs import draw, says

import torchcorr
from torchcorr import _prepared
from torchcorr.nn import ZNCC, Correlate

LAYERS = ((ZNCC, torchcorr.zncc), (Correlate, torchcorr.correlate))
every_layer = pytest.mark.parametrize(("layer", "function"), LAYERS)


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one whenever a template is transformed."""
    calls: list[int] = []
    original = _prepared.tile_spectra

    def counted(*args: object) -> torch.Tensor:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(_prepared, "tile_spectra", counted)
    return calls


@pytest.mark.cpu_only("a GPU transforms templates together with tiles, in each call")
@every_layer
def test_a_video_pays_for_the_template_once(layer, function, transforms):
    frames = draw((5, 90, 100), torch.float32)
    template = draw((20, 18), torch.float32, 1)
    module = layer(template, method="fft")
    for i, frame in enumerate(frames):
        score = module(frame)
        assert len(transforms) == 1, i
        assert torch.equal(score, function(frame, template, method="fft"))
        del transforms[1:]


@every_layer
@pytest.mark.parametrize("how", ("in place", "data", "assign", "load", "dtype"))
def test_a_changed_template_is_never_stale(layer, function, how):
    frame = draw((60, 61), torch.float32)
    module = layer(draw((20, 18), torch.float32, 1), method="fft")
    module(frame)
    other = draw((20, 18), torch.float32, 2)
    if how == "in place":
        module.template.copy_(other)
    elif how == "data":
        module.template.data.copy_(other)
    elif how == "assign":
        module.template = other
    elif how == "load":
        module.load_state_dict({"template": other})
    else:
        module = module.double()
        frame, other = frame.double(), module.template
    assert torch.equal(module(frame), function(frame, other, method="fft"))


@every_layer
def test_learning_steps(layer, function):
    frame = draw((60, 61), torch.float32)
    module = layer(draw((20, 18), torch.float32, 1), method="fft", learnable=True)
    rate = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        rate.zero_grad()
        module(frame).square().mean().backward()
        assert module.template.grad.abs().max() > 0
        rate.step()
    assert torch.equal(module(frame), function(frame, module.template, method="fft"))


def test_several_sizes_and_precisions_share_a_module():
    module = ZNCC(draw((3, 9, 8), torch.float32, 1), method="fft")
    for size in ((40, 40), (90, 90), (40, 40), (90, 90)):
        frame = draw(size, torch.float32, 2)
        hard = frame.clone()
        hard[5, 5] = 1e7
        for picture in (frame, hard):
            want = torchcorr.zncc(picture, module.template, method="fft")
            assert torch.equal(module(picture), want)


@every_layer
def test_copies_and_pickles(layer, function):
    frame = draw((60, 61), torch.float32)
    module = layer(draw((20, 18), torch.float32, 1), method="fft")
    want = module(frame)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(frame), want)
    assert "template=(20, 18)" in repr(module)
    assert list(module.state_dict()) == ["template"]
    assert list(module.parameters()) == []


def test_options_reach_the_function():
    frame, template = draw((2, 30, 31)), draw((2, 5, 4), seed=1)
    options = {"mode": "same", "stride": (2, 3), "channels": "joint", "pad_mode": "reflect"}
    assert torch.equal(
        ZNCC(template, eps=0.1, **options)(frame),
        torchcorr.zncc(frame, template, eps=0.1, **options),
    )
    assert torch.equal(
        Correlate(template, **options)(frame), torchcorr.correlate(frame, template, **options)
    )


def test_compiled_module():
    frame = draw((40, 41), torch.float32)
    module = ZNCC(draw((20, 18), torch.float32, 1), method="fft")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(frame), module(frame), rtol=0, atol=1e-6)


def test_a_template_must_be_a_tensor():
    with pytest.raises(TypeError, match="template must be a torch.Tensor: got list"):
        ZNCC([[1.0, 2.0]])
    with pytest.raises(TypeError, match="template must be a dense tensor: got sparse_coo"):
        ZNCC(torch.ones(2, 2).to_sparse())


@every_layer
def test_a_batch_that_does_not_broadcast_is_told_which_axis_is_missing(layer, function):
    images, templates = draw((4, 3, 12, 13)), draw((2, 3, 5, 4), seed=1)
    module = layer(templates, channels="joint")
    with pytest.raises(
        ValueError, match=says("(4,)", "(2,)", "give input one more leading axis of size 1")
    ):
        module(images)
    assert torch.equal(
        module(images[:, None]), function(images[:, None], templates, channels="joint")
    )
    assert module(images[:, None]).shape == (4, 2, 8, 10)
