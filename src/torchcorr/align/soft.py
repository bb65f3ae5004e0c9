"""A shift that is differentiable everywhere: the mean lag, weighed by how well each agrees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ..functional import zncc

__all__ = ["soft_shift"]


def soft_shift(
    reference: Tensor,
    moving: Tensor,
    *,
    max_shift: int | Sequence[int],
    ndim: int = 2,
    temperature: float = 0.05,
    method: str = "auto",
) -> Tensor:
    r"""Return the mean of the lags of a window, weighed by the softmax of their scores.

    For training: unlike the place of a single peak it never jumps. The score at each lag is `zncc`
    of the middle of ``moving``, without a margin of ``max_shift``, against ``reference``.

    Parameters
    ----------
    reference, moving : Tensor
        ``(*lead, *S)``, of one size along the axes that move and of one dtype; leading axes
        broadcast.
    max_shift : int or sequence of int
        Largest lag, for all axes or for each; less than half of each axis.
    ndim : int, default 2
        Number of axes that move: 1 for signals, 2 for images, 3 for volumes.
    temperature : float, default 0.05
        Difference of scores for which one lag weighs e times as much as another. With a low one the
        result is the best lag, and its gradient small but at ties; with a high one it is drawn to
        the middle of the window, 0, where all lags weigh the same.
    method : {"auto", "direct", "fft"}
        As for `zncc`.

    Returns
    -------
    Tensor
        ``(*lead, ndim)``, in samples, with the sign of `estimate_shift`; dtypes as for `zncc`.
        Differentiable with respect to both recordings.

    Raises
    ------
    TypeError
        If an argument is no real tensor, or the dtypes do not mix.
    ValueError
        If sizes differ, ``max_shift`` leaves no middle, or ``temperature`` is not positive.

    References
    ----------
    A. Kendall, H. Martirosyan, S. Dasgupta, P. Henry, "End-to-end learning of geometry and context
    for deep stereo regression", ICCV (2017) 66-75: the soft argmin.

    Examples
    --------
    >>> import torch, torchcorr
    >>> source = torch.randn(200, generator=torch.Generator().manual_seed(0))
    >>> round(torchcorr.soft_shift(source[:150], source[7:157], ndim=1, max_shift=20).item(), 2)
    7.0
    """
    _checks.dimension(ndim)
    reach = _checks.per_axis(max_shift, ndim, "max_shift", least=0)
    _checks.positive(temperature, "temperature")
    for name, tensor in (("reference", reference), ("moving", moving)):
        _checks.real_tensor(tensor, name)
        _checks.rank(tensor, ndim, False, name)
    size = tuple(reference.shape[-ndim:])
    _checks.sizes_match(size, moving.shape[-ndim:], ("reference", "moving"))
    _checks.margin_fits(reach, size, "max_shift")
    middle = tuple(slice(r, n - r) for r, n in zip(reach, size, strict=True))
    scores = zncc(reference, moving[(..., *middle)], ndim=ndim, method=method)
    weights = (scores / temperature).flatten(-ndim).softmax(-1).reshape(scores.shape)
    shifts = []
    for axis, r in zip(range(-ndim, 0), reach, strict=True):
        others = [other for other in range(-ndim, 0) if other != axis]
        line = weights.sum(others) if others else weights
        shifts.append(line @ torch.arange(-r, r + 1, dtype=line.dtype, device=line.device))
    return torch.stack(shifts, -1)
