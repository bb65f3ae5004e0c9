"""Finding templates: score maps, their peaks, and positions to a fraction of a pixel."""

from .peaks import Peaks, find_peaks
from .templates import Matches, match_template

__all__ = ["Matches", "Peaks", "find_peaks", "match_template"]
