"""Plans depend on their problem alone, stay within their budget and describe the actual call."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from inputs import draw

import torchcorr
from torchcorr._plan import choose, costs, strided
from torchcorr._plan.leads import Leads

MIB = 1 << 20


def shapes(*size: int) -> torch.Tensor:
    return torch.empty(size, device="meta")


def test_small_windows_are_direct_and_large_ones_transformed():
    image = shapes(1024, 1024)
    assert torchcorr.plan(image, shapes(5, 5)).method == "direct"
    assert torchcorr.plan(image, shapes(64, 64)).method == "fft"
    assert torchcorr.plan(image, shapes(5, 5), method="fft").method == "fft"
    assert torchcorr.plan(image, shapes(64, 64), method="direct").method == "direct"


@pytest.mark.parametrize("normalised", (True, False))
@pytest.mark.parametrize("method", ("direct", "fft"))
def test_scratch_stays_within_its_budget(method, normalised):
    cases = [
        (2, (8192, 8192), (64, 64)),
        (2, (8192, 8192), (3, 3)),
        (2, (300, 20000), (200, 200)),
        (1, (10**8,), (20000,)),
        (3, (512, 512, 512), (34, 34, 34)),
    ]
    for ndim, size, window in cases:
        plan = torchcorr.plan(
            shapes(*size), shapes(*window), ndim=ndim, method=method, normalised=normalised
        )
        assert plan.bytes <= 64 * MIB, (size, window, plan)


def test_many_templates_and_many_inputs_are_cut_too():
    for image, template in (
        (shapes(1024, 1024), shapes(1000, 48, 48)),
        (shapes(1000, 1, 256, 256), shapes(20, 32, 32)),
        (shapes(500, 256, 256), shapes(500, 32, 32)),
    ):
        plan = torchcorr.plan(image, template, method="fft")
        assert plan.bytes <= 64 * MIB


@pytest.mark.parametrize("ndim, size, window", ((1, 10**6, 16), (2, 1024, 5), (3, 112, 4)))
def test_templates_share_the_moments_of_a_tile(ndim, size, window):
    """Each block of templates cuts its tiles and sums their moments again."""
    image, templates = shapes(*(size,) * ndim), shapes(8, *(window,) * ndim)
    plan = torchcorr.plan(image, templates, ndim=ndim, method="direct")
    assert plan.templates == 8, plan


def test_gradients_of_many_templates_are_cut_too():
    """Their spectra are kept twice, as factors and as sums, so fewer are in a block."""
    sizes = ((1, 1024, 1024), (1000, 1, 48, 48), (1, 1))
    call = choose.arrange_gradients(*sizes, dtype=torch.float32, device="cpu")
    assert call.plan.bytes <= 64 * MIB
    templates = [block.templates for block in choose.blocks(call.problem, call.plan)]
    assert [part.start for part in templates[1:]] == [part.stop for part in templates[:-1]]
    assert templates[0].start == 0 and templates[-1].stop == 1000


@pytest.mark.parametrize("window", (1024, 2048, 4096))
def test_a_large_template_is_transformed(window):
    """By the direct loop these take hours, whatever the scratch of the transforms."""
    for dtype in (torch.float32, torch.float64):
        image = torch.empty(8192, 8192, device="meta", dtype=dtype)
        template = torch.empty(window, window, device="meta", dtype=dtype)
        for normalised in (True, False):
            plan = torchcorr.plan(image, template, normalised=normalised)
            assert plan.method == "fft", plan


def test_a_plan_is_a_function_of_its_problem():
    leads = Leads.of((), ())
    problem = choose.Problem((700, 800), (40, 50), (1, 1), 1, leads, 4, True)
    first, second = choose.make_plan(problem, "auto"), choose.make_plan(problem, "auto")
    assert first == second and first is not second
    with pytest.raises(AttributeError):
        first.method = "direct"


def test_the_cheapest_plan_wins():
    for size, window in itertools.product((100, 400, 1500), (3, 12, 30, 90)):
        plans = [
            torchcorr.plan(shapes(size, size), shapes(window, window), method=m)
            for m in ("auto", "direct", "fft")
        ]
        assert plans[0] == min(plans[1:], key=lambda p: p.cost)


@pytest.mark.parametrize("window", (16, 64, 100, 256))
@pytest.mark.parametrize("step", (2, 3, 4, 8, (1, 4), (4, 1)))
def test_a_stride_takes_the_quicker_of_loop_transforms_and_sub_lattices(window, step):
    image, template = (torch.empty(n, n, device="meta") for n in (1024, window))
    how = {"stride": step, "normalised": False, "device": "cpu"}
    plans = {m: torchcorr.plan(image, template, method=m, **how) for m in ("direct", "fft")}
    chosen = torchcorr.plan(image, template, **how)
    # Laying out sub-lattices takes time that the plan of their sums does not have.
    steps = step if isinstance(step, tuple) else (step, step)
    sizes = ((1, *image.shape), (1, *template.shape), steps)
    dense = strided.on_lattices(*sizes, dtype=torch.float32, device="cpu")
    copied = strided._COPIED * image.numel() if dense is not None else 0.0
    quick = plans["fft"].cost + copied < plans["direct"].cost
    assert chosen.cost == plans["fft" if quick else "direct"].cost


@pytest.mark.parametrize("method", ("direct", "fft"))
@pytest.mark.parametrize("leads", (((), ()), ((5,), ()), ((), (7,)), ((4,), (4,)), ((3, 1), (2,))))
def test_blocks_contain_each_pair_and_template_once(method, leads):
    leads = Leads.of(*leads)
    problem = choose.Problem((90, 70), (9, 8), (1, 2), 1, leads, 4, True)
    plan = choose.make_plan(problem, method)
    for templates in (1, 2, 1000):
        cut = choose.Plan(**{**vars(plan), "templates": templates})
        seen = []
        for block in choose.blocks(problem, cut):
            assert block.tiles_of_unit == plan.batch
            pairs, some = (range(s.start, s.stop) for s in (block.pairs, block.templates))
            seen += itertools.product(pairs, some)
        assert sorted(seen) == list(itertools.product(range(leads.paired), range(leads.templates)))


def test_tiles_of_a_plan_cover_the_positions_and_fit_their_transform():
    image, template = draw((300, 310), torch.float32), draw((40, 41), torch.float32, 1)
    plan = torchcorr.plan(image, template, method="fft")
    grid = [-(-n // m) for n, m in zip((261, 270), plan.tile, strict=True)]
    assert math.prod(grid) == plan.tiles
    assert all(n >= m + k - 1 for n, m, k in zip(plan.transform, plan.tile, (40, 41), strict=True))
    assert plan.cost > 0
    same = torchcorr.plan(image, template, method="fft", mode="same")
    assert same.tiles * math.prod(same.tile) >= 300 * 310


@pytest.mark.parametrize("window", ((2500, 2500), (9000, 300)))
def test_tiles_of_a_gpu_can_be_numbered(window):
    image, template = shapes(65536, 65536), shapes(*window)
    for normalised in (True, False):
        plan = torchcorr.plan(image, template, method="fft", normalised=normalised, device="cuda")
        assert math.prod(plan.transform) < 2**31 - 2**12, plan


def test_errors_are_those_of_the_call():
    with pytest.raises(ValueError, match="template is larger than input"):
        torchcorr.plan(shapes(5, 5), shapes(6, 6))
    with pytest.raises(ValueError, match="method must be one of"):
        torchcorr.plan(shapes(5, 5), shapes(3, 3), method="fast")


def test_costs_are_those_of_the_family_of_gpus_where_it_was_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    card = torch.device("cuda", 3)
    costs.family.cache_clear()
    assert costs.family(card) == "cuda"
    assert costs.family(torch.device("meta")) == "meta"
    quick = costs._COSTS["cuda"]._replace(product=1e-9, position=1e-9, scored=1.0)
    monkeypatch.setitem(costs._COSTS, "cuda 9.0", quick)
    costs.family.cache_clear()
    assert costs.family(card) == "cuda 9.0"
    image, template = shapes(4096, 4096), shapes(64, 64)
    assert torchcorr.plan(image, template, device="cuda").method == "fft"
    assert torchcorr.plan(image, template, device="cuda 9.0").method == "direct"
    monkeypatch.undo()
    costs.family.cache_clear()
