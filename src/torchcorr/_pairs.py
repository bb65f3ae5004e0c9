"""Sums and scores of a pair whose arguments are parsed: check, then call one operator.

On small tensors most of the time would go to checks and to finding out how a call is computed,
which depend on shapes, dtypes and options alone. So the step of an engine that computes a plain
call as a whole is kept, and the next call with these goes there at once. A call is plain if nothing
of it is recorded, traced or transformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _checks, _contract
from ._arguments import Arguments, normal_pair
from ._plan.dtypes import HALVES, MAYBE_BYTES
from ._prepared import PreparedTemplate
from ._weights import Weights

Key = tuple[Any, ...]
Step = Callable[[Tensor, Tensor], Any]

_TYPES = (Tensor, Parameter)
_FLOATS = (torch.float32, torch.float64)
_KEPT = 1024
# Of plain calls that passed all checks, by all that these depend on besides values: a step, or None
# for those that take several. They hold no tensors.
_at_once: dict[Key, Step | None] = {}


def _unknown(x: Tensor, w: Tensor) -> None:
    """In the place of a step that is not known yet."""


def _found(
    input: Tensor, template: Tensor, arguments: Arguments, *options: Any
) -> tuple[Key | None, Step | None]:
    """All that a plain call depends on besides values, and its step if that is known; no key for
    calls that take several steps."""
    if arguments.mode != "valid" or torch.compiler.is_compiling():
        return None, None
    if type(input) not in _TYPES or type(template) not in _TYPES or input.dtype not in _FLOATS:
        return None, None
    key = (input.shape, template.shape, input.dtype, template.dtype, arguments, options)
    # Looked up first, since the question whether a call is plain takes longer.
    step = _at_once.get(key, _unknown)
    if step is None or not _contract.is_plain(input, template):
        return None, None
    return key, None if step is _unknown else step


def _keep(key: Key | None, operator: _contract.Operator, x: Tensor, w: Tensor, *how: Any) -> None:
    """Keeps the step of a call whose checked tensors have this normal form."""
    if key is None or key in _at_once:
        return
    if len(_at_once) >= _KEPT:
        _at_once.clear()
    arguments: Arguments = key[4]
    shapes = (tuple(x.shape), tuple(w.shape))
    _at_once[key] = operator.at_once(*shapes, *how, x.dtype, arguments.joint)


def sums(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    *,
    name: str = "template",
    flip: bool = False,
    prepared: PreparedTemplate | None = None,
    pads: Sequence[int] | None = None,
) -> Tensor:
    """`correlate`, or `convolve` with `flip`, of arguments that are parsed.

    With `pads`, so many zeros are before and behind the input along each axis in turn, instead of
    the padding of the mode.
    """
    key = None
    if not flip and prepared is None and pads is None:
        key, step = _found(input, template, arguments)
        if step is not None:
            found: Tensor = step(input, template)
            return found
    # Spectra are prepared for the tiles of a padded input.
    zeros = prepared is None and arguments.surrounds and arguments.pad_value == 0
    padded = pads is None and not zeros
    x, w, result = normal_pair(
        input, template, arguments, name=name, complex_allowed=True, padded=padded
    )
    if pads is None:
        pads = () if padded else arguments.pads_of(tuple(w.shape[-arguments.ndim :]))
    if flip:
        w = w.flip(tuple(range(-arguments.ndim, 0)))
    elif w.is_complex():
        w = w.conj().resolve_conj()
    how = (arguments.stride, arguments.method)
    spectra = None
    if prepared is not None:
        spectra = prepared.spectra_for(x, w, *how, normalised=False)
    _keep(key, _contract.correlate, x, w, *how)
    out: Tensor = _contract.correlate(x, w, *how, spectra, pads)
    if _checks.is_integral(input.dtype) and arguments.pads_with_whole_numbers():
        return out.round()
    return out if out.dtype == result else out.to(result)


def scores(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    eps: float,
    weights: Weights,
    *,
    zero_mean: bool,
    prepared: PreparedTemplate | None = None,
) -> Tensor:
    key = None
    if prepared is None and type(eps) is float and weights.are_absent():
        key, step = _found(input, template, arguments, eps, zero_mean)
        if step is not None:
            found: Tensor | None = step(input, template)
            if found is not None:
                return found
            # Bytes take several steps, and calls with them are followed by others.
            _at_once[key] = None
    _checks.not_negative(eps, "eps")
    _checks.tensor(input, "input")
    _checks.tensor(template, "template")
    weights.check(input, template)
    own_means = zero_mean and arguments.joint and not arguments.pooled
    if own_means:
        own_means = input.dim() > arguments.ndim and input.shape[-arguments.ndim - 1] > 1
    if own_means or weights.are_needed(input, template, arguments):
        return _weighted_scores(input, template, arguments, eps, weights, zero_mean)
    x, whole, result = normal_pair(
        input, template, arguments, name="template", complex_allowed=False, bytes_kept=True
    )
    _keep(key, _contract.ncc, x, whole, arguments.stride, zero_mean, eps, arguments.method)
    w = whole
    if whole.is_floating_point():
        w = _contract.standardise(whole, arguments.ndim, zero_mean)
    stride, method = arguments.stride, arguments.method
    spectra = None
    # Those of bytes are of other numbers, and made in each call.
    if prepared is not None and x.is_floating_point():
        spectra = prepared.spectra_for(x, w, stride, method, normalised=True)
    given = whole.detach() if whole.dtype in MAYBE_BYTES else None
    out: Tensor = _contract.ncc(x, w, stride, zero_mean, float(eps), method, spectra, given)
    return out if out.dtype == result else out.to(result)


def _weighted_scores(
    input: Tensor,
    template: Tensor,
    arguments: Arguments,
    eps: float,
    weights: Weights,
    zero_mean: bool,
) -> Tensor:
    x, w, result = normal_pair(input, template, arguments, name="template", complex_allowed=False)
    if x.dtype in HALVES:
        x, w = x.float(), w.float()
    if zero_mean and input.dtype == template.dtype == torch.int8:
        # From 0 on, as bytes are scored exactly: a level of either changes no coefficient.
        x, w = x + 128, w + 128
    window = tuple(w.shape[-arguments.ndim :])
    of_input = weights.of_input(input, arguments, window, x.dtype)
    of_template = weights.of_template(template, arguments, x.dtype)
    how = (zero_mean, arguments.pooled, float(eps), float(weights.min_overlap), arguments.method)
    out: Tensor = _contract.weighted_ncc(x, w, of_input, of_template, arguments.stride, *how)
    return out.to(result)
