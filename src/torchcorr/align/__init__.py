"""Aligning recordings of one source, and finding parts of them."""

from .cross import correlation_lags, cross_correlation
from .detection import Detections, match_filter
from .phase import phase_correlation
from .pose import Pose, estimate_pose
from .profile import Windows, closest_windows, distance_profile
from .shift import Shift, estimate_shift
from .soft import soft_shift
from .stack import Drift, register_stack

__all__ = [
    "Detections",
    "Drift",
    "Pose",
    "Shift",
    "Windows",
    "closest_windows",
    "correlation_lags",
    "cross_correlation",
    "distance_profile",
    "estimate_pose",
    "estimate_shift",
    "match_filter",
    "phase_correlation",
    "register_stack",
    "soft_shift",
]
