"""Differentiable sliding-window correlation for PyTorch."""

from importlib.metadata import version as _version

from . import _engines, nn, plot
from ._plan.choose import Plan
from ._plan.conv import LayerPlan, LayerWay
from .align import (
    Detections,
    Drift,
    Pose,
    Shift,
    Windows,
    closest_windows,
    correlation_lags,
    cross_correlation,
    distance_profile,
    estimate_pose,
    estimate_shift,
    match_filter,
    phase_correlation,
    register_stack,
    soft_shift,
)
from .convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from .functional import convolve, correlate, coverage, ncc, zncc
from .local import flat_windows, local_mean, local_std, local_sum, local_var
from .match import Matches, Peaks, find_peaks, match_template
from .planning import plan, plan_layer
from .similarity import lncc

_engines.load()
__version__ = _version("torchcorr")

__all__ = [
    "Detections",
    "Drift",
    "LayerPlan",
    "LayerWay",
    "Matches",
    "Peaks",
    "Plan",
    "Pose",
    "Shift",
    "Windows",
    "__version__",
    "closest_windows",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolve",
    "correlate",
    "correlation_lags",
    "coverage",
    "cross_correlation",
    "distance_profile",
    "estimate_pose",
    "estimate_shift",
    "find_peaks",
    "flat_windows",
    "lncc",
    "local_mean",
    "local_std",
    "local_sum",
    "local_var",
    "match_filter",
    "match_template",
    "ncc",
    "nn",
    "phase_correlation",
    "plan",
    "plan_layer",
    "plot",
    "register_stack",
    "soft_shift",
    "zncc",
]
