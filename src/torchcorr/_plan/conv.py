"""How a convolution layer is computed: by PyTorch, by sliding sums, or by spectra of tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch

from .choose import arrange
from .lattice import Lattices
from .plan import Plan
from .shapes import Ints
from .strided import GRADS_BY_FFT, grad_by_loop
from .tiling import tile_length

# Bytes of the spectra of weights that a module keeps.
WEIGHT_BYTES = 96 << 20
# Bytes of scratch that are asked for. Of these may take: spectra of all tiles or of all weights,
# which are held while blocks of the others are made; a block of weights that is made anew; a batch
# of tiles with weights that are held; and tiles that are transformed at a time.
SCRATCH = 64 << 20
_HELD = 40 << 20
_BLOCK = 9 << 20
_BATCH = 24 << 20
_PIECE = 4 << 20
# How much longer a layer may take for scratch within the limit.
_WORTH_SCRATCH = 1.1
# Channels from which on short tiles are transformed by products with a matrix.
MATRIX_CHANNELS = 8
# Taps along an axis up to which a transform of them is a product with a matrix.
SHORT = 96
# Lengths of tiles that are tried.
_LENGTHS = (32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
_LONG = tuple(n << p for p in range(5, 18) for n in (4, 5))


class Dense(NamedTuple):
    """A convolution with stride 1 and dilation 1; all groups are alike."""

    items: int
    channels: int  # of one group
    outputs: int  # of one group
    groups: int
    window: Ints
    positions: Ints
    itemsize: int


class Tiles(NamedTuple):
    """Tiles of a dense convolution, an entry an axis."""

    window: Ints
    positions: Ints
    outputs: Ints  # positions of a tile
    grid: Ints
    length: Ints  # of the transforms
    block: int  # outputs of the layer whose weights are transformed at once
    together: int  # tiles that are multiplied with them, of all items

    @property
    def frequencies(self) -> Ints:
        """Of real numbers: half of the last axis."""
        return (*self.length[:-1], self.length[-1] // 2 + 1)

    def at_once(self, channels: int, each: int, itemsize: int) -> tuple[int, int]:
        """Tiles that are transformed at once, rows of `each` or fewer, and channels of a row."""
        fitting = _PIECE // (2 * itemsize * math.prod(self.frequencies))
        tiles = max(1, fitting // channels)
        return tiles, channels if tiles >= each else max(1, min(channels, fitting // each))

    def can_be_kept(self, problem: Dense) -> bool:
        """Whether the spectra of all weights have room at once."""
        numbers = problem.groups * problem.channels * problem.outputs * math.prod(self.frequencies)
        return 2 * problem.itemsize * numbers <= WEIGHT_BYTES

    def scratch(self, problem: Dense) -> int:
        """Bytes of spectra, products and their inverse."""
        channels, made = problem.channels, 1 + self.window[0] / self.length[0]
        numbers = self.together * channels + max(
            made * channels * self.block,
            self.block * (channels + 2 * self.together),
        )
        return int(2 * problem.itemsize * math.prod(self.frequencies) * numbers) + _PIECE

    def plan(self, problem: Dense, cost: float) -> Plan:
        """These tiles as the record that users read."""
        ones, count = (1,) * len(self.length), math.prod(self.grid)
        sizes = (self.outputs, self.length, ones, ones)
        scratch = self.scratch(problem)
        return Plan("fft", *sizes, count, self.together, self.block, scratch, cost)


def _tiles(problem: Dense, wanted: int) -> Tiles:
    """Tiles of about a wanted length that divide the positions evenly."""
    outputs, grid, length = [], [], []
    for n, k in zip(problem.positions, problem.window, strict=True):
        count = max(1, -(-n // max(1, wanted - k + 1)))
        each = -(-n // count)
        outputs.append(each)
        grid.append(-(-n // each))
        length.append(tile_length(each + k - 1, len(problem.positions)))
    sizes = (problem.window, problem.positions, tuple(outputs), tuple(grid), tuple(length))
    spectrum = 2 * problem.itemsize * math.prod(length[:-1]) * (length[-1] // 2 + 1)
    return Tiles(*sizes, *_loops(problem, spectrum, tuple(grid)))


def _loops(problem: Dense, spectrum: int, grid: Ints) -> tuple[int, int]:
    """Outputs in a block and tiles in a batch: all weights, or all tiles, are held if they fit."""
    channels, outputs, each = problem.channels, problem.outputs, math.prod(grid[1:])
    count = problem.items * math.prod(grid)
    of_weights = spectrum * channels * outputs
    of_tiles = spectrum * channels * count
    most = max(_HELD, min(of_weights, of_tiles, WEIGHT_BYTES))
    if of_tiles <= most and of_tiles <= of_weights:
        block = min(outputs, _BLOCK // (spectrum * max(channels, count)))
        # Products of matrices take longer for other numbers of columns.
        return max(1, block // 8 * 8 or block), count
    block = max(1, min(outputs, max(most, WEIGHT_BYTES) // (spectrum * channels)))
    left = max(_BLOCK, _BATCH - spectrum * channels * block)
    together = left // (spectrum * (channels + 2 * block))
    # A row of tiles at least.
    return block, min(count, max(each, together))


class Rates(NamedTuple):
    """Nanoseconds of one core for float32, fitted by ``python -m benchmarks.fit_conv``."""

    transform: float = 8.0  # an element of a tile, one way, with its new order
    product: float = 0.2  # a complex multiply-add
    call: float = 2.5e5  # a batch of tiles


_RATES = Rates()


def _axis_cost(line: int, taps: int) -> float:
    """A transform of `line` elements of which `taps` count, for each element."""
    if taps <= SHORT:
        return _RATES.product * taps
    return _RATES.transform


def _tiles_cost(problem: Dense, tiles: Tiles) -> float:
    """Nanoseconds of one group by spectra of tiles."""
    elements, frequencies = math.prod(tiles.length), math.prod(tiles.frequencies)
    count = problem.items * math.prod(tiles.grid)
    blocks, rounds = -(-problem.outputs // tiles.block), -(-count // tiles.together)
    again = blocks if rounds > 1 else 1
    time = again * count * problem.channels * elements * _RATES.transform
    weights, results = problem.channels * problem.outputs, count * problem.outputs
    time += frequencies * _RATES.product * count * weights
    # Weights have few taps, and of results few are kept: along later axes there are fewer lines.
    for planes, kept in ((weights, tiles.window), (results, tiles.outputs)):
        share = 1.0
        for line, taps in reversed(list(zip(tiles.length, kept, strict=True))):
            time += planes * frequencies * share * _axis_cost(line, taps)
            share *= taps / line
    return (time + blocks * rounds * _RATES.call) * problem.itemsize / 4


def _candidates(problem: Dense) -> Iterator[Tiles]:
    longest = max(n + k - 1 for n, k in zip(problem.positions, problem.window, strict=True))
    tried = set()
    for wanted in _LONG if len(problem.window) == 1 else _LENGTHS:
        if wanted > max(problem.window):
            tiles = _tiles(problem, wanted)
            if tiles.length not in tried:
                tried.add(tiles.length)
                yield tiles
        if wanted > longest:
            return
    if not tried:
        yield _tiles(problem, longest)


@lru_cache(maxsize=256)
def tiles_of(problem: Dense) -> tuple[Tiles, float]:
    """The quickest tiles, and nanoseconds of all groups."""
    costs = {tiles: _tiles_cost(problem, tiles) for tiles in _candidates(problem)}
    best = min(costs, key=costs.__getitem__)
    small = [tiles for tiles in costs if tiles.scratch(problem) <= SCRATCH]
    if small:
        other = min(small, key=costs.__getitem__)
        best = other if costs[other] <= _WORTH_SCRATCH * costs[best] else best
    return best, costs[best] * problem.groups


@dataclass(frozen=True)
class Layer:
    """The shapes of a layer and the sub-lattices that it divides into."""

    input: Ints
    weight: Ints
    groups: int
    lattices: Lattices
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        input: Ints,
        weight: Ints,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        dtype: torch.dtype,
    ) -> Layer:
        how = (tuple(stride), tuple(padding), tuple(dilation))
        return _layer(input, weight, *how, groups, dtype)

    @property
    def products(self) -> int:
        """Multiply-adds of the definition."""
        return self.input[0] * math.prod(self.weight) * math.prod(self.lattices.positions)

    @cached_property
    def dense(self) -> Dense:
        at, (outputs, channels) = self.lattices, self.weight[:2]
        return Dense(
            items=self.input[0] * math.prod(at.phases),
            channels=channels * math.prod(at.steps),
            outputs=outputs // self.groups,
            groups=self.groups,
            window=at.taps,
            positions=at.rows,
            itemsize=max(4, self.dtype.itemsize),
        )

    @cached_property
    def transposed(self) -> Dense:
        """The dense convolution of the upstream gradient that makes the input's."""
        at, dense = self.lattices, self.dense
        size = at.size if at.trivial else at.dense
        return dense._replace(channels=dense.outputs, outputs=dense.channels, positions=size)

    def dense_of(self, form: str) -> Dense:
        """The dense convolution whose tiles a form is computed in."""
        return self.transposed if form == "input" else self.dense


