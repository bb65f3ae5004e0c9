"""Aligning recordings of one source."""

from .shift import Shift, estimate_shift

__all__ = ["Shift", "estimate_shift"]
