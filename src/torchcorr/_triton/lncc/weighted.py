"""Coefficients in windows with weights: on a GPU their definition, a few launches an element."""

from __future__ import annotations

from ..._definition.weighted_lncc import weighted_lncc, weighted_lncc_grads

__all__ = ["weighted_lncc", "weighted_lncc_grads"]
