"""Applications under the compiler and under torch.func, with options that test_pytorch.py lacks."""

from __future__ import annotations

import re

import pytest
import torch
from inputs import normal

import torchcorr
import torchcorr.align.detection as detection_module
import torchcorr.align.pose as pose_module
import torchcorr.align.shift as shift_module
import torchcorr.align.stack as stack_module
from torchcorr.align import operators


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


@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn; numbers are compared
@pytest.mark.parametrize("weighting", ("phat", "ml"))
def test_phase_correlation_with_masks_is_mapped_compiled_and_exported(weighting):
    a, b = normal(3, 13, 14, seed=1), normal(3, 11, 12, seed=2)
    masks = normal(3, 13, 14, seed=3) > -1, normal(3, 11, 12, seed=4).abs()
    a = a.masked_fill(~masks[0], torch.nan)

    def call(x, y, of_x, of_y):
        return torchcorr.phase_correlation(
            x, y, weighting=weighting, max_shift=4, reference_mask=of_x, moving_mask=of_y
        )

    expected = call(a, b, *masks)
    assert expected.isfinite().all()
    close(torch.func.vmap(call)(a, b, *masks), expected)
    close(
        torch.func.vmap(call, (0, 0, None, 0))(b, b, masks[1][0], masks[1]),
        torch.stack([call(y, y, masks[1][0], w) for y, w in zip(b, masks[1], strict=True)]),
    )
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    close(compiled(a, b, *masks), expected)
    wrapped = torch.nn.Module()
    wrapped.forward = call
    close(torch.export.export(wrapped, (a, b, *masks)).module()(a, b, *masks), expected)


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
    with pytest.raises(ValueError, match="reference must be finite"):
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


# --- searches, which are one operator each ---


def fields(record):
    return [x for x in vars(record).values() if isinstance(x, torch.Tensor)]


def moved_copy(*, lead=()):
    x = normal(*lead, 20, 21, seed=1)
    return x, x.roll((1, 2), (-2, -1)) + 0.05 * normal(*lead, 20, 21, seed=2)


def a_mask():
    mask = torch.ones(20, 21, dtype=torch.float64)
    mask[:4, 5:9] = 0
    return mask


def shift_with_options(x, y, mask):
    return fields(
        torchcorr.estimate_shift(
            x, y, max_shift=(3, 4), reference_mask=mask, polarity="either", score_map=True
        )
    )


def detections(record, templates, moveouts):
    return fields(
        torchcorr.match_filter(
            record, templates, moveouts=moveouts, threshold=0.4, block=30, keep_stack=True
        )
    )


def two_lines():
    return normal(3, 1, 40, seed=1), normal(2, 30, seed=2)


def a_record():
    return normal(2, 90, seed=3), normal(2, 2, 6, seed=4), torch.tensor([[0, 3], [2, -1]])


def a_stack():
    return (torch.stack(moved_copy()),)


SEARCHES = {
    "shifts": (shift_with_options, lambda: (*moved_copy(lead=(2,)), a_mask())),
    "lines": (
        lambda x, y: fields(torchcorr.estimate_shift(x, y, ndim=1, weighting="phat")),
        two_lines,
    ),
    "weighed": (
        lambda x, y, mask: fields(
            torchcorr.estimate_shift(x, y, weighting="phat", reference_mask=mask)
        ),
        lambda: (*moved_copy(), a_mask()),
    ),
    "detections": (
        detections,
        a_record,
    ),
    "pose": (
        lambda x, y: fields(torchcorr.estimate_pose(x, y, start=(0.0, 1.0, 1.0, 2.0))),
        lambda: moved_copy(lead=(2,)),
    ),
    "stack": (
        lambda x: fields(torchcorr.register_stack(x, max_step=3, rounds=1)),
        a_stack,
    ),
}


@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn; numbers are compared
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_compiled_with_their_options(name):
    call, make = SEARCHES[name]
    args = make()
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, expected in zip(compiled(*args), call(*args), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
def test_searches_are_compiled_with_their_gradients():
    def shift(x, y, mask):
        return shift_with_options(x, y, mask)[0]

    def scores(x, y, moveouts):
        found = detections(x, y, moveouts)
        return torch.cat([found[2], found[4].flatten()])

    for name, call in (("shifts", shift), ("detections", scores)):
        args = SEARCHES[name][1]()
        torch.compiler.reset()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        grads = []
        for function in (call, compiled):
            leaves = [x.clone().requires_grad_() for x in args[:2]]
            out = function(*leaves, args[2])
            grads.append(torch.autograd.grad((out * out.detach().cos()).sum(), leaves))
        for expected, got in zip(*grads, strict=True):
            assert expected.abs().max() > 0
            close(got, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_pass_the_checks_of_operators(name, monkeypatch):
    """Of schema, fake and derivative, for the arguments that the public function passes on."""
    call, make = SEARCHES[name]
    passed = {}
    for module in (shift_module, detection_module, pose_module, stack_module):
        operator = module._operator
        monkeypatch.setattr(
            module,
            "_operator",
            lambda *args, operator=operator: passed.update({operator: args}) or operator(*args),
        )
    monkeypatch.setattr(operators, "is_needed", lambda *of: not passed)
    call(*make())
    ((operator, args),) = passed.items()
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, args, test_utils=names)


def test_searches_are_mapped_over_either_recording():
    x, y = moved_copy(lead=(3,))

    def call(a, b):
        return torchcorr.estimate_shift(a, b, max_shift=3).shift

    close(torch.func.vmap(call, (0, None))(x, y[0]), torch.stack([call(a, y[0]) for a in x]))
    close(torch.func.vmap(call, (None, 2))(x[0], y.movedim(0, 2)), call(x[:1], y))
    records, templates = normal(4, 1, 60, seed=1), normal(1, 1, 5, seed=2)
    counts = [len(torchcorr.match_filter(r, templates, threshold=0.5)) for r in records]
    assert len(set(counts)) > 1
    with pytest.raises(ValueError, match=re.escape(f"results in each item: got {counts}")):
        torch.func.vmap(lambda r: torchcorr.match_filter(r, templates, threshold=0.5).scores)(
            records
        )


@pytest.mark.filterwarnings("ignore")
def test_searches_refuse_values_when_they_run():
    x, y = moved_copy()
    compiled = torch.compile(torchcorr.estimate_shift, fullgraph=True, backend="aot_eager")
    assert bool(compiled(x, y).found)
    with pytest.raises(ValueError, match="reference"):
        compiled(x.masked_fill(x > 2, torch.nan), y)
