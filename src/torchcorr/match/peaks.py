"""Peaks of score maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .. import _checks, _contract
from .maxima import parabola

__all__ = ["Peaks", "find_peaks"]


@dataclass(frozen=True, eq=False)
class Peaks:
    """Peaks of one map or of several, best first in each.

    Attributes
    ----------
    positions : Tensor
        ``(n, ndim)``, float64, in samples, axis order as in the map: ``(y, x)`` in 2-D.
    scores : Tensor
        ``(n,)``, the map's dtype: the map's value at the whole-sample position of each peak.
    items : Tensor
        ``(n, lead)``, int64: the map of a batch that contains each peak, one index for each leading
        axis; ``(n, 0)`` for a single map. Sorted by map.
    """

    positions: Tensor
    scores: Tensor
    items: Tensor = field(kw_only=True)

    def __len__(self) -> int:
        return self.scores.shape[0]


def find_peaks(
    score_map: Tensor,
    *,
    ndim: int = 2,
    threshold: float | None = None,
    max_peaks: int | None = None,
    min_distance: int | Sequence[int] = 1,
    subpixel: bool = True,
) -> Peaks:
    """Return the peaks of a score map, or of each map of a batch, best first, near ones suppressed.

    An element is a peak if it exceeds its neighbours (diagonal ones too); of equal neighbours the
    first in raster order counts. Peaks are taken greedily from the best down, equal scores in
    raster order.

    Parameters
    ----------
    score_map : Tensor
        Real, ``(*lead, *size)``: the last `ndim` axes are those of a map. NaN is never a peak.
    ndim : int
        Number of axes of a map, 1 to 3.
    threshold : float, optional
        Smallest score of a peak. By default every peak counts.
    max_peaks : int, optional
        Largest number of peaks returned for each map. By default all.
    min_distance : int or sequence of int, default 1
        In samples, one for all axes or one per axis: of two peaks that differ by less than this
        along every axis only the better is kept.
    subpixel : bool, default True
        Move each peak to the top of a parabola through it and its two neighbours along each axis,
        by at most half a sample; not at the border of the map. Scores are not interpolated.

    Returns
    -------
    Peaks
        Positions ``(n, ndim)`` in float64 and scores ``(n,)`` in the map's dtype (float32 for an
        integer map), both differentiable with respect to the map, and the map of the batch that
        each belongs to.

    Raises
    ------
    TypeError
        If ``score_map`` is no real tensor, or a limit is no number of the right kind.
    ValueError
        If ``score_map`` has fewer than `ndim` axes, or a limit is out of range.

    References
    ----------
    Q. Tian and M. N. Huhns, "Algorithms for subpixel registration", Computer Vision, Graphics, and
    Image Processing 35 (1986) 220-233.

    Examples
    --------
    >>> import torch, torchcorr
    >>> scores = torch.tensor([0.0, 0.5, 0.9, 0.7, 0.1, 0.3, 0.0])
    >>> peaks = torchcorr.find_peaks(scores, ndim=1)
    >>> peaks.positions.squeeze(1).round(decimals=3).tolist()
    [2.167, 4.9]
    >>> peaks.scores
    tensor([0.9000, 0.3000])
    """
    _checks.dimension(ndim)
    _checks.threshold(threshold)
    _checks.count(max_peaks, "max_peaks")
    distance = _checks.per_axis(min_distance, ndim, "min_distance")
    _checks.real_tensor(score_map, "score_map")
    _checks.rank(score_map, ndim, False, "score_map")
    if not score_map.dtype.is_floating_point:
        score_map = score_map.float()
    return peaks_of(score_map, ndim, threshold, max_peaks, distance, subpixel)


def peaks_of(
    score_map: Tensor,
    ndim: int,
    threshold: float | None,
    limit: int | None,
    distance: tuple[int, ...],
    subpixel: bool,
) -> Peaks:
    """`find_peaks` of arguments that are checked."""
    lead = score_map.dim() - ndim
    points = _contract.pick_peaks(score_map.detach(), ndim, threshold, limit, distance)
    index = points.unbind(1)
    positions = points[:, lead:].double()
    if subpixel:
        positions = positions + parabola(score_map, index, ndim=ndim)[0]
    return Peaks(positions=positions, scores=score_map[index], items=points[:, :lead])
