"""Benchmarks against peers and against the machine's limits; `make bench` runs them all.

Modules import torchcorr and NumPy only; a peer is imported where it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Inputs, bounds, tortures and the oracle are those of the tests.
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
