"""Peaks and lowest values on the CPU: their definitions."""

from __future__ import annotations

from .. import _contract
from .._definition.peaks import pick_lowest, pick_peaks


def register() -> None:
    _contract.pick_peaks.implement(pick_peaks, "CPU")
    _contract.pick_lowest.implement(pick_lowest, "CPU")
