"""Sizes, pads and positions: arithmetic on shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

Ints = tuple[int, ...]


def output_size(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Ints:
    """Number of valid positions along each window axis."""
    return tuple((n - k) // s + 1 for n, k, s in zip(size, window, stride, strict=True))


def dilated_size(output: Sequence[int], stride: Sequence[int]) -> Ints:
    """Extent of an output with stride - 1 zeros between its values."""
    return tuple((n - 1) * s + 1 for n, s in zip(output, stride, strict=True))


def padding(mode: str, window: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Elements to add before and after each window axis so that `valid` becomes `mode`.

    `full` adds the window less one element on both sides; `same`, as in SciPy, is its centre.
    """
    if mode == "valid":
        return tuple((0, 0) for _ in window)
    if mode == "same":
        return tuple((k // 2, (k - 1) // 2) for k in window)
    return tuple((k - 1, k - 1) for k in window)


def pads_around(mode: str, window: Sequence[int]) -> Ints:
    """`padding` of each axis in turn, as numbers one after another."""
    return tuple(n for pair in padding(mode, window) for n in pair)


def border_pads(border: str, window: Sequence[int]) -> list[tuple[int, int]]:
    """Elements that windows reach past an input, before and behind it along each axis."""
    return list(padding("valid" if border == "valid" else "same", window))


def windows_at(
    border: str, size: Sequence[int], window: Sequence[int], stride: Sequence[int]
) -> Ints:
    """Number of windows along each axis."""
    reach = [before + behind for before, behind in border_pads(border, window)]
    return output_size([n + r for n, r in zip(size, reach, strict=True)], window, stride)


def offsets(window: Sequence[int]) -> Iterator[Ints]:
    """Every position inside a window, in raster order."""
    return itertools.product(*(range(k) for k in window))


def positions(
    offset: Sequence[int], output: Sequence[int], stride: Sequence[int]
) -> tuple[slice, ...]:
    """The input elements at `offset` in every window, as one slice an axis."""
    return tuple(
        slice(v, v + (n - 1) * s + 1, s) for v, n, s in zip(offset, output, stride, strict=True)
    )


def fast_length(n: int) -> int:
    """Smallest length of at least n without a prime factor above 7, which FFTs handle well."""
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