@lru_cache(maxsize=1024)
def _layer(
    input: Ints,
    weight: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    dtype: torch.dtype,
) -> Layer:
    at = Lattices.of(input[2:], weight[2:], stride, padding, dilation)
    return Layer(input, weight, groups, at, dtype)


class Way(NamedTuple):
    """How one of the three forms of a layer is computed, and milliseconds of one core."""

    method: str  # "torch", "sums" or "spectra"
    costs: tuple[tuple[str, float], ...]  # of each method


@dataclass(frozen=True)
class LayerWay:
    """How the output of a layer, or one of its gradients, will be computed, from shapes and dtype.

    Attributes
    ----------
    method : str
        ``"torch"``, PyTorch's convolution; ``"sums"``, the sums of `correlate`; or ``"spectra"``,
        a product of matrices for each frequency of tiles.
    costs : dict of str to float
        Predicted milliseconds of one core for each method that was compared: none on other devices
        than the CPU, and only ``"torch"`` if that takes less than 0.2 ms. Another method is chosen
        only if it is predicted to take less than 0.75 of PyTorch's time, and 0.2 ms less.
    plan : Plan or None
        Tiles, ``(*positions)`` of one sub-lattice of a layer with stride or dilation, length of
        their transforms, and bytes of scratch. ``batch`` tiles are transformed at once and
        ``templates`` outputs of the layer multiplied with them. None for PyTorch's convolution.
    """

    method: str
    costs: dict[str, float]
    plan: Plan | None


