"""Plain sums with a stride as dense ones over sub-lattices (docs/math.md, eq. lattices).

`dense` is the operation itself, which is called with stride 1, by transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .._definition import lattices
from .._plan.lattice import Lattices
from .._plan.shapes import Ints
from .._plan.strided import dense_shape, lattices_of

Operation = Callable[..., Tensor]


def correlate(input: Tensor, template: Tensor, stride: Sequence[int], dense: Operation) -> Tensor:
    at = lattices_of(tuple(input.shape), tuple(template.shape), stride)
    return dense(_of_input(input, at), _of_template(template, at), *_how(at))


def correlate_input_grad(
    grad: Tensor, template: Tensor, shape: Ints, stride: Sequence[int], dense: Operation
) -> Tensor:
    at = lattices_of(shape, tuple(template.shape), stride)
    found = dense(grad, _of_template(template, at), dense_shape(shape, at, at.dense), *_how(at))
    return lattices.input_restored(_flat(found, at), at).reshape(shape).contiguous()


def correlate_template_grad(
    grad: Tensor, input: Tensor, shape: Ints, stride: Sequence[int], dense: Operation
) -> Tensor:
    at = lattices_of(tuple(input.shape), shape, stride)
    found = dense(grad, _of_input(input, at), dense_shape(shape, at, at.taps), *_how(at))
    return lattices.weight_restored(_flat(found, at), at).reshape(shape).contiguous()


def _how(at: Lattices) -> tuple[Ints, str]:
    return (1,) * len(at.size), "fft"


def _flat(x: Tensor, at: Lattices) -> Tensor:
    return x.reshape(-1, *x.shape[-len(at.size) - 1 :])


def _of_input(input: Tensor, at: Lattices) -> Tensor:
    laid_out = lattices.input_lattices(_flat(input, at), at)
    return laid_out.reshape(dense_shape(tuple(input.shape), at, at.dense))


def _of_template(template: Tensor, at: Lattices) -> Tensor:
    laid_out = lattices.weight_lattices(_flat(template, at), at)
    return laid_out.reshape(dense_shape(tuple(template.shape), at, at.taps))
