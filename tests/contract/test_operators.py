"""Every operator passes opcheck; a list shows that none is left out."""

from __future__ import annotations

import warnings

import pytest
import torch
from inputs import METHODS, draw
from samples import SAMPLES
from torch import Tensor

import torchcorr


def moved(x, device):
    """A leaf on another device that requires a gradient if x does."""
    return x.detach().to(device).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s[0]}-{s[1][0].dtype}")
def test_opcheck(sample, device):
    name, args = sample
    args = [moved(x, device) if isinstance(x, Tensor) else x for x in args]
    with warnings.catch_warnings():
        # opcheck itself touches deprecated corners of PyTorch.
        warnings.simplefilter("ignore")
        torch.library.opcheck(getattr(torch.ops.torchcorr, name).default, args)


def test_every_operator_has_a_sample():
    names = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torchcorr::")
    }
    assert names == {name for name, _ in SAMPLES}


def test_the_input_is_never_written():
    image, template = draw((9, 9)), draw((3, 3), seed=1)
    before = image.clone(), template.clone()
    for name in ("correlate", "convolve", "zncc", "ncc"):
        for method in METHODS:
            getattr(torchcorr, name)(image, template, method=method)
    for name in ("local_sum", "local_mean", "local_var", "local_std"):
        getattr(torchcorr, name)(image, 3)
    assert torch.equal(image, before[0])
    assert torch.equal(template, before[1])
