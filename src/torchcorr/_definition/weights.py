"""A pair of tensors and the weights of their elements, as sums over windows take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._plan.dtypes import widen
from .sums import mean_over, sum_over

# Share of the template's weight that counts as none: what rounding leaves of sums of weights.
NOTHING = 1e-9


class Weighted(NamedTuple):
    """A pair and its weights in float64, as products and sums take them.

    Inputs are (*lead, C, *size), templates (*lead, C, *window), weights the same or with one
    channel; None stands for weights of 1. What has no weight, or is not finite, is 0.
    """

    input: Tensor  # times `scale`; its level is not subtracted
    template: Tensor  # times a power of two, minus its means
    input_weight: Tensor | None
    template_weight: Tensor | None
    scale: Tensor  # (*lead, 1, 1, ..., 1), a power of two
    level: Tensor  # (*lead, C or 1, 1, ..., 1)
    template_scale: Tensor  # of the template, as of the input
    template_level: Tensor
    wrong: Tensor  # where the input has weight and is not finite
    wrong_template: Tensor  # (*lead, 1, ..., 1): whether a template has such an element
    ndim: int
    zero_mean: bool
    pooled: bool  # one mean for all channels

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.template.shape[-self.ndim :])

    @property
    def groups(self) -> int:
        """How many means there are: one of each channel, or one of all."""
        return 1 if self.pooled else int(self.input.shape[-self.ndim - 1])

    def over_channels(self, count: Tensor) -> Tensor:
        """The weight of windows, (*lead, 1, *output); a single map stands for all channels."""
        axis = -self.ndim - 1
        return count.sum(axis, keepdim=True) * (self.groups / count.shape[axis])

    def grouped(self, x: Tensor) -> Tensor:
        """x with the axes of channels that share no mean, and of those that do, for its one."""
        if not self.pooled:
            return x.unsqueeze(-self.ndim - 1)
        sizes = list(x.shape)
        sizes[-self.ndim - 1] = self.input.shape[-self.ndim - 1]
        return x.expand(sizes).unsqueeze(-self.ndim - 2)

    def ungrouped(self, x: Tensor) -> Tensor:
        return x.squeeze(-self.ndim - 2 if self.pooled else -self.ndim - 1)

    def centred(self) -> Tensor:
        """The input minus its level, 0 where it has no weight."""
        return kept(self.input - self.level, self.input_weight)

    def template_weights(self) -> Tensor:
        if self.template_weight is not None:
            return self.template_weight
        return self.input.new_ones((1, *self.window))

    def total(self) -> Tensor:
        """The weight of each template, (*lead, 1, ..., 1) for maps without channels."""
        weights = self.template_weights()
        axes = tuple(range(-self.ndim, 0))
        total = sum_over(weights, (-self.ndim - 1, *axes)).squeeze(-self.ndim - 1)
        return total * (self.input.shape[-self.ndim - 1] / weights.shape[-self.ndim - 1])


def kept(x: Tensor, weight: Tensor | None) -> Tensor:
    """x where it has weight, 0 elsewhere."""
    return x if weight is None else torch.where(weight > 0, x, 0.0)


def _means(x: Tensor, weight: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """Over axes that are kept; 0 without weight."""
    if weight is None:
        return mean_over(x, axes)
    weight = weight.expand(torch.broadcast_shapes(weight.shape, x.shape))
    total = sum_over(weight, axes)
    return sum_over(weight * x, axes) / torch.where(total > 0, total, 1.0)


def _power_of_two(x: Tensor, ndim: int) -> Tensor:
    """What brings the largest element of each item to at most 1, (*lead, 1, 1, ..., 1)."""
    largest = x.abs().amax(tuple(range(-ndim - 1, 0)), keepdim=True)
    exponent = torch.frexp(torch.where(largest > 0, largest, 1.0)).exponent
    return torch.ldexp(torch.ones_like(largest), -exponent)


def _is_flat(x: Tensor, weight: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    if weight is None:
        return x.amax(axes, keepdim=True) == x.amin(axes, keepdim=True)
    highest = torch.where(weight > 0, x, -math.inf).amax(axes, keepdim=True)
    return highest <= torch.where(weight > 0, x, math.inf).amin(axes, keepdim=True)


def weighted(
    input: Tensor,
    template: Tensor,
    input_weight: Tensor | None,
    template_weight: Tensor | None,
    ndim: int,
    zero_mean: bool,
    pooled: bool,
) -> Weighted:
    """Levels, means and scales are constants, on which neither scores nor gradients depend."""
    g = None if input_weight is None else widen(input_weight)
    m = None if template_weight is None else widen(template_weight)
    axes = tuple(range(-ndim - pooled, 0))
    x, t = kept(widen(input), g), kept(widen(template), m)
    wrong = ~torch.isfinite(x)
    x = torch.where(wrong, 0.0, x)
    finite = torch.isfinite(t)
    wrong_template = (~finite).flatten(-ndim - 1).any(-1)[(..., *(None,) * ndim)]
    t = torch.where(finite, t, 0.0)
    scale = _power_of_two(x.detach(), ndim)
    template_scale = _power_of_two(t.detach(), ndim)
    x, t = x * scale, t * template_scale
    level = template_level = x.new_zeros((1,) * (ndim + 1))
    if zero_mean:
        level = _means(x.detach(), g, axes).detach()
        flat = _is_flat(t.detach(), m, axes)
        # Twice: the first mean is rounded in units of the offset, the second of the contrast.
        for _ in range(2):
            step = _means(t.detach(), m, axes).detach()
            t, template_level = kept(t - step, m), template_level + step
        t = torch.where(flat, 0.0, t)
    scales = (scale, level, template_scale, template_level)
    return Weighted(x, t, g, m, *scales, wrong, wrong_template, ndim, zero_mean, pooled)


@dataclass(frozen=True)
class Moments:
    """Of each window, over its weights: maps (*lead, K, *output), K the channels or 1 if pooled.

    Means are relative to the input's level and to the template's mean, energies sums of squares
    about the means, `product` the sum of products of both deviations.
    """

    count: Tensor
    mean: Tensor
    energy: Tensor
    template_mean: Tensor
    template_energy: Tensor
    product: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.__dict__.values())

    @classmethod
    def of_sums(
        cls, count: Tensor, divisor: Tensor, first: Sequence[Tensor], second: Sequence[Tensor]
    ) -> Moments:
        """From sums of both inputs, of their squares and of their products.

        `divisor` is the count, or any other number where that is nothing.
        """
        (total, other), (square, energy, product) = first, second
        mean, other_mean = total / divisor, other / divisor
        return cls(
            count,
            mean,
            square - total * mean,
            other_mean,
            energy - other * other_mean,
            product - total * other_mean,
        )
