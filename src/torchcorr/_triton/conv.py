"""Convolution layers on a GPU: PyTorch's own."""

from __future__ import annotations

from .._definition.conv import conv, conv_input_grad, conv_weight_grad

__all__ = ["conv", "conv_input_grad", "conv_weight_grad"]