@dataclass(frozen=True)
class LayerPlan:
    """How a convolution layer will be computed: what `plan_layer` returns.

    Attributes
    ----------
    output, input_gradient, weight_gradient : LayerWay
        Three separate choices, of tensors ``(N, C, *size)``, from shapes and dtype alone.
    """

    output: LayerWay
    input_gradient: LayerWay
    weight_gradient: LayerWay


METHODS = ("torch", "sums", "spectra")
FORMS = ("output", "input", "weight")
# Predicted times must be this much shorter than PyTorch's, and by so many milliseconds.
_MARGIN = 0.75
_LEAST_GAIN = 0.2


@lru_cache(maxsize=4096)
def way_of(layer: Layer, form: str, method: str = "auto") -> Way:
    """The quickest way of a form, `output`, or the gradient of `input` or `weight`."""
    if method != "auto":
        return Way(method, ())
    torch_cost = layer.products / _torch_rate(layer, form)
    if torch_cost < _LEAST_GAIN:
        return Way("torch", (("torch", torch_cost),))
    dense = layer.dense_of(form)
    costs = {"torch": torch_cost, "spectra": tiles_of(dense)[1] * 1e-6}
    if len(dense.window) == 3:
        costs["spectra"] *= _VOLUMES
    if dense.channels * dense.outputs <= _SUMS_PAIRS:
        costs["sums"] = _sums_cost(layer, form)
    best = min(costs, key=costs.__getitem__)
    most = min(_MARGIN * torch_cost, torch_cost - _LEAST_GAIN)
    return Way(best if costs[best] <= most else "torch", tuple(costs.items()))


# Multiply-adds a millisecond of one core that PyTorch's convolution reaches in float32, for the
# output and the gradients of input and weight: by channels of a group, window axes and the longest
# side of the window, up to which a row holds. Fitted from above by benchmarks/fit_conv.py: a layer
# whose time is in doubt is left to PyTorch.
_TORCH_RATES: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "depthwise": ((3, (60e6, 40e6, 8e6)), (15, (60e6, 40e6, 2.4e6)), (1 << 62, (4e6, 40e6, 2.4e6))),
    "depthwise 3": ((1 << 62, (60e6, 3e6, 3e6)),),
    "one": ((5, (2e6, 1e6, 1e6)), (1 << 62, (8e6, 5e6, 7e6))),
    "one 3": ((1 << 62, (8e6, 5e6, 7e6)),),
    "one 1": ((1 << 62, (1e6, 3e6, 3e6)),),
    "few": ((12, (100e6, 25e6, 90e6)), (1 << 62, (100e6, 25e6, 25e6))),
    "some": ((8, (60e6, 60e6, 40e6)), (1 << 62, (60e6, 60e6, 10e6))),
    "many": (
        (12, (95e6, 95e6, 95e6)),
        (17, (95e6, 95e6, 55e6)),
        (1 << 62, (70e6, 70e6, 45e6)),
    ),
    "lines": ((64, (70e6, 70e6, 70e6)), (1 << 62, (55e6, 45e6, 45e6))),
    "volumes": ((1 << 62, (45e6, 30e6, 15e6)),),
    "volumes out": ((1 << 62, (110e6, 25e6, 95e6)),),
    "volumes some": ((1 << 62, (110e6, 110e6, 95e6)),),
}
# Channels times outputs of a group above which `correlate`, which adds up products channel by
# channel, is never quicker; and the factor of spectra of volumes, whose tiles leave the cache.
_SUMS_PAIRS = 64
_VOLUMES = 1.4
# Its factor for half types, which some CPUs multiply many times faster, and a bound for float64.
_HALF_RATE = 8.0
_DOUBLE_RATE = 40e6


