"""Convolution layers from their definition: PyTorch's own convolution and its two transposes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_forward = torch.ops.aten.convolution.default
_backward = torch.ops.aten.convolution_backward.default


def conv(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str = "auto",
    spectra: Tensor | None = None,
) -> Tensor:
    """(N, C, *size) and (O, C / groups, *window) give (N, O, *positions)."""
    none = [0] * len(stride)
    return _forward(input, weight, None, stride, padding, dilation, False, none, groups)


def conv_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str = "auto",
    spectra: Tensor | None = None,
) -> Tensor:
    """The transpose of `conv` in its input: a transposed convolution of the upstream gradient."""
    input = grad.new_zeros(1).expand(tuple(input_shape))
    how = (stride, padding, dilation, False, [0] * len(stride), groups)
    return _backward(grad, input, weight, None, *how, [True, False, False])[0]


def conv_weight_grad(
    grad: Tensor,
    input: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str = "auto",
) -> Tensor:
    """The transpose of `conv` in its weight: the input correlated with the upstream gradient."""
    weight = grad.new_zeros(1).expand(tuple(weight_shape))
    how = (stride, padding, dilation, False, [0] * len(stride), groups)
    return _backward(grad, input, weight, None, *how, [False, True, False])[1]
