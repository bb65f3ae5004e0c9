"""Compiles the C++ sources into the library of kernels, for setup.py and ``torchcorr build``.

This file imports nothing of torchcorr: setup.py loads it by its path, also where there is no
PyTorch. The library uses only PyTorch's stable ABI and no Python, so one file serves every Python
and every PyTorch from 2.10 on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "_kernels.so"
# Why setup.py built no library: the cause in the first line, then what the compiler printed.
REASON = "_kernels_missing.txt"
# The sources in an installed package; in a clone they are in csrc/.
SHIPPED_SOURCES = "_csrc"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Vectors that a CPU lacks registers for are only passed between inlined functions.
    "-Wno-psabi",
    # The floor of the stable ABI: only what PyTorch 2.10 already had may be used.
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
)
OLDEST_TORCH = (2, 10)


class KernelsNotBuilt(Exception):
    """Why there is no library: `cause` in one line, and what a compiler printed as `output`."""

    def __init__(self, cause: str, output: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.output = output


def source_folder(package: Path) -> Path | None:
    """The folder of the C++ sources of a package that is installed or stands in a clone."""
    for folder in (package / SHIPPED_SOURCES, package.parent.parent / "csrc"):
        if folder.is_dir():
            return folder
    return None


def source_files(sources: Path) -> list[Path]:
    """Every file that the library is compiled from, in all sub-folders."""
    return sorted(p for p in sources.rglob("*") if p.suffix in (".cpp", ".h"))


def key(sources: Path) -> str:
    """Names what a library of these sources is for: the platform, the sources and the flags."""
    digest = hashlib.sha256(repr((FLAGS, OLDEST_TORCH)).encode())
    for path in source_files(sources):
        digest.update(path.relative_to(sources).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return f"{sys.platform}-{platform.machine()}-{digest.hexdigest()[:16]}"


def build_library(
    target: Path,
    sources: Path,
    *,
    objects: Path | None = None,
    flags: Sequence[str] = (),
    check: Callable[[Path], None] | None = None,
) -> None:
    """Compile and link the library; `target` appears or is replaced when it is complete.

    Objects go to a temporary folder; with `objects`, to a folder in there that the next build
    uses again. `check` is called with the path of the linked library before it replaces another.
    """
    compiler = find_compiler()
    include_flags, link_flags, torch_version = find_torch()
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the folder of the target, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernels-") as aside:
        if objects is None:
            folder = Path(aside)
        else:
            recipe = repr((compiler, FLAGS, flags, include_flags, torch_version))
            folder = objects / f"kernels-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
            folder.mkdir(parents=True, exist_ok=True)
        compiling = [*compiler, *FLAGS, *flags, "-I", str(sources), *include_flags]
        compiled = compile_objects(compiling, sources, folder)
        shared = ["-dynamiclib"] if sys.platform == "darwin" else ["-shared", "-Wl,--as-needed"]
        linked = Path(aside) / LIBRARY
        files = [*map(str, compiled), *link_flags, "-o", str(linked)]
        run([*compiler, *shared, *flags, *files], "linking the kernels failed")
        if check is not None:
            check(linked)
        linked.replace(target)


def find_compiler() -> list[str]:
    """The command of the C++ compiler: CXX, or the first of the usual ones."""
    wanted = os.environ.get("CXX")
    for candidate in [wanted] if wanted else COMPILERS:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    tried = f"CXX={wanted}" if wanted else f"{', '.join(COMPILERS)}; CXX can name another"
    raise KernelsNotBuilt(
        f"no C++ compiler was found (looked for {tried}): install g++ or clang++"
        " (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++;"
        " conda: conda install cxx-compiler; macOS: xcode-select --install)"
    )


def find_torch() -> tuple[list[str], list[str], str]:
    """Compiler flags, linker flags and version of the PyTorch that is installed."""
    try:
        import torch
    except ImportError as error:
        raise KernelsNotBuilt(
            f"PyTorch was missing when the package was built ({error})"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise KernelsNotBuilt(f"PyTorch must be {oldest} or newer: got {torch.__version__}")
    root = Path(torch.__file__).parent
    includes = root / "include", root / "include" / "torch" / "csrc" / "api" / "include"
    # As system headers, whose warnings are not ours.
    include_flags = [flag for path in includes for flag in ("-isystem", str(path))]
    return include_flags, [f"-L{root / 'lib'}", "-ltorch_cpu"], str(torch.__version__)


def compile_objects(compiling: list[str], sources: Path, folder: Path) -> list[Path]:
    """One object for each source, in parallel; an object that is newer than its source and all
    headers is kept.
    """
    files = source_files(sources)
    headers = max((p.stat().st_mtime for p in files if p.suffix == ".h"), default=0.0)

    def compile_one(source: Path) -> Path:
        name = "-".join(source.relative_to(sources).with_suffix(".o").parts)
        target = folder / name
        if target.exists() and target.stat().st_mtime > max(headers, source.stat().st_mtime):
            return target
        # Renamed when complete: an interrupted or a second build leaves no half of an object.
        partial = folder / f"{uuid.uuid4().hex}-{name}"
        failure = f"compiling {source.relative_to(sources)} failed"
        run([*compiling, "-c", str(source), "-o", str(partial)], failure)
        partial.replace(target)
        return target

    units = [path for path in files if path.suffix == ".cpp"]
    if not units:
        raise KernelsNotBuilt(f"there are no C++ sources in {sources}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, units))


def run(command: list[str], failure: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise KernelsNotBuilt(f"{failure}: {command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        printed = done.stderr.strip()
        first = next((line for line in printed.splitlines() if "error" in line), "")
        cause = f"{failure}: {first or f'{command[0]} exited with status {done.returncode}'}"
        raise KernelsNotBuilt(cause, f"{shlex.join(command)}\n{printed}")
