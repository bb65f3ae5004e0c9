"""Reading images and signals, and writing files whole or not at all."""

from __future__ import annotations

import os
import struct
import tempfile
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
SIGNAL_SUFFIXES = (".wav", ".npy")
# What readers raise on files that are damaged: they trust the sizes and types that they find in
# them, and fail where they use them.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
)
# Rec. 601, the weights of Pillow and OpenCV.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class FileError(Exception):
    """A file that cannot be read or written; the message names it and says why."""


def read_image(path: Path) -> NDArray[np.generic]:
    """The image as ``(H, W)`` or ``(H, W, 3)``, in its stored depth where the format allows;
    alpha is dropped.
    """
    return read_image_and_alpha(path)[0]


def read_image_and_alpha(
    path: Path,
) -> tuple[NDArray[np.generic], NDArray[np.float64] | None]:
    """The same, and its alpha channel in [0, 1], ``(H, W)``; None without one, or if it is opaque
    everywhere.
    """
    _require_suffix(path, IMAGE_SUFFIXES)
    image = _load_npy(path) if path.suffix.lower() == ".npy" else _read_picture(path)
    alpha = None
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        kind: Any = image.dtype
        opaque = float(np.iinfo(kind).max) if kind.kind in "ui" else 1.0
        alpha = image[..., -1].astype(np.float64) / opaque
        alpha = None if (alpha == 1).all() else alpha
    if image.ndim == 3 and image.shape[-1] in (1, 2):
        image = image[..., 0]
    elif image.ndim == 3 and image.shape[-1] in (3, 4):
        image = image[..., :3]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] == 3):
        raise FileError(f"{path}: an image has shape (H, W) or (H, W, 3): got {image.shape}")
    if image.size == 0:
        raise FileError(f"{path}: the image is empty: got shape {image.shape}")
    return image, alpha


def to_gray(image: NDArray[np.generic]) -> NDArray[np.generic]:
    """The image as ``(H, W)``: colour becomes luma (Rec. 601), gray stays as it is."""
    return image if image.ndim == 2 else image.astype(np.float32) @ _LUMA


def is_image(path: Path) -> bool:
    """Whether a file holds an image rather than a signal, by its name or, for NPY, its axes."""
    suffix = path.suffix.lower()
    if suffix != ".npy":
        return suffix in IMAGE_SUFFIXES
    return _load_npy(path).ndim > 1


@dataclass(frozen=True)
class Signal:
    """One channel ``(N,)`` of a recording, counted from 1, its rate in Hz if the format has one,
    and whether the file ends before its header says.
    """

    samples: NDArray[np.float64]
    rate: int | None
    channel: int
    channels: int
    is_cut: bool


def read_signal(path: Path, channel: int | None = None) -> Signal:
    """A channel of a recording, by default that with the most energy about its mean. The only
    channel of a recording is taken whatever its number.
    """
    _require_suffix(path, SIGNAL_SUFFIXES)
    is_npy = path.suffix.lower() == ".npy"
    rate, values, is_cut = (None, _load_npy(path), False) if is_npy else _read_wav(path)
    if values.ndim not in (1, 2) or values.shape[0] < 2 or values.size == 0:
        raise FileError(f"{path}: a signal has shape (N,) with N > 1: got {values.shape}")
    every = values.reshape(len(values), -1).astype(np.float64)
    count = every.shape[1]
    if count == 1:
        channel = 1
    elif channel is None:
        there = np.ma.masked_invalid(every)
        channel = int(np.ma.filled(there.var(axis=0), 0.0).argmax()) + 1
    if not 1 <= channel <= count:
        raise FileError(f"{path}: has channels 1 to {count}: got {channel}")
    return Signal(every[:, channel - 1], rate, channel, count, is_cut)


def _read_wav(path: Path) -> tuple[int, NDArray[np.generic], bool]:
    from scipy.io import wavfile

    with _reading(path), warnings.catch_warnings(record=True) as said:
        # Unknown chunks after the samples are of no interest here.
        warnings.simplefilter("always")
        rate, values = wavfile.read(path)
    return int(rate), values, any("EOF prematurely" in str(w.message) for w in said)


def resampled(signal: NDArray[np.float64], rate: float, to: float) -> NDArray[np.float64]:
    """The signal at another rate, by SciPy's polyphase filter."""
    from scipy.signal import resample_poly

    ratio = Fraction(to).limit_denominator(1000) / Fraction(rate).limit_denominator(1000)
    return np.asarray(resample_poly(signal, ratio.numerator, ratio.denominator, padtype="line"))


def require_writable(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise `FileError` if a file of this name could not be written, before any work is done
    for it.
    """
    _require_suffix(path, suffixes)
    if path.is_dir():
        raise FileError(f"{path}: is a directory")
    if path.exists() and not os.access(path, os.W_OK):
        raise FileError(f"{path}: cannot be written: permission denied")
    folder = path.parent
    if not folder.is_dir():
        raise FileError(f"{path}: cannot be written: no directory {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"{path}: cannot be written: permission denied in {folder}")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file through ``write(stream)``; the name appears only when the contents are
    complete.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {_reason(error)}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        # mkstemp makes files private; a new file gets what the user's umask gives.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _require_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        known = ", ".join(suffixes)
        raise FileError(f"{path}: unknown extension {path.suffix!r}: expected one of {known}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a library raises on a file that is damaged, as one `FileError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (FileError, ImportError):
        raise
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{path}: cannot be read: {_reason(error)}") from error
    except _DAMAGED as error:
        raise FileError(f"{path}: the file is damaged: {_reason(error)}") from error


def _load_npy(path: Path) -> NDArray[np.generic]:
    with _reading(path), path.open("rb") as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.dtype.kind not in "buif":
        raise FileError(f"{path}: contains {array.dtype}: expected real numbers")
    return array


def _read_picture(path: Path) -> NDArray[np.generic]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _reading(path), Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("P", "PA") and upright.has_transparency_data:
                upright = upright.convert("RGBA")
            elif upright.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                upright = upright.convert("RGB")
            elif upright.mode == "1":
                upright = upright.convert("L")
            return np.asarray(upright)
    except Image.DecompressionBombError as error:
        raise FileError(f"{path}: cannot be read: {_reason(error)}") from error
    except FileError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path)
        raise FileError(f"{path}: cannot be read: not a picture that Pillow knows") from error


def _read_tiff(path: Path) -> NDArray[np.generic]:
    """TIFF kinds that Pillow does not know: 16-bit colour, float with compression."""
    import tifffile

    try:
        with _reading(path):
            return np.asarray(tifffile.imread(path))
    except tifffile.TiffFileError as error:
        raise FileError(f"{path}: cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split()).lower() if isinstance(error, OSError) else " ".join(text.split())
