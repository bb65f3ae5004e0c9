"""Plain sums in tiles, and the spectra of a template's gradient, against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tile_definitions
import torch
from inputs import draw, normal
from tile_geometries import GEOMETRIES, batch_of, image_of
from tolerances import SCORE

import torchcorr
from torchcorr._cpu import counters
from torchcorr._cpu.rules import SumRule
from torchcorr._definition import correlate as correlation
from torchcorr._definition.spectra import template_spectra
from torchcorr._definition.transforms import bordered
from torchcorr._plan import rounding
from torchcorr._plan.tiling import Block, TileBatch, Tiling

ops = torch.ops.torchcorr_cpu
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)


def same(got: torch.Tensor, want: torch.Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


def sum_tiles(
    image: torch.Tensor, weights: torch.Tensor, batch: TileBatch, block: Block, rule: SumRule
) -> tuple[torch.Tensor, list[list[int]]]:
    """The map of a block's sums, NaN elsewhere; tiles and templates with many unknown sums."""
    tiling = batch.tiling
    working = torch.float32 if rule.narrow_allowed > 0 else torch.float64
    spectra = template_spectra(weights[block.pairs, block.templates], tiling.length, working)
    spectra = spectra.flatten(0, 1).contiguous()
    lead = (image.shape[0], weights.shape[1])
    out = torch.full((*lead, *tiling.positions), math.nan, dtype=image.dtype)
    empty = TileBatch(tiling, []).numbers
    left = ops.sum_tiles(image, weights, spectra, empty, block.numbers, rule.numbers, out)
    return out, left.tolist()


def sum_rule(dtype: torch.dtype, narrow: bool, budget: float) -> SumRule:
    unit = rounding.unit(dtype)
    allowed = rounding.ALLOWED_ROUNDINGS_IN_FLOAT32 * unit if narrow else 0.0
    wide = math.inf if dtype == torch.float64 else rounding.ALLOWED_ROUNDINGS * unit
    noise = rounding.TRANSFORM_OF_SUMS * rounding.unit(torch.float64)
    return SumRule(rounding.TRANSFORM * unit, noise, allowed, wide, budget)


