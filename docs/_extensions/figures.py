"""How sphinx-gallery finds the pictures of an example: each `Figure` that a variable names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakSet

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_saved: WeakSet[Figure] = WeakSet()


def _get_sg_image_scraper() -> Any:
    """sphinx-gallery calls this function of a module that its configuration names."""
    return save_figures


def save_figures(block: Any, block_vars: Mapping[str, Any], gallery_conf: Mapping[str, Any]) -> str:
    """The functions of `torchcorr.plot` return figures that pyplot does not list, so the
    variables of the example are searched instead.
    """
    del block
    paths: Iterator[str] = block_vars["image_path_iterator"]
    written = []
    for value in block_vars["example_globals"].values():
        if isinstance(value, Figure) and value not in _saved:
            _saved.add(value)
            written.append(next(paths))
            value.savefig(written[-1])
    return figure_rst(written, gallery_conf["src_dir"])
