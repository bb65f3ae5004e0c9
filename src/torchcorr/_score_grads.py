"""Both gradients of a score through transforms, tile by tile; registered for the CPU.

One transform of the upstream gradient serves both. In the input's own precision where an estimate
of its noise lies below what is promised, beside the largest element of the gradient; otherwise
all is computed again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _choose, _reference
from ._ops import kernels as ops
from ._ops import library
from ._overlap_save import back, forth
from ._scores import TiledScores
from ._tile_ops import new_map

# Of a transform's result: this many roundings times what it would be if nothing cancelled.
_NOISE = 10.0
# Error of the float32 score that a gradient is taken from, and what the gradient may be off,
# beside its largest element.
_SCORE_ERROR = 8e-6
_ALLOWED = 1e-4


class _Gradients(TiledScores):
    """One call in one precision."""

    def __init__(
        self,
        grad: Tensor,
        input: Tensor,
        template: Tensor,
        score: Tensor,
        stride: Sequence[int],
        zero_mean: bool,
        eps: float,
        need_input: bool,
        need_template: bool,
        wide: bool,
    ) -> None:
        super().__init__("fft", input, template, stride, zero_mean, eps)
        leads, ndim = self.problem.leads, len(self.stride)
        self.grad = leads.output(grad, ndim).contiguous()
        self.score = leads.output(score, ndim).contiguous()
        self.wide = wide
        self.working = torch.float64 if wide else input.dtype
        self.again = wide and input.dtype != torch.float64
        shape = (*self.template.shape[:3], *self.tiling.length)
        self.spectrum = self.template.new_zeros(shape, dtype=self.working.to_complex())
        self.offset = self.template.new_zeros(self.template.shape[:2])
        self.for_input = new_map(self.input, self.input.shape).zero_() if need_input else None
        self.need_template = need_template
        self.noise_input, self.noise_template = 0.0, 0.0

    def run(self) -> Tensor:
        raise NotImplementedError("gradients come from `both`")

    def both(self) -> bool:
        """Computes both; False if they are too noisy or a tile needs float64."""
        for pairs, ids in _choose.batches(self.problem, self.plan):
            groups, each = pairs.stop - pairs.start, len(ids) // (pairs.stop - pairs.start)
            for k in range(groups):
                own = ids[k * each : (k + 1) * each]
                if not self._tiles_of(pairs.start + k, own):
                    return False
        return self.wide or self._quiet()

    def _tiles_of(self, pair: int, ids: list[int]) -> bool:
        tiles, stats = self.tiles(ids, self.zero_mean, self.wide)
        if self.wide:
            norms, means = self.wide_norms(ids, stats)
        else:
            norms, hard, means = self.norms(ids, stats, True)
            if hard or not bool((stats[:, 3] != 0).all()):
                return False
        place = (self.input, ids, self.geometry, self.window, self.stride)
        ops.repair_norms(norms, means, stats, *place, self.zero_mean, self.eps)
        ndim = len(self.stride)
        seen = None
        if self.need_template or self.again:
            lines = torch.view_as_complex(tiles)
            seen = forth(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])
        del tiles
        square, mean = torch.zeros_like(norms), torch.zeros_like(norms)
        through: Tensor | None = None
        for first in range(0, self.template.shape[1], self.plan.templates):
            last = min(first + self.plan.templates, self.template.shape[1])
            weights = self.spectra.part(self.working, slice(pair, pair + 1), first, last)[0]
            score = self.score
            if self.again and seen is not None:
                score = self._scores(seen, weights, norms)
            alpha, sums = ops.tile_upstream(
                self.grad,
                score,
                norms,
                means,
                ids,
                self.geometry,
                self.stride,
                float(self.count),
                first,
                last - first,
                self.again,
                square,
                mean,
            )
            # The upstream's conjugate spectrum: with the input's spectrum it gives the
            # template's gradient, with the template's conjugate one that of the input, conjugate.
            lines = torch.view_as_complex(alpha)
            found = back(lines.flatten(0, 1), ndim).unflatten(0, lines.shape[:2])
            del alpha, lines
            if seen is not None and self.need_template:
                total = self.spectrum[pair, first:last]
                for one, upstream in zip(seen, found, strict=True):
                    torch.addcmul(total, one, upstream.unsqueeze(1), out=total)
                self.offset[pair, first:last] += sums[..., 1].sum(0)
            self._note(sums, stats)
            if self.for_input is not None:
                through = self._through(found, weights, through)
        if self.for_input is not None and through is not None:
            lead = through.shape[:2]
            result = torch.view_as_real(forth(through.flatten(0, 1), ndim).unflatten(0, lead))
            ops.tile_input_grad(result, square, mean, stats, *place, self.for_input)
        return True

    def _through(self, found: Tensor, weights: Tensor, total: Tensor | None) -> Tensor:
        """(pairs, C, ...): products of upstream and template spectra, summed over templates."""
        if total is None and found.shape[1] == 1 and weights.shape[1] == 1:
            return found.mul_(weights)
        start = 0
        if total is None:
            total, start = found[:, :1] * weights[0], 1
        for k in range(start, found.shape[1]):
            torch.addcmul(total, found[:, k : k + 1], weights[k], out=total)
        return total

    def _scores(self, seen: Tensor, weights: Tensor, norms: Tensor) -> Tensor:
        """Scores of these tiles again, in float64."""
        product = (seen.unsqueeze(1) * weights).sum(2)
        lines = back(product.flatten(0, 1), len(self.stride))
        found = (
            torch.view_as_real(lines.unflatten(0, product.shape[:2])).movedim(-1, 1).flatten(0, 1)
        )
        at = tuple(
            slice(0, (m - 1) * s + 1, s)
            for m, s in zip(self.tiling.outputs, self.stride, strict=True)
        )
        return (found[(..., *at)] * norms.unsqueeze(1)).clamp(-1, 1).contiguous()

    def _note(self, sums: Tensor, stats: Tensor) -> None:
        """Adds up how much noise these tiles bring in."""
        unit = torch.finfo(self.working).eps / 2
        n, count = math.prod(self.tiling.length), self.count
        power = sums[..., 0].sum(1)
        root = power.unflatten(0, (-1, 2)).sum(1).div(n).sqrt().repeat_interleave(2)
        score = torch.maximum(4 * sums[..., 2].amax(1), 5 * root * math.sqrt(count))
        found = stats[:, 1] * (_NOISE * unit * root * count + _SCORE_ERROR * score)
        self.noise_input = max(self.noise_input, float(found.amax()))
        both = stats[:, 2].unflatten(0, (-1, 2)).sum(1)
        self.noise_template += float((both * power.unflatten(0, (-1, 2)).sum(1)).sum())

    def template_grad(self) -> Tensor:
        """(paired, templates, C, *window) in float64, before the standardisation."""
        ndim = len(self.stride)
        wanted = (..., *(slice(0, k) for k in self.window))
        lead = self.spectrum.shape[:3]
        found = back(self.spectrum.flatten(0, 2), ndim).unflatten(0, lead).real[wanted]
        found = found.to(torch.float64) / math.prod(self.tiling.length)
        return found - self.offset[(..., *(None,) * (len(self.stride) + 1))]

    def _quiet(self) -> bool:
        """Whether the noise is below what is allowed."""
        if self.for_input is not None:
            most = max(abs(float(x)) for x in torch.aminmax(self.for_input))
            if not self.noise_input <= _ALLOWED * most:
                return False
        if self.need_template:
            axes = tuple(range(-len(self.stride) - 1, 0))
            found, weights = self.template_grad(), self.template
            largest = float(found.abs().amax())
            # What the standardisation leaves of it is what is promised.
            if self.zero_mean:
                found = found - found.mean(axes, keepdim=True)
            found = found - weights * (found * weights).mean(axes, keepdim=True)
            unit = torch.finfo(self.working).eps / 2
            noise = _NOISE * unit * (3 * math.sqrt(self.noise_template) + largest)
            if not noise <= _ALLOWED * float(found.abs().amax()):
                return False
        return True


def _grads(
    grad: Tensor,
    input: Tensor,
    template: Tensor,
    score: Tensor,
    stride: Sequence[int],
    zero_mean: bool,
    eps: float,
    need_input: bool,
    need_template: bool,
) -> tuple[Tensor, Tensor]:
    args = (grad, input, template, score, stride, zero_mean, eps, need_input, need_template)
    if grad.numel() == 0 or input.numel() == 0 or template.numel() == 0:
        return _reference.ncc_grads(*args)
    call = _Gradients(*args, wide=input.dtype == torch.float64)
    if not call.both():
        call = _Gradients(*args, wide=True)
        call.both()
    leads, core = call.problem.leads, len(stride) + 1
    for_input, for_template = input.new_empty(0), template.new_empty(0)
    if call.for_input is not None:
        for_input = leads.input_restored(call.for_input, tuple(input.shape), core)
    if need_template:
        found = call.template_grad().to(template.dtype)
        for_template = leads.template_restored(found, tuple(template.shape), core)
    return for_input, for_template


library.impl("ncc_fft_grads", _grads, "CPU")
