"""First and second derivatives of weighted scores on the torture list, from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torture
from inputs import draw, tensor
from tolerances import GRADIENT_OF_FLOAT32

import torchcorr

CASES = {case.name: case for case in torture.cases(np.float32)}


def definition(image, template, mask, there):
    """Scores from windows whose elements are centred first, so that float64 carries them."""
    height, width = template.shape
    x, w = (y.unfold(0, height, 1).unfold(1, width, 1) for y in (image, there))
    w = w * mask
    total = w.sum((-1, -2), keepdim=True)
    # Shifts by constants, which change no derivative.
    x = x - ((w * x).sum((-1, -2), keepdim=True) / total).detach()
    t = template - template.detach().mean()
    highest, lowest = (torch.where(w > 0, x, edge) for edge in (-torch.inf, torch.inf))
    flat = highest.amax((-1, -2)) <= lowest.amin((-1, -2))
    for _ in range(2):
        x = x - (w * x).sum((-1, -2), keepdim=True) / total
        t = t - (w * t).sum((-1, -2), keepdim=True) / total
    product, energy, other = ((w * y).sum((-1, -2)) for y in (x * t, x * x, t * t))
    live = ~flat & (energy > 0) & (other > 0)
    size = torch.where(live, energy, 1.0).sqrt() * torch.where(live, other, 1.0).sqrt()
    return torch.where(live, product / size, 0.0)


def ours(image, template, mask, there):
    how = {"template_mask": mask, "input_mask": there, "min_overlap": 1e-3}
    return torchcorr.zncc(image, template, **how)


def derivatives(f, tensors, upstream, along=None):
    """Gradients, and those of their sum along some directions: of their own size at first."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    total = (f(*leaves) * upstream.to(leaves[0])).sum()
    first = torch.autograd.grad(total, leaves, create_graph=True)
    if along is None:
        sizes = [float(g.detach().abs().max()) or 1.0 for g in first]
        along = [(draw(g.shape, seed=5) - 0.5) / size for g, size in zip(first, sizes, strict=True)]
    total = sum((u.to(g) * g).sum() for u, g in zip(along, first, strict=True))
    return [g.detach() for g in first], torch.autograd.grad(total, leaves), along


@pytest.mark.parametrize("name", CASES)
def test_both_derivatives_are_those_of_the_definition(name):
    image, template = (tensor(x) for x in CASES[name][1:])
    mask, there = (draw(x.shape, torch.float32, seed=3) for x in (template, image))
    mask, there = (torch.where(w < 0.2, 0.0, w) for w in (mask, there))
    tensors = (image, template, mask, there)
    shape = [n - k + 1 for n, k in zip(image.shape, template.shape, strict=True)]
    upstream = draw(shape, seed=9) - 0.5
    first, second, along = derivatives(definition, [x.double() for x in tensors], upstream)
    got_first, got_second, _ = derivatives(ours, tensors, upstream, along)
    # On a steep ramp the gradients of weights are what 12 digits leave of larger terms.
    known = 2 if name.startswith("steep ramp") else 4
    for want, got in ((first, got_first), (second, got_second)):
        for a, b in zip(want[:known], got[:known], strict=True):
            error = float((a - b.double()).abs().max())
            assert error <= GRADIENT_OF_FLOAT32 * float(a.abs().max())
        assert all(bool(b.isfinite().all()) for b in got)
