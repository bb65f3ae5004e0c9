"""``torchcorr match``: find a template in a picture."""

from __future__ import annotations

import argparse
import csv
import io
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..functional import zncc
from ..match import Matches, find_peaks
from .files import FileError, read_image, read_image_and_alpha, to_gray, write_whole
from .outputs import PLOT_SUFFIXES, UsageError, check_outputs, save_figure, write_json

_MAP_SUFFIXES = (".npy", ".png")
# Above this many pixels the image is searched in bands of rows, so that progress can be shown.
_BAND_PIXELS = 1 << 23


def run(options: argparse.Namespace) -> None:
    outputs = (
        (options.json, (".json",)),
        (options.csv, (".csv",)),
        (options.plot, PLOT_SUFFIXES),
        (options.score_map, _MAP_SUFFIXES),
    )
    check_outputs(outputs, (options.image, options.template, options.mask))
    if options.max_matches is not None and options.max_matches < 1:
        raise UsageError(f"--max-matches must be at least 1: got {options.max_matches}")
    if math.isnan(options.threshold):
        raise UsageError("--threshold must be a number: got nan")
    image = read_image(options.image)
    if not np.isfinite(image).any():
        raise FileError(f"{options.image}: every pixel is missing (NaN or infinity)")
    template, mask = _template_and_mask(options)
    joint = options.channels == "joint" and not image.ndim == template.ndim == 2
    if joint and image.ndim != template.ndim:
        raise UsageError(
            "--channels joint needs a colour image and a colour template: "
            f"got shapes {image.shape} and {template.shape}"
        )
    if not joint:
        image, template = to_gray(image), to_gray(template)
    if any(small > large for small, large in zip(template.shape, image.shape, strict=True)):
        raise UsageError(
            f"template is larger than image: got {_size(template)}, image is {_size(image)}"
        )
    searched, sought = _tensors(image, template)
    weights = None if mask is None else torch.from_numpy(mask).to(sought.dtype)
    _check_template(options.template, sought, weights)
    scores = _score_map(searched, sought, weights, joint)
    size = (template.shape[0], template.shape[1])
    peaks = find_peaks(
        scores, threshold=options.threshold, max_peaks=options.max_matches, min_distance=size
    )
    matches = Matches(peaks.positions, peaks.scores, size, items=peaks.items)
    _write_matches(options, matches, image, template, scores.numpy())
    _print_matches(matches, options.threshold, float(scores.max()))


def _template_and_mask(
    options: argparse.Namespace,
) -> tuple[NDArray[np.generic], NDArray[np.float64] | None]:
    """The template, and the weights of its pixels if some do not count in full."""
    template, alpha = read_image_and_alpha(options.template)
    if options.mask is not None:
        mask = to_gray(read_image(options.mask)).astype(np.float64)
        if mask.shape != template.shape[:2]:
            raise UsageError(
                f"{options.mask}: a mask has the size of its template: got {_size(mask)}, "
                f"the template is {_size(template)}"
            )
        if not (np.isfinite(mask).all() and (mask >= 0).all() and mask.any()):
            raise FileError(f"{options.mask}: a mask is not negative and not zero everywhere")
        return template, mask / mask.max()
    if alpha is None or options.ignore_alpha:
        return template, None
    if not alpha.any():
        raise FileError(f"{options.template}: every pixel is transparent; try --ignore-alpha")
    print(f"the alpha channel of {options.template} weighs its pixels (see --ignore-alpha)")
    return template, alpha


def _check_template(path: Path, template: Tensor, weights: Tensor | None) -> None:
    """What counts in the template can be matched."""
    seen = template if weights is None else template[..., weights > 0]
    if not bool(torch.isfinite(seen).all()):
        raise FileError(f"{path}: the template has pixels that are not finite; hide them by --mask")
    flat = seen if template.ndim == 2 else seen.flatten(1)
    if bool((flat.amax(-1) == flat.amin(-1)).all() if flat.ndim > 1 else flat.max() == flat.min()):
        raise FileError(f"{path}: all pixels of the template are equal: nothing to match")


def _score_map(image: Tensor, template: Tensor, weights: Tensor | None, joint: bool) -> Tensor:
    how: dict[str, Any] = {
        "channels": "joint" if joint else "independent",
        "template_mask": weights,
        "nan": "ignore",
    }
    height, width = image.shape[-2:]
    window = template.shape[-2]
    if height * width <= _BAND_PIXELS:
        return zncc(image, template, **how)
    from tqdm import tqdm

    # A band's last window reaches window - 1 rows into the next band.
    step = max(4 * window, _BAND_PIXELS // width, 1)
    starts = range(0, height - window + 1, step)
    bands = tqdm(starts, desc="searching", unit="band", delay=1, disable=None)
    return torch.cat(
        [zncc(image[..., start : start + step + window - 1, :], template, **how) for start in bands]
    )


def _write_matches(
    options: argparse.Namespace,
    matches: Matches,
    image: NDArray[np.generic],
    template: NDArray[np.generic],
    scores: NDArray[np.float32],
) -> None:
    height, width = matches.size
    rows = [
        {"y": y, "x": x, "height": height, "width": width, "score": score}
        for (y, x), score in zip(matches.positions.tolist(), matches.scores.tolist(), strict=True)
    ]
    if options.plot is not None:
        from ..plot import draw_matches

        title = f"{options.template.name} in {options.image.name}: {len(rows)} found"
        figure = draw_matches(image, matches, template=template, score_map=scores, title=title)
        save_figure(figure, options.plot)
    if options.score_map is not None:
        write_whole(options.score_map, lambda stream: _write_map(stream, options.score_map, scores))
    if options.csv is not None:
        text = io.StringIO()
        table = csv.DictWriter(text, ["y", "x", "height", "width", "score"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(options.csv, lambda stream: stream.write(text.getvalue().encode()))
    if options.json is not None:
        write_json(options.json, {"matches": rows})


def _print_matches(matches: Matches, threshold: float, best: float) -> None:
    if len(matches) == 0:
        print(f"no match with a score of {threshold:g} or more; the best score is {best:.3f}")
        return
    height, width = matches.size
    noun = "match" if len(matches) == 1 else "matches"
    print(f"{len(matches)} {noun} of {height} x {width} pixels, top-left corners:")
    print(f"{'y':>10} {'x':>10} {'score':>8}")
    for (y, x), score in zip(matches.positions.tolist(), matches.scores.tolist(), strict=True):
        print(f"{y:10.2f} {x:10.2f} {score:8.4f}")


def _tensors(*images: NDArray[np.generic]) -> list[Tensor]:
    """``(H, W)`` as it is, ``(H, W, 3)`` as ``(3, H, W)``; float32, or float64 where an image
    needs it.
    """
    exact = all(np.can_cast(image.dtype, np.float32) for image in images)
    dtype = np.float32 if exact else np.float64
    return [
        torch.from_numpy(
            np.moveaxis(image, -1, 0).astype(dtype) if image.ndim == 3 else image.astype(dtype)
        )
        for image in images
    ]


def _size(image: NDArray[np.generic]) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _write_map(stream: BinaryIO, path: Path, scores: NDArray[np.float32]) -> None:
    if path.suffix.lower() == ".npy":
        np.save(stream, scores.astype(np.float32), allow_pickle=False)
        return
    from PIL import Image

    # NaN, the score of a window that contains one, is shown as black, the lowest grey.
    levels = np.rint((np.nan_to_num(scores, nan=-1.0) + 1) * 127.5)
    Image.fromarray(levels.astype(np.uint8)).save(stream, format="PNG")
