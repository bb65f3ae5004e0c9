"""Weighted scores in tiles: those of masks, and of channels with a mean each.

Channels with a mean each but no weights take the pass of other scores. Where transforms are quicker
than loops, all sums of a window that has weights are transforms. The sums of a few runs of equal
weights, and of channels with a mean each under one mask of the template, are differences of totals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _contract
from .._contract.weighted import grads_by_kernels
from .._definition import weighted as definition
from .._definition.correlate import all_finite
from .._definition.scores import ScoreGradCall
from .._definition.weights import Weighted, kept, weighted
from .._plan import rounding
from .._plan.choose import arrange, arrange_masked, blocks
from .._plan.dtypes import widen
from .._plan.tiling import TileBatch, Tiling
from . import bytes, dense_scores, steps
from .rules import MaskedRule
from .score_grads import score_grads
from .scores import LIMITS_OF_LOOP, Scores
from .threads import without_late_threads

# Elements of windows that are computed from their definition; sums along runs of the template's
# weights take less time than more of them. And how many take as long as the sums of a run.
_EXACT = 1 << 27
_EXACT_OF_RUN = 0.3
# Elements whose gradients are computed at once: some 250 bytes are kept of each.
_AT_ONCE = 1 << 17


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
    ndim = len(stride)
    channels, window = input.shape[-ndim - 1], template.shape[-ndim:]
    tensors = (input, template, input_weight, template_weight)
    own_means = zero_mean and not pooled and channels > 1
    empty = 0 in (input.numel(), template.numel())
    by_definition = (*tensors, stride, zero_mean, pooled, eps, least, method)
    if own_means and input_weight is None and template_weight is None and not empty:
        scores = _own_means(input, template, stride, eps, method)
        return definition.weighted_ncc(*by_definition) if scores is None else scores
    if empty or not (_is_finite(template, template_weight) and _is_finite(input, input_weight)):
        return definition.weighted_ncc(*by_definition)
    call = arrange(
        input.shape,
        template.shape,
        stride,
        method,
        normalised=True,
        dtype=input.dtype,
        device="cpu",
    )
    one_mask = template_weight is None or template_weight.numel() == math.prod(window)
    alone = input_weight is None and one_mask
    if method != "direct" and not (alone and (own_means or call.plan.method == "direct")):
        most = _most_exact(template_weight, call.tiling.positions) if alone else math.inf
        scores = _masked(tensors, stride, zero_mean, pooled, eps, least, most)
        if scores is not None:
            return scores
    if not alone:
        return definition.weighted_ncc(*by_definition)
    coefficients, factor = _coefficients(template, template_weight, ndim, zero_mean, pooled)
    mask = template.new_ones(window) if template_weight is None else template_weight
    weights = [factor, float(own_means)]
    mask = mask.to(torch.float64).reshape(window).contiguous()
    in_loop = Scores(input, coefficients, call, zero_mean, eps, masked=True)
    return in_loop.run(None, mask, weights)


def _own_means(
    input: Tensor, template: Tensor, stride: Sequence[int], eps: float, method: str
) -> Tensor | None:
    """Scores of joint channels without weights, whose templates sum to 0 in each channel; None if a
    template is not finite."""
    ndim = len(stride)
    if input.dtype == torch.float32:
        exact = bytes.ncc(input, template, stride, True, eps, method, own_means=True)
        if exact is not None:
            return exact
    standard = steps.standardise_channels(_channels_of(template, ndim)).reshape(template.shape)
    sizes = (input.shape, template.shape, stride, method)
    call = arrange(*sizes, normalised=True, dtype=input.dtype, device="cpu")
    found = dense_scores.scores(input, standard, call, (True, True, eps), LIMITS_OF_LOOP)
    if found is not None:
        return found
    if not all_finite(template):
        return None
    return Scores(input, standard, call, True, eps, own_means=True).run()


def _most_exact(weight: Tensor | None, positions: Sequence[int]) -> float:
    if weight is None:
        return _EXACT
    rows = weight.numel() // weight.shape[-1]
    runs = rows + int((weight[..., 1:] != weight[..., :-1]).sum())
    return max(_EXACT, _EXACT_OF_RUN * runs * math.prod(positions))


def _is_finite(x: Tensor, weight: Tensor | None) -> bool:
    """Whether what has weight is finite."""
    return all_finite(x) or (weight is not None and all_finite(kept(x, weight)))


def _masked(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    stride: Sequence[int],
    zero_mean: bool,
    pooled: bool,
    eps: float,
    least: float,
    most: float,
) -> Tensor | None:
    """Scores by transforms of tiles; those that rounding of float64 transforms may spoil by their
    definition, or None if these windows have more than `most` elements."""
    input, template, g, m = tensors
    ndim, core = len(stride), len(stride) + 1
    if g is not None:
        lead = torch.broadcast_shapes(input.shape[:-core], g.shape[:-core])
        input, g = (x.expand(*lead, *input.shape[-core:]) for x in (input, g))
    if m is not None:
        lead = torch.broadcast_shapes(template.shape[:-core], m.shape[:-core])
        template = template.expand(*lead, *template.shape[-core:])
    call = arrange_masked(input.shape, template.shape, stride, dtype=input.dtype, device="cpu")
    leads = call.problem.leads
    shape = (leads.paired * leads.inputs, leads.templates, *call.tiling.positions)
    own_means = zero_mean and not pooled and input.shape[-core] > 1
    products = _factors(template, m, ndim, zero_mean, not own_means)
    factors = [leads.template(y, core).contiguous() for y in products]
    x, there = (None if y is None else leads.input(y, core).contiguous() for y in (input, g))
    out = steps.new_map(input, shape)
    doubtful = torch.zeros(shape, dtype=torch.uint8)
    share = definition.share_of(least)
    allowed = rounding.ALLOWED_SCORE_ERROR[input.dtype]
    rule = MaskedRule(zero_mean, eps, share, allowed, own_means)
    batch = TileBatch(call.tiling, []).numbers
    for block in blocks(call.problem, call.plan):
        numbers = (batch, block.numbers, rule.numbers)
        steps.score_masked_tiles(x, there, factors, *numbers, out, doubtful)
    scores, left = (leads.restored(y, ndim) for y in (out, doubtful))
    if not bool(left.any()):
        return scores
    of = weighted(*tensors, ndim, zero_mean, pooled)
    wide = widen(scores).contiguous()
    if int(left.sum()) * math.prod(template.shape[-core:]) > most:
        return None
    _score_exactly(of, wide, left > 0, stride, eps, least)
    return wide.to(input.dtype)


def _score_exactly(
    of: Weighted, scores: Tensor, chosen: Tensor, stride: Sequence[int], eps: float, least: float
) -> None:
    """Writes the scores (*lead, *output) of some windows from the windows themselves."""
    lead = scores.shape[: scores.dim() - of.ndim]
    tensors = (of.input, of.input_weight, of.template, of.template_weight)
    items = [_items(x, of.ndim, lead) for x in tensors]
    x, g, t, m = (
        None if y is None else y.reshape(-1, *y.shape[-of.ndim - 1 :]).contiguous() for y in tensors
    )
    total, scale = definition.totals_and_scales(of, lead)
    numbers = (eps * scale.square(), definition.share_of(least) * total)
    of_lead = [y.reshape(-1).contiguous() for y in numbers]
    places = chosen.reshape(-1, *chosen.shape[len(lead) :]).nonzero().contiguous()
    how = (stride, places, of_lead, of.zero_mean, of.pooled)
    exact = steps.score_weighted_windows(x, g, t, m, items, *how)
    scores.view(-1, *scores.shape[len(lead) :])[places.unbind(1)] = exact


def _items(x: Tensor | None, ndim: int, lead: Sequence[int]) -> Tensor:
    """Where the values of each leading index lie among the flattened ones of x."""
    if x is None:
        return torch.empty(0, dtype=torch.long)
    own = x.shape[: -ndim - 1]
    return torch.arange(math.prod(own)).reshape(own).expand(lead).reshape(-1).contiguous()


def _factors(
    template: Tensor, weight: Tensor | None, ndim: int, zero_mean: bool, pooled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What sums are correlations with: the template times its weights, these, and its squares. The
    template has the leading axes of its weights."""
    core = template.shape[-ndim - 1 :]
    groups = 1 if pooled else core[0]
    form = (-1, groups, math.prod(core) // groups)
    lead = template.shape[: -ndim - 1]
    weights = template.new_ones((1, *core[1:])) if weight is None else weight
    if math.prod(weights.shape[: -ndim - 1]) == 1:  # the same for all templates
        weights = weights.reshape(weights.shape[-ndim - 1 :]).expand(core)
    else:
        weights = weights.expand(*lead, *core)
    by = None if weight is None else weights.reshape(form)
    found = steps.weigh_templates(template.reshape(form), by, zero_mean)
    products, energies = (x.reshape(*lead, *core) for x in found)
    return products, widen(weights), energies


def _coefficients(
    template: Tensor, weight: Tensor | None, ndim: int, zero_mean: bool, pooled: bool
) -> tuple[Tensor, float]:
    """What the input is correlated with, and what norms 1 / sqrt(energy) are multiplied by.

    The mean square is at most 1, and 1 for weights of 0 and 1, so that rounding is estimated as for
    scores without weights.
    """
    x = template.new_zeros((template.shape[-ndim - 1], *template.shape[-ndim:]))
    of = weighted(x, template, None, weight, ndim, zero_mean, pooled)
    axes = tuple(range(-ndim - 1, 0))
    products = of.template_weights() * of.template
    energy = (products * of.template).sum(axes, keepdim=True)
    count = math.prod(template.shape[-ndim - 1 :])
    largest = 1.0 if weight is None else float(weight.max())
    size = torch.where(energy > 0, energy, 1.0).sqrt() * math.sqrt(largest / count)
    wrong = of.wrong_template.unsqueeze(-1)
    return torch.where(wrong, math.nan, products / size), math.sqrt(largest / count)


def weighted_ncc_grads(
    grad: Tensor,
    score: Tensor,
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
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    alone = input_weight is None and template_weight is None and zero_mean and not pooled
    if alone and 0 not in (grad.numel(), input.numel(), template.numel()):
        form = _channels_of(template, len(stride))
        standard = steps.standardise_channels(form).reshape(template.shape)
        how = (stride, zero_mean, eps, method, needed[0], needed[1])
        found = score_grads(ScoreGradCall(grad, input, standard, score, *how), True)
        if found is not None:
            for_input, for_template = found
            if needed[1]:
                for_template = steps.standardise_channels_grad(form, for_template)
                for_template = for_template.reshape(template.shape)
            return for_input, for_template, grad.new_empty(0), grad.new_empty(0)
    args = (grad, score, input, template, input_weight, template_weight)
    options = (stride, zero_mean, pooled, eps, least, method, needed)
    return _grads_in_parts(args, options)


def _grads_in_parts(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    how: tuple[Sequence[int], bool, bool, float, float, str, Sequence[bool]],
) -> tuple[Tensor, ...]:
    """Gradients are sums over windows: those of some windows after the other, so that what is kept
    of all sums in float64 has a bound."""
    grad, score, input, template, input_weight, template_weight = tensors
    stride, needed = how[0], how[-1]
    ndim = len(stride)
    size, window = input.shape[-ndim:], template.shape[-ndim:]
    lead = math.prod(grad.shape[: grad.dim() - ndim]) * input.shape[-ndim - 1]
    side = int((_AT_ONCE / max(1, lead)) ** (1 / ndim))
    grid = [
        math.ceil(n / max(1, (max(side, 2 * k) - k) // s + 1))
        for n, k, s in zip(grad.shape[-ndim:], window, stride, strict=True)
    ]
    if math.prod(grid) == 1 or grad.numel() == 0:
        return grads_by_kernels(*tensors, *how)
    tiling = Tiling.cut(size, window, stride, grid, fast=False)
    found = [
        grad.new_zeros(x.shape if x is not None and wanted else (0,), dtype=dtype)
        for x, wanted, dtype in (
            (input, needed[0], input.dtype),
            (template, needed[1], torch.float64),
            (input_weight, needed[2], input.dtype),
            (template_weight, needed[3], torch.float64),
        )
    ]
    for tile in range(tiling.tiles):
        seen, to = ((..., *slices) for slices in tiling.slices(tile))
        there = None if input_weight is None else input_weight[seen].contiguous()
        part = (grad[to].contiguous(), score[to].contiguous(), input[seen].contiguous())
        grads = grads_by_kernels(*part, template, there, template_weight, *how)
        for i, (whole, of_part) in enumerate(zip(found, grads, strict=True)):
            if needed[i] and whole.numel() > 0:
                target = whole[seen] if i in (0, 2) else whole
                target += of_part
    dtypes = (input, template, input_weight, template_weight)
    return tuple(y if x is None else y.to(x.dtype) for x, y in zip(dtypes, found, strict=True))


def _channels_of(template: Tensor, ndim: int) -> Tensor:
    """Templates as (K, C, n)."""
    core = template.shape[-ndim - 1 :]
    return template.reshape(-1, core[0], math.prod(core[1:]))


def register() -> None:
    _contract.weighted_ncc.implement(without_late_threads(weighted_ncc), "CPU")
    _contract.weighted_ncc_grads.implement(without_late_threads(weighted_ncc_grads), "CPU")
