"""Rows P1 to P4: zncc of photographs, whose smooth regions need more precision than noise does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tolerances import SCORE
from torch import Tensor

import torchcorr

from . import accuracy, peers
from .cases import cut, mean_row
from .measure import Accuracy, Row, Settings, alternate, at_least, ratio_row

# Those that scikit-image's wheel contains.
PICTURES = (
    "astronaut", "brick", "camera", "chelsea", "clock", "coins", "grass", "gravel",
    "hubble_deep_field", "moon", "page", "retina", "text",
)  # fmt: skip
TEMPLATES = (16, 32, 64, 128)


def photograph(name: str) -> np.ndarray:
    """Grey levels in 8 bits; those of a colour picture are rounded in integers."""
    import skimage.data

    picture = getattr(skimage.data, name)()
    if picture.ndim == 2:
        return picture
    red, green, blue = np.moveaxis(picture.astype(np.int64), -1, 0)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)


def of_size(name: str, size: int) -> Tensor:
    """A photograph of that many rows and columns in float32, mirrored where it is smaller."""
    picture = photograph(name)[:size, :size]
    pads = [(0, size - n) for n in picture.shape]
    return torch.from_numpy(np.pad(picture, pads, mode="symmetric").astype(np.float32))


def _box_sums(x: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """Sums over all windows, of which those of whole numbers are exact."""
    h, w = window
    table = np.pad(x.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]


def _is_flat(x: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """Whether no two neighbours in a window differ."""
    h, w = window
    across = _box_sums(x[:, 1:] != x[:, :-1], (h, w - 1))
    return across + _box_sums(x[1:] != x[:-1], (h - 1, w)) == 0


def exact_scores(image: np.ndarray, template: np.ndarray) -> np.ndarray:
    """zncc in extended precision, which shares nothing with the package.

    Products are summed by a float64 transform. Its error is far below one half, so sums of whole
    numbers are exact once they are rounded; other numbers are centred first.
    """
    wide, weights = image.astype(np.longdouble), template.astype(np.longdouble)
    whole = not ((wide % 1).any() or (weights % 1).any())
    for x in (wide, weights):
        x -= np.rint(x.mean()) if whole else x.mean()
    size, count = wide.shape, weights.size
    spectrum = np.fft.rfft2(wide.astype(np.float64))
    spectrum *= np.fft.rfft2(weights.astype(np.float64), s=size).conj()
    valid = tuple(slice(n - k + 1) for n, k in zip(size, weights.shape, strict=True))
    products = np.fft.irfft2(spectrum, s=size)[valid].astype(np.longdouble)
    sums = _box_sums(wide, weights.shape)
    energy = count * _box_sums(wide * wide, weights.shape) - sums * sums
    norm = count * (weights * weights).sum() - weights.sum() ** 2
    products = count * (np.rint(products) if whole else products) - sums * weights.sum()
    flat = _is_flat(image, weights.shape)
    return np.where(flat, 0, products / np.sqrt(np.where(flat, 1, energy) * norm))


def of_16_bits(grey: np.ndarray) -> np.ndarray:
    """What a camera of 16 bits may give: without noise between pixels, in parts of a grey level."""
    from scipy.ndimage import gaussian_filter

    smooth: np.ndarray = gaussian_filter(grey.astype(np.float64), 1.0)
    return np.rint(256 * smooth).astype(np.float32)


class Group(NamedTuple):
    """How the values of the photographs are held, and the least mean and worst ratio."""

    convert: Callable[[np.ndarray], np.ndarray]
    mean: float
    worst: float


GROUPS = {
    "P1": Group(lambda grey: grey.astype(np.float32), mean=2.5, worst=1.2),
    "P2": Group(lambda grey: grey, mean=4, worst=1.5),
    "P3": Group(lambda grey: grey.astype(np.float32) / 255, mean=2.5, worst=1.2),
    "P4": Group(of_16_bits, mean=2.5, worst=1.2),
}
SMALL, MEAN_OF_SMALL = 32, 6.0  # templates and mean ratio of P2 that a dot product should reach


def _row(group: str, name: str, image: Tensor, window: int, rounds: int) -> Row:
    template = cut(image, window)
    timings = alternate(
        {
            "ours": lambda: torchcorr.zncc(image, template),
            "theirs": peers.opencv(image, template),
        },
        rounds,
    )
    exact = torch.from_numpy(exact_scores(image.numpy(), template.numpy()).astype(np.float64))
    ours, theirs = (torch.as_tensor(timings[key].result).double() for key in ("ours", "theirs"))
    return ratio_row(
        group, f"zncc {name} {image.shape[0]}×{image.shape[1]}/{window}²", "OpenCV", timings,
        accuracy=Accuracy(accuracy.largest(ours - exact), SCORE[torch.float32]),
        peer_error=accuracy.largest(theirs - exact),
    )  # fmt: skip


def photographs(group: str, settings: Settings) -> Iterator[Row]:
    """A row for each photograph and template that fits, then the mean and the worst ratio."""
    convert, mean, worst = GROUPS[group]
    rows, small = [], []
    for name in PICTURES[:2] if settings.quick else PICTURES:
        image = torch.from_numpy(convert(photograph(name)))
        for window in TEMPLATES[:2] if settings.quick else TEMPLATES:
            if window > min(image.shape):
                continue
            rows.append(_row(group, name, image, window, settings.rounds))
            if window <= SMALL:
                small.append(rows[-1])
            yield rows[-1]
    yield mean_row(rows, at_least(mean))
    if group == "P2":
        total = mean_row(small, at_least(MEAN_OF_SMALL))
        yield replace(total, case=f"{total.case} with templates up to {SMALL}²")
    least = min(rows, key=lambda row: row.value)
    case = f"worst of the {len(rows)}: {least.case.removeprefix('zncc ')}"
    yield replace(least, case=case, bound=at_least(worst))


PHOTOGRAPHS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    group: partial(photographs, group) for group in GROUPS
}
