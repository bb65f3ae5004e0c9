"""Pictures of what was found. Each function returns a matplotlib figure; the caller saves or
shows it.
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
# Okabe and Ito: told apart with every kind of colour vision.
_FOUND, _FIRST, _SECOND = "#e69f00", "#0072b2", "#d55e00"


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
        ``(H, W)`` or ``(H, W, 3)``; shown from its smallest value (black) to its largest.
    matches : Matches
        What `torchcorr.match_template` returned for this image.
    template, score_map : ndarray, optional
        The template ``(h, w)`` or ``(h, w, 3)`` and the score map ``(H', W')``, each drawn in a
        panel.
    title : str
        Heading over the image.

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
    panel = 5.0
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
            Rectangle((x - 0.5, y - 0.5), box_width, box_height, fill=False, ec=_FOUND, lw=1.8)
        )
        axes[0].text(
            x, y, f"{score:.2f}", ha="left", va="top", color="black", fontsize=8, clip_on=True,
            bbox={"facecolor": _FOUND, "edgecolor": "none", "pad": 1.2},
        )  # fmt: skip
    if score_map is not None:
        shown = axes[1].imshow(score_map, cmap="RdBu_r", vmin=-1, vmax=1)
        if len(matches) > 0:
            corner = matches.positions.numpy()
            axes[1].scatter(
                corner[:, 1], corner[:, 0], s=70, facecolors="none", edgecolors="black", lw=1.2
            )
        axes[1].set(
            title="Score map: one score for each\nposition of the box; matches circled",
            xlabel="x of top-left corner (pixels)",
            ylabel="y of top-left corner (pixels)",
        )
        figure.colorbar(shown, ax=axes[1], shrink=0.8, label="ZNCC score (1: equal up to light)")
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
    """Return a figure of two signals, as recorded and laid on one another.

    Parameters
    ----------
    reference, moving : ndarray
        Signals ``(N,)`` and ``(M,)``. Each is drawn standardised (mean 0, deviation 1).
    shift : Shift
        What `torchcorr.estimate_shift` returned for them with ``ndim=1``.
    rate : float, optional
        Samples per second; the time axis is in seconds if given, in samples otherwise.
    names : sequence of str
        Names of the two signals.
    title : str
        Heading over both panels.

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
    said = f"{lag:+.2f} samples"
    if rate is not None:
        said, unit = f"{said} = {lag * scale:+.4f} s", "seconds"
    figure = _figure(9.0, 5.2)
    rows = figure.subplots(2, 1, sharex=True)
    panels = (
        ("As recorded: both start at 0", 0.0),
        (f"{names[1]} shifted by {said}, score {float(shift.score):.3f}", lag),
    )
    for axes, (heading, offset) in zip(rows, panels, strict=True):
        for values, name, start, colour, line in (
            (reference, names[0], 0.0, _FIRST, 1.8),
            (moving, names[1], offset, _SECOND, 1.0),
        ):
            spread = float(np.std(values)) or 1.0
            time = (np.arange(len(values)) + start) * scale
            axes.plot(time, (values - np.mean(values)) / spread, color=colour, lw=line, label=name)
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
    """Return a figure of pictures in a row, and below them how each error fell, step by step.

    Parameters
    ----------
    panels : sequence of (str, ndarray)
        Heading and image ``(H, W)`` of each picture. Images with negative values are differences,
        and share one scale that is symmetric about 0.
    errors : sequence of (str, sequence of float)
        Label (with unit) and course of each error; drawn on a logarithmic axis.
    title : str
        Heading over the figure.

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
    figure = _figure(2.7 * len(panels), 6.2)
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
        top.supxlabel(
            "differences: red, the first is brighter; blue, darker; white, equal", fontsize=9
        )
    axes = below.subplots()
    for (label, course), colour in zip(errors, (_FIRST, _SECOND, _FOUND), strict=False):
        axes.semilogy(np.maximum(course, 1e-6), color=colour, lw=1.8, label=label)
    axes.set(xlabel="step along the gradient", ylabel="error")
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
