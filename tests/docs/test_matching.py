"""The page on matching: both sides of its table give the same numbers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import array, draw, tensor
from scipy import signal
from skimage import data, feature
from skimage.registration._masked_phase_cross_correlation import cross_correlate_masked

import torchcorr

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "matching.md").read_text()
SIZES = ((110, 120), (20, 23))
ROWS = re.findall(r"^\| (\S+) \| `([^`]+)` \| `([^`]+)` \|$", PAGE, re.M)


def normxcorr2(template: np.ndarray, image: np.ndarray) -> np.ndarray:
    """MATLAB's, from its definition: every window of the image between zeros."""
    pads = [(n - 1, n - 1) for n in template.shape]
    seen = np.lib.stride_tricks.sliding_window_view(np.pad(image, pads), template.shape)
    pattern = template - template.mean()
    centred = seen - seen.mean((-2, -1), keepdims=True)
    energy = np.square(centred).sum((-2, -1)) * np.square(pattern).sum()
    product = (centred * pattern).sum((-2, -1))
    return np.where(energy > 1e-20, product / np.sqrt(np.maximum(energy, 1e-20)), 0)


def masked(image: np.ndarray, other: np.ndarray, *masks: np.ndarray, **how: Any) -> np.ndarray:
    return cross_correlate_masked(image, other, *masks, mode="full", axes=(0, 1), **how)


ITK = """
import sys, itk, numpy as np
arrays, kind = np.load(sys.argv[1]), itk.Image[itk.D, 2]
images = [itk.image_from_array(arrays[name]) for name in arrays.files]
given = itk.MaskedFFTNormalizedCorrelationImageFilter[kind, kind].New()
given.SetFixedImage(images[0])
given.SetMovingImage(images[1])
given.SetFixedImageMask(images[2])
given.SetMovingImageMask(images[3])
given.SetRequiredFractionOfOverlappingPixels(float(sys.argv[3]))
given.Update()
np.save(sys.argv[2], itk.array_from_image(given.GetOutput()))
"""


def itk_masked(*arrays: Any) -> np.ndarray:
    """In a process of its own: its libraries cannot be loaded beside those of every other peer."""
    if importlib.util.find_spec("itk") is None:
        pytest.skip("itk is not installed")
    *images, least = arrays
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("in.npz", "out.npy")]
        np.savez(files[0], *(x.astype(np.float64) for x in images))
        subprocess.run([sys.executable, "-c", ITK, *files, str(least)], check=True)
        result: np.ndarray = np.load(files[1])
    return result


class NCC:
    """VoxelMorph's loss, from its definition: the mean of the squares of `lncc`, negative."""

    def __init__(self, win: list[int]) -> None:
        self.win = win

    def loss(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ones, size = torch.ones(1, 1, *self.win, dtype=a.dtype), float(np.prod(self.win))

        def over(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(x, ones, padding=self.win[0] // 2)

        cross = over(a * b) - over(a) * over(b) / size
        first, second = (over(x * x) - over(x).square() / size for x in (a, b))
        return -(cross.square() / (first * second + 1e-5)).mean()


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    colours = np.moveaxis(data.astronaut()[100:160, 180:250], -1, 0) / 255
    image = colours[0].copy()
    keep = [rng.random(image.shape) > 0.2 for _ in range(2)]
    mask = np.hypot(*np.mgrid[-4:5, -5:6]) < 4.6
    return {
        "i": image,
        "t": image[20:29, 30:41].copy(),
        "c": colours,
        "d": colours[:, 20:29, 30:41].copy(),
        "f": np.roll(image, (3, -5), (0, 1)) + 0.01 * rng.normal(size=image.shape),
        "k": keep[0],
        "g": keep[1],
        "m": mask,
    }


@pytest.mark.parametrize("method", ("direct", "fft"))
@pytest.mark.parametrize("kind", ("colour", "mask", "colour and mask"))
def test_scores_of_opencv_to_1e_5(kind: str, method: str) -> None:
    """Of noise, where its rounding does not show: own means of channels, and weights of 0 and 1."""
    cv2 = pytest.importorskip("cv2")
    channels = (3,) if "colour" in kind else ()
    image, template = (draw((*channels, *n), torch.float32, s) for s, n in enumerate(SIZES))
    tints = torch.tensor([0.0, 0.3, 0.8])[:, None, None]
    image, template = (x + tints if channels else x for x in (image, template))
    how: dict[str, Any] = {"channels": "joint"} if channels else {}
    last = [np.moveaxis(array(x), 0, -1) if channels else array(x) for x in (image, template)]
    given = [np.ascontiguousarray(x, np.float32) for x in last]
    mask = None
    if "mask" in kind:
        y, x = np.mgrid[:20, :23]
        mask = (np.hypot(y - 9.5, x - 11) < 9.6).astype(np.float32)
        how["template_mask"] = tensor(mask)
        mask = np.dstack([mask] * 3) if channels else mask
    theirs = cv2.matchTemplate(*given, cv2.TM_CCOEFF_NORMED, mask=mask)
    ours = torchcorr.zncc(image, template, method=method, **how)
    np.testing.assert_allclose(array(ours), theirs, rtol=0, atol=1e-5)
    assert np.abs(theirs).max() > 0.05


def test_the_table_has_every_library() -> None:
    assert {row[0] for row in ROWS} == {
        "OpenCV", "scikit-image", "SciPy", "MATLAB", "ITK", "MONAI", "VoxelMorph",
    }  # fmt: skip


@pytest.mark.parametrize(("there", "here"), [row[1:] for row in ROWS], ids=lambda text: text)
def test_both_sides_of_a_row_agree(there: str, here: str) -> None:
    known, bound = arrays(), 1e-6
    peers: dict[str, Any] = {"np": np, "signal": signal, "feature": feature}
    peers |= {"normxcorr2": normxcorr2, "masked": masked, "last": lambda x: np.moveaxis(x, 0, -1)}
    given = dict(known)
    if "cv2" in there:
        peers["cv2"] = pytest.importorskip("cv2")
        given = {name: np.ascontiguousarray(x, np.float32) for name, x in known.items()}
        peers["last"] = lambda x: np.ascontiguousarray(np.moveaxis(x, 0, -1))
        bound = 1e-3  # its rounding in smooth regions
    if "Loss" in there:
        losses = pytest.importorskip("monai.losses")
        peers["LocalNormalizedCrossCorrelationLoss"] = losses.LocalNormalizedCrossCorrelationLoss
    if "NCC(" in there:
        bound = 1e-3  # what the constant in its denominator changes
    peers |= {"NCC": NCC, "b": lambda x: torch.from_numpy(x)[None, None], "itk_masked": itk_masked}
    theirs = np.asarray(eval(there, peers | given))
    ours = eval(here, vars(torchcorr) | {name: torch.from_numpy(x) for name, x in known.items()})
    got = np.squeeze(ours.numpy())
    if "masked" in there:
        # There an overlap is a share of the largest one, not of the template.
        both = (theirs != 0) & (got != 0)
        assert both.mean() > 0.2
        got, theirs = got[both], theirs[both]
    np.testing.assert_allclose(got, theirs, rtol=0, atol=bound * max(1.0, np.abs(theirs).max()))
