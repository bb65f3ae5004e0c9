"""Which precision the tiles of photographs take: `python -m benchmarks.ways`.

For each photograph and template, tiles by transforms in float32, by two digits of the template, by
float64 and by integers, windows recomputed from their definition, and the largest error.
"""

from __future__ import annotations

import torch
from torch import Tensor

import torchcorr
from torchcorr._cpu import counters

from .photographs import PICTURES, TEMPLATES, exact_scores, photograph

# How users hold a picture: whole numbers of float32, bytes, and fractions.
HELD = {
    "float32": lambda x: x.float(),
    "uint8": lambda x: x,
    "float32 / 255": lambda x: x.float() / 255,
}


def ways_of(image: Tensor, template: Tensor) -> tuple[counters.Ways, float]:
    """The counts of one call and its largest error."""
    counters.take()
    scores = torchcorr.zncc(image, template)
    ways = counters.take()
    exact = torch.from_numpy(exact_scores(image.numpy(), template.numpy()).astype("float64"))
    return ways, float((scores.double() - exact).abs().max())


def main() -> None:
    names = counters.Ways._fields
    print("| photograph | held as | template |", " | ".join(names), "| error |")
    print("|---" * (4 + len(names)) + "|")
    for name in PICTURES:
        picture = torch.from_numpy(photograph(name))
        for held, convert in HELD.items():
            image = convert(picture)
            for k in TEMPLATES:
                y, x = (n // 3 for n in image.shape)
                if min(image.shape[0] - y, image.shape[1] - x) < k:
                    continue
                template = image[y : y + k, x : x + k].clone()
                ways, error = ways_of(image, template)
                counts = " | ".join(map(str, ways))
                print(f"| {name} | {held} | {k} | {counts} | {error:.1e} |")


if __name__ == "__main__":
    main()
