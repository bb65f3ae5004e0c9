"""How alike two inputs are in the window around each position: check, call one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _contract
from ._arguments import Arguments, Window, normal_inputs
from ._docstrings import shared
from ._plan.dtypes import HALVES
from ._plan.taps import window_taps


@shared
def lncc(
    a: Tensor,
    b: Tensor,
    window: Window,
    *,
    ndim: int = 2,
    border: str = "renormalize",
    weights: str = "box",
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    squared: bool = False,
    stride: Window = 1,
    channels: str = "independent",
    eps: float = 0.0,
) -> Tensor:
    """Return the local normalised cross-correlation of two images, one window at a time.

    Pearson's coefficient of both inputs in the same window, in [-1, 1]: the similarity that
    registration maximises, unchanged by a local brightness and a local positive contrast of
    either. With ``border="valid"``, ``u`` and ``v`` the unfolded windows of `a` and `b` and
    ``standard(w)`` for ``(w - mean) / std`` it equals
    ``(standard(u) * standard(v)).mean((-2, -1))``; a box costs the same whatever its size.

    Parameters
    ----------
    a : Tensor
        ``(*lead, *size)``. The last `ndim` axes are the window axes.
    b : Tensor
        The same window axes; leading axes broadcast with those of `a`.
    $window
    $ndim
    border : str
        What windows find outside. ``"renormalize"``: nothing; a window at the border has the
        elements that exist. ``"zeros"``: zeros, which count as data. ``"valid"``: no window leaves
        the inputs, ``size - window + 1`` positions an axis; with the others there are as many as
        elements, and a window reaches ``window // 2`` elements before its own.
    weights : str
        Of a window's k elements along each axis, multiplied: ``"box"``, all one; ``"triangle"``,
        ``1, 2, ..., 2, 1``; ``"gaussian"``, with the deviation k / 3. All are symmetric.
    mask_a, mask_b : Tensor, optional
        Non-negative weights of the elements of `a` and of `b`, of any real dtype, that broadcast
        with them. Mean, covariance and both variances of a window have the product of both and of
        the window's own weight. An element whose weight is 0 may be NaN.
    squared : bool
        Whether the coefficient is squared, so that an inverted contrast counts as agreement.
    $stride
    $channels
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
    Where the window of either is flat (all elements equal), or has no weight, the value is exactly
    0, with exactly 0 gradient. A NaN makes the windows in which it has weight NaN, and no others.
    Gradients for both inputs and both masks are exact, of any order; an element without weight
    has none.

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
    tensor([-1., -1., -1., -1.,  0.,  0.])
    >>> torchcorr.lncc(a, 5 - 2 * a, 3, ndim=1, border="valid")
    tensor([-1., -1., -1.,  0.])
    >>> mask = torch.tensor([1.0, 1, 0, 1, 1, 1])
    >>> torchcorr.lncc(a, torch.where(mask > 0, a, torch.nan), 3, ndim=1, mask_b=mask)
    tensor([1., 1., 1., 0., 0., 0.])
    """
    _checks.one_of(border, _checks.BORDERS, "border")
    _checks.one_of(weights, _checks.WINDOW_WEIGHTS, "weights")
    _checks.not_negative(eps, "eps")
    masks = {"mask_a": mask_a, "mask_b": mask_b}
    plain = weights == "box" and mask_a is None and mask_b is None and border != "renormalize"
    if border == "zeros" and isinstance(a, Tensor) and a.device.type == "cpu":
        plain = False  # the kernel reads zeros around the inputs, no copies that have them
    mode = "same" if plain and border == "zeros" else "valid"
    arguments = Arguments.parse(ndim, mode, stride, channels, "constant", 0.0)
    inputs = {"a": a, "b": b}
    if plain:
        (x, y), sizes, result = normal_inputs(inputs, window, arguments)
        out: Tensor = _contract.lncc(x, y, sizes, arguments.stride, float(eps))
    else:
        x, y, weight, sizes, result = _weighted(inputs, masks, window, arguments, border)
        place = (window_taps(weights, sizes), sizes, arguments.stride, border, float(eps))
        out = _contract.weighted_lncc(x, y, weight, *place)
    return (out.square() if squared else out).to(result)


def _weighted(
    inputs: dict[str, Tensor],
    masks: dict[str, Tensor | None],
    window: Window,
    arguments: Arguments,
    border: str,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, ...], torch.dtype]:
    """Both inputs and the product of both masks in normal form, and in the working dtype."""
    sizes = _checks.per_axis(window, arguments.ndim, "window")
    if border == "valid":
        (x, y), _, result = normal_inputs(inputs, sizes, arguments)
    else:
        (x, y), _, result = normal_inputs(inputs, 1, arguments)
    if x.dtype in HALVES:
        x, y = x.float(), y.float()
    core = arguments.ndim + arguments.joint
    weight: Tensor | None = None
    for (name, mask), one in zip(masks.items(), inputs.values(), strict=True):
        if mask is not None:
            _checks.window_mask(mask, one, core, name)
            part = mask.to(x.dtype)
            part = part.reshape(*(1,) * (core - part.dim()), *part.shape)
            weight = part if weight is None else weight * part
    if weight is None:
        return x, y, None, sizes, result
    x, y, weight = torch.broadcast_tensors(x, y, arguments.normal(weight))
    return x, y, weight, sizes, result
