"""The arguments that all functions share, parsed once into a record; tensors in normal form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad as torch_pad

from . import _checks, _engines
from ._definition.traced import is_traced
from ._definition.transforms import bordered
from ._plan.dtypes import BYTES, HALVES
from ._plan.shapes import Ints, padding, pads_around

Window = int | Sequence[int]

# Most calls are like one before: what was found of their arguments is kept, of so many kinds.
_KEPT = 1024
# The dtypes that pairs are computed and returned in, for what `_signature` says of pairs that
# passed all checks of shapes and dtypes.
_agreed: dict[tuple[Any, ...], tuple[torch.dtype, torch.dtype]] = {}


class Arguments(NamedTuple):
    """The keyword arguments of a call that all functions share, checked."""

    ndim: int
    stride: Ints
    joint: bool  # channels belong to the window
    pooled: bool  # and share one mean
    mode: str
    method: str
    pad_mode: str
    pad_value: float

    @classmethod
    def parse(
        cls,
        ndim: int,
        mode: str,
        stride: Window,
        channels: str,
        pad_mode: str,
        pad_value: float,
        method: str = "auto",
        ignore_allowed: bool = False,
    ) -> Arguments:
        given = (ndim, mode, stride, channels, pad_mode, pad_value, method, ignore_allowed)
        # Types of numbers are told apart, but not those of what a sequence contains.
        if type(stride) is int and not torch.compiler.is_compiling():
            try:
                return _parsed(*given)
            except TypeError:
                pass  # not hashable, or of a wrong type: the checks say which
        return _parse(*given)

    def normal(self, x: Tensor) -> Tensor:
        """x with a channel axis: the one it has if joint, otherwise a new one of length 1."""
        _checks.memory_fits(x)
        return x if self.joint else x.unsqueeze(-self.ndim - 1)

    @property
    def surrounds(self) -> bool:
        """Whether elements of `pad_value` are around inputs."""
        return self.mode != "valid" and self.pad_mode == "constant"

    def pads_of(self, window: Ints) -> Ints:
        """Elements of `pad_value` before and behind each window axis, for operators that need no
        padded input; () if the padding is of another kind."""
        return pads_around(self.mode, window) if self.surrounds else ()

    def pads_with(self, dtype: torch.dtype) -> bool:
        """Whether padding is within an integer type."""
        if not self.surrounds:
            return True
        limits = torch.iinfo(dtype)
        return self.pad_value in range(limits.min, limits.max + 1)

    def pads_with_whole_numbers(self) -> bool:
        """Whether padding of whole numbers leaves only such."""
        return not self.surrounds or float(self.pad_value).is_integer()

    def padded(self, x: Tensor, window: Ints, name: str) -> Tensor:
        """x extended so that valid positions are the positions of the mode."""
        size = tuple(x.shape[-self.ndim :])
        _checks.input_not_empty(size)
        if self.mode == "valid":
            _checks.window_fits(window, size, name)
            return x
        pads = padding(self.mode, window)
        _checks.pad_fits(self.pad_mode, pads, size)
        flat = x.reshape(math.prod(x.shape[: -self.ndim]), 1, *size)
        if self.pad_mode in ("constant", "ignore") or flat.shape[0] == 0:
            value = self.pad_value if self.surrounds else 0.0
            return bordered(x, pads_around(self.mode, window), value)
        wide = torch_pad(flat, [n for pair in reversed(pads) for n in pair], mode=self.pad_mode)
        return wide.reshape(*x.shape[: -self.ndim], *wide.shape[-self.ndim :])


def _parse(
    ndim: int,
    mode: str,
    stride: Window,
    channels: str,
    pad_mode: str,
    pad_value: float,
    method: str,
    ignore_allowed: bool,
) -> Arguments:
    _checks.dimension(ndim)
    _checks.one_of(mode, _checks.MODES, "mode")
    _checks.one_of(channels, _checks.CHANNELS, "channels")
    _checks.one_of(method, _checks.METHODS, "method")
    pad_modes = (*_checks.PAD_MODES, "ignore") if ignore_allowed else _checks.PAD_MODES
    _checks.one_of(pad_mode, pad_modes, "pad_mode")
    _checks.number(pad_value, "pad_value")
    strides = _checks.per_axis(stride, ndim, "stride")
    joint, pooled = channels != "independent", channels == "pooled"
    return Arguments(ndim, strides, joint, pooled, mode, method, pad_mode, pad_value)


_parsed = lru_cache(maxsize=_KEPT, typed=True)(_parse)


def _differentiated(x: Tensor) -> bool:
    """Whether operations on x may be differentiated."""
    if is_traced():
        return True
    return type(x) is not Tensor or (torch.is_grad_enabled() and x.requires_grad)


def in_working_dtype(working: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the dtype that operators compute in.

    Half types stay as they are if no gradient is wanted: kernels widen them while reading. With a
    gradient they are widened here, so that the score saved for the backward pass is not rounded.
    """
    first = tensors[0].dtype
    if first == working and all(x.dtype == first for x in tensors):
        return tensors
    if first in HALVES and all(x.dtype == first and not _differentiated(x) for x in tensors):
        return tensors
    return tuple(x.to(working) for x in tensors)


