"""Medians of rows on a GPU: their definition, by PyTorch's own kernels."""

from __future__ import annotations

from .._definition.medians import medians

__all__ = ["medians"]
