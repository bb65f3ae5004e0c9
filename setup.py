"""Builds csrc/**/*.cpp into one library in the package; everything else is in pyproject.toml.

The library uses only PyTorch's stable ABI and no Python, so one file serves every Python and every
PyTorch from 2.10 on. Without a compiler or PyTorch the package installs without it and says so.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
SOURCES = sorted(CSRC.rglob("*.cpp"))
HEADERS = sorted(CSRC.rglob("*.h"))
LIBRARY = "_kernels.so"
COMPILE_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Vectors that a CPU lacks registers for are only passed between inlined functions.
    "-Wno-psabi",
    "-I" + str(CSRC),
    # The floor of the stable ABI: only what PyTorch 2.10 already had may be used.
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
if os.environ.get("TORCHCORR_SANITIZE") != "1":
    SANITIZERS = []
else:
    COMPILE_FLAGS += [*SANITIZERS, "-O1", "-g", "-fno-omit-frame-pointer"]
    # Fuses products and sums as -O3 does, which bounds in tests of the direct kernels count on.
    COMPILE_FLAGS += ["-fexpensive-optimizations"]
    # No clones: they are chosen before the sanitizers are ready.
    COMPILE_FLAGS += ["-DTORCHCORR_CLONES="]


class KernelsNotBuilt(Exception):
    """Says what is missing; the reason is shown to the user as it stands."""


def find_compiler() -> list[str]:
    wanted = os.environ.get("CXX")
    for candidate in [wanted] if wanted else ["c++", "g++", "clang++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    tried = wanted or "c++, g++, clang++"
    raise KernelsNotBuilt(f"no C++ compiler found (looked for {tried}; CXX names another)")


def find_torch() -> tuple[list[str], list[str], str]:
    """Compiler flags, linker flags and version of the PyTorch that is installed."""
    try:
        import torch
        from torch.utils.cpp_extension import include_paths
    except ImportError as error:
        raise KernelsNotBuilt(f"PyTorch cannot be imported while building ({error})") from error
    # As system headers, whose warnings are not ours.
    includes = [flag for path in include_paths() for flag in ("-isystem", path)]
    lib = str(Path(torch.__file__).parent / "lib")
    return includes, ["-L" + lib, "-ltorch_cpu"], torch.__version__


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise KernelsNotBuilt(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")


def compile_objects(compiler: list[str], includes: list[str], folder: Path) -> list[Path]:
    """One object a source, in parallel; objects newer than their source and all headers stay."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = max((header.stat().st_mtime for header in HEADERS), default=0.0)

    def compile_one(source: Path) -> Path:
        target = folder / ("-".join(source.relative_to(CSRC).with_suffix("").parts) + ".o")
        if target.exists() and target.stat().st_mtime > max(shared, source.stat().st_mtime):
            return target
        run([*compiler, *COMPILE_FLAGS, *includes, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, SOURCES))


def build_library(target: Path) -> None:
    if not SOURCES:
        raise KernelsNotBuilt("there is no csrc/**/*.cpp next to setup.py")
    compiler = find_compiler()
    includes, libraries, torch_version = find_torch()
    recipe = repr((compiler, COMPILE_FLAGS, includes, torch_version))
    folder = ROOT / "build" / f"kernels-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    objects = compile_objects(compiler, includes, folder)
    shared = ["-dynamiclib"] if sys.platform == "darwin" else ["-shared", "-Wl,--as-needed"]
    # Linked aside and moved, so that a process that has the old library open keeps it whole.
    fresh = folder / LIBRARY
    run([*compiler, *shared, *SANITIZERS, *map(str, objects), *libraries, "-o", str(fresh)])
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_suffix(".new")
    shutil.copy(fresh, staged)
    staged.replace(target)


class BuildKernels(build_ext):
    """Replaces compilation of Python extensions: there is one library, without Python's ABI."""

    built = False

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "src" / "torchcorr" if in_place else Path(self.build_lib) / "torchcorr"
        try:
            build_library(package / LIBRARY)
        except KernelsNotBuilt as reason:
            (package / LIBRARY).unlink(missing_ok=True)
            if os.environ.get("TORCHCORR_REQUIRE_KERNELS") == "1":
                raise SystemExit(f"torchcorr: C++ kernels were not built: {reason}") from reason
            print(
                f"torchcorr: WARNING: C++ kernels were not built: {reason}\n"
                "torchcorr: the package works without them, on the slower reference.",
                file=sys.stderr,
            )
        else:
            self.built = True

    def get_outputs(self) -> list[str]:
        built = self.built and not self.inplace
        return [str(Path(self.build_lib) / "torchcorr" / LIBRARY)] if built else []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class TagForAnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "torchcorr._kernels",
            [str(p.relative_to(ROOT)) for p in SOURCES],
            depends=[str(p.relative_to(ROOT)) for p in HEADERS],
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagForAnyPython},
)
