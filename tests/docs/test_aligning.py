"""The page on aligning: both sides of its table give the same numbers, and its examples hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from skimage import data, registration

import torchcorr

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "aligning.md").read_text()
ROWS = re.findall(r"^\| (\S+) \| `([^|]+)` \| `([^|]+)` \|$", PAGE, re.M)
DELAYS = re.findall(r"^\| `(\[[^`]+\])` \| `(\[[^`]+\])` \| (\S+) \| (\S+) \|$", PAGE, re.M)


def xcorr(a: np.ndarray, b: np.ndarray, reach: int, scale: str) -> np.ndarray:
    """MATLAB's, of signals of one length, from its definition."""
    full = np.correlate(a, b, "full")[len(a) - 1 - reach : len(a) + reach]
    if scale == "coeff":
        return full / np.sqrt((a @ a) * (b @ b))
    return full / (len(a) - np.abs(np.arange(-reach, reach + 1)))


def finddelay(a: np.ndarray, b: np.ndarray) -> int:
    """MATLAB's: the lag of the largest normalised correlation, counted from b."""
    return -int(np.abs(np.correlate(a, b, "full")).argmax() - (len(b) - 1))


def obspy_correlate(a: np.ndarray, b: np.ndarray, reach: int) -> np.ndarray:
    return xcorr(a - a.mean(), b - b.mean(), reach, "coeff")


def autocorrelate(y: np.ndarray, max_size: int) -> np.ndarray:
    """librosa's: the sum of products of a signal with itself at lags from 0 on."""
    return np.correlate(y, y, "full")[len(y) - 1 :][:max_size]


def arrays() -> dict[str, Any]:
    source = np.random.default_rng(0).normal(size=400)
    picture = data.camera()[::4, ::4].astype(np.float64)
    moved = np.fft.ifftn(ndimage.fourier_shift(np.fft.fftn(picture), (3.0, -5.0))).real
    mask = np.random.default_rng(1).random(picture.shape) < 0.75
    return {"m": mask, "a": source[:300], "b": source[17:317], "p": picture, "q": moved}


def test_the_table_has_every_library() -> None:
    assert {library for library, _, _ in ROWS} == {
        "NumPy", "SciPy", "scikit-image", "MATLAB", "obspy", "librosa", "stumpy",
    }  # fmt: skip


@pytest.mark.parametrize(("there", "here"), [row[1:] for row in ROWS], ids=lambda text: text)
def test_both_sides_of_a_row_agree(there: str, here: str) -> None:
    peers = {"np": np, "signal": signal, "registration": registration}
    peers |= {"xcorr": xcorr, "finddelay": finddelay, "obspy_correlate": obspy_correlate}
    peers["autocorrelate"] = autocorrelate
    if "stumpy" in there:
        peers["stumpy"] = pytest.importorskip("stumpy")
    tensors = {name: torch.from_numpy(value) for name, value in arrays().items()}
    theirs = eval(there, peers | arrays())
    ours = eval(here, vars(torchcorr) | tensors)
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(np.squeeze(ours.numpy()), theirs, rtol=0, atol=1e-6 * scale)


def test_obspy_is_as_its_definition() -> None:
    peer = pytest.importorskip("obspy.signal.cross_correlation").correlate
    a, b = (arrays()[name] for name in "ab")
    np.testing.assert_allclose(peer(a, b, 20), obspy_correlate(a, b, 20), rtol=0, atol=1e-14)


def test_librosa_is_as_its_definition() -> None:
    peer = pytest.importorskip("librosa").autocorrelate
    a = arrays()["a"]
    np.testing.assert_allclose(peer(a, max_size=20), autocorrelate(a, 20), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("x", "y", "theirs", "ours"), DELAYS)
def test_examples_of_finddelay(x: str, y: str, theirs: str, ours: str) -> None:
    first, second = (torch.tensor(ast.literal_eval(v), dtype=torch.float64) for v in (x, y))
    delay = int(theirs.replace("−", "-"))
    assert int(ours.replace("−", "-")) == -delay
    assert torchcorr.estimate_shift(first, second, ndim=1).shift.item() == -delay


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read in /proc")
def test_scratch_of_a_long_record_is_what_the_page_says() -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "6000000", "20000", "align"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "less than 64 MiB" in PAGE
    assert float(done.stdout) < 64
