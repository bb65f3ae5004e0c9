"""The torture list of the tests, run on torchcorr and on its peers: whose scores are exact.

`python -m benchmarks.torture_peers` writes results/torture.csv, one line an input and library.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torture

import torchcorr

from . import RESULTS, peers
from .measure import machine
from .report import write

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _of_tensors(call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Score:
    return lambda image, template: call(*map(torch.from_numpy, (image, template))).numpy()


def _of_peer(ready: Callable[[torch.Tensor, torch.Tensor], Callable[[], np.ndarray]]) -> Score:
    return lambda image, template: ready(*map(torch.from_numpy, (image, template)))()


LIBRARIES: dict[str, Score] = {
    "torchcorr": _of_tensors(torchcorr.zncc),
    "OpenCV": _of_peer(peers.opencv),
    "scikit-image": _of_peer(peers.scikit_image),
    "plain torch": _of_tensors(lambda i, t: peers.plain_zncc(i, t, peers.fourier_boxes)),
}


def records() -> list[dict[str, str]]:
    """Errors of all libraries on all tortures in float32."""
    lines = []
    for library, score in LIBRARIES.items():
        with warnings.catch_warnings():
            # scikit-image divides by zero on some of them; the result is what counts.
            warnings.simplefilter("ignore", RuntimeWarning)
            table = torture.table(score, np.float32)
        for case, error in table:
            entry = {"case": case, "library": library, "error": f"{error:.2e}"}
            lines.append(entry | machine())
    return lines


def main() -> int:
    lines = records()
    write(RESULTS / "torture.csv", lines)
    for record in lines:
        print(f"{record['library']:14}{record['case']:32}{record['error']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
