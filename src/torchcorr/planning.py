"""How a call will be computed, for those who want to know before they wait."""

from __future__ import annotations

from torch import Tensor

from . import _checks, _choose
from ._choose import Plan
from ._frame import Frame, Window, normal_pair


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

    Made from shapes, dtype and the number of threads alone: nothing is computed, and tensors on
    the ``"meta"`` device, which hold no data, will do.

    Parameters
    ----------
    input : Tensor
        What is searched, ``(*lead, *size)``.
    template : Tensor
        What slides over it, ``(*lead, *window)``.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``, ``"same"`` or ``"full"``.
    stride : int or sequence of int
        Elements from one position to the next.
    channels : str
        ``"independent"`` or ``"joint"``.
    method : str
        ``"auto"`` for the cheaper plan, ``"direct"`` or ``"fft"`` for that of one method.
    normalised : bool
        Whether for a score, `zncc` or `ncc`, or for a plain sum, `correlate` or `convolve`, whose
        transforms run in float64.

    device : str, optional
        Kind of device that is planned for, ``"cpu"`` or ``"cuda"``; by default that of the input,
        and ``"cpu"`` for one that holds no data. Families of GPUs whose costs were measured by
        ``python -m benchmarks.fit --device cuda`` have names of their own, as ``"cuda 9.0"``; the
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
    >>> found = torchcorr.plan(image, template)
    >>> found.method, found.bytes < 64 * 2**20
    ('fft', True)
    """
    frame = Frame.parse(ndim, mode, stride, channels, "constant", 0.0)
    _checks.one_of(method, _checks.METHODS, "method")
    x, w, _ = normal_pair(
        input, template, frame, name="template", complex_allowed=not normalised, data=False
    )
    kind = device if device is not None else _choose.family(input.device)
    return _choose.arrange(x, w, frame.stride, method, normalised, kind).plan
