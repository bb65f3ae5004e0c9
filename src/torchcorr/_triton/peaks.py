"""Peaks and lowest values on a GPU: their definitions, which read the values."""

from __future__ import annotations

from .._definition.peaks import pick_lowest, pick_peaks

__all__ = ["pick_lowest", "pick_peaks"]
