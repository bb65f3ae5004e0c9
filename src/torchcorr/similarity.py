"""How alike two inputs are in the window around each position: check, call one operator."""

from __future__ import annotations

from torch import Tensor

from . import _checks, _contract
from ._arguments import Arguments, Window, normal_inputs
from ._docstrings import shared


@shared
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

    Pearson's coefficient of both inputs in the same window, in [-1, 1]: the similarity that
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
    $window
    $ndim
    $mode
    $stride
    $channels
    $padding
    eps : float
        Added to the variance of either window under its root, in squared units.

    Returns
    -------
    Tensor
        ``(*lead, *positions)``. Dtypes:
        $dtypes_of_scores

    Raises
    ------
    $errors_of_windows

    Notes
    -----
    Where the window of either is flat (all elements equal) the value is exactly 0, with exactly 0
    gradient. A NaN makes the windows that contain it NaN, and no others. Padding counts as data, so
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
    arguments = Arguments.parse(ndim, mode, stride, channels, pad_mode, pad_value)
    _checks.not_negative(eps, "eps")
    (x, y), sizes, result = normal_inputs({"a": a, "b": b}, window, arguments)
    out: Tensor = _contract.lncc(x, y, sizes, arguments.stride, float(eps))
    return out.to(result)
