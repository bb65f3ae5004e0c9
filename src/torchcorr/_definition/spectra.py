"""Complex transforms of tiles, and spectra of templates in the layout that tiles multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Elements from which on MKL uses several threads for one line.
_LONG_LINE = 4096


def _is_single_long_line(x: Tensor, ndim: int) -> bool:
    """MKL splits such a line among threads, and its rounding depends on how many there are."""
    return ndim == 1 and x.shape[:-1].numel() == 1 and x.shape[-1] >= _LONG_LINE


def inverse_fft(x: Tensor, ndim: int) -> Tensor:
    """The inverse transform of a complex x over its last axes, without its factor 1/n."""
    if _is_single_long_line(x, ndim):
        return torch.fft.ifft(torch.cat((x, x)), norm="forward")[:1]
    # Axis by axis: MKL may divide a transform of several in another way among more threads.
    for axis in range(-ndim, 0):
        x = torch.fft.ifft(x, dim=axis, norm="forward")
    return x


def template_spectra(template: Tensor, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Conjugate spectra of real templates padded to a tile, over the elements of the tile.

    The factor 1/n of the inverse transform is folded in here, where it costs least.
    """
    ndim = len(lengths)
    x = (template / math.prod(lengths)).to(dtype)
    # As complex numbers: MKL rounds real input differently for each number of threads.
    spectrum = x.flatten(0, -ndim - 1).to(dtype.to_complex())
    if ndim == 1:
        spectrum = torch.nn.functional.pad(spectrum, (0, lengths[0] - spectrum.shape[-1]))
        return inverse_fft(spectrum, 1).reshape(*x.shape[:-1], *lengths)
    # Axis by axis, so that lines of zeros are not transformed; contiguous rows last.
    for axis in range(-ndim, 0):
        spectrum = torch.fft.ifft(spectrum, n=lengths[axis], dim=axis, norm="forward")
    return spectrum.reshape(*x.shape[:-ndim], *lengths)
