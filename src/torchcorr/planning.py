"""How a call will be computed, for those who want to know before they wait."""

from __future__ import annotations

from torch import Tensor

from ._arguments import Arguments, Window, normal_pair
from ._docstrings import shared
from ._plan.choose import Plan, arrange
from ._plan.costs import family


@shared
def plan(
    input: Tensor,
    template: Tensor,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    method: str = "auto",
    normalised: bool = True,
    device: str | None = None,
) -> Plan:
    """Return how `zncc`, or `correlate`, would compute these two tensors.

    Made from shapes, dtype and kind of device alone: nothing is computed, and tensors on
    the ``"meta"`` device, which have no data, suffice.

    Parameters
    ----------
    $input
    $template
    $ndim
    $mode
    $stride
    $channels
    $method
    normalised : bool
        Whether for a score, `zncc` or `ncc`, or for a plain sum, `correlate` or `convolve`.
    device : str, optional
        Kind of device that is planned for, ``"cpu"`` or ``"cuda"``; by default that of the input,
        and ``"cpu"`` for one without data. Families of GPUs whose costs were measured by
        ``python -m benchmarks.fit --device cuda`` have separate names, such as ``"cuda 9.0"``; the
        costs of ``"cuda"`` are estimates: bytes and operations of a large card.

    Returns
    -------
    Plan
        Method, tile and transform lengths, tiles and templates at once, bytes of scratch, and the
        predicted time in milliseconds of the two cores that the model was fitted on.

    Raises
    ------
    ValueError
        As `zncc` raises it.
    TypeError
        As `zncc` raises it.

    References
    ----------
    A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, Prentice Hall, 1989, section
    8.7 (overlap-save).

    Examples
    --------
    >>> import torch, torchcorr
    >>> image, template = torch.empty(4096, 4096, device="meta"), torch.empty(64, 64, device="meta")
    >>> plan = torchcorr.plan(image, template)
    >>> plan.method, plan.bytes < 64 * 2**20
    ('fft', True)
    """
    arguments = Arguments.parse(ndim, mode, stride, channels, "constant", 0.0, method)
    x, w, _ = normal_pair(
        input,
        template,
        arguments,
        name="template",
        complex_allowed=not normalised,
        bytes_kept=normalised,
        data=False,
    )
    return arrange(
        x.shape,
        w.shape,
        arguments.stride,
        method,
        normalised=normalised,
        dtype=x.dtype,
        device=device if device is not None else family(input.device),
    ).plan
