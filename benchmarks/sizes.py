"""Time against the image's and the template's size, for the plots: `python -m benchmarks.sizes`.

Each size is measured on noise and on a photograph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from inputs import draw

import torchcorr

from . import RESULTS, peers
from .cases import cut
from .measure import Call, alternate, machine
from .photographs import of_size
from .report import write

TABLE = RESULTS / "cpu_sizes.csv"
IMAGES, TEMPLATE = (256, 512, 1024, 2048, 4096), 64
TEMPLATES, IMAGE = (8, 16, 32, 64, 128, 256), 1024
NOISE, PHOTOGRAPH = "noise", "retina"
# On logarithmic axes a few rounds are exact enough for a point.
ROUNDS = 5


def contestants(image: torch.Tensor, template: torch.Tensor) -> dict[str, Call]:
    """Functions that score one template on one image."""
    ours = {
        f"torchcorr {method}": partial(torchcorr.zncc, image, template, method=method)
        for method in ("auto", "direct", "fft")
    }
    return ours | {
        "OpenCV": peers.opencv(image, template),
        "scikit-image": peers.scikit_image(image, template),
        "plain torch": partial(peers.plain_zncc, image, template),
    }


def points(quick: bool) -> Iterator[tuple[str, str, int, int]]:
    """(axis of the plot, picture, image size, template size)."""
    scale = 4 if quick else 1
    for picture in (NOISE, PHOTOGRAPH):
        for size in IMAGES:
            yield "image_size", picture, size // scale, TEMPLATE // scale
        for window in TEMPLATES:
            yield "template_size", picture, IMAGE // scale, window // scale


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--rounds", type=int, help=f"of each contestant, default {ROUNDS}")
    parser.add_argument("--output", type=Path, help="the CSV; a quick run keeps none by default")
    args = parser.parse_args(arguments)
    output = args.output or (None if args.quick else TABLE)
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    records = []
    for axis, picture, size, window in points(args.quick):
        noise = picture == NOISE
        image = draw((size, size), torch.float32) if noise else of_size(picture, size)
        timings = alternate(contestants(image, cut(image, window)), rounds)
        for name, timing in timings.items():
            what = f"{picture:8}{size:6} {window:6} {name:20}"
            print(f"{what} {timing.ms:10.3f} ms × {timing.rounds}", flush=True)
            record = {"axis": axis, "picture": picture, "image": str(size)}
            record |= {"template": str(window), "name": name}
            record |= {"ms": f"{timing.ms:.4g}", "rounds": str(timing.rounds)}
            records.append(record | machine())
    if output is not None:
        write(output, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
