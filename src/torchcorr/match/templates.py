"""Finding a template in an image: peaks of its score map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import _checks
from ..functional import ncc, zncc
from .peaks import Peaks, peaks_of

__all__ = ["Matches", "match_template"]

_SCORES = {"zncc": zncc, "ncc": ncc}


@dataclass(frozen=True, eq=False)
class Matches(Peaks):
    """Places where a template was found, best first.

    Attributes
    ----------
    positions : Tensor
        ``(n, ndim)``, float64, in pixels: the top-left corner of each match, axis order as in the
        image, ``(y, x)`` in 2-D. Pixel centres are whole numbers.
    scores : Tensor
        ``(n,)``: the score at the whole-pixel position of each match, in [-1, 1].
    items : Tensor
        ``(n, 0)``: a single image has no leading axes.
    size : tuple of int
        The template's size along the window axes, ``(height, width)`` in 2-D: the box of every
        match.
    """

    size: tuple[int, ...]


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
    input_mask: Tensor | None = None,
    template_mask: Tensor | None = None,
    nan: str = "propagate",
    min_overlap: float = 0.3,
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
        two thirds of its variance with the template (0.8 squared); try 0.5 to 0.7 for look-alikes.
    max_matches : int, optional
        Largest number of matches. By default all.
    min_distance : int or sequence of int, optional
        In pixels, one for all axes or one per axis: of two matches whose corners differ by less
        than this along every axis only the better is kept. By default the template's size, so that
        no two boxes overlap (but for the sub-pixel part of their positions).
    subpixel : bool, default True
        Refine positions by a fitted parabola, see `find_peaks`.
    ndim : int, default 2
        Number of window axes: 1, 2 or 3.
    channels : {"independent", "joint", "pooled"}
        "joint" makes the axis before the window axes the channels, which are matched together, each
        with its own mean; "pooled" subtracts one mean for all.
    score : {"zncc", "ncc"}
        The score; "ncc" does not subtract means.
    method : {"auto", "direct", "fft"}
        As for `zncc`.
    input_mask, template_mask : Tensor, optional
        Weights of the image's and of the template's elements, as for `zncc`: valid pixels, and
        those that belong to the object.
    nan : {"propagate", "ignore"}
        "ignore" leaves out elements that are NaN. Scores that are NaN are no matches.
    min_overlap : float
        Smallest share of the template's weight on which a match may rest.

    Returns
    -------
    Matches
        Positions ``(n, ndim)`` in float64, scores ``(n,)``, and the template's size; ``n`` may be
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
    >>> import torch, torchcorr
    >>> image = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    >>> template = 3 * image[20:32, 45:60] + 7
    >>> matches = torchcorr.match_template(image, template, subpixel=False)
    >>> matches.positions, matches.size
    (tensor([[20., 45.]], dtype=torch.float64), (12, 15))
    >>> round(matches.scores.item(), 4)
    1.0
    """
    _checks.dimension(ndim)
    _checks.one_of(channels, _checks.CHANNELS, "channels")
    _checks.one_of(score, tuple(_SCORES), "score")
    _checks.one_of(method, _checks.METHODS, "method")
    _checks.threshold(threshold)
    _checks.count(max_matches, "max_matches")
    distance = None
    if min_distance is not None:
        distance = _checks.per_axis(min_distance, ndim, "min_distance")
    for name, tensor in (("image", image), ("template", template)):
        _checks.real_tensor(tensor, name)
        _checks.single(tensor, ndim, channels != "independent", name)
    size = tuple(template.shape[template.ndim - ndim :])
    scores = _SCORES[score](
        image,
        template,
        ndim=ndim,
        channels=channels,
        method=method,
        input_mask=input_mask,
        template_mask=template_mask,
        nan=nan,
        min_overlap=min_overlap,
    )
    peaks = peaks_of(
        scores, ndim, threshold, max_matches, distance if distance is not None else size, subpixel
    )
    return Matches(peaks.positions, peaks.scores, size, items=peaks.items)
