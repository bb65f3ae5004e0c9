"""Sub-lattices of a convolution with stride and dilation: arithmetic on sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .shapes import Ints


def positions_of(
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Ints:
    """Positions along each axis of a convolution layer."""
    axes = zip(size, window, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


class Lattices(NamedTuple):
    """How a convolution divides into dense ones (docs/math.md, eq. lattices), an entry an axis.

    Position ``phases * q + r`` reads the padded input at ``stride * r + dilation * b + period * j``
    with the weight ``steps * a + b``, where ``j = q + a``: for every phase r a convolution with
    stride 1 over the channels of all steps b.
    """

    size: Ints
    window: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    positions: Ints
    phases: Ints  # residue classes of positions, which become items
    steps: Ints  # sub-lattices of the weight, which become channels
    period: Ints  # from one element of a sub-lattice to the next
    taps: Ints  # elements of a sub-lattice of the weight
    rows: Ints  # positions of a phase

    @classmethod
    def of(
        cls,
        size: Sequence[int],
        window: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Lattices:
        positions = positions_of(size, window, stride, padding, dilation)
        # An axis with one tap or one position has no dilation or no stride to speak of.
        step = [1 if n == 1 else s for n, s in zip(positions, stride, strict=True)]
        apart = [1 if k == 1 else d for k, d in zip(window, dilation, strict=True)]
        pairs = list(zip(step, apart, strict=True))
        phases = tuple(d // math.gcd(s, d) for s, d in pairs)
        # A weight with fewer taps than steps has as many sub-lattices as taps.
        sizes = zip(pairs, window, strict=True)
        steps = tuple(min(s // math.gcd(s, d), k) for (s, d), k in sizes)
        return cls(
            size=tuple(size),
            window=tuple(window),
            stride=tuple(step),
            padding=tuple(padding),
            dilation=tuple(apart),
            positions=positions,
            phases=phases,
            steps=steps,
            period=tuple(math.lcm(s, d) for s, d in pairs),
            taps=tuple(-(-k // b) for k, b in zip(window, steps, strict=True)),
            rows=tuple(-(-n // r) for n, r in zip(positions, phases, strict=True)),
        )

    @property
    def trivial(self) -> bool:
        """Whether the convolution is dense as it is."""
        return max(self.period) == 1

    @property
    def dense(self) -> Ints:
        """Elements along each axis of a sub-lattice of the input."""
        return tuple(n + k - 1 for n, k in zip(self.rows, self.taps, strict=True))

    @property
    def extent(self) -> Ints:
        """Elements of the padded input that the sub-lattices span."""
        axes = zip(
            self.stride,
            self.phases,
            self.dilation,
            self.steps,
            self.period,
            self.dense,
            strict=True,
        )
        return tuple(s * (r - 1) + d * (b - 1) + p * (n - 1) + 1 for s, r, d, b, p, n in axes)
