"""Weighted scores and moments on a GPU: their definition in plain torch, gradients by this engine's
sums."""

from __future__ import annotations

from .._contract.weighted import grads_by_kernels as weighted_ncc_grads
from .._definition.weighted import weighted_ncc
from .._definition.weighted_moments import weighted_moments

__all__ = ["weighted_moments", "weighted_ncc", "weighted_ncc_grads"]
