"""The contestants, each ready to be called: what it needs is converted before it is timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[], np.ndarray]
BoxSum = Callable[[Tensor, Sequence[int]], Tensor]


def opencv(image: Tensor, template: Tensor, mask: Tensor | None = None) -> Score:
    """matchTemplate, for which channels are moved to the last axis."""
    import cv2

    picture, patch = (
        np.ascontiguousarray(np.moveaxis(x.numpy(), 0, -1)) if x.dim() == 3 else x.numpy()
        for x in (image, template)
    )
    weights = None if mask is None else mask.numpy()
    return lambda: cv2.matchTemplate(picture, patch, cv2.TM_CCOEFF_NORMED, mask=weights)


def opencv_many(image: Tensor, templates: Tensor) -> Score:
    """One call for each template, since it takes only one."""
    calls = [opencv(image, template) for template in templates]
    return lambda: np.stack([call() for call in calls])


def opencv_std(image: Tensor, window: int) -> Score:
    """Deviations at all positions, from box filters over the image and its square, in float32.

    Zeros lie outside the image, as with torchcorr's `same`.
    """
    import cv2

    picture, box = image.numpy(), (window, window)

    def call() -> np.ndarray:
        mean = cv2.boxFilter(picture, cv2.CV_32F, box, borderType=cv2.BORDER_CONSTANT)
        square = cv2.sqrBoxFilter(picture, cv2.CV_32F, box, borderType=cv2.BORDER_CONSTANT)
        return np.sqrt(np.maximum(square - mean * mean, 0))

    return call


def scikit_image_masked(image: Tensor, template: Tensor, mask: Tensor) -> Score:
    """The coefficient of its masked registration (Padfield's), in which a mask is binary."""
    from skimage.registration._masked_phase_cross_correlation import cross_correlate_masked

    picture, patch, seen = image.numpy(), template.numpy(), mask.numpy() > 0
    everything = np.ones(picture.shape, dtype=bool)
    axes = tuple(range(picture.ndim))
    inside = tuple(slice(k - 1, n) for n, k in zip(picture.shape, patch.shape, strict=True))

    def call() -> np.ndarray:
        how = {"mode": "full", "axes": axes, "overlap_ratio": 0.0}
        return cross_correlate_masked(picture, patch, everything, seen, **how)[inside]

    return call


def scikit_image(image: Tensor, template: Tensor) -> Score:
    """match_template, in 1-D to 3-D, with as many threads for SciPy's transforms as cores."""
    import scipy.fft
    from skimage.feature import match_template

    picture, patch = image.numpy(), template.numpy()

    def call() -> np.ndarray:
        with scipy.fft.set_workers(len(os.sched_getaffinity(0))):
            return match_template(picture, patch)

    return call


def stumpy_mass(series: Tensor, query: Tensor) -> Score:
    """The distance profile d of a query; it is compiled here, on a short series.

    `coefficients` turns it into r.
    """
    import stumpy

    values, pattern = series.numpy(), query.numpy()
    stumpy.mass(pattern[:50], values[:500])
    return lambda: stumpy.mass(pattern, values)


def coefficients(distances: np.ndarray, window: int) -> np.ndarray:
    """Pearson's r of z-normalised distances: r = 1 - d^2 / (2 m)."""
    return 1 - np.square(distances.astype(np.float64)) / (2 * window)


def oaconvolve(series: Tensor, kernel: Tensor) -> Score:
    """SciPy's overlap-add correlation, with as many threads for its transforms as cores."""
    import scipy.fft
    import scipy.signal

    values, flipped = series.numpy(), kernel.numpy()[::-1].copy()

    def call() -> np.ndarray:
        with scipy.fft.set_workers(len(os.sched_getaffinity(0))):
            return scipy.signal.oaconvolve(values, flipped, mode="valid")

    return call


def full_correlate(image: Tensor, template: Tensor) -> Score:
    """SciPy's correlation of all overlaps by FFT, with as many threads as cores."""
    import scipy.fft
    import scipy.signal

    x, y = image.numpy(), template.numpy()

    def call() -> np.ndarray:
        with scipy.fft.set_workers(len(os.sched_getaffinity(0))):
            return scipy.signal.correlate(x, y, mode="full", method="fft")

    return call


def phase_cross_correlation(
    first: Tensor, second: Tensor, part: int, mask: Tensor | None = None
) -> Score:
    """scikit-image's shift to a part of a pixel, with as many threads as cores."""
    import scipy.fft
    from skimage import registration

    x, y = first.numpy(), second.numpy()
    there = None if mask is None else mask.numpy()

    def call() -> np.ndarray:
        with scipy.fft.set_workers(len(os.sched_getaffinity(0))):
            return registration.phase_cross_correlation(
                x, y, upsample_factor=part, reference_mask=there
            )[0]

    return call


def obspy_correlate(first: Tensor, second: Tensor, reach: int) -> Score:
    """obspy's normalised correlation at lags of at most `reach`."""
    from obspy.signal.cross_correlation import correlate

    x, y = first.numpy(), second.numpy()
    return lambda: correlate(x, y, reach, demean=False)


def conv2d(image: Tensor, template: Tensor) -> Callable[[], Tensor]:
    x, w = image[None, None], template[None, None]
    return lambda: F.conv2d(x, w)[0, 0]


# What follows is plain torch, as one writes it without a library.


def _valid(x: Tensor, window: Sequence[int]) -> Tensor:
    return x[tuple(slice(0, n - k + 1) for n, k in zip(x.shape, window, strict=True))]


def cumulative_boxes(x: Tensor, window: Sequence[int]) -> Tensor:
    """Sums over all windows as differences of cumulative sums."""
    h, w = window
    table = F.pad(x.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]


def fourier_boxes(x: Tensor, window: Sequence[int]) -> Tensor:
    """Sums over all windows as a correlation with ones."""
    return fourier_correlate(x, x.new_ones(tuple(window)))


def fourier_correlate(x: Tensor, template: Tensor) -> Tensor:
    """One transform of the whole; for valid positions the size of the image is enough."""
    size = tuple(x.shape)
    spectrum = torch.fft.rfft2(x) * torch.fft.rfft2(template, s=size).conj()
    return _valid(torch.fft.irfft2(spectrum, s=size), template.shape)


def plain_zncc(image: Tensor, template: Tensor, boxes: BoxSum = cumulative_boxes) -> Tensor:
    """The textbook formula: a transform for the products, window sums of I and of its square."""
    window, count = template.shape, template.numel()
    centred = template - template.mean()
    mean = boxes(image, window) / count
    variance = boxes(image.square(), window) / count - mean.square()
    scale = variance.clamp_min(0).sqrt() * centred.norm() * count**0.5
    return fourier_correlate(image, centred) / scale


def plain_lncc(a: Tensor, b: Tensor, window: int) -> Tensor:
    """One less the mean of squared local coefficients, zeros around: five sums by conv3d with ones.

    What registration networks write; `a` and `b` are (depth, height, width).
    """
    ones = a.new_ones(1, 1, *(window,) * 3)
    sums = [
        F.conv3d(x[None, None], ones, padding=window // 2)[0, 0]
        for x in (a, b, a * a, b * b, a * b)
    ]
    mean_a, mean_b, square_a, square_b, product = (x / window**3 for x in sums)
    covariance = product - mean_a * mean_b
    energy = (square_a - mean_a.square()) * (square_b - mean_b.square())
    return 1 - (covariance.square() / energy).mean()


def monai_lncc(a: Tensor, b: Tensor, window: int) -> Callable[[], Tensor]:
    """The loss of MONAI, less the mean of squared local coefficients, on (depth, height, width)."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    loss = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=window)
    return lambda: loss(a[None, None], b[None, None])


def pooled_lncc(a: Tensor, b: Tensor, window: int) -> Tensor:
    """The textbook formula in a volume: five means of windows."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool3d(x[None, None], window, stride=1)[0, 0]

    level_a, level_b = mean(a), mean(b)
    variance_a = mean(a.square()) - level_a.square()
    variance_b = mean(b.square()) - level_b.square()
    return (mean(a * b) - level_a * level_b) / (variance_a * variance_b).clamp_min(1e-12).sqrt()
