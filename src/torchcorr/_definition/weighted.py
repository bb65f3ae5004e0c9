"""Scores of windows whose elements have weights (math.md, eq. weighted).

An element of a window counts with its own weight times that of the template's element above it.
Sums over windows are correlations by float64 transforms; where their rounding may show, they are
computed again from the window itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._plan import rounding
from .._plan.shapes import output_size
from . import transforms
from .correlate import by_transforms
from .sums import sum_over
from .weights import NOTHING, Moments, Weighted, kept, weighted
from .windows import Summary, in_slabs, summarise, windows

# Elements of the windows that are computed at once, and of those among which flat ones are looked
# for first.
_SLAB = 1 << 18
_MANY = 1 << 24


def is_covered(of: Weighted, count: Tensor, least: float) -> Tensor:
    """Which windows have enough weight, from that of their channels."""
    return _is_enough(of.over_channels(count).squeeze(-of.ndim - 1), of.total(), least)


def share_of(least: float) -> float:
    """Of a template's weight, that a window must have to be scored."""
    return max(least, NOTHING) * (1 - NOTHING)


def _is_enough(count: Tensor, total: Tensor, least: float) -> Tensor:
    return count >= share_of(least) * total


def _score(energy: Tensor, other: Tensor, product: Tensor, softening: Tensor) -> Tensor:
    """Of sums over all channels; 0 where either is flat."""
    live = (energy > 0) & (other > 0)
    size = torch.where(live, energy + softening, 1.0).sqrt() * torch.where(live, other, 1.0).sqrt()
    return torch.where(live, (product / size).clamp(-1, 1), 0.0)


def score_of(of: Weighted, found: Moments, eps: float) -> Tensor:
    """(*lead, *output), from maps."""
    axis = -of.ndim - 1
    energy, other, product = (
        x.sum(axis) for x in (found.energy, found.template_energy, found.product)
    )
    count = of.over_channels(found.count).squeeze(axis)
    return _score(energy, other, product, eps * of.scale.squeeze(axis).square() * count)


# --- by transforms --------------------------------------------------------------------------------


def _sums(of: Weighted, stride: Sequence[int]) -> tuple[Moments, Moments]:
    """Moments of all windows, and bounds of their rounding errors."""
    ndim, g = of.ndim, of.input_weight
    x, t, m = of.centred(), of.template, of.template_weights()
    seen = x if g is None else g * x
    inputs = {"x": seen, "xx": seen * x}
    templates = {"m": m, "t": m * t}
    pairs = {"product": ("x", "t"), "square": ("xx", "m")}
    if of.zero_mean:
        pairs["sum"] = ("x", "m")
    if g is not None:
        inputs["g"], templates["tt"] = g, m * t * t
        pairs |= {"count": ("g", "m"), "energy": ("g", "tt")}
        if of.zero_mean:
            pairs["other"] = ("g", "t")
    found = transforms.correlate_each(
        {name: of.grouped(a) for name, a in inputs.items()},
        {name: of.grouped(b) for name, b in templates.items()},
        pairs,
        stride,
    )
    axes = tuple(range(-ndim - 1, 0))
    none = x.new_zeros((1,) * (ndim + 1))

    def fixed(b: Tensor) -> tuple[Tensor, Tensor]:
        return sum_over(of.grouped(b), axes).squeeze(-ndim - 1), none

    count, n_count = found.get("count") or fixed(m)
    square, n_square = found["square"]
    product, n_product = found["product"]
    energy, n_energy = found.get("energy") or fixed(m * t * t)
    total, n_total = found.get("sum", (none, none))
    other, n_other = found.get("other", (none, none))
    divisor = torch.where(count > n_count, count, 1.0)
    moments = Moments.of_sums(count, divisor, (total, other), (square, energy, product))
    size, other_size = moments.mean.abs(), moments.template_mean.abs()
    errors = Moments(
        n_count,
        none,
        n_square + 2 * size * n_total + size * size * n_count,
        none,
        n_energy + 2 * other_size * n_other + other_size * other_size * n_count,
        n_product + other_size * n_total + size * n_other + size * other_size * n_count,
    )
    return moments, errors


def _is_doubtful(of: Weighted, found: Moments, errors: Moments, allowed: float) -> Tensor:
    """Whether rounding of sums may change a score by more than allowed, or hide a flat window."""
    axis = -of.ndim - 1
    energy, other = found.energy.sum(axis), found.template_energy.sum(axis)
    wrong, other_wrong, product_wrong = (
        x.expand(torch.broadcast_shapes(x.shape, like.shape)).sum(axis)
        for x, like in (
            (errors.energy, found.energy),
            (errors.template_energy, found.template_energy),
            (errors.product, found.product),
        )
    )
    error = product_wrong / (energy * other).clamp_min(0).sqrt()
    error = error + (wrong / energy + other_wrong / other) / 2
    # Not a number, and infinite, where there is no energy.
    return ~(error <= allowed) | (energy <= 4 * wrong)


# --- from the window itself -----------------------------------------------------------------------


