"""Differentiable sliding-window correlation for PyTorch."""

from importlib.metadata import version as _version

from . import (  # noqa: F401 - they register operators and kernels
    _lncc_ops,
    _native,
    _overlap_adjoints,
    _overlap_save,
    _score_grads,
    _score_ops,
    _scores,
    _tile_ops,
    _vmap,
    nn,
)
from ._choose import Plan
from .align import Shift, estimate_shift
from .functional import convolve, correlate, ncc, zncc
from .local import flat_windows, local_mean, local_std, local_sum, local_var
from .match import Matches, Peaks, find_peaks, match_template
from .planning import plan
from .similarity import lncc

_native.load()
__version__ = _version("torchcorr")

__all__ = [
    "Matches",
    "Peaks",
    "Plan",
    "Shift",
    "__version__",
    "convolve",
    "correlate",
    "estimate_shift",
    "find_peaks",
    "flat_windows",
    "lncc",
    "local_mean",
    "local_std",
    "local_sum",
    "local_var",
    "match_template",
    "ncc",
    "nn",
    "plan",
    "zncc",
]
