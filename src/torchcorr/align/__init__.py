"""Aligning recordings of one source."""

from .cross import correlation_lags, cross_correlation
from .phase import phase_correlation
from .shift import Shift, estimate_shift

__all__ = ["Shift", "correlation_lags", "cross_correlation", "estimate_shift", "phase_correlation"]
