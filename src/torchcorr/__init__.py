"""Differentiable sliding-window correlation for PyTorch."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import _engines, nn
from ._plan.conv import LayerPlan, LayerWay
from ._plan.plan import Plan
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

# These, `align` itself and `plot` are imported when one of them is first asked for.
if _TYPE_CHECKING:
    from . import plot
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


def __getattr__(name: str) -> object:
    if name != "align" and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("align", "plot"):
        return _import_module("." + name, __name__)
    globals()[name] = value = getattr(_import_module(".align", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "align"})
