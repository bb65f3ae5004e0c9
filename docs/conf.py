"""Sphinx configuration; the pages are built with warnings as errors and their code is run."""

import re
import sys
from importlib.metadata import version as installed_version
from importlib.resources import files
from pathlib import Path
from typing import Any

from sphinx.errors import SphinxError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "torchcorr"
author = "torchcorr contributors"
copyright = "2026, torchcorr contributors"
version = release = installed_version("torchcorr")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
# What sphinx-gallery writes: pages that are built, and files that are none.
exclude_patterns = ["_build", "_extensions", "gallery/*.ipynb", "gallery/*.py"]
html_theme = "furo"
html_title = "torchcorr"
html_css_files = ["pages.css"]
# MathJax comes from a package of the index, so that formulas render without a network.
html_static_path = ["_static", str(files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg.js")]
mathjax_path = "tex-svg.js"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
# Classes of other projects are named in signatures; resolving them would need the network.
nitpick_ignore_regex = [(r"py:(class|obj|data)", r"(?!torchcorr\.).*")]

doctest_global_setup = "import torch\nimport torchcorr"

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d+_",
    "within_subsection_order": "order.ByNumber",
    "image_scrapers": ("figures",),
    "abort_on_example_error": True,
    "capture_repr": (),
    "reference_url": {"torchcorr": None},
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}


def escape_initials(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Authors' initials at the start of a line are not the markers of a list."""
    lines[:] = [re.sub(r"^(\s*)([A-Z])\. ", r"\1\2\\. ", line) for line in lines]


def check_pages(app: Any, exception: Exception | None) -> None:
    """No page loads a script, a style or a picture from the network, or lists an initial."""
    if exception is not None or app.builder.format != "html":
        return
    loads = r'<(?:script|link|img)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"'
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for wrong in [*re.findall(loads, text), *re.findall(r'<ol class="upperalpha[^>]*>', text)]:
            raise SphinxError(f"{page}: {wrong}")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_initials)
    app.connect("build-finished", check_pages)
