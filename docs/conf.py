"""Sphinx configuration; the pages are built with warnings as errors and their code is run."""

from importlib.metadata import version as installed_version

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
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "torchcorr"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
# Classes of other projects are named in signatures; resolving them would need the network.
nitpick_ignore_regex = [(r"py:(class|obj|data)", r"(?!torchcorr\.).*")]

doctest_global_setup = "import torch\nimport torchcorr"
