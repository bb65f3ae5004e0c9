"""Costs of work on each kind of device."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .shapes import Ints


class Costs(NamedTuple):
    """Costs of work on a kind of device, in nanoseconds. Only their ratios matter."""

    # An element of a line, a plane or a volume, for each doubling of its size.
    transform: tuple[float, float, float]
    sums: tuple[float, float]  # its factor for plain sums of float32 and float64: bounds and checks
    tile_element: float  # cutting a tile out and its norms, for each element
    emitted: float  # a score or sum of a tile: taking it from its transform
    score_element: float  # cutting and norms of direct scores, summed on the way on a GPU
    position: float  # a position of the direct loop
    scored_position: float  # the same of a score
    product: float  # a multiply-add of the direct loop
    dense_product: float  # the same where many templates share many channels
    channel_product: float  # a complex multiply-add of spectra, for each channel after the first
    byte_product: float  # a product of 8-bit integers
    byte_line: int  # elements of a template's row that are multiplied at once
    byte_columns: int  # columns of results that are computed at once
    byte_unit: float  # a unit of their direct scores, as `unit`
    byte_score: tuple[float, float]  # an element and a position of their direct scores
    digits: float  # factor of transforms of 8-bit integers, often once for each of two digits
    # Factor of float32 scores by transforms: a second look at the smooth tiles of pictures.
    smooth: float
    scored: float  # its factor where moments are summed in the same loop
    shape: tuple[float, float, float]  # its factor for lines, planes and volumes
    # Of direct sums with a stride along rows: its factor, and an element of the input, whose rows
    # are divided by it first.
    strided: tuple[float, float]
    batch: float  # a batch of tiles, whatever its size
    # A unit of tiles that one worker carries through all steps, whatever its size: of direct
    # scores, and by transforms.
    unit: tuple[float, float]
    # Time of a single one, whose steps workers share, relative to that of an even division.
    shared_unit: tuple[float, float]
    # Of a transform, for one to three axes: MiB of a tile that a core holds, and the share that
    # each one beyond adds; the largest share; and the factor of arrays that are in no cache.
    strain: tuple[tuple[float, float], ...]
    most_strain: tuple[float, float, float]
    uncached: tuple[float, float, float]
    prepared: float  # an element of an axis, for each call of a transform, of any number of tiles
    ready: Ints  # lengths that need no preparation, and those from the last one on
    cache: int  # bytes of scratch that a batch should take, for one template
    near_cache: int  # the same for several templates, which reread the tiles
    scratch: int  # bytes that it may take
    workers: int  # units that are worked on at once, for the scratch that is planned
    unit_bytes: Ints  # scratch of a unit, which should stay near a core, for one to three axes
    spectra_bytes: int  # spectra of templates that are kept at once
    direct_tile: int  # elements of a tile of the direct loop
    pairs: bool  # two tiles are transformed as one complex one
    lengths: Ints  # of tiles that are tried, for inputs that are longer
    long: Ints  # the same of lines


# By kind of device. A family of GPUs that was measured has a row named after its compute capability
# ("cuda 9.0"); the others use that of their type.
_COSTS = {
    # Two cores with AVX-512, fitted by benchmarks/fit.py. Strain and its limits, strides, sums of
    # float32, digits and the unit of transforms were set by hand, from times of each length.
    "cpu": Costs(
        transform=(0.023, 0.027, 0.027),
        sums=(1.2, 0.83),
        tile_element=1.0,
        emitted=0.78,
        score_element=1.54,
        position=0.42,
        scored_position=0.51,
        product=0.0075,
        dense_product=0.0068,
        channel_product=0.6,
        byte_product=0.06,
        byte_line=1,
        byte_columns=1,
        byte_unit=1.5e4,
        byte_score=(1.54, 0.51),
        digits=4.0,
        smooth=1.25,
        scored=1.0,
        shape=(1.0, 1.0, 1.4),
        strided=(1.5, 0.6),
        batch=1.2e5,
        unit=(5.6e4, 9e4),
        shared_unit=(1.5, 1.5),
        strain=((0.0, 16.0), (0.35, 0.45), (0.0, 0.02)),
        most_strain=(1.5, 2.2, 2.0),
        uncached=(1.8, 2.7, 1.7),
        # Roots of unity are computed in each call. Measured of the transforms that PyTorch is
        # built with on Intel's CPUs; others keep them.
        prepared=4.2,
        ready=(10240, 12288, 20480, 40960, 57344, 81920, 114688, 122880, 131072),
        cache=8 << 20,
        near_cache=4 << 20,
        scratch=48 << 20,
        workers=2,
        unit_bytes=(4 << 20, 1 << 20, 1 << 20),
        spectra_bytes=16 << 20,
        direct_tile=1 << 16,
        pairs=True,
        lengths=(
            64,
            96,
            128,
            160,
            192,
            240,
            288,
            320,
            384,
            480,
            576,
            640,
            768,
            960,
            1152,
            1280,
            1536,
        ),
        long=tuple(
            sorted(
                {length for p in range(9, 20) for length in (1 << p, 5 << (p - 2))}
                | {12288, 57344, 114688, 122880}
            )
        ),
    ),
    # Not fitted: bytes at 4 TB/s, half the arithmetic peak of a large card, launches of 5 us.
    "cuda": Costs(
        transform=(2e-4, 2e-4, 2e-4),
        sums=(1.0, 1.0),
        tile_element=0.011,
        emitted=0.0,
        score_element=0.0,
        position=3e-3,
        scored_position=3e-3,
        product=6e-5,
        dense_product=6e-5,
        channel_product=0.0,
        byte_product=6e-5,
        byte_line=1,
        byte_columns=1,
        byte_unit=5e4,
        byte_score=(0.0, 3e-3),
        digits=1.0,
        smooth=1.0,
        scored=2.5,
        shape=(1.0, 1.0, 1.0),
        strided=(1.0, 0.0),
        batch=5e4,
        unit=(5e4, 5e4),
        shared_unit=(1.0, 1.0),
        strain=((0.0, 0.0),) * 3,
        most_strain=(0.0, 0.0, 0.0),
        uncached=(1.0, 1.0, 1.0),
        prepared=0.0,
        ready=(),
        cache=256 << 20,
        near_cache=256 << 20,
        scratch=512 << 20,
        workers=1,
        unit_bytes=(256 << 20, 256 << 20, 256 << 20),
        spectra_bytes=256 << 20,
        direct_tile=1 << 31,
        pairs=False,
        lengths=(64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
        long=tuple(1 << p for p in range(10, 23)),
    ),
}


# Two cores with AVX-512 for which the library of transforms has generic code (MKL on AMD's), fitted
# in the same way; digits and scores of bytes were set by hand, from photographs.
_COSTS["cpu generic"] = _COSTS["cpu"]._replace(
    transform=(0.039, 0.047, 0.065),
    sums=(1.5, 0.58),
    tile_element=0.68,
    emitted=0.54,
    score_element=1.6,
    position=0.37,
    scored_position=0.41,
    product=0.011,
    dense_product=0.01,
    byte_score=(0.2, 1.0),
    digits=4.5,
    shape=(0.95, 1.0, 1.3),
    unit=(2.3e4, 7.5e4),
    shared_unit=(1.2, 2.0),
    strain=((0.0, 16.0), (0.0, 0.2), (0.0, 0.02)),
    most_strain=(1.5, 1.5, 2.0),
    uncached=(1.8, 2.2, 1.7),
    prepared=1.2,
)
# The same cores with instructions for 8-bit integers: a product, elements of a template's row and
# columns of results at once. Beside a busy thread of the same core matrix tiles take up to four
# times as long, since their registers are not renamed then: some of that is expected.
_BYTE_LOOPS = {
    "avx2": (0.0072, 1, 16),
    "avxvnni": (0.005, 1, 32),
    "avx512vnni": (0.0027, 1, 64),
    "amx": (0.00035, 64, 64),
}
_COSTS |= {
    f"{cpu} {name}": _COSTS[cpu]._replace(
        byte_product=product, byte_line=line, byte_columns=columns
    )
    for cpu in ("cpu", "cpu generic")
    for name, (product, line, columns) in _BYTE_LOOPS.items()
}

# The name of the costs of this machine's CPU, as its engine finds it.
_cpu = "cpu"


def name_cpu(byte_loop: str, own_transforms: bool) -> None:
    """Says which loop for 8-bit integers this CPU has, and whether it has transforms of its own."""
    global _cpu
    _cpu = "cpu" if own_transforms else "cpu generic"
    if byte_loop in _BYTE_LOOPS:
        _cpu += " " + byte_loop


@lru_cache
def family(device: torch.device) -> str:
    """The name of the costs of a device."""
    if device.type == "cuda" and any(name.startswith("cuda ") for name in _COSTS):
        major, minor = torch.cuda.get_device_capability(device)
        name = f"cuda {major}.{minor}"
        return name if name in _COSTS else "cuda"
    return device.type


def costs_of(family: str) -> Costs:
    """The costs of a kind of device; those of this machine's CPU if it has none."""
    return _COSTS[_cpu] if family == "cpu" else _COSTS.get(family, _COSTS[_cpu])
