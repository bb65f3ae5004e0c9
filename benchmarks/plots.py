"""Draws the plots of docs/benchmarks.md from the CSV of `sizes`: `python -m benchmarks.plots`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .report import PLOTS, Record, read
from .sizes import TABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that the colour-blind can distinguish (Okabe and Ito).
STYLES = {
    "torchcorr auto": {"color": "#D55E00", "linewidth": 2.6, "marker": "o", "zorder": 5},
    "torchcorr direct": {"color": "#D55E00", "linewidth": 1.2, "linestyle": ":"},
    "torchcorr fft": {"color": "#D55E00", "linewidth": 1.2, "linestyle": "--"},
    "OpenCV": {"color": "#0072B2", "linewidth": 1.6, "marker": "s"},
    "scikit-image": {"color": "#009E73", "linewidth": 1.6, "marker": "^"},
    "plain torch": {"color": "#56B4E9", "linewidth": 1.6, "marker": "D"},
}
LABELS = {
    "image_size": ("image", "image size n (n × n)", "template {template}²"),
    "template_size": ("template", "template size k (k × k)", "image {image}²"),
}


def draw(axis: str, records: Sequence[Record], path: Path) -> None:
    """Noise and a photograph side by side, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    # The same data gives the same file.
    matplotlib.rcParams["svg.hashsalt"] = "torchcorr"
    from matplotlib import pyplot

    column, label, fixed = LABELS[axis]
    lines = [record for record in records if record["axis"] == axis]
    pictures = list(dict.fromkeys(record["picture"] for record in lines))
    figure, panels = pyplot.subplots(
        1, len(pictures), figsize=(5.4 * len(pictures), 4.8), layout="constrained",
        sharey=True, squeeze=False,
    )  # fmt: skip
    for picture, axes in zip(pictures, panels[0], strict=True):
        _panel(axes, [record for record in lines if record["picture"] == picture], column)
        axes.set_title(picture)
        axes.set_xlabel(label)
    first = panels[0, 0]
    first.set_ylabel("milliseconds of a call")
    figure.suptitle(f"zncc, float32, {fixed.format(**lines[0])}, {lines[0]['threads']} threads")
    labels = first.get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=len(STYLES), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, facecolor="white", metadata=metadata)
    pyplot.close(figure)


def _panel(axes: Axes, records: Sequence[Record], column: str) -> None:
    """A line for each contestant."""
    from matplotlib import ticker

    for name, style in STYLES.items():
        line = [(int(r[column]), float(r["ms"])) for r in records if r["name"] == name]
        axes.plot(*zip(*line, strict=True), label=name, markersize=5, **style)
    sizes = sorted({int(record[column]) for record in records})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(True, which="major", color="#cccccc", linewidth=0.6)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--input", type=Path, default=TABLE, help="the CSV to draw")
    parser.add_argument("--folder", type=Path, default=PLOTS, help="where the plots go")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    args = parser.parse_args(arguments)
    records = read(args.input)
    for axis in LABELS:
        draw(axis, records, args.folder / f"{axis}.{args.format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
