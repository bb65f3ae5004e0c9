"""Aligning two recordings of one source: the shift between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import operators
from .lags import lags_of
from .masked import Masks, masks_of
from .phase import WEIGHTINGS
from .search import Answer, Search
from .subsample import SUBSAMPLE

__all__ = ["Shift", "estimate_shift"]

POLARITIES = ("same", "either")


@dataclass(frozen=True, eq=False)
class Shift:
    """The shift between two recordings, and what is known about it.

    Every field is a tensor with the leading axes ``(*lead,)`` of the recordings.

    Attributes
    ----------
    shift : Tensor
        ``(*lead, ndim)``, float64, in samples: applied to ``moving``, it lays ``moving`` on
        ``reference``. Axis order as in the tensors. Zero where ``found`` is False.
    score : Tensor
        ``(*lead,)``, float64: the correlation coefficient of the overlap at the whole-sample shift,
        negative for an inverted copy.
    found : Tensor
        ``(*lead,)``, bool: False where no lag has a common pattern, because one of the recordings
        is flat in every overlap or because they agree nowhere better than not at all.
    overlap : Tensor
        ``(*lead,)``, int64: elements that overlap.
    runner_up : Tensor
        ``(*lead, ndim)``, float64: the best whole-sample shift outside the peak; NaN if there is
        none.
    runner_up_score : Tensor
        ``(*lead,)``, float64: its score, or NaN.
    at_limit : Tensor
        ``(*lead,)``, bool: the best lag is at the limit of the search, beyond which a better one
        may lie.
    significance : Tensor
        ``(*lead,)``, float64: the score as a normal deviate, see `estimate_shift`.
    false_alarm : Tensor
        ``(*lead,)``, float64: probability that unrelated recordings reach this significance at any
        lag of the search.
    ranges : tuple of (int, int)
        The lowest and the highest lag of each axis that was searched.
    score_map : Tensor or None
        ``(*lead, *lags)``, float64, the score at each lag, if it was asked for.
    """

    shift: Tensor
    score: Tensor
    found: Tensor
    overlap: Tensor
    runner_up: Tensor
    runner_up_score: Tensor
    at_limit: Tensor
    significance: Tensor
    false_alarm: Tensor
    ranges: tuple[tuple[int, int], ...]
    score_map: Tensor | None

    @property
    def lags(self) -> tuple[Tensor, ...]:
        """The lags of each axis that were searched, int64: the axes of the map.

        They are created on each access: those of a long record take more memory than the record.
        """
        device = self.shift.device
        return tuple(torch.arange(low, high + 1, device=device) for low, high in self.ranges)


def estimate_shift(
    reference: Tensor,
    moving: Tensor,
    *,
    ndim: int = 2,
    lags: Sequence[object] | None = None,
    max_shift: int | Sequence[int] | None = None,
    centre: int | Sequence[int] = 0,
    min_overlap: float | None = None,
    polarity: str = "same",
    reference_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    nan: str = "refuse",
    weighting: str | None = None,
    subpixel: bool = True,
    subsample: str = "fourier",
    score_map: bool = False,
    method: str = "auto",
) -> Shift:
    r"""Return the shift that, applied to ``moving``, lays it on ``reference``.

    At each whole-sample lag the coefficient of correlation (Pearson's r) is taken over the samples
    that overlap, and over nothing else. The lag whose coefficient is least likely to be chance for
    so many samples wins; of equal ones the smallest.

    Parameters
    ----------
    reference, moving : Tensor
        ``(*lead, *S)`` and ``(*lead, *K)``: real, of one dtype, the last ``ndim`` axes being those
        that move, and the axes before them broadcast. ``S`` and ``K`` may differ. Computed in
        float64.
    ndim : int, default 2
        Number of axes that move: 1 for signals, 2 for images, 3 for volumes.
    lags : (low, high) or sequence of (low, high), optional
        The lags to search, in samples, ends included, for all axes or for each; None leaves an end
        open. By default all at which recordings overlap. Only these are computed.
    max_shift : int or sequence of int, optional
        Instead of ``lags``: those at most so far from ``centre``, for all axes or for each.
    centre : int or sequence of int, default 0
        The expected lag. Of equal scores the one nearest to it wins.
    min_overlap : float, optional
        Smallest overlap, as a fraction of the elements of the smaller recording, in (0, 1]. The
        highest score above it wins, however few samples it has. By default every overlap counts,
        weighed by its significance.
    polarity : {"same", "either"}
        "either" also finds inverted copies: the largest ``|r|`` wins, and ``score`` has its sign.
    reference_mask, moving_mask : Tensor, optional
        Weights of the elements of either recording, not negative, that broadcast to it; a boolean
        mask counts the elements that are True. What has weight 0 is missing, whatever it is.
        ``overlap`` and ``min_overlap`` are of weights then.
    nan : {"refuse", "ignore"}
        "ignore" takes NaN as missing.
    weighting : {"phat", "scot", "roth", "ml"}, optional
        Rank by the generalised cross-correlation of `phase_correlation` instead, which finds a
        delay under echoes; ``score`` is its value then.
    subpixel : bool, default True
        Refine by less than a sample (so the result may exceed the lags searched by as much). It
        moves the winner and never chooses another.
    subsample : {"fourier", "gauss", "parabola"}
        How: "fourier" shifts one recording by interpolation of the lower half of its band until
        the coefficient is largest, which is exact for band-limited recordings; the others fit a
        Gaussian or a parabola to three scores along each axis, and draw towards whole samples.
    score_map : bool, default False
        Return the score at every lag.
    method : {"auto", "direct", "fft"}
        As for `correlate`.

    Returns
    -------
    Shift
        The shift ``(*lead, ndim)``, its score ``(*lead,)``, both float64, and what else is known.
        The sign is that of ``skimage.registration.phase_cross_correlation``:
        ``scipy.ndimage.shift(moving, shift)`` resembles ``reference``. Where nothing can be
        compared or nothing agrees, ``found`` is False, and shift and score are 0.

    Raises
    ------
    TypeError
        If an argument is no real tensor, or dtypes differ.
    ValueError
        If an axis is missing, leading axes do not broadcast, a recording contains NaN or infinity
        that is not missing, ``lags`` and ``min_overlap`` leave no shift to consider, or a mask
        does not fit, is negative or zero everywhere.

    Notes
    -----
    Over n independent pairs without correlation
    :math:`z = \operatorname{artanh}(r) \sqrt{n - 3}` is nearly normal with deviation 1 (Fisher
    1921): a coefficient over few samples is high by chance. Lags are ranked by z. Two lags are
    equal if rounding alone makes the difference, or if both agree perfectly and the overlap of one
    is at least half of the other's.

    Neighbouring samples are alike, so n samples are worth
    :math:`n / \sum_k \rho_x(k) \rho_y(k)` independent pairs (Bartlett 1946), with the
    autocorrelations of both recordings. ``significance`` is Student's t of r over so many pairs as
    a normal deviate (Wallace 1959), and ``false_alarm`` the probability that one of all lags, as
    many as are independent, comes so far by chance. It is high for two pure tones of one frequency:
    they agree somewhere whatever they are. A generalised cross-correlation of unrelated recordings
    is nearly normal with the variance of one over the length of its transform. Masks
    that leave little of both let it agree at few lags, where this variance is larger (math.md, eq.
    weighed-spectra).

    With masks as well as a weighting each recording is centred by its weighted mean and multiplied
    by its weights, and the spectra are those of the products, see `phase_correlation`.

    Exchanging the recordings changes the sign of the shift and nothing else.

    If a recording requires a gradient, ``shift`` has the gradient of the place of the peak with
    ``subsample="fourier"``, and the other fields have none.

    References
    ----------
    R. A. Fisher, "On the 'probable error' of a coefficient of correlation deduced from a small
    sample", Metron 1 (1921) 3-32.
    D. L. Wallace, "Bounds on normal approximations to Student's and the chi-square distributions",
    Annals of Mathematical Statistics 30 (1959) 1121-1130.
    M. S. Bartlett, "On the theoretical specification and sampling properties of autocorrelated
    time-series", Supplement to the Journal of the Royal Statistical Society 8 (1946) 27-41.
    D. Padfield, "Masked object registration in the Fourier domain", IEEE Transactions on Image
    Processing 21 (2012) 2706-2718: the coefficient over the overlap, also with masks.
    G. D. Evangelidis and E. Z. Psarakis, "Parametric image alignment using enhanced correlation
    coefficient maximization", IEEE Transactions on Pattern Analysis and Machine Intelligence 30
    (2008) 1858-1865.

    Examples
    --------
    >>> import torch, torchcorr
    >>> time = torch.arange(400, dtype=torch.float64) * (2 * torch.pi / 100)
    >>> shift = torchcorr.estimate_shift(3 * time.sin(), 0.5 * time.cos(), ndim=1)
    >>> round(shift.shift.item(), 3), round(shift.score.item(), 3)
    (25.0, 1.0)
    >>> shift.overlap.item(), shift.at_limit.item()
    (375, False)
    """
    _checks.dimension(ndim)
    _checks.one_of(method, _checks.METHODS, "method")
    _checks.one_of(polarity, POLARITIES, "polarity")
    _checks.one_of(subsample, SUBSAMPLE, "subsample")
    if weighting is not None:
        _checks.one_of(weighting, WEIGHTINGS, "weighting")
    if min_overlap is not None:
        _checks.fraction(min_overlap, "min_overlap")
    recordings = {"reference": reference, "moving": moving}
    given = {"reference": reference_mask, "moving": moving_mask}
    for name, x in recordings.items():
        _checks.real_tensor(x, name)
    if operators.is_needed(reference, moving, reference_mask, moving_mask):
        _checks.recordings(recordings, ndim)
        asked = lags_of(lags, max_shift, centre, _sizes(reference, moving, ndim))
        axes, masks_given = asked.axes, (reference_mask, moving_mask)
        ends = ([a.low for a in axes], [a.high for a in axes], list(asked.centre))
        options = (min_overlap, polarity, nan, weighting, subpixel, subsample, score_map, method)
        found = _operator(reference, moving, *masks_given, *ends, *options)
        # Only the shift has a gradient.
        shift, *others = found[0], *(x.detach() for x in found[1:])
        known: dict[str, Any] = dict(zip(_FIELDS[1:], others, strict=False))
        ranges = tuple((a.low, a.high) for a in axes)
        return Shift(shift, **known, ranges=ranges, score_map=others[-1] if score_map else None)
    recordings, weights = masks_of(recordings, given, nan)
    _checks.recordings(recordings, ndim)
    reference, moving = recordings.values()
    asked = lags_of(lags, max_shift, centre, _sizes(reference, moving, ndim))
    search = Search(
        asked,
        either=polarity == "either",
        min_overlap=min_overlap,
        weighting=weighting,
        subsample=subsample if subpixel else None,
        keep_map=score_map,
        method=method,
    )
    search.check_overlap()
    lead = torch.broadcast_shapes(reference.shape[:-ndim], moving.shape[:-ndim])
    pairs = zip(*(_items(v, lead, ndim) for v in (reference, moving)), strict=True)
    masks: Iterator[Masks | None] = itertools.repeat(None)
    if weights is not None:
        masks = map(Masks, *(_items(v, lead, ndim) for v in weights.values()))
    answers = [search.run(x, y, mask) for (x, y), mask in zip(pairs, masks, strict=False)]
    return _stacked(answers, search, lead, reference.device)


def _sizes(reference: Tensor, moving: Tensor, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(reference.shape[-ndim:]), tuple(moving.shape[-ndim:])


def _items(x: Tensor, lead: Sequence[int], ndim: int) -> Iterator[Tensor]:
    """One recording after another, as if leading axes were expanded."""
    for index in itertools.product(*(range(n) for n in lead)):
        own = index[len(lead) - (x.dim() - ndim) :]
        yield x[tuple(0 if n == 1 else i for i, n in zip(own, x.shape[:-ndim], strict=True))]


def _stacked(
    answers: list[Answer], search: Search, lead: Sequence[int], device: torch.device
) -> Shift:
    """The answers for all pairs as tensors with leading axes."""
    ndim = len(search.lags.axes)

    def single(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        values = [getattr(answer, name) for answer in answers]
        return torch.tensor(values, dtype=dtype, device=device).reshape(tuple(lead))

    def joined(tensors: list[Tensor], *shape: int) -> Tensor:
        empty = torch.empty(0, dtype=torch.float64, device=device)
        return (torch.stack(tensors) if tensors else empty).reshape(*lead, *shape)

    runners_up = [torch.tensor(a.runner_up, dtype=torch.float64, device=device) for a in answers]
    maps = [a.score_map for a in answers if a.score_map is not None]
    return Shift(
        shift=joined([a.shift for a in answers], ndim),
        score=single("score"),
        found=single("found", torch.bool),
        overlap=single("overlap", torch.int64),
        runner_up=joined(runners_up, ndim),
        runner_up_score=single("runner_up_score"),
        at_limit=single("at_limit", torch.bool),
        significance=single("significance"),
        false_alarm=single("false_alarm"),
        ranges=tuple((axis.low, axis.high) for axis in search.lags.axes),
        score_map=joined(maps, *search.lags.shape) if search.keep_map else None,
    )


def _call(
    reference: Tensor,
    moving: Tensor,
    reference_mask: Tensor | None,
    moving_mask: Tensor | None,
    low: Sequence[int],
    high: Sequence[int],
    centre: Sequence[int],
    *options: Any,
) -> operators.Fields:
    """The fields of a shift but for its ranges; an empty map where none was asked for."""
    found = estimate_shift(
        reference,
        moving,
        ndim=len(low),
        lags=list(zip(low, high, strict=True)),
        centre=centre,
        reference_mask=reference_mask,
        moving_mask=moving_mask,
        **dict(zip(_OPTIONS, options, strict=True)),
    )
    empty = found.shift.new_empty(0)
    score_map = empty if found.score_map is None else found.score_map
    return (*(getattr(found, name) for name in _FIELDS), score_map)


def _fake(
    reference: Tensor,
    moving: Tensor,
    reference_mask: Tensor | None,
    moving_mask: Tensor | None,
    low: Sequence[int],
    high: Sequence[int],
    centre: Sequence[int],
    *options: Any,
) -> operators.Fields:
    ndim = len(low)
    lead = torch.broadcast_shapes(reference.shape[:-ndim], moving.shape[:-ndim])
    sizes: dict[str, Sequence[int]] = dict.fromkeys(_FIELDS, lead)
    sizes["shift"] = sizes["runner_up"] = (*lead, ndim)
    asked = dict(zip(_OPTIONS, options, strict=True))["score_map"]
    lags = [b - a + 1 for a, b in zip(low, high, strict=True)]
    sizes["score_map"] = (*lead, *lags) if asked else (0,)
    return operators.empty_fields(reference, sizes)


_FIELDS = (
    "shift",
    "score",
    "found",
    "overlap",
    "runner_up",
    "runner_up_score",
    "at_limit",
    "significance",
    "false_alarm",
)
_OPTIONS = (
    "min_overlap",
    "polarity",
    "nan",
    "weighting",
    "subpixel",
    "subsample",
    "score_map",
    "method",
)
_operator = operators.register(
    "estimate_shift",
    "Tensor reference, Tensor moving, Tensor? reference_mask, Tensor? moving_mask, SymInt[] low, "
    "SymInt[] high, SymInt[] centre, float? min_overlap, str polarity, str nan, str? weighting, "
    "bool subpixel, str subsample, bool score_map, str method",
    len(_FIELDS) + 1,
    _call,
    _fake,
    differentiable=(0,),
)