def _warn_if_slow(x: Tensor) -> None:
    if not torch.compiler.is_compiling():
        _engines.warn_if_slow(x.device.type)


def normal_pair(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    *,
    name: str,
    complex_allowed: bool,
    bytes_kept: bool = False,
    data: bool = True,
    padded: bool = True,
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both tensors in normal form, padded and in their working dtype; and the result's dtype.

    With `bytes_kept` 8-bit integers stay as they are, unless they are padded with another number.
    Without `data` only shapes are computed, on the meta device; with `padded` false padding is left
    to the operator.
    """
    signature = _signature(input, template, arguments, name, complex_allowed)
    dtypes = _agreed.get(signature) if signature else None
    if dtypes is None:
        dtypes = _checked_dtypes(input, template, arguments, name, complex_allowed)
        _warn_if_slow(input)
        if signature:
            if len(_agreed) >= _KEPT:
                _agreed.clear()
            _agreed[signature] = dtypes
    working, result = dtypes
    if not data:
        input, template = input.to("meta"), template.to("meta")
    x, w = arguments.normal(input), arguments.normal(template)
    kept = bytes_kept and x.dtype in BYTES and arguments.pads_with(x.dtype)
    if not kept and not x.dtype == w.dtype == working:
        x, w = in_working_dtype(working, x, w)
    if padded and arguments.mode != "valid":
        x = arguments.padded(x, tuple(template.shape[-arguments.ndim :]), name)
    return x, w, result


def _signature(
    input: Tensor, template: Tensor, arguments: Arguments, name: str, complex_allowed: bool
) -> tuple[Any, ...] | None:
    """All that the checks of a pair depend on; None for tensors that are traced or of other kinds,
    and under autocast."""
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
        return None
    for x in (input, template):
        if type(x) not in (Tensor, Parameter) or x.layout is not torch.strided or x.is_nested:
            return None
    shapes, dtypes = (input.shape, template.shape), (input.dtype, template.dtype)
    devices = (input.device, template.device)
    return shapes, dtypes, devices, arguments, name, complex_allowed


def _checked_dtypes(
    input: Tensor, template: Tensor, arguments: Arguments, name: str, complex_allowed: bool
) -> tuple[torch.dtype, torch.dtype]:
    """Checks that a pair fits together; the dtype it is computed in and that of its result."""
    _checks.tensor(input, "input")
    _checks.tensor(template, name)
    ndim, joint = arguments.ndim, arguments.joint
    _checks.rank(input, ndim, joint, "input")
    _checks.rank(template, ndim, joint, name)
    working = _checks.working_dtype({"input": input, name: template}, complex_allowed)
    window, size = tuple(template.shape[-ndim:]), tuple(input.shape[-ndim:])
    _checks.window_not_empty(window, name)
    if joint:
        _checks.channels_match(input.shape[-ndim - 1], template.shape[-ndim - 1])
    core = ndim + joint
    _checks.leads_broadcast(input.shape[:-core], template.shape[:-core])
    _checks.input_not_empty(size)
    if arguments.mode == "valid":
        _checks.window_fits(window, size, name)
    return working, _checks.result_dtype(input.dtype, working)


def normal_inputs(
    inputs: dict[str, Tensor], window: Window, arguments: Arguments, *, padded: bool = True
) -> tuple[tuple[Tensor, ...], Ints, torch.dtype]:
    """One input, or two of the same size whose leading axes broadcast, in normal form, padded and
    in their working dtype; their window; the result's dtype.

    With `padded` false, padding that `pads_of` describes is left to the operator.
    """
    sizes = _checks.per_axis(window, arguments.ndim, "window")
    for name, x in inputs.items():
        _checks.tensor(x, name)
        _checks.rank(x, arguments.ndim, arguments.joint, name)
    tensors = tuple(inputs.values())
    _warn_if_slow(tensors[0])
    if len(tensors) == 2:
        core = arguments.ndim + arguments.joint
        a, b = (x.shape for x in tensors)
        _checks.sizes_match(a[-core:], b[-core:])
        _checks.leads_broadcast(a[:-core], b[:-core], tuple(inputs))
    working = _checks.working_dtype(inputs, False)
    result = _checks.result_dtype(tensors[0].dtype, working)
    if len(tensors) == 2:
        tensors = tuple(torch.broadcast_tensors(*tensors))
    normal = tuple(arguments.normal(x) for x in tensors)
    if arguments.joint:
        channels = normal[0].shape[-arguments.ndim - 1]
        _checks.channels_match(channels, channels)
    normal = in_working_dtype(working, *normal)
    if not padded and arguments.pads_of(sizes):
        _checks.input_not_empty(tuple(tensors[0].shape[-arguments.ndim :]))
        return normal, sizes, result
    return tuple(arguments.padded(x, sizes, "window") for x in normal), sizes, result


def normal_input(
    input: Tensor, window: Window, arguments: Arguments, *, padded: bool = True
) -> tuple[Tensor, Ints, torch.dtype]:
    """`normal_inputs` of a single input."""
    (x,), sizes, result = normal_inputs({"input": input}, window, arguments, padded=padded)
    return x, sizes, result
