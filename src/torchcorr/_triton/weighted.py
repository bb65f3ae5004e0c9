"""Weighted scores on a GPU: their definition in plain torch, gradients by this engine's sums."""

from __future__ import annotations

from .._contract.weighted import grads_by_kernels as weighted_ncc_grads
from .._definition.weighted import weighted_ncc

__all__ = ["weighted_ncc", "weighted_ncc_grads"]