def exact_sums(
    image: torch.Tensor, weights: torch.Tensor, batch: TileBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of products and of absolute products, (items, templates, *positions), in float64."""
    paired = weights.repeat_interleave(image.shape[0] // weights.shape[0], 0)
    pair = image.double().unsqueeze(1), paired
    how = batch.tiling.stride
    sizes = tile_definitions.correlate(pair[0].abs(), pair[1].abs(), how)
    return tile_definitions.correlate(*pair, how), sizes


@every_geometry
@every_dtype
@pytest.mark.parametrize("narrow", (False, True), ids=("float64", "by-precision"))
@pytest.mark.parametrize("offset", (0.0, -5.0))
def test_sum_tiles(name: str, dtype: torch.dtype, narrow: bool, offset: float) -> None:
    if narrow and dtype == torch.float64:
        return
    batch, image = batch_of(name, True), image_of(name, dtype) + offset
    image[1, :, : image.shape[2] // 3] = 0
    weights = draw((1, 3, 2, *batch.tiling.window), torch.float32, seed=1).double()
    exact, sizes = exact_sums(image, weights, batch)
    for units in (2, 1000):
        block = Block(slice(0, 1), slice(0, 3), units)
        out, left = sum_tiles(image, weights, batch, block, sum_rule(dtype, narrow, 10**6))
        assert left == []
        if dtype == torch.float64:
            same(out, exact, 0, 1e-13 * float(sizes.max()))
        else:
            assert ((out.double() - exact).abs() <= 8 * rounding.unit(dtype) * sizes).all()


@every_dtype
def test_sum_tiles_of_a_block(dtype: torch.dtype) -> None:
    """Only the pairs and templates of the block are written, with the templates of each pair."""
    batch, image = batch_of("2d", True), image_of("2d", dtype)
    weights = draw((2, 3, 2, 5, 8), seed=1)
    rule = sum_rule(dtype, False, 100)
    whole, _ = sum_tiles(image, weights, batch, Block(slice(0, 2), slice(0, 3), 2), rule)
    part, _ = sum_tiles(image, weights, batch, Block(slice(1, 2), slice(1, 3), 2), rule)
    exact, _ = exact_sums(image, weights, batch)
    same(whole, exact.to(dtype), 4 * rounding.unit(torch.float32), 0)
    assert torch.equal(part[1, 1:], whole[1, 1:])
    part[1, 1:] = math.nan
    assert part.isnan().all()


@every_geometry
@every_dtype
@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_sums_that_are_not_finite(name: str, dtype: torch.dtype, bad: float) -> None:
    batch, image = batch_of(name, True), image_of(name, dtype) - 0.5
    image[1, 1].view(-1)[-3] = bad
    image[0, 0].view(-1)[:2] = torch.tensor([bad, -bad])
    weights = draw((1, 2, 2, *batch.tiling.window), seed=1) - 0.5
    weights[0, 0, 1, 0] = 0
    block = Block(slice(0, 1), slice(0, 2), 4)
    out, _ = sum_tiles(image, weights, batch, block, sum_rule(dtype, False, 10**6))
    exact, _ = exact_sums(image, weights, batch)
    assert torch.equal(out.isnan(), exact.isnan())
    infinite = exact.isinf()
    assert torch.equal(out[infinite].double(), exact[infinite])
    finite = exact.isfinite()
    same(out[finite].double(), exact[finite], 1e-6, 1e-6)


def test_sums_that_are_left() -> None:
    """Faint windows are recomputed, or left if they are more than the budget."""
    batch, image = batch_of("2d", True), image_of("2d", torch.float32)
    image[0, :, 12:] *= 1e-20
    weights = draw((1, 1, 2, *batch.tiling.window), seed=1)
    block = Block(slice(0, 1), slice(0, 1), 4)
    _, left = sum_tiles(image, weights, batch, block, sum_rule(torch.float32, False, 0))
    assert left and all(0 <= t < batch.tiling.tiles and k == 0 for t, k in left)
    out, none = sum_tiles(image, weights, batch, block, sum_rule(torch.float32, False, 10**6))
    exact, sizes = exact_sums(image, weights, batch)
    assert none == []
    assert ((out.double() - exact).abs() <= 8 * rounding.unit(torch.float32) * sizes).all()


def opposed(image: torch.Tensor, template: torch.Tensor, at: tuple[int, ...]) -> torch.Tensor:
    """The image with a window of its own elements whose largest meet the smallest weights."""
    image, place = (
        image.clone(),
        tuple(slice(i, i + n) for i, n in zip(at, template.shape, strict=True)),
    )
    of_window = image[place].flatten()
    order = template.abs().flatten().argsort()
    of_window[order] = of_window[of_window.abs().argsort(descending=True)]
    image[place] = of_window.reshape(template.shape)
    return image


# Of the smallest sum of absolute products of a tile.
FACTORS = (1e-4, 0.3, 1.0001, 1.1, 1.5, 2.0, 4.0, 10.0)


def hard_pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """One tile each, where sums of absolute products vary among windows or are hard to bound."""
    image, template = normal(41, 45, seed=1), normal(16, 18, seed=2)
    pairs = {"noise": (image, template), "of one sign": (image.abs(), template.abs())}
    for at in ((0, 0), (3, 5), (25, 27), (12, 26)):
        pairs[f"opposed at {at}"] = opposed(image, template, at), template
        faint = image.clone()
        faint[at[0] : at[0] + 16, at[1] : at[1] + 18] *= 1e-4
        pairs[f"faint at {at}"] = faint, template
    stripes = (torch.arange(45) % 2).expand(41, 45)
    pairs["stripes"] = stripes + 0.01, (stripes[:16, :18] + 0.01)
    pairs["sparse"] = image * (image.abs() > 1.5), template * (template.abs() > 1)
    pairs["rectified"] = image.relu(), template
    spike = image.clone()
    spike[20, 20] = 1e4
    pairs["spike"] = spike, template
    steps = torch.where(template.abs() > 1, template, 1e-3 * template)
    pairs["steps"] = opposed(image, steps, (7, 9)), steps
    # Nearly all weight in the margin that the blocks of one window leave out, where it is zero.
    rim, hole = torch.full((16, 18), 1e-3), torch.full((41, 45), 1.3)
    rim[0], rim[:, 0] = 1, 1
    hole[3:19, 5:23] = (rim < 1).to(hole.dtype)
    for name, axes in {"first": (), "last": (0, 1)}.items():
        pairs[f"rim of {name} elements"] = hole.flip(axes), rim.flip(axes)
    line, short = normal(700, seed=3), normal(200, seed=4)
    pairs["line"] = opposed(line, short, (123,)), short
    volume, box = normal(12, 11, 13, seed=5), normal(6, 5, 7, seed=6)
    pairs["volume"] = opposed(volume, box, (3, 1, 5)), box
    return pairs


def accepts_float32(
    image: torch.Tensor, template: torch.Tensor, tiling: Tiling, rule: SumRule
) -> bool:
    batch, block = TileBatch(tiling, [0, -1]), Block(slice(0, 1), slice(0, 1), 2)
    counters.take()
    sum_tiles(image[None, None].float(), template[None, None, None], batch, block, rule)
    return counters.take().float32 > 0


def test_no_bound_exceeds_the_sums_of_absolute_products() -> None:
    """Tiles go through float32 only where the noise that a rule assumes is within what it allows of
    the smallest sum; for noise, the bound of this sum is not far below it.
    """
    for name, pair in hard_pairs().items():
        image, template = (x.float().double() for x in pair)
        ones = (1,) * image.dim()
        tiling = Tiling.cut(image.shape, template.shape, ones, ones)
        _, sizes = exact_sums(image[None, None], template[None, None, None], TileBatch(tiling, []))
        least = float(sizes.min()) or 1e-6 * float(sizes.max())
        # What numerators contain, or are expected to.
        spectra = [torch.fft.fftn(x, tiling.length) for x in (image - image.mean(), template)]
        around = torch.fft.ifftn(spectra[0] * spectra[1].conj()).real
        mean_square = (image - image.mean()).square().sum() / around.numel()
        power, expected = template.square().sum() * mean_square, 3.6
        contents = (power + around.square().mean()).sqrt() + around.abs().max() / 2
        contents = max(float(contents), expected * math.sqrt(power))
        rule = sum_rule(torch.float32, True, 10**6)._replace(narrow_allowed=1.0)
        rules = {f: rule._replace(narrow_noise=f * least / contents) for f in FACTORS}
        accepted = [f for f in FACTORS if accepts_float32(image, template, tiling, rules[f])]
        assert max(accepted, default=0) < 1, name
        if name in ("noise", "of one sign", "line"):
            assert 0.3 in accepted, name


@pytest.mark.parametrize(
    "size, window", (((900,), (200,)), ((57, 50), (24, 31)), ((15, 17, 16), (7, 9, 8)))
)
@pytest.mark.parametrize("name", ("noise", "of one sign", "ramp", "sparse", "spike"))
def test_sums_at_a_border_that_are_not_known_are_computed(
    size: tuple[int, ...], window: tuple[int, ...], name: str
) -> None:
    """Spectra of the template are zeros, so that only sums from the definition are right."""
    image, template = normal(*size, seed=1), normal(*window, seed=2)
    if name == "of one sign":
        image, template = image.abs(), template.abs()
    elif name == "ramp":
        template = template * torch.logspace(-4, 0, window[-1])
    elif name == "sparse":
        image = image * (image.abs() > 0.8)
    elif name == "spike":
        image[(2,) * len(size)] = 100
    image, template = image.float(), template.float()
    # The mean of the input is its level, which would be left of the sums.
    image -= image.mean()
    ones = (1,) * len(size)
    wide = [n + 2 * (k - 1) for n, k in zip(size, window, strict=True)]
    tiling = Tiling.cut(wide, window, ones, ones)
    tiling = replace(tiling, size=size, pad=tuple(k - 1 for k in window))
    x, w = image[None, None].double(), template[None, None, None].double()
    around = bordered(x, [k - 1 for k in window for _ in range(2)])
    exact, sizes = exact_sums(around, w, TileBatch(tiling, []))
    mean_square = x.square().sum() / math.prod(tiling.length)
    contents = math.sqrt(float(template.double().square().sum() * mean_square))
    inside = tuple(slice(k - 1, n) for n, k in zip(size, window, strict=True))
    least = float(sizes[0, 0][inside].min())
    spectra = torch.zeros((1, 1, *tiling.length), dtype=torch.complex64)
    block = Block(slice(0, 1), slice(0, 1), 2)
    for share in (0.02, 0.05):
        noise = share * least / contents
        rule = sum_rule(torch.float32, True, 0)._replace(narrow_allowed=1.0, narrow_noise=noise)
        out = torch.full((1, 1, *tiling.positions), math.nan)
        how = (TileBatch(tiling, []).numbers, block.numbers, rule.numbers)
        counters.take()
        ops.sum_tiles(image[None, None], w, spectra, *how, out)
        right = (out.double() - exact).abs() <= 8 * rounding.unit(torch.float32) * sizes
        few = sizes < share * least
        assert right[few].all(), share
        if name in ("noise", "of one sign"):
            assert counters.take().float32 == 1 and few.any() and not right.all(), share


@every_geometry
@pytest.mark.parametrize("groups, parts, wide", ((1, 1, True), (3, 1, False), (1, 2, True)))
def test_template_grad_spectra(name: str, groups: int, parts: int, wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    batch, image = batch_of(name, True), image_of(name, dtype)
    tiling = batch.tiling
    if any(s > 1 for s in tiling.stride):
        return
    upstream = draw((2, 3, *tiling.positions), seed=3).to(dtype) - 0.5
    ones = (1,) * len(tiling.window)
    of_upstream = replace(tiling, window=ones, extent=tiling.outputs)
    numbers = (TileBatch(of_upstream, []).numbers, TileBatch(tiling, []).numbers)
    total = ops.template_grad_spectra(upstream, image, *numbers, 1, groups, parts, wide)
    lines = torch.fft.ifftn(total, dim=tuple(range(-len(ones), 0))).real
    got = lines[(..., *(slice(0, k) for k in tiling.window))][0]
    # Items are summed over.
    shape = (3, 2, *tiling.window)
    want = sum(
        correlation.correlate_template_grad(g, x.unsqueeze(0), shape, tiling.stride, "direct")
        for g, x in zip(upstream.double(), image.double(), strict=True)
    )
    share = 1e-10 if wide else rounding.ALLOWED_GRADIENT_ERROR / 100
    same(got, want, share, share * float(want.abs().max()))


@pytest.mark.parametrize("case", ("noise", "cancelling template", "offset"))
def test_gradients_are_transformed_in_float32_where_that_is_enough(case: str) -> None:
    x, w = normal(300, 320, seed=1), normal(40, 36, seed=2)
    grad = normal(261, 285, seed=3)
    if case == "cancelling template":
        # A smooth upstream gradient, of which the signs of a checkerboard leave almost nothing.
        w = (-1.0) ** torch.arange(40).unsqueeze(1) * (-1.0) ** torch.arange(36)
        w = w.double()
        hann = (torch.hann_window(n, dtype=torch.float64) for n in grad.shape)
        grad = torch.outer(*hann)
    if case == "offset":
        x, grad = x + 1e5, grad - grad.mean()

    def gradients(dtype: torch.dtype, method: str) -> list[torch.Tensor]:
        pair = [v.float().to(dtype).requires_grad_() for v in (x, w)]
        sums = torchcorr.correlate(*pair, method=method)
        counters.take()
        return list(torch.autograd.grad(sums, pair, grad.float().to(dtype)))

    exact = gradients(torch.float64, "direct")
    for got, want in zip(gradients(torch.float32, "fft"), exact, strict=True):
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())
    ways = counters.take()
    assert ways.float32 > 0
    assert (ways.float64 > 0) == (case == "cancelling template")


@pytest.mark.parametrize("mode, uniform", (("same", False), ("same", True), ("full", True)))
def test_noise_at_a_border_stays_in_float32(mode: str, uniform: bool) -> None:
    image = draw((300, 320)) if uniform else normal(300, 320, seed=1)
    image = image.float()
    counters.take()
    torchcorr.correlate(image, normal(64, 60, seed=2).float(), mode=mode, method="fft")
    ways = counters.take()
    assert ways.float64 == 0 and ways.float32 > 0
    assert ways.exact_windows < image.numel() / 2


@pytest.mark.parametrize("fade", (False, True))
def test_faint_values_at_the_ends_of_long_signals(fade: bool) -> None:
    """By the direct loop a call takes minutes; the first overlaps are of few faint samples."""
    n = 200_000
    shape = torch.hann_window(n, periodic=False, dtype=torch.float64) if fade else 1.0
    one, other = ((normal(n, seed=seed) * shape).float() for seed in (6, 7))
    got = torchcorr.correlate(one, other, ndim=1, mode="full")
    for k in (1, 2, 100, 5000):
        products = one[:k].double() * other[n - k :].double()
        error = abs(got[k - 1].double() - products.sum())
        assert error <= 8 * rounding.unit(torch.float32) * products.abs().sum()


@pytest.mark.parametrize(
    "size, window, mode, tiles",
    (
        ((300_000,), (6000,), "valid", True),
        ((300_000,), (300_000,), "full", False),
        ((1_000_000,), (250_000,), "valid", False),
        ((384, 384), (384, 384), "full", False),
    ),
)
def test_tiles_or_one_transform_in_float64(size, window, mode: str, tiles: bool) -> None:
    """The quicker of both: a line of this length is out of cache as a whole."""
    image, template = normal(*size, seed=1), normal(*window, seed=2)
    counters.take()
    torchcorr.correlate(image, template, ndim=len(size), mode=mode)
    assert (counters.take().float64 > 0) == tiles


@every_dtype
@pytest.mark.parametrize("rest", (1e-9, 1e9))
def test_a_line_whose_sampled_pieces_are_unlike_the_rest(dtype: torch.dtype, rest: float) -> None:
    """Level and scale of a tile are those of one piece of a line in eight."""
    noise = normal(40_000, seed=1)
    template = normal(1500, seed=2).to(dtype)
    tiling = Tiling.cut(noise.shape, template.shape, (1,), (1,))
    for phase in range(0, 8, 3):
        sampled = torch.arange(len(noise)) // 32 % 8 == phase
        line = torch.where(sampled, noise, rest * (noise + 3)).to(dtype)
        got, want = (
            torchcorr.zncc(line, template, ndim=1, method=method) for method in ("fft", "direct")
        )
        same(got, want, 0, 2 * SCORE[dtype])
        counters.take()
        sums = torchcorr.correlate(line, template, ndim=1, method="fft")
        ways = counters.take()
        assert ways.float32 + ways.float64 > 0
        pair = line.double()[None, None], template.double()[None, None, None]
        exact, sizes = exact_sums(*pair, TileBatch(tiling, []))
        bound = 8 * rounding.unit(dtype) * sizes
        if dtype == torch.float64:
            bound = 64 * rounding.unit(dtype) * line.norm() * template.norm()
        assert ((sums.double() - exact[0, 0]).abs() <= bound).all()