def chosen_windows(
    of: Weighted, chosen: Tensor, stride: Sequence[int]
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]]:
    """Positions (*lead, *output) where `chosen` is true, in batches, with their windows, templates
    and products of weights, (n, C, *window)."""
    ndim, window = of.ndim, of.window
    lead = chosen.shape[: chosen.dim() - ndim]
    output = chosen.shape[chosen.dim() - ndim :]
    core = (of.input.shape[-ndim - 1], *window)

    def windows_of(x: Tensor) -> Tensor:
        return windows(x, window, stride).expand(*lead, *output, *core)

    def of_lead(x: Tensor, place: tuple[Tensor, ...]) -> Tensor:
        x = x.expand(*lead, *core)
        return x[place[: len(lead)]] if lead else x.unsqueeze(0)

    seen = windows_of(of.input)
    there = None if of.input_weight is None else windows_of(of.input_weight)
    for part in chosen.nonzero().split(max(1, _SLAB // math.prod(core))):
        if len(part) == 0:
            return
        place = part.unbind(1)
        weight = of_lead(of.template_weights(), place)
        if there is not None:
            weight = weight * there[place]
        yield place, seen[place], of_lead(of.template, place), weight


def deviations(x: Tensor, weight: Tensor, of: Weighted) -> tuple[Tensor, Tensor]:
    """x (n, C, *window) minus its weighted means, 0 without weight; and these means (n, K, 1...).

    Equal elements deviate by exactly 0: one of them is subtracted first.
    """
    weight = weight.expand_as(x)
    axes = tuple(range(-of.ndim - of.pooled, 0))
    if not of.zero_mean:
        return kept(x, weight), x.new_zeros((1,) * x.dim())
    keep = x.shape[: x.dim() - len(axes)]
    heaviest = weight.flatten(-len(axes)).argmax(-1, keepdim=True)
    first = x.flatten(-len(axes)).gather(-1, heaviest).reshape(*keep, *(1,) * len(axes))
    deviation = kept(x - first, weight)
    total = weight.sum(axes, keepdim=True)
    total = torch.where(total > 0, total, 1.0)
    for _ in range(2):
        step = (weight * deviation).sum(axes, keepdim=True) / total
        deviation, first = kept(deviation - step, weight), first + step
    return deviation, first


def exact_moments(of: Weighted, seen: Tensor, template: Tensor, weight: Tensor) -> Moments:
    """Of windows (n, C, *window): maps (n, K)."""
    x, mean = deviations(seen, weight, of)
    t, template_mean = deviations(template.expand_as(seen), weight, of)
    axes = tuple(range(-of.ndim - of.pooled, 0))
    weight = weight.expand_as(seen)
    count, energy, other, product = (
        y.sum(axes).reshape(len(seen), -1)
        for y in (weight, weight * x * x, weight * t * t, weight * x * t)
    )
    means = (y.flatten(1).expand_as(count) for y in (mean, template_mean))
    mean, template_mean = means
    return Moments(count, mean, energy, template_mean, other, product)


def _extremes(a: Summary, b: Summary, _na: float, _nb: float) -> Summary:
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def flat_among(
    of: Weighted, doubtful: Tensor, stride: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """Windows (*lead, *output) whose elements with weight are all equal, whatever that of the
    template, and what they equal (of the first mean); None if so few windows are doubtful that it
    is quicker to compute them."""
    if int(doubtful.sum()) * math.prod(of.window) <= _MANY:
        return None
    highest = lowest = of.grouped(of.input)
    if of.input_weight is not None:
        there = of.grouped(of.input_weight) > 0
        highest, lowest = (torch.where(there, highest, edge) for edge in (-math.inf, math.inf))
    edges = highest.amax(-of.ndim - 1), lowest.amin(-of.ndim - 1)

    def compute(high: Tensor, low: Tensor) -> Summary:
        return summarise((high, low), of.window, stride, 1, _extremes)

    highest, lowest = in_slabs(edges, of.window, stride, compute)
    flat = highest <= lowest
    if not of.zero_mean:
        flat = flat & ((highest == 0) | highest.isinf())
    value = highest.select(-of.ndim - 1, 0)
    return flat.all(-of.ndim - 1).expand(doubtful.shape), value.expand(doubtful.shape)


# --- operators ------------------------------------------------------------------------------------


def _by_transforms(of: Weighted, method: str, output: Sequence[int]) -> bool:
    sizes = (of.input.shape[-of.ndim - 1], *of.window)
    if method == "auto" and math.prod(output) * math.prod(sizes) <= _SLAB:
        return False
    return by_transforms(method, sizes, of.input, of.template)


def lead_of(of: Weighted) -> tuple[int, ...]:
    tensors = (of.input, of.template, of.input_weight, of.template_weight)
    return torch.broadcast_shapes(*(x.shape[: -of.ndim - 1] for x in tensors if x is not None))


def output_of(of: Weighted, stride: Sequence[int]) -> tuple[int, ...]:
    return output_size(of.input.shape[-of.ndim :], of.window, stride)


def touched(of: Weighted, stride: Sequence[int]) -> Tensor | None:
    """Windows (*lead, *output) in which something that is not finite has weight."""
    if not bool(of.wrong.any()):
        return None
    there = (of.template_weights() > 0).to(of.input.dtype)
    wrong = of.wrong.to(of.input.dtype)
    channels = (*there.shape[: -of.ndim - 1], wrong.shape[-of.ndim - 1], *of.window)
    return transforms.correlate(wrong, there.expand(channels).contiguous(), stride) > 0.5


def weighted_ncc(
    input: Tensor,
    template: Tensor,
    input_weight: Tensor | None,
    template_weight: Tensor | None,
    stride: Sequence[int],
    zero_mean: bool,
    pooled: bool,
    eps: float,
    least: float,
    method: str,
) -> Tensor:
    """Score of each window, 0 where its weight is less than `least` of the template's."""
    ndim = len(stride)
    of = weighted(input, template, input_weight, template_weight, ndim, zero_mean, pooled)
    lead, output = lead_of(of), output_of(of, stride)
    shape = (*lead, *output)
    if 0 in shape or 0 in of.input.shape:
        return input.new_zeros(shape)
    if _by_transforms(of, method, output):
        found, errors = _sums(of, stride)
        narrow = input.dtype != torch.float64
        allowed = rounding.ALLOWED_SCORE_ERROR[torch.float32 if narrow else torch.float64]
        covered = is_covered(of, found.count, least)
        doubtful = _is_doubtful(of, found, errors, allowed) & covered
        scores = torch.where(covered, score_of(of, found, eps), 0.0).expand(shape).contiguous()
        left = score_flat(of, scores, doubtful.expand(shape), stride)
        _score_exactly(of, scores, left, stride, eps, least)
    else:
        scores = of.input.new_empty(shape)
        _score_exactly(of, scores, torch.ones_like(scores, dtype=torch.bool), stride, eps, least)
    scores.masked_fill_(of.wrong_template.expand(shape), math.nan)
    wrong = touched(of, stride)
    if wrong is not None:
        scores.masked_fill_(wrong.expand(shape), math.nan)
    return scores.to(input.dtype)


def totals_and_scales(of: Weighted, lead: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The weight of each template and the scale of each input, (*lead)."""
    total = of.total().squeeze(tuple(range(-of.ndim, 0))).expand(lead)
    return total, of.scale.flatten(-of.ndim - 1).squeeze(-1).expand(lead)


def _score_exactly(
    of: Weighted, scores: Tensor, chosen: Tensor, stride: Sequence[int], eps: float, least: float
) -> None:
    lead = scores.shape[: scores.dim() - of.ndim]
    total, scale = totals_and_scales(of, lead)
    for place, seen, template, weight in chosen_windows(of, chosen, stride):
        found = exact_moments(of, seen, template, weight)
        which = place[: len(lead)]
        count, energy, other, product = (
            y.sum(1) for y in (found.count, found.energy, found.template_energy, found.product)
        )
        score = _score(energy, other, product, eps * scale[which].square() * count)
        scores[place] = torch.where(_is_enough(count, total[which], least), score, 0.0)


def score_flat(of: Weighted, scores: Tensor, doubtful: Tensor, stride: Sequence[int]) -> Tensor:
    """Writes 0 to scores (*lead, *output) of doubtful windows that are flat, if there are many
    doubtful ones; which of these are left."""
    found = flat_among(of, doubtful, stride)
    if found is None:
        return doubtful
    flat, _ = found
    scores.masked_fill_(doubtful & flat, 0.0)
    return doubtful & ~flat


def window_statistics(of: Weighted, stride: Sequence[int], method: str, allowed: float) -> Moments:
    """Moments of all windows, (*lead, K, *output)."""
    lead, output = lead_of(of), output_of(of, stride)
    shape = (*lead, of.groups, *output)
    if _by_transforms(of, method, output):
        found, errors = _sums(of, stride)
        doubtful = _is_doubtful(of, found, errors, allowed).expand(*lead, *output)
        doubtful = doubtful & is_covered(of, found.count, 0.0)
        maps = [x.expand(shape).contiguous() for x in found.tensors()]
        found_flat = flat_among(of, doubtful, stride)
        if found_flat is not None:
            flat, _ = found_flat
            doubtful = doubtful & ~flat
            for x in (maps[2], maps[5]):
                x.masked_fill_(flat.unsqueeze(-of.ndim - 1), 0.0)
    else:
        maps = [of.input.new_empty(shape) for _ in range(6)]
        doubtful = torch.ones((*lead, *output), dtype=torch.bool, device=of.input.device)
    level = of.level.flatten(-of.ndim).sum(-1).expand(*lead, of.groups)
    for place, seen, template, weight in chosen_windows(of, doubtful, stride):
        exact = exact_moments(of, seen, template, weight)
        which = place[: len(lead)]
        relative = exact.mean - (level[which] if lead else level)
        values = (exact.count, relative, *exact.tensors()[2:])
        for x, value in zip(maps, values, strict=True):
            x.movedim(-of.ndim - 1, -1)[place] = value
    return Moments(*maps)
