"""``torchcorr build``: compiles the C++ kernels against the PyTorch that is installed."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from .outputs import UsageError

_LOAD = "import ctypes, sys, torch; ctypes.CDLL(sys.argv[1])"


def run(options: argparse.Namespace) -> None:
    """Build into the package or, where that cannot be written, into the user's cache."""
    del options
    from .._cpu import compile, library

    sources = compile.source_folder(library.PACKAGE)
    if sources is None:
        raise UsageError(
            f"the C++ sources are missing: no {compile.SHIPPED_SOURCES} in the package"
        )
    start = time.perf_counter()
    try:
        compiler = shlex.join(compile.find_compiler())
        print(
            f"compiling for PyTorch {torch.__version__} with {compiler}: a minute or two",
            flush=True,
        )
        built = _build(sources)
    except compile.KernelsNotBuilt as error:
        if error.output:
            print(error.output, file=sys.stderr)
        raise UsageError(error.cause) from error
    print(f"kernels compiled in {time.perf_counter() - start:.0f} s: {built}")


def _build(sources: Path) -> Path:
    """Compile into the first folder that can be written; the path of the library."""
    from .._cpu import compile, library

    refusals = []
    for target in library.build_targets():
        try:
            compile.build_library(target, sources, check=_check)
        except OSError as error:
            refusals.append(f"{target.parent} cannot be written: {error.strerror}")
        else:
            return target
    raise UsageError(f"there is no place for the kernels: {'; '.join(refusals)}")


def _check(library: Path) -> None:
    """Raise unless a new process can load the library: this one may have loaded another."""
    from .._cpu.compile import KernelsNotBuilt

    command = [sys.executable, "-c", _LOAD, str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise KernelsNotBuilt(f"the compiled library cannot be loaded: {said[-1]}")