def _torch_rate(layer: Layer, form: str) -> float:
    dense, ndim = layer.dense, len(layer.lattices.size)
    channels, outputs = layer.weight[1], dense.outputs
    fewest = min(channels, outputs)
    if layer.dtype == torch.float64:
        return _DOUBLE_RATE
    if channels == outputs == 1:
        kind = "one" if layer.groups == 1 else "depthwise"
        kind = f"{kind} {ndim}" if f"{kind} {ndim}" in _TORCH_RATES else kind
    elif ndim == 1:
        kind = "lines"
    elif ndim == 3 and fewest < 16:
        kind = "volumes" if outputs < 8 else "volumes out" if channels < 8 else "volumes some"
    elif layer.groups > 1 and fewest < 16:
        kind = "some"
    else:
        kind = "few" if fewest < 16 else "many"
    longest = max(layer.lattices.window)
    rates = next(rates for most, rates in _TORCH_RATES[kind] if longest <= most)
    rate = rates[FORMS.index(form)]
    return rate * (_HALF_RATE if layer.dtype.itemsize == 2 else 1.0)


# Costs of `correlate` are those of two cores, without what surrounds a call of it in a layer.
_SUMS = 3.0
# Of the gradients by transforms, relative to sums, and bytes written a millisecond. That of a
# weight is from above: a layer whose time is in doubt is left to spectra.
_SUMS_GRADS = {"output": 1.0, "input": GRADS_BY_FFT[0], "weight": 1.6}
_COPIED = 4e6
# Multiply-adds a millisecond of a template's gradient by the direct loop, for an element of a row.
_DIRECT_WEIGHT = 0.07e6
_DIRECT_WEIGHT_ROW = 256


def arrangement(dense: Dense, size: Ints, method: str) -> Plan:
    """Tiles of `correlate` for an input of that size."""
    input = (dense.items, dense.groups, 1, dense.channels, *size)
    template = (dense.groups, dense.outputs, dense.channels, *dense.window)
    dtype = torch.float64 if dense.itemsize == 8 else torch.float32
    steps = (1,) * len(size)
    how = {"normalised": False, "dtype": dtype, "device": "cpu"}
    return arrange(input, template, steps, method, **how).plan  # type: ignore[arg-type]


def _sums_cost(layer: Layer, form: str) -> float:
    """Of the operators of `correlate` on the sub-lattices of a layer."""
    dense, size = layer.dense, layer.lattices.dense
    method = sums_method(layer, form)
    elements = dense.items * dense.groups * dense.channels * math.prod(size)
    copies = elements * dense.itemsize / _COPIED
    if form != "output" and method == "direct":
        return copies + _direct_grad(layer, form)
    return copies + _SUMS * arrangement(dense, size, method).cost * _SUMS_GRADS[form]


def _direct_grad(layer: Layer, form: str) -> float:
    if form == "weight":
        # Rows of positions, which are short.
        row = min(layer.lattices.rows[-1], _DIRECT_WEIGHT_ROW)
        return layer.products / (_DIRECT_WEIGHT * row)
    dense, size = layer.dense, layer.lattices.dense
    sums = _SUMS * arrangement(dense, size, "direct").cost
    return sums * grad_by_loop(False, size, dense.positions)


@lru_cache(maxsize=4096)
def sums_method(layer: Layer, form: str) -> str:
    """The method that `correlate` is called with; gradients have other direct loops."""
    if form == "output":
        return "auto"
    transforms = arrangement(layer.dense, layer.lattices.dense, "fft").cost
    direct = _direct_grad(layer, form)
    return "direct" if direct <= _SUMS * transforms * _SUMS_GRADS[form] else "fft"
