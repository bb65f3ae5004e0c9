"""Differentiable sliding-window correlation for PyTorch."""

from importlib.metadata import version as _version

from . import _engines, nn, plot
from ._plan.choose import Plan
from .align import (
    Shift,
    correlation_lags,
    cross_correlation,
    estimate_shift,
    phase_correlation,
)
from .functional import convolve, correlate, ncc, zncc
from .local import flat_windows, local_mean, local_std, local_sum, local_var
from .match import Matches, Peaks, find_peaks, match_template
from .planning import plan
from .similarity import lncc

_engines.load()
__version__ = _version("torchcorr")

__all__ = [
    "Matches",
    "Peaks",
    "Plan",
    "Shift",
    "__version__",
    "convolve",
    "correlate",
    "correlation_lags",
    "cross_correlation",
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
    "phase_correlation",
    "plan",
    "plot",
    "zncc",
]
