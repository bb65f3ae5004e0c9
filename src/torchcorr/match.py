"""Finding a template in an image: peaks of a score map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._peaks import local_maxima, parabola, suppress
from .functional import ncc, zncc

__all__ = ["Matches", "Peaks", "find_peaks", "match_template"]

_SCORES = {"zncc": zncc, "ncc": ncc}


@dataclass(frozen=True, eq=False)
class Peaks:
    """Peaks of a map, best first.

    Attributes
    ----------
    positions : Tensor
        ``(n, ndim)``, float64, in samples, axis order as in the map: ``(y, x)`` in 2-D.
    scores : Tensor
        ``(n,)``, the map's dtype: the map's value at the whole-sample position of each peak.
    """

    positions: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return self.scores.shape[0]


@dataclass(frozen=True, eq=False)
class Matches(Peaks):
    """Places where a template was found, best first.

    Attributes
    ----------
    positions : Tensor
        ``(n, ndim)``, float64, in pixels: the top-left corner of each match, axis order as in the
        image, ``(y, x)`` in 2-D. Pixel centres lie on whole numbers.
    scores : Tensor
        ``(n,)``: the score at the whole-pixel position of each match, in [-1, 1].
    size : tuple of int
        The template's size along the window axes, ``(height, width)`` in 2-D: the box of every
        match.
    """

    size: tuple[int, ...]


def find_peaks(
    score_map: Tensor,
    *,
    threshold: float | None = None,
    max_peaks: int | None = None,
    min_distance: int | Sequence[int] = 1,
    subpixel: bool = True,
) -> Peaks:
    """Return the peaks of a score map, best first, near ones suppressed.

    An element is a peak if it exceeds its neighbours (diagonal ones too); of equal neighbours the
    first
    in raster order counts. Peaks are taken greedily from the best down, equal scores in raster
    order.

    Parameters
    ----------
    score_map : Tensor
        One real map with 1 to 3 axes, ``(X,)``, ``(Y, X)`` or ``(Z, Y, X)``. NaN is never a peak.
    threshold : float, optional
        Smallest score of a peak. By default every peak counts.
    max_peaks : int, optional
        Largest number of peaks returned. By default all.
    min_distance : int or sequence of int, default 1
        In samples, one for all axes or one per axis: of two peaks that differ by less than this
        along
        every axis only the better is kept.
    subpixel : bool, default True
        Move each peak to the top of a parabola through it and its two neighbours along each axis,
        by
        at most half a sample; not at the border of the map. Scores are not interpolated.

    Returns
    -------
    Peaks
        Positions ``(n, ndim)`` in float64 and scores ``(n,)`` in the map's dtype (float32 for an
        integer map). Both are differentiable with respect to the map.

    Raises
    ------
    TypeError
        If ``score_map`` is no real tensor, or a limit is no number of the right kind.
    ValueError
        If ``score_map`` has no or more than 3 axes, or a limit is out of range.

    References
    ----------
    Q. Tian and M. N. Huhns, "Algorithms for subpixel registration", Computer Vision, Graphics, and
    Image Processing 35 (1986) 220-233.

    Examples
    --------
    >>> import torch
    >>> import torchcorr
    >>> peaks = torchcorr.find_peaks(torch.tensor([0.0, 0.5, 0.9, 0.7, 0.1, 0.3, 0.0]))
    >>> peaks.positions.squeeze(1).round(decimals=3).tolist()
    [2.167, 4.9]
    >>> peaks.scores
    tensor([0.9000, 0.3000])
    """
    _require_real(score_map, "score_map")
    ndim = score_map.ndim
    if ndim not in (1, 2, 3):
        raise ValueError(f"score_map must be a single map with 1 to 3 axes: got {ndim} axes")
    if not score_map.dtype.is_floating_point:
        score_map = score_map.float()
    _require_threshold(threshold)
    _require_count(max_peaks, "max_peaks")
    distance = _distances(min_distance, ndim)
    return _peaks(score_map, threshold, max_peaks, distance, subpixel)


def match_template(
    image: Tensor,
    template: Tensor,
    *,
    threshold: float | None = 0.8,
    max_matches: int | None = None,
    min_distance: int | Sequence[int] | None = None,
    subpixel: bool = True,
    ndim: int = 2,
    channels: str = "independent",
    score: str = "zncc",
    method: str = "auto",
) -> Matches:
    """Return the places of an image that look like the template, best first, without overlaps.

    Equals ``find_peaks(zncc(image, template), threshold=threshold, min_distance=template.shape)``,
    its positions being top-left corners. Changes of brightness and contrast do not change the
    score.

    Parameters
    ----------
    image, template : Tensor
        A single image and a single template: ``(H, W)`` and ``(h, w)``, or ``(C, H, W)`` and
        ``(C, h, w)`` with ``channels="joint"``; signals and volumes with ``ndim`` 1 and 3.
        Dtypes as for `zncc`. A batch is refused: its items have different numbers of matches.
    threshold : float, optional
        Smallest score of a match; ``None`` for no limit. The default, 0.8, keeps what shares about
        two
        thirds of its variance with the template (0.8 squared); try 0.5 to 0.7 for look-alikes.
    max_matches : int, optional
        Largest number of matches. By default all.
    min_distance : int or sequence of int, optional
        In pixels, one for all axes or one per axis: of two matches whose corners differ by less
        than this
        along every axis only the better is kept. By default the template's size, so that no two
        boxes overlap (but for the sub-pixel part of their positions).
    subpixel : bool, default True
        Refine positions by a fitted parabola, see `find_peaks`.
    ndim : int, default 2
        Number of window axes: 1, 2 or 3.
    channels : {"independent", "joint"}
        "joint" says that the axis before the window axes holds channels that are matched together.
    score : {"zncc", "ncc"}
        The score; "ncc" does not subtract means.
    method : {"auto", "direct", "fft"}
        As for `zncc`.

    Returns
    -------
    Matches
        Positions ``(n, ndim)`` in float64, scores ``(n,)``, and the template's size. ``n`` may be
        0.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtypes do not mix.
    ValueError
        If the template is larger than the image, an axis is missing or too many, or an option is
        unknown or out of range.

    References
    ----------
    J. P. Lewis, "Fast normalized cross-correlation", Vision Interface (1995) 120-123.

    Examples
    --------
    >>> import torch
    >>> import torchcorr
    >>> image = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    >>> template = 3 * image[20:32, 45:60] + 7
    >>> matches = torchcorr.match_template(image, template, subpixel=False)
    >>> matches.positions, matches.size
    (tensor([[20., 45.]], dtype=torch.float64), (12, 15))
    >>> round(matches.scores.item(), 4)
    1.0
    """
    if score not in _SCORES:
        raise ValueError(f"score must be one of {sorted(_SCORES)}: got {score!r}")
    if channels not in ("independent", "joint"):
        raise ValueError(f"channels must be 'independent' or 'joint': got {channels!r}")
    if ndim not in (1, 2, 3):
        raise ValueError(f"ndim must be 1, 2 or 3: got {ndim!r}")
    _require_threshold(threshold)
    _require_count(max_matches, "max_matches")
    for name, tensor in (("image", image), ("template", template)):
        _require_real(tensor, name)
        _require_single(tensor, name, ndim, channels)
    size = tuple(template.shape[template.ndim - ndim :])
    distance = _distances(min_distance, ndim) if min_distance is not None else size
    scores = _SCORES[score](image, template, ndim=ndim, channels=channels, method=method)
    peaks = _peaks(scores, threshold, max_matches, distance, subpixel)
    return Matches(positions=peaks.positions, scores=peaks.scores, size=size)


def _peaks(
    score_map: Tensor,
    threshold: float | None,
    limit: int | None,
    distance: tuple[int, ...],
    subpixel: bool,
) -> Peaks:
    ndim = score_map.ndim
    values = score_map.detach()
    peak = local_maxima(values, ndim=ndim)
    if threshold is not None:
        peak &= values >= threshold
    points = peak.nonzero()
    order = values[points.unbind(1)].argsort(descending=True, stable=True)
    points = points[order]
    if limit is not None and max(distance) == 1:
        points = points[:limit]
    if max(distance) > 1:
        kept = suppress([tuple(p) for p in points.tolist()], min_distance=distance, limit=limit)
        points = points[torch.tensor(kept, dtype=torch.long, device=points.device)]
    index = points.unbind(1)
    positions = points.double()
    if subpixel:
        positions = positions + parabola(score_map, index, ndim=ndim)[0]
    return Peaks(positions=positions, scores=score_map[index])


def _require_real(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor: got {type(tensor).__name__}")
    if tensor.dtype.is_complex:
        raise TypeError(f"{name} must be real: got {tensor.dtype}")


def _require_single(tensor: Tensor, name: str, ndim: int, channels: str) -> None:
    expected = ndim + (channels == "joint")
    if tensor.ndim == expected:
        return
    rule = f"{name} must have {expected} axes with ndim={ndim} and channels={channels!r}"
    hint = ""
    if tensor.ndim > expected:
        hint = "; match the items of a batch one by one"
        if channels == "independent":
            hint += ", or pass channels='joint' if the first axis holds channels"
    raise ValueError(f"{rule}: got shape {tuple(tensor.shape)}{hint}")


def _require_threshold(threshold: float | None) -> None:
    if threshold is None:
        return
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number or None: got {type(threshold).__name__}")
    if math.isnan(threshold):
        raise ValueError("threshold must not be NaN: got nan")


def _require_count(count: int | None, name: str) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be an int or None: got {type(count).__name__}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1: got {count}")


def _distances(min_distance: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    values = (min_distance,) * ndim if isinstance(min_distance, int) else tuple(min_distance)
    if len(values) != ndim:
        raise ValueError(f"min_distance must be an int or {ndim} of them: got {values}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"min_distance must be of type int: got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"min_distance must be at least 1: got {value}")
    return values
