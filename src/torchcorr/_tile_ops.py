"""Operators on tiles, which engines are made of: schemas and fake kernels, no derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _reference_tiles
from ._geometry import output_size
from ._ops import NAMESPACE, kernels, library
from ._reference import wide_dtype

# Bytes from which on the first touch of a result's pages is felt.
_LARGE = 4 << 20

_SCHEMAS = {
    "take_large_pages": "(Tensor(a!) x) -> ()",
    "gather_tiles": (
        "(Tensor input, int[] ids, int[] geometry, bool centred, bool wide, bool pairs)"
        " -> (Tensor, Tensor)"
    ),
    "tile_norms": (
        "(Tensor stats, Tensor input, int[] ids, int[] geometry, int[] window, int[] stride,"
        " bool zero_mean, bool local, float eps, float faint, float exact, bool means)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "repair_norms": (
        "(Tensor(a!) norms, Tensor(b!) means, Tensor stats, Tensor input, int[] ids,"
        " int[] geometry, int[] window, int[] stride, bool zero_mean, float eps) -> ()"
    ),
    "tile_upstream": (
        "(Tensor grad, Tensor score, Tensor norms, Tensor means, int[] ids, int[] geometry,"
        " int[] stride, float count, int first_template, int templates, bool of_tiles,"
        " Tensor(a!) grad_square, Tensor(b!) grad_mean) -> (Tensor, Tensor)"
    ),
    "tile_input_grad": (
        "(Tensor(a!) found, Tensor grad_square, Tensor grad_mean, Tensor stats, Tensor input,"
        " int[] ids, int[] geometry, int[] window, int[] stride, Tensor(b!) out) -> ()"
    ),
    "finish_sums": (
        "(Tensor numerators, Tensor stats, Tensor? bound, Tensor? marked, Tensor input,"
        " Tensor template, int[] ids, int[] geometry, int[] stride, int first_template,"
        " float noise, float allowed, int budget, Tensor(a!) out) -> Tensor"
    ),
    "direct_scores": (
        "(Tensor input, Tensor template, Tensor taps, int[] ids, int[] geometry, int[] window,"
        " int[] stride, int at_once, bool zero_mean, float eps, float faint, float exact,"
        " int budget, Tensor(a!) out) -> (Tensor, Tensor)"
    ),
    "finish_tiles": (
        "(Tensor numerators, Tensor norms, Tensor stats, Tensor input, Tensor template,"
        " int[] ids, int[] geometry, int[] stride, int first_template, bool zero_mean, float eps,"
        " float noise, int budget, Tensor(a!) out) -> Tensor"
    ),
}


def _fake_nothing(*_: Any) -> None:
    return None


def _fake_gather(
    input: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    centred: bool,
    wide: bool,
    pairs: bool,
) -> tuple[Tensor, Tensor]:
    ndim = input.dim() - 2
    dtype = wide_dtype(input) if wide else input.dtype
    shape: tuple[int, ...] = (len(ids), input.shape[1], *geometry[4 * ndim :])
    if pairs:
        shape = (len(ids) // 2, *shape[1:], 2)
    tiles = input.new_empty(shape, dtype=dtype)
    return tiles, tiles.new_empty((len(ids), 4), dtype=wide_dtype(input))


def _fake_norms(
    _stats: Tensor,
    input: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    ndim = len(window)
    own = output_size(geometry[3 * ndim : 4 * ndim], window, stride)
    norms = input.new_empty((len(ids), *own))
    means = norms.new_empty((len(ids) if args[-1] else 0, *own))
    return norms, norms.new_empty(len(ids), dtype=torch.int64), means


def _fake_upstream(
    _grad: Tensor,
    _score: Tensor,
    norms: Tensor,
    _means: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    stride: Sequence[int],
    _count: float,
    _first: int,
    templates: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    shape = (len(ids) // 2, templates, *geometry[4 * len(stride) :], 2)
    wide = wide_dtype(norms)
    return norms.new_empty(shape), norms.new_empty((len(ids), templates, 3), dtype=wide)


def _fake_counts(
    _numerators: Tensor, stats: Tensor, _bound: Any, _marked: Any, _input: Tensor, *_: Any
) -> Tensor:
    return stats.new_empty(stats.shape[0], dtype=torch.int64)


def _fake_left(_numerators: Tensor, _norms: Tensor, stats: Tensor, *_: Any) -> Tensor:
    return stats.new_empty(stats.shape[0], dtype=torch.int64)


def _fake_direct_scores(
    input: Tensor,
    _template: Tensor,
    _taps: Tensor,
    ids: Sequence[int],
    geometry: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    *_: Any,
) -> tuple[Tensor, Tensor]:
    ndim = len(window)
    own = output_size(geometry[3 * ndim : 4 * ndim], window, stride)
    norms = input.new_empty((len(ids), *own))
    return norms.new_empty(len(ids), dtype=torch.int64), norms


_FAKES: dict[str, Callable[..., Any]] = {
    "take_large_pages": _fake_nothing,
    "gather_tiles": _fake_gather,
    "tile_norms": _fake_norms,
    "repair_norms": _fake_nothing,
    "tile_upstream": _fake_upstream,
    "tile_input_grad": _fake_nothing,
    "finish_sums": _fake_counts,
    "direct_scores": _fake_direct_scores,
    "finish_tiles": _fake_left,
}

for _name, _schema in _SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(_name, getattr(_reference_tiles, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _FAKES[_name], lib=library)
    setattr(kernels, _name, getattr(torch.ops.torchcorr, _name).default)


def new_map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor that will be written as a whole, on large pages if it is large."""
    out = like.new_empty(shape)
    if out.nbytes >= _LARGE:
        kernels.take_large_pages(out)
    return out


def tile_operator_names() -> list[str]:
    """Names of the operators on tiles, without the namespace."""
    return list(_SCHEMAS)
