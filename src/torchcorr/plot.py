"""Pictures of results. Each function returns a matplotlib figure, which the caller saves or
shows; none of them uses pyplot or a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .align import Shift
    from .match import Matches

__all__ = ["draw_alignment", "draw_matches", "draw_refinement"]

_Array = NDArray[Any]
# Okabe and Ito's colours, which can be distinguished with every kind of colour vision.
_MATCH, _FIRST, _SECOND = "#e69f00", "#0072b2", "#d55e00"


def draw_matches(
    image: _Array,
    matches: Matches,
    *,
    template: _Array | None = None,
    score_map: _Array | None = None,
    title: str = "",
) -> Figure:
    """Return a figure of the image with a box and a score at every match.

    Parameters
    ----------
    image : ndarray
        ``(H, W)`` or ``(H, W, 3)``; its smallest value is shown black, its largest white.
    matches : Matches
        What `torchcorr.match_template` returned for this image.
    template, score_map : ndarray, optional
        The template ``(h, w)`` or ``(h, w, 3)`` and the score map ``(H', W')``. Each is drawn in a
        panel next to the image.
    title : str
        Heading above the image; by default the number of matches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import torch, torchcorr
    >>> from torchcorr.plot import draw_matches
    >>> image = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    >>> matches = torchcorr.match_template(image, image[20:32, 45:60])
    >>> figure = draw_matches(image.numpy(), matches, title="One match")
    >>> figure.axes[0].get_title()
    'One match'
    """
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    widths = [0.36] * (template is not None) + [1.0] + [1.15] * (score_map is not None)
    panel = 4.0
    figure = _figure(panel * sum(widths) + 0.9, max(3.2, panel * height / width + 0.8))
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    figure.set_layout_engine("constrained", wspace=0.06)
    if template is not None:
        _show(axes[0], template, "Template")
        axes = axes[1:]
    _show(axes[0], image, title or f"{len(matches)} matches")
    box_height, box_width = matches.size
    for (y, x), score in zip(matches.positions.tolist(), matches.scores.tolist(), strict=True):
        axes[0].add_patch(
            Rectangle((x - 0.5, y - 0.5), box_width, box_height, fill=False, ec=_MATCH, lw=1.8)
        )
        axes[0].text(
            x, y, f"{score:.2f}", ha="left", va="top", color="black", fontsize=7, clip_on=True,
            bbox={"facecolor": _MATCH, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    if score_map is not None:
        shown = axes[1].imshow(score_map, cmap="RdBu_r", vmin=-1, vmax=1)
        if len(matches) > 0:
            corner = matches.positions.numpy()
            axes[1].scatter(
                corner[:, 1], corner[:, 0], s=70, facecolors="none", edgecolors="black", lw=1.2
            )
        axes[1].set(
            title="Score of every position\nof the box; matches circled",
            xlabel="x of top-left corner (pixels)",
            ylabel="y of top-left corner (pixels)",
        )
        figure.colorbar(shown, ax=axes[1], shrink=0.8, label="score")
    return figure


def draw_alignment(
    reference: _Array,
    moving: _Array,
    shift: Shift,
    *,
    rate: float | None = None,
    names: Sequence[str] = ("reference", "moving"),
    title: str = "",
) -> Figure:
    """Return a figure of two signals, as recorded and aligned.

    Parameters
    ----------
    reference, moving : ndarray
        Signals ``(N,)`` and ``(M,)``. Each is standardised (mean 0, deviation 1) for the drawing,
        with a gap where it is NaN.
    shift : Shift
        What `torchcorr.estimate_shift` returned for them with ``ndim=1``.
    rate : float, optional
        Samples per second. The time axis is in seconds if it is given, and in samples otherwise.
    names : sequence of str
        Names of the two signals.
    title : str
        Heading above both panels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import torch, torchcorr
    >>> from torchcorr.plot import draw_alignment
    >>> signal = torch.randn(200, generator=torch.Generator().manual_seed(0))
    >>> shift = torchcorr.estimate_shift(signal[:150], signal[20:], ndim=1)
    >>> len(draw_alignment(signal[:150].numpy(), signal[20:].numpy(), shift).axes)
    2
    """
    lag, unit = float(shift.shift), "samples"
    scale = 1.0 if rate is None else 1.0 / rate
    amount = f"{lag:+.2f} samples"
    if rate is not None:
        amount, unit = f"{amount} = {lag * scale:+.4f} s", "seconds"
    figure = _figure(9.0, 5.2)
    rows = figure.subplots(2, 1, sharex=True)
    panels = (
        ("As recorded: both start at 0", 0.0),
        (f"{names[1]} shifted by {amount}, score {float(shift.score):.3f}", lag),
    )
    for axes, (heading, offset) in zip(rows, panels, strict=True):
        for values, name, start, colour, line in (
            (reference, names[0], 0.0, _FIRST, 1.8),
            (moving, names[1], offset, _SECOND, 1.0),
        ):
            spread = float(np.nanstd(values)) or 1.0
            time = (np.arange(len(values)) + start) * scale
            axes.plot(
                time, (values - np.nanmean(values)) / spread, color=colour, lw=line, label=name
            )
        axes.set(title=heading, ylabel="standardised value")
        axes.spines[["top", "right"]].set_visible(False)
    rows[1].set_xlabel(f"time of {names[0]} ({unit})")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def draw_refinement(
    panels: Sequence[tuple[str, _Array]],
    errors: Sequence[tuple[str, Sequence[float]]],
    *,
    title: str = "",
) -> Figure:
    """Return a figure of images in a row, and below them the error at each step.

    Parameters
    ----------
    panels : sequence of (str, ndarray)
        Heading and image ``(H, W)`` of each panel. Images with negative values are taken as
        differences, and share one colour scale that is symmetric about 0.
    errors : sequence of (str, sequence of float)
        Label (with unit) and the values of each error, one a step; drawn on a logarithmic axis.
    title : str
        Heading above the figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from torchcorr.plot import draw_refinement
    >>> figure = draw_refinement([("Before", np.eye(4))], [("error (pixels)", [3.0, 0.1])])
    >>> len(figure.axes)
    2
    """
    figure = _figure(2.1 * len(panels), 5.4)
    top, below = figure.subfigures(2, 1, height_ratios=[1.2, 1], squeeze=False)[:, 0]
    signed = [np.abs(image).max() for _, image in panels if image.min() < 0]
    limit = max(signed, default=1.0)
    for axes, (heading, image) in zip(
        top.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        if image.min() < 0:
            axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        else:
            axes.imshow(image, cmap="gray")
        axes.set_title(heading, fontsize=10)
        axes.set(xticks=[], yticks=[])
    if signed:
        top.supxlabel("differences: red is positive, blue negative, white zero", fontsize=9)
    axes = below.subplots()
    for (label, course), colour in zip(errors, (_FIRST, _SECOND, _MATCH), strict=False):
        axes.semilogy(np.maximum(course, 1e-6), color=colour, lw=1.8, label=label)
    axes.set(xlabel="step", ylabel="error")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _show(axes: Axes, image: _Array, title: str) -> None:
    if image.ndim == 3:
        low, high = float(image.min()), float(image.max())
        image = (image.astype(np.float32) - low) / (high - low if high > low else 1.0)
    axes.imshow(image, cmap="gray")
    axes.set(title=title, xlabel="x (pixels)", ylabel="y (pixels)")
