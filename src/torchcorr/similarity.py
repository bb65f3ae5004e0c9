"""How alike two inputs are in the window around each position: check, call one operator."""

from __future__ import annotations

from torch import Tensor

from . import _checks
from ._frame import Frame, Window, normal_inputs
from ._ops import ops


def lncc(
    a: Tensor,
    b: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    mode: str = "valid",
    stride: Window = 1,
    channels: str = "independent",
    pad_mode: str = "constant",
    pad_value: float = 0.0,
    eps: float = 0.0,
) -> Tensor:
    """Return the local normalised cross-correlation of two images, one window at a time.

    Pearson's coefficient of what both hold in the same window, in [-1, 1]: the similarity that
    registration maximises, unchanged by a local brightness and a local positive contrast of
    either. With ``u`` and ``v`` the unfolded windows of `a` and `b` and ``standard(w)`` for
    ``(w - mean) / std`` it equals ``(standard(u) * standard(v)).mean((-2, -1))``, but costs the
    same for every window.

    Parameters
    ----------
    a : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    b : Tensor
        The same window axes; leading axes broadcast with those of `a`.
    window : int or sequence of int
        Elements of the window, along all axes or along each.
    ndim : int
        Number of window axes, 1 to 3.
    mode : str
        ``"valid"``: windows inside both, ``size - window + 1`` positions an axis. ``"full"``:
        every overlap. ``"same"``: the centre of ``"full"``, as many positions as elements.
    stride : int or sequence of int
        Elements from one position to the next, for all axes or for each.
    channels : str
        ``"joint"`` makes the axis before the window axes a part of the window;
        ``"independent"`` leaves it a leading axis.
    pad_mode : str
        What lies outside both in modes ``"same"`` and ``"full"``: ``"constant"``,
        ``"reflect"``, ``"replicate"`` or ``"circular"``.
    pad_value : float
        The constant outside both, in their units.
    eps : float
        Added to the variance of either window under its root, in squared units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. float64 and float32 keep their dtype; float16 and bfloat16 are
        computed in float32 and come back as themselves; uint8, int8, int16, uint16 and int32
        become float32.

    Raises
    ------
    ValueError
        If the window is below 1 or, in valid mode, larger than the inputs; their window axes
        differ or their leading axes do not broadcast; a name or a size is not one of those above;
        a reflected or circular padding reaches beyond the input; `eps` is negative or not finite;
        or devices differ.
    TypeError
        If dtypes differ or are not among those above, or an argument has the wrong type.
    MemoryError
        If the sums cannot fit into the machine's memory.

    Notes
    -----
    Where the window of either is flat (all elements equal) the value is exactly 0, with exactly 0
    gradient. A NaN makes the windows that hold it NaN, and no others. Padding counts as data, so
    ``"valid"`` is the mode for losses. Gradients for both inputs are exact, of any order.

    References
    ----------
    P. Cachier, X. Pennec, 3D non-rigid registration by gradient descent on a Gaussian-windowed
    similarity measure using convolutions, MMBIA, 2000.

    B. B. Avants, C. L. Epstein, M. Grossman, J. C. Gee, Symmetric diffeomorphic image registration
    with cross-correlation, Medical Image Analysis 12, 2008.

    P. Pébay, Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
    statistical moments, Sandia report SAND2008-6212, 2008: merging covariances.

    Examples
    --------
    >>> import torch, torchcorr
    >>> a = torch.tensor([0.0, 1, 3, 2, 2, 2])
    >>> torchcorr.lncc(a, 5 - 2 * a, 3, ndim=1)
    tensor([-1., -1., -1.,  0.])
    """
    frame = Frame.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    (x, y), sizes, result = normal_inputs({"a": a, "b": b}, window, frame)
    _checks.not_negative(eps, "eps")
    out: Tensor = ops.lncc(x, y, sizes, frame.stride, float(eps))
    return out.to(result)
