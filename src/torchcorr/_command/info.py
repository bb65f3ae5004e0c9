"""``torchcorr info``: versions, threads and the kernels in use."""

from __future__ import annotations

import argparse
from importlib.metadata import version

import torch

from .. import _contract, _engines


def run(options: argparse.Namespace) -> None:
    del options
    print(f"torchcorr {version('torchcorr')}")
    print(f"torch     {torch.__version__}, {torch.get_num_threads()} threads")
    for device, reason in _engines.load().items():
        print(f"{device:9} {'kernels in use' if reason is None else f'no kernels: {reason}'}")
    for operator in _contract.OPERATORS:
        keys = ", ".join(operator.kernels())
        print(f"          {operator.name:30} {keys if keys else 'definition only'}")
