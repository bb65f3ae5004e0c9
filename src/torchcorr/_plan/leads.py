"""Leading axes that broadcast: those of the input, those of the template and those of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .shapes import Ints


@dataclass(frozen=True)
class Leads:
    """Leading axes that broadcast, sorted: paired ones, those of the input, those of the template.

    An input becomes (paired * inputs, C, *size), a template (paired, templates, C, *window), a
    score map (paired * inputs, templates, *positions); nothing is expanded.
    """

    lead: Ints  # the broadcast leading axes
    order: Ints  # their order when sorted
    kinds: Ints  # of each axis: 0 paired, 1 of the input, 2 of the template
    paired: int
    inputs: int
    templates: int

    @classmethod
    def of(cls, input_lead: Sequence[int], template_lead: Sequence[int]) -> Leads:
        rank = max(len(input_lead), len(template_lead))
        a = (1,) * (rank - len(input_lead)) + tuple(input_lead)
        b = (1,) * (rank - len(template_lead)) + tuple(template_lead)
        lead = tuple(m if n == 1 else n for n, m in zip(a, b, strict=True))
        paired = [i for i in range(rank) if a[i] != 1 and b[i] != 1]
        templates = [i for i in range(rank) if a[i] == 1 and b[i] != 1]
        inputs = [i for i in range(rank) if i not in paired and i not in templates]
        sizes = [math.prod(lead[i] for i in axes) for axes in (paired, inputs, templates)]
        kinds = tuple(0 if i in paired else 1 if i in inputs else 2 for i in range(rank))
        return cls(lead, (*paired, *inputs, *templates), kinds, *sizes)

    @cached_property
    def are_sorted(self) -> bool:
        return list(self.order) == sorted(self.order)

    @cached_property
    def sorted_lead(self) -> Ints:
        """The leading axes of a score map before it is `restored`."""
        return tuple(self.lead[i] for i in self.order)

    def _sorted(self, x: Tensor, core: int) -> Tensor:
        if not self.are_sorted:
            missing = len(self.order) + core - x.dim()
            x = x.reshape((1,) * missing + tuple(x.shape))
            x = x.permute(*self.order, *range(len(self.order), len(self.order) + core))
        return x

    def input(self, x: Tensor, core: int) -> Tensor:
        """(*input lead, *core) as (paired * inputs, *core)."""
        if x.dim() == core:
            return x.unsqueeze(0)
        tail = x.shape[x.dim() - core :]
        return self._sorted(x, core).reshape(self.paired * self.inputs, *tail)

    def input_in_place(self, x: Tensor, core: int) -> Tensor:
        """The same items, (*sorted input lead, *core), whatever their strides; at least one axis is
        before the core."""
        return x.unsqueeze(0) if x.dim() == core else self._sorted(x, core)

    def template(self, x: Tensor, core: int) -> Tensor:
        """(*template lead, *core) as (paired, templates, *core)."""
        if x.dim() == core:
            return x.reshape(1, 1, *x.shape)
        tail = x.shape[x.dim() - core :]
        return self._sorted(x, core).reshape(self.paired, self.templates, *tail)

    def output(self, x: Tensor, core: int) -> Tensor:
        """(*lead, *core) as (paired * inputs, templates, *core)."""
        tail = x.shape[x.dim() - core :]
        return self._sorted(x, core).reshape(self.paired * self.inputs, self.templates, *tail)

    def restored(self, x: Tensor, core: int) -> Tensor:
        """(paired * inputs, templates, *core), or (*sorted_lead, *core), as (*lead, *core)."""
        shape = (*self.sorted_lead, *x.shape[x.dim() - core :])
        return self._unsorted(x if x.shape == shape else x.reshape(shape), core)

    def _unsorted(self, x: Tensor, core: int) -> Tensor:
        rank = len(self.order)
        if self.are_sorted:
            return x
        inverse = sorted(range(rank), key=self.order.__getitem__)
        return x.permute(*inverse, *range(rank, rank + core)).contiguous()

    def input_restored(self, x: Tensor, shape: Ints, core: int) -> Tensor:
        """(paired * inputs, *core) in the shape of the original input."""
        sizes = [1 if self.kinds[i] == 2 else self.lead[i] for i in self.order]
        return self._unsorted(x.reshape(*sizes, *x.shape[1:]), core).reshape(shape)

    def template_restored(self, x: Tensor, shape: Ints, core: int) -> Tensor:
        """(paired, templates, *core) in the shape of the original template."""
        sizes = [1 if self.kinds[i] == 1 else self.lead[i] for i in self.order]
        return self._unsorted(x.reshape(*sizes, *x.shape[2:]), core).reshape(shape)
