"""Applications under the compiler and under torch.func, with options that test_pytorch.py lacks."""

from __future__ import annotations

import re

import pytest
import torch
from inputs import normal

import torchcorr


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weighting", ("phat", "scot", "roth", "ml"))
def test_phase_correlation_is_mapped(weighting):
    a, b = normal(3, 13, 14, seed=1), normal(3, 11, 12, seed=2)
    for lags in ({}, {"max_shift": 3}, {"lags": (1, 4)}):

        def call(x, y, lags=lags):
            return torchcorr.phase_correlation(x, y, weighting=weighting, **lags)

        close(torch.func.vmap(call)(a, b), torch.stack([*map(call, a, b)]))
        close(torch.func.vmap(call, (0, None))(a, b[0]), torch.stack([call(x, b[0]) for x in a]))


def test_gradients_of_a_batch_of_phase_correlations():
    """Scaling a batch in place would spoil what the gradient of its peak needs."""
    a, b = (normal(2, 5, 6, seed=i).requires_grad_() for i in (1, 2))
    assert torch.autograd.gradcheck(torchcorr.phase_correlation, (a, b))


def test_peaks_are_mapped_where_each_item_has_as_many():
    maps, images, template = (
        normal(3, 9, 10, seed=1),
        normal(3, 9, 10, seed=2),
        normal(3, 2, seed=3),
    )
    for options in ({"max_peaks": 2}, {"max_peaks": 2, "min_distance": 3}):

        def call(x, options=options):
            peaks = torchcorr.find_peaks(x, **options)
            return peaks.positions, peaks.scores

        got, expected = torch.func.vmap(call, 1)(maps.movedim(0, 1)), [*map(call, maps)]
        for i, parts in enumerate(zip(*expected, strict=True)):
            close(got[i], torch.stack(parts))

    def matches(x):
        return torchcorr.match_template(x, template, threshold=None, max_matches=1).scores

    close(torch.func.vmap(matches)(images), torch.stack([*map(matches, images)]))
    counts = [len(torchcorr.find_peaks(x)) for x in maps]
    assert len(set(counts)) > 1
    message = re.escape(f"same number of peaks or windows in each item: got {counts}")
    with pytest.raises(ValueError, match=message):
        torch.func.vmap(lambda x: torchcorr.find_peaks(x).scores)(maps)


@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn
def test_peaks_are_compiled_with_their_gradients():
    """One program for other numbers of peaks, and the gradients of scores and places."""
    template = normal(3, 2, seed=3).requires_grad_()

    def loss(x, t):
        found = torchcorr.match_template(x, t, threshold=None, max_matches=3, min_distance=2)
        return found.scores.square().sum() + found.positions.cos().sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    for seed in (1, 2):
        image = normal(9, 10, seed=seed).requires_grad_()
        got, expected = compiled(image, template), loss(image, template)
        close(got, expected)
        for one, other in zip(
            torch.autograd.grad(got, (image, template)),
            torch.autograd.grad(expected, (image, template)),
            strict=True,
        ):
            close(one, other)


def test_values_are_not_looked_at_under_transforms():
    """Where NaN is an error otherwise, it stays in its item."""
    a, b = normal(3, 13, 14, seed=1), normal(3, 13, 14, seed=2)
    a[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="a must be finite"):
        torchcorr.phase_correlation(a, b)
    scores = torch.func.vmap(torchcorr.phase_correlation)(a, b)
    assert scores[1].isnan().all()
    close(scores[::2], torchcorr.phase_correlation(a[::2], b[::2]))
    line, queries = normal(40, seed=3), normal(3, 5, seed=4)
    queries[1, 2] = torch.nan
    with pytest.raises(ValueError, match="query must be finite"):
        torchcorr.distance_profile(line, queries)
    profile = torch.func.vmap(torchcorr.distance_profile, (None, 0))(line, queries)
    assert (profile[1] == torch.inf).all()
    close(profile[::2], torchcorr.distance_profile(line, queries[::2]))
