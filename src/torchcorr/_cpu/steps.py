"""The steps of the C++ library that calls in tiles are made of; they are no operators.

Inputs are (*items, C, *size), read where they lie if their last axis has no step; templates and
their coefficients (pairs, templates, C, *window), maps (items, templates, *positions). Tile t of an
item lies where its `Tiling` says; tile -1 is empty and fills up a pair.
`tests/engines/tile_definitions.py` defines each step in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._plan.tiling import Tiling

correlate_direct = torch.ops.torchcorr_cpu.correlate_direct.default
correlate_direct_input_grad = torch.ops.torchcorr_cpu.correlate_direct_input_grad.default
correlate_direct_template_grad = torch.ops.torchcorr_cpu.correlate_direct_template_grad.default
correlate_direct_scores = torch.ops.torchcorr_cpu.correlate_direct_scores.default
dense_norms = torch.ops.torchcorr_cpu.dense_norms.default
dense_upstream = torch.ops.torchcorr_cpu.dense_upstream.default
dense_spread = torch.ops.torchcorr_cpu.dense_spread.default
dense_position_sums = torch.ops.torchcorr_cpu.dense_position_sums.default
weigh_templates = torch.ops.torchcorr_cpu.weigh_templates.default
standardise_channels = torch.ops.torchcorr_cpu.standardise_channels.default
standardise_channels_grad = torch.ops.torchcorr_cpu.standardise_channels_grad.default
dense_weights = torch.ops.torchcorr_cpu.dense_weights.default
dense_project = torch.ops.torchcorr_cpu.dense_project.default
cut_tiles = torch.ops.torchcorr_cpu.cut_tiles.default
tile_moments = torch.ops.torchcorr_cpu.tile_moments.default
merged_moments = torch.ops.torchcorr_cpu.merged_moments.default
normalise_tiles = torch.ops.torchcorr_cpu.normalise_tiles.default
score_tiles = torch.ops.torchcorr_cpu.score_tiles.default
score_at_once = torch.ops.torchcorr_cpu.score_at_once.default
score_masked_tiles = torch.ops.torchcorr_cpu.score_masked_tiles.default
weighted_moment_tiles = torch.ops.torchcorr_cpu.weighted_moment_tiles.default
score_weighted_windows = torch.ops.torchcorr_cpu.score_weighted_windows.default
as_bytes = torch.ops.torchcorr_cpu.as_bytes.default
byte_kernels = torch.ops.torchcorr_cpu.byte_kernels.default
byte_loop = torch.ops.torchcorr_cpu.byte_loop.default
has_own_transforms = torch.ops.torchcorr_cpu.has_own_transforms.default
score_bytes = torch.ops.torchcorr_cpu.score_bytes.default
score_grad_tiles = torch.ops.torchcorr_cpu.score_grad_tiles.default
take_counts = torch.ops.torchcorr_cpu.take_counts.default
sum_tiles = torch.ops.torchcorr_cpu.sum_tiles.default
transform_in_place = torch.ops.torchcorr_cpu.transform_in_place.default
restore_in_place = torch.ops.torchcorr_cpu.restore_in_place.default
transform_lines_in_place = torch.ops.torchcorr_cpu.transform_lines_in_place.default
template_spectra = torch.ops.torchcorr_cpu.template_spectra.default
template_grad_spectra = torch.ops.torchcorr_cpu.template_grad_spectra.default
medians = torch.ops.torchcorr_cpu.medians.default
overlap_parts = torch.ops.torchcorr_cpu.overlap_parts.default
overlap_sums = torch.ops.torchcorr_cpu.overlap_sums.default
score_long_lines = torch.ops.torchcorr_cpu.score_long_lines.default
score_overlaps = torch.ops.torchcorr_cpu.score_overlaps.default
take_large_pages = torch.ops.torchcorr_cpu.take_large_pages.default
hold_threads = torch.ops.torchcorr_cpu.hold_threads.default
release_threads = torch.ops.torchcorr_cpu.release_threads.default

# What `byte_loop` numbers: the instructions for 8-bit integers that this CPU has.
BYTE_LOOPS = ("plain", "avx2", "avxvnni", "avx512vnni", "amx")
# Bytes from which on the first touch of a result's pages shows in the time of a call.
_LARGE = 4 << 20


def spectra_of_templates(
    templates: Tensor, tiling: Tiling, wide: bool, in_lines: bool = False
) -> Tensor:
    """Conjugate spectra (lines, C, *length) of (pairs, templates, C, *window), in float64
    if `wide`, otherwise in float32; divided by the elements of a tile. With `in_lines` in the order
    of long lines (csrc/tiles/in_place.h)."""
    return template_spectra(templates.flatten(0, 1), tiling.batch_numbers, wide, in_lines)


def restored(spectra: Tensor, tiling: Tiling, in_lines: bool = False) -> Tensor:
    """Sums of a template's size (pairs, templates, C, *window) from their spectra, which are
    overwritten; times the elements of a tile. PyTorch's transforms of few arrays would round
    differently for each number of threads."""
    lines = spectra.flatten(0, 2)
    if in_lines:
        transform_lines_in_place(lines, False, False)
    else:
        restore_in_place(lines, tiling.window)
    for axis, size in enumerate(tiling.window, 1):
        lines = lines.narrow(axis, 0, size)
    return lines.real.unflatten(0, spectra.shape[:3])


def largest_size(x: Tensor) -> float:
    return max(abs(float(y)) for y in torch.aminmax(x))


def readable(x: Tensor) -> Tensor:
    """An input as tiles are cut from it: in place, unless its last axis has a step."""
    if x.shape[-1] == 1 or x.stride(-1) == 1:
        return x
    # PyTorch turns matrices block by block, but not what has axes of length 1 before them.
    return x.squeeze().contiguous().view(x.shape)


def new_map(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor that will be written as a whole, on large pages if it is large."""
    out = like.new_empty(shape, dtype=dtype)
    if out.nbytes >= _LARGE:
        take_large_pages(out)
    return out
