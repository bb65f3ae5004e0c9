"""How window positions are divided among programs, for every window kernel; from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._plan.shapes import output_size
from ..values import three
from .records import Form

# The numbers of a launch as the kernels take them, in this order.
NUMBERS = [
    *("channels", "pitch_c", "depth", "height", "width", "pitch_z", "pitch_y", "pitch_l"),
    *("wz", "wy", "wx", "sz", "sy", "sx", "nz", "ny", "nx"),
    *("out_channels", "out_pitch_c", "out_z", "out_y", "out_l"),
    *("blocks_z", "blocks_y", "blocks_x", "steps"),
]

# A block of 512 positions gives a thread four of them, two where planes slide, and the registers
# allow two or three programs on a multiprocessor. Rows cost little where they follow one another
# (2-D), but the first row of each plane is summed from the start (3-D), so blocks are taller there.
BLOCK = 512
SCORE_BLOCK = 256  # a score needs more registers
WIDEST = {1: 128, 2: 128, 3: 32}
WARPS = {1: 4, 2: 4, 3: 8}
REGISTERS = {1: 168, 2: 168, 3: 128}
PROGRAMS = 1024  # enough to keep a large device busy; marches grow longer only beyond
DIRECT_ELEMENTS = 16  # largest window that is faster read element by element than summed by sliding


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class Launch:
    """Geometry of one launch; `numbers` and `options` are the last arguments of every kernel.

    Sizes are (depth, height, width); of lines the height counts all leads. Positions are those a
    program visits: all of them where sums slide, those returned where windows are read directly.
    """

    programs: int
    numbers: tuple[int, ...]
    options: dict[str, Any]


def terms(
    channels: int, window: Sequence[int], stride: Sequence[int], *, spread: bool = False
) -> int:
    """Terms of each sum: elements of a window, or the windows that contain an element."""
    if spread:
        return math.prod(-(-k // s) for k, s in zip(window, stride, strict=True))
    return channels * math.prod(window)


def window_launch(
    leads: int,
    channels: int,
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    *,
    spread: bool = False,
    direct: bool | None = None,
    block: int = BLOCK,
) -> Launch:
    """The launch that sums windows of inputs (leads, channels, *size), or spreads over them.

    `direct` reads windows element by element, False lets their sums slide, None decides by the
    window. A spread reads one map a lead and writes all channels.
    """
    ndim = len(size)
    map_size = output_size(size, window, stride)
    if direct is None:
        # With a stride there are fewer windows, so larger ones may be read directly.
        apart = 1 if spread else math.prod(stride)
        direct = terms(channels, window, stride, spread=spread) // apart <= DIRECT_ELEMENTS
    out_size = tuple(size) if spread else map_size
    source_size = map_size if spread else tuple(size)
    dense = out_size if spread or direct else output_size(size, window, (1,) * ndim)
    source_channels, out_channels = (1, channels) if spread else (channels, 1)

    def pitches(sizes: Sequence[int], channels: int) -> tuple[int, int, int, int]:
        """Elements between planes, rows, leads and channels."""
        _, height, width = three(sizes, 1)
        lead = channels * math.prod(sizes)
        row = lead if ndim == 1 else width
        return height * width, row, lead, math.prod(sizes)

    widest = min(block, max(WIDEST[ndim], _power_of_two(window[-1]) if ndim == 1 else 0))
    columns = max(16, min(_power_of_two(dense[-1]), widest))
    strided = math.prod(stride) > 1
    form = Form.of(
        ndim=ndim,
        spread=int(spread),
        strided=int(strided),
        thinned=int(strided and not spread),
        direct=int(direct),
        single_channel=int(source_channels == 1),
        rows=block // columns,
        columns=columns,
        chunk=min(_power_of_two(window[-1]), columns),
    )
    source, positions = three(source_size, 1), three(dense, 1)
    if ndim == 1:
        source, positions = (1, leads, source[2]), (1, leads, positions[2])
    blocks, steps, programs = _divided(leads, positions, three(window, 1), form)
    *pitch, pitch_c = pitches(source_size, source_channels)
    *out_pitch, out_pitch_c = pitches(out_size, out_channels)
    numbers = (
        source_channels, pitch_c, *source, *pitch, *three(window, 1), *three(stride, 1), *positions,
        out_channels, out_pitch_c, *out_pitch, *blocks, steps,
    )  # fmt: skip
    options = {"FORM": form, "num_warps": WARPS[ndim]}
    if not torch.version.hip:
        options["maxnreg"] = REGISTERS[ndim]
    return Launch(programs, numbers, options)


def _divided(
    leads: int, positions: Sequence[int], window: Sequence[int], form: Form
) -> tuple[tuple[int, int, int], int, int]:
    """Blocks along each axis, how many follow one another in a program, and the programs."""
    (depth, height, width), ndim, rows = positions, int(form.ndim), int(form.rows)
    across = -(-width // int(form.columns))
    if ndim == 1:
        return (1, 1, across), 1, -(-leads * across // rows)
    down = -(-height // rows)
    if form.direct:
        return (depth, down, across), 1, leads * depth * down * across
    march, others = (down, leads * across) if ndim == 2 else (depth, leads * down * across)
    # A program begins with the sums of a whole window, so it should cover at least half of one.
    least = -(-window[1] // (2 * rows)) if ndim == 2 else -(-window[0] // 2)
    parts = max(1, min(march // max(1, least), -(-PROGRAMS // others)))
    steps = -(-march // parts)
    parts = -(-march // steps)
    blocks = (1, parts, across) if ndim == 2 else (parts, down, across)
    return blocks, steps, parts * others


def shape_of(input: Tensor, ndim: int) -> tuple[int, int, tuple[int, ...]]:
    """Leads, channels and window axes of a tensor in normal form."""
    shape = tuple(input.shape)
    return math.prod(shape[: -ndim - 1]), shape[-ndim - 1], shape[-ndim:]
