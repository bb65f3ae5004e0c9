"""Distances of the windows of a recording to a query, and the closest of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks, _contract
from .._definition.traced import is_traced
from ..local import flat_windows
from .gaps import scores_beside_gaps
from .subsample import is_followed

__all__ = ["Windows", "closest_windows", "distance_profile"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of a recording, the closest to a query first.

    Attributes
    ----------
    positions : Tensor
        ``(n,)``, int64: the first element of each window.
    distances : Tensor
        ``(n,)``, the dtype of `distance_profile`.
    """

    positions: Tensor
    distances: Tensor

    def __len__(self) -> int:
        return self.positions.shape[0]


def distance_profile(input: Tensor, query: Tensor, *, method: str = "auto") -> Tensor:
    r"""Return the distance of every window of a recording to a query, both standardised.

    ``sqrt(2 m (1 - r))`` with the coefficient r of `zncc` and m elements: the Euclidean distance of
    window and query after each is brought to mean 0 and deviation 1, as ``stumpy.mass`` has it.

    Parameters
    ----------
    input : Tensor
        ``(*lead, n)``: what is searched. A window that contains NaN or infinity is infinitely far.
    query : Tensor
        ``(*lead, m)``; leading axes broadcast.
    method : {"auto", "direct", "fft"}
        As for `zncc`.

    Returns
    -------
    Tensor
        ``(*lead, n - m + 1)``, dtypes as for `zncc`. Two flat windows have distance 0, a flat one
        and another ``sqrt(m)``.

    Raises
    ------
    TypeError
        If an argument is no real tensor, or the dtypes do not mix.
    ValueError
        If the query is longer than the input, contains NaN or infinity, or leading axes do not
        broadcast.

    References
    ----------
    A. Mueen, S. Zhong, Y. Zhu, M. Yeh, K. Kamgar, K. Viswanathan, C. Gupta, E. Keogh, The fastest
    similarity search algorithm for time series subsequences under Euclidean distance, 2022.

    Examples
    --------
    >>> import torch, torchcorr
    >>> signal = torch.tensor([0.0, 1, 3, 1, 0, 2, 6, 2, 0])
    >>> torchcorr.distance_profile(signal, torch.tensor([1.0, 3, 1])).round(decimals=2)
    tensor([2.6700, 0.0000, 2.6700, 3.3500, 2.6700, 0.0000, 2.6700])
    """
    for name, tensor in (("input", input), ("query", query)):
        _checks.real_tensor(tensor, name)
        _checks.rank(tensor, 1, False, name)
        _checks.input_not_empty(tuple(tensor.shape[-1:]), name)
    _checks.finite(query, "query")
    m = query.shape[-1]
    _checks.window_fits((m,), tuple(input.shape[-1:]), "query")
    scores = scores_beside_gaps(input, query, method)
    if not (is_traced() or is_followed(scores)):
        distance = (1 - scores).mul_(2 * m).sqrt_()
        # A flat window scores 0, so where there is no 0 none is flat.
        if int(torch.count_nonzero(scores)) < scores.numel():
            distance = _beside_flat(distance, input, query)
        return distance.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    squared = 2 * m * (1 - scores)
    # The slope of a root is infinite at 0, where a distance has its least value.
    apart = squared > 0
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    distance = _beside_flat(distance, input, query)
    return distance.masked_fill(scores.isnan(), torch.inf).to(scores.dtype)


def _beside_flat(distance: Tensor, input: Tensor, query: Tensor) -> Tensor:
    """Distances, also where a window or the query is flat."""
    m = query.shape[-1]
    flat, flat_query = flat_windows(input, m, ndim=1), flat_windows(query, m, ndim=1)
    distance = torch.where(flat ^ flat_query, math.sqrt(m), distance)
    return torch.where(flat & flat_query, 0.0, distance)


def closest_windows(
    input: Tensor,
    query: Tensor,
    *,
    max_matches: int | None = None,
    max_distance: float | None = None,
    exclusion: int | None = None,
    method: str = "auto",
) -> Windows:
    """Return the windows of a recording that are closest to a query, without near ones.

    Taken greedily from the smallest `distance_profile`; windows near one that was taken are left
    out.

    Parameters
    ----------
    input : Tensor
        ``(n,)``: what is searched.
    query : Tensor
        ``(m,)``.
    max_matches : int, optional
        Largest number of windows. By default all.
    max_distance : float, optional
        Largest distance. By default any that is finite.
    exclusion : int, optional
        Windows that begin at most so many elements from one that was taken are left out. By default
        a quarter of the query, rounded up, as in stumpy.
    method : {"auto", "direct", "fft"}
        As for `zncc`.

    Returns
    -------
    Windows
        Positions ``(k,)`` and distances ``(k,)``, in the dtype of `distance_profile`.

    Raises
    ------
    TypeError
        As `distance_profile` raises it, or if a limit is no number of the right kind.
    ValueError
        As `distance_profile` raises it, or if there are leading axes or a limit is out of range.

    References
    ----------
    S. M. Law, "STUMPY: a powerful and scalable Python library for time series data mining", Journal
    of Open Source Software 4 (2019) 1504.

    Examples
    --------
    >>> import torch, torchcorr
    >>> signal = torch.tensor([0.0, 1, 3, 1, 0, 2, 6, 2, 0])
    >>> torchcorr.closest_windows(signal, signal[1:4], max_matches=2).positions
    tensor([1, 5])
    """
    for name, tensor in (("input", input), ("query", query)):
        _checks.real_tensor(tensor, name)
        _checks.single(tensor, 1, False, name)
    _checks.count(max_matches, "max_matches")
    if max_distance is not None:
        _checks.not_negative(max_distance, "max_distance")
    zone = -(-query.shape[-1] // 4)
    if exclusion is not None:
        (zone,) = _checks.per_axis(exclusion, 1, "exclusion", least=0)
    profile = distance_profile(input, query, method=method).detach()
    limit = max_distance if max_distance is not None else torch.inf
    taken = _contract.pick_lowest(profile, zone, max_matches, float(limit))
    return Windows(taken, profile[taken])
