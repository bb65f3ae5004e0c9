"""How window positions are cut into programs: arithmetic on shapes, for every window kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._plan.shapes import output_size

# What a kernel is told of a launch, in this order.
NUMBERS = [
    *("channels", "pitch_c", "depth", "height", "width", "pitch_z", "pitch_y", "pitch_l"),
    *("wz", "wy", "wx", "sz", "sy", "sx", "nz", "ny", "nx"),
    *("out_channels", "out_pitch_c", "out_z", "out_y", "out_l"),
    *("blocks_z", "blocks_y", "blocks_x", "steps"),
]

# A block of 512 positions leaves a thread four of them, two where planes slide, and the registers
# let two or three programs share a multiprocessor. Rows cost little where they follow one another
# (2-D), but each plane's first row is summed anew (3-D), so there blocks are taller.
BLOCK = 512
SCORE_BLOCK = 256  # a score needs more of them
WIDEST = {1: 128, 2: 128, 3: 32}
WARPS = {1: 4, 2: 4, 3: 8}
REGISTERS = {1: 168, 2: 168, 3: 128}
PROGRAMS = 1024  # as many as keep a large device busy; marches grow longer only beyond
TAPS = 16  # elements of a window that are read one by one sooner than summed by sliding


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class Plan:
    """Numbers of one launch; `numbers` and `options` are the last arguments of every kernel.

    An axis is (depth, height, width); of lines the height counts all leads. Positions are those a
    program visits: all of them where sums slide, those returned where windows are read directly.
    """

    grid: int
    numbers: tuple[int, ...]
    options: dict[str, int]


def taps(
    channels: int, window: Sequence[int], stride: Sequence[int], *, spread: bool = False
) -> int:
    """Elements of a window; of a spread the windows that hold an element."""
    if spread:
        return math.prod(-(-k // s) for k, s in zip(window, stride, strict=True))
    return channels * math.prod(window)


def plan(
    leads: int,
    channels: int,
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    *,
    spread: bool = False,
    exact: bool | None = None,
    block: int = BLOCK,
) -> Plan:
    """The launch that sums windows of inputs (leads, channels, *size), or spreads over them.

    `exact` asks for windows read element by element, False for sums that slide; None leaves it to
    the window. A spread reads one map a lead and writes all channels.
    """
    ndim = len(size)
    map_size = output_size(size, window, stride)
    if exact is None:
        # Windows further apart than an element are fewer, so they may hold more.
        apart = 1 if spread else math.prod(stride)
        exact = taps(channels, window, stride, spread=spread) // apart <= TAPS
    out_size = tuple(size) if spread else map_size
    source_size = map_size if spread else tuple(size)
    dense = out_size if spread or exact else output_size(size, window, (1,) * ndim)
    source_channels, out_channels = (1, channels) if spread else (channels, 1)

    def padded(sizes: Sequence[int]) -> tuple[int, ...]:
        return (*(1,) * (3 - ndim), *sizes)

    def pitches(sizes: Sequence[int], channels: int) -> tuple[int, int, int, int]:
        """Elements between planes, rows, leads and channels."""
        _, height, width = padded(sizes)
        lead = channels * math.prod(sizes)
        row = lead if ndim == 1 else width
        return height * width, row, lead, math.prod(sizes)

    widest = min(block, max(WIDEST[ndim], _power_of_two(window[-1]) if ndim == 1 else 0))
    b = max(16, min(_power_of_two(dense[-1]), widest))
    r = block // b
    source, positions = padded(source_size), padded(dense)
    if ndim == 1:
        source, positions = (1, leads, source[2]), (1, leads, positions[2])
    blocks, steps, grid = _cut(ndim, leads, positions, padded(window), r, b, exact)
    *pitch, pitch_c = pitches(source_size, source_channels)
    *out_pitch, out_pitch_c = pitches(out_size, out_channels)
    numbers = (
        source_channels, pitch_c, *source, *pitch, *padded(window), *padded(stride), *positions,
        out_channels, out_pitch_c, *out_pitch, *blocks, steps,
    )  # fmt: skip
    options = {
        "NDIM": ndim,
        "SPREAD": int(spread),
        "STRIDED": int(math.prod(stride) > 1),
        "DIRECT": int(exact),
        "ONE": int(source_channels == 1),
        "R": r,
        "B": b,
        "J": min(_power_of_two(window[-1]), b),
        "num_warps": WARPS[ndim],
        **({} if torch.version.hip else {"maxnreg": REGISTERS[ndim]}),
    }
    return Plan(grid, numbers, options)


def _cut(
    ndim: int,
    leads: int,
    positions: Sequence[int],
    window: Sequence[int],
    r: int,
    b: int,
    exact: bool,
) -> tuple[tuple[int, int, int], int, int]:
    """Blocks along each axis, how many follow one another in a program, and programs in all."""
    depth, height, width = positions
    across = -(-width // b)
    if ndim == 1:
        return (1, 1, across), 1, -(-leads * across // r)
    down = -(-height // r)
    if exact:
        return (depth, down, across), 1, leads * depth * down * across
    march, others = (down, leads * across) if ndim == 2 else (depth, leads * down * across)
    # A program begins with the sums of a whole window, so it should cover at least half of one.
    least = -(-window[1] // (2 * r)) if ndim == 2 else -(-window[0] // 2)
    parts = max(1, min(march // max(1, least), -(-PROGRAMS // others)))
    steps = -(-march // parts)
    parts = -(-march // steps)
    blocks = (1, parts, across) if ndim == 2 else (parts, down, across)
    return blocks, steps, parts * others


def shape_of(input: Tensor, ndim: int) -> tuple[int, int, tuple[int, ...]]:
    """Leads, channels and window axes of a tensor in normal form."""
    shape = tuple(input.shape)
    return math.prod(shape[: -ndim - 1]), shape[-ndim - 1], shape[-ndim:]
