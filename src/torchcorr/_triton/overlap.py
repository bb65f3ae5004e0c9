"""Scores of overlaps on a GPU: their definition, with this engine's sums and windows."""

from __future__ import annotations

from .._contract.overlap import scores_by_kernels as overlap_scores

__all__ = ["overlap_scores"]
