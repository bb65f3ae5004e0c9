"""Cross-correlation at a range of lags, scaled as in MATLAB's xcorr."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .._arguments import Arguments
from .._definition.overlap import reach
from .._definition.transforms import bordered
from .._pairs import sums
from .._plan.lags import AxisLags, Lags
from .lags import lags_of

__all__ = ["correlation_lags", "cross_correlation"]

SCALES = ("none", "biased", "unbiased", "coeff")


def cross_correlation(
    a: Tensor,
    b: Tensor,
    *,
    ndim: int = 2,
    lags: Sequence[object] | None = None,
    max_shift: int | Sequence[int] | None = None,
    centre: int | Sequence[int] = 0,
    scale: str = "none",
    method: str = "auto",
) -> Tensor:
    r"""Return the sum of products of two recordings at each lag of a range.

    ``sum_i a[i + k] * conj(b[i])`` over the elements that overlap, at each lag k. With all lags it
    equals ``scipy.signal.correlate(a, b)``, and MATLAB's ``xcorr(a, b)`` for equal lengths; only
    the lags asked for are computed.

    Parameters
    ----------
    a, b : Tensor
        ``(*lead, *S)`` and ``(*lead, *K)``, of one dtype; leading axes broadcast.
    ndim : int, default 2
        Number of axes that move: 1 for signals, 2 for images, 3 for volumes.
    lags : (low, high) or sequence of (low, high), optional
        The lags, ends included, for all axes or for each; None leaves an end open. By default all
        at which the recordings overlap.
    max_shift : int or sequence of int, optional
        Instead of ``lags``: those at most so far from ``centre``.
    centre : int or sequence of int, default 0
        The middle of the lags.
    scale : {"none", "biased", "unbiased", "coeff"}
        "biased" divides by the number of elements of a recording (both have one size), "unbiased"
        by the number that overlaps, "coeff" by the norms of both recordings, so that lag 0 of a
        recording with itself is 1. If one of them is zero everywhere, so is every coefficient.
    method : {"auto", "direct", "fft"}
        As for `correlate`.

    Returns
    -------
    Tensor
        ``(*lead, *lags)``, lags rising along each axis, differentiable. Dtypes, precision and
        complex tensors as for `correlate`.

    Raises
    ------
    TypeError
        If an argument is no tensor, or dtypes differ.
    ValueError
        If an axis is missing, leading axes do not broadcast, sizes differ with "biased", or no lag
        is left.

    References
    ----------
    S. J. Orfanidis, Optimum Signal Processing, 2nd ed., McGraw-Hill, 1996, section 1.6: biased and
    unbiased estimates.

    Examples
    --------
    >>> import torch, torchcorr
    >>> a = torch.tensor([1.0, 2, 3, 4])
    >>> torchcorr.cross_correlation(a, a, ndim=1, max_shift=1)
    tensor([20., 30., 20.])
    >>> torchcorr.cross_correlation(a, a, ndim=1, lags=(0, 2), scale="coeff")
    tensor([1.0000, 0.6667, 0.3667])
    """
    _checks.dimension(ndim)
    _checks.one_of(scale, SCALES, "scale")
    for name, tensor in (("a", a), ("b", b)):
        _checks.tensor(tensor, name)
        _checks.rank(tensor, ndim, False, name)
        _checks.input_not_empty(tuple(tensor.shape[-ndim:]), name)
    sizes = (tuple(a.shape[-ndim:]), tuple(b.shape[-ndim:]))
    if scale == "biased":
        _checks.sizes_match(*sizes)
    asked = lags_of(lags, max_shift, centre, sizes)
    if scale == "coeff":
        dtype = a.dtype
        (a, first), (b, second) = (_scaled(v, ndim) for v in (a, b))
    left, x, y = asked.cropped(a, b)
    ends = reach(left)
    x = bordered(x, [min(0, n) for n in ends])
    arguments = Arguments.parse(ndim, "full", 1, "independent", "constant", 0.0, method)
    total = sums(x, y, arguments, pads=[max(0, n) for n in ends])
    if scale == "coeff":
        total = total / (first * second)
        return total.to(dtype) if dtype.is_floating_point else total
    return total / _divisor(a, asked, scale) if scale != "none" else total


def _scaled(x: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """A recording in units of its largest element, so that neither products nor norms leave the
    range of its exponent, and its norm; 1 if all of it is zero. Integers remain what they are.
    """
    axes = tuple(range(-ndim, 0))
    if not (x.is_floating_point() or x.is_complex()):
        norm = torch.linalg.vector_norm(x.double(), dim=axes, keepdim=True).float()
        return x, norm.masked_fill(norm == 0, 1.0)
    if x.is_floating_point():
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = x.detach().abs().amax(axes, keepdim=True)
    x = x / torch.where((peak > 0) & peak.isfinite(), peak, 1.0)
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    return x, norm.masked_fill(norm == 0, 1.0)


def _divisor(a: Tensor, lags: Lags, scale: str) -> Tensor:
    real = a.real.dtype if a.is_complex() else a.dtype
    if scale == "unbiased":
        return lags.counts(a.device).to(real)
    return torch.tensor(math.prod(a.shape[-len(lags.axes) :]), dtype=real, device=a.device)


def correlation_lags(size: int, moved: int, *, mode: str = "full") -> Tensor:
    """Return the lags of a correlation along one axis, in the order of its values.

    Equals ``scipy.signal.correlation_lags(size, moved, mode)``; only in mode ``"same"``, for an odd
    size and an even ``moved``, SciPy's lags are one more than those of its own values.

    Parameters
    ----------
    size, moved : int
        Elements of the input and of the template, or of ``a`` and ``b``, along the axis.
    mode : str
        ``"full"``, ``"same"`` or ``"valid"``, as for `correlate`; with "valid" those at which one
        lies within the other, also if ``moved`` is the longer, which `correlate` refuses.

    Returns
    -------
    Tensor
        ``(positions,)``, dtype int64: what the index of the input is more than that of the
        template.

    Raises
    ------
    TypeError
        If a size is no int.
    ValueError
        If a size is below 1, or the mode is unknown.

    References
    ----------
    R. N. Bracewell, The Fourier Transform and Its Applications, McGraw-Hill, 2000, chapter 3.

    Examples
    --------
    >>> import torchcorr
    >>> torchcorr.correlation_lags(4, 3)
    tensor([-2, -1,  0,  1,  2,  3])
    >>> torchcorr.correlation_lags(4, 3, mode="valid")
    tensor([0, 1])
    """
    _checks.one_of(mode, _checks.MODES, "mode")
    for name, value in (("size", size), ("moved", moved)):
        _checks.per_axis(value, 1, name)
    ends = {
        "full": (1 - moved, size - 1),
        "same": (-(moved // 2), size - 1 - moved // 2),
        "valid": (min(0, size - moved), max(0, size - moved)),
    }
    low, high = ends[mode]
    return AxisLags(size, moved, low, high).values(torch.get_default_device())
