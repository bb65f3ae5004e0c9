"""Compiles csrc/ into one shared library in the package; everything else is pyproject.toml.

How it is compiled is said in src/torchcorr/_cpu/compile.py. Without a compiler or PyTorch the
package installs without the library and notes the cause, which `torchcorr info` shows; the sources
are part of the package, so that `torchcorr build` can compile them later.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
FLAGS: list[str] = []
SANITIZERS = os.environ.get("TORCHCORR_SANITIZE")  # address,undefined or thread
if SANITIZERS:
    FLAGS += [f"-fsanitize={SANITIZERS}"]
    if SANITIZERS != "thread":
        FLAGS += ["-fno-sanitize-recover=all"]
    FLAGS += ["-O1", "-g", "-fno-omit-frame-pointer"]
    # Fuses products and sums as -O3 does, which bounds in tests of the direct kernels count on.
    FLAGS += ["-fexpensive-optimizations"]
    # No clones: they are chosen before the sanitizers are ready.
    FLAGS += ["-DTORCHCORR_CLONES="]


def load_compile() -> ModuleType:
    """The module of the package that compiles, without the package, which needs PyTorch."""
    path = ROOT / "src" / "torchcorr" / "_cpu" / "compile.py"
    spec = importlib.util.spec_from_file_location("torchcorr_compile", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernels = load_compile()


class BuildKernels(build_ext):
    """Replaces compilation of Python extensions: there is one library, without Python's ABI."""

    built = kernels.LIBRARY

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "src" / "torchcorr" if in_place else Path(self.build_lib) / "torchcorr"
        library, note = package / kernels.LIBRARY, package / kernels.REASON
        try:
            kernels.build_library(library, SOURCES, objects=ROOT / "build", flags=FLAGS)
        except kernels.KernelsNotBuilt as reason:
            library.unlink(missing_ok=True)
            text = f"{reason.cause}\n{reason.output}".strip()
            if os.environ.get("TORCHCORR_REQUIRE_KERNELS") == "1":
                raise SystemExit(f"torchcorr: C++ kernels were not built: {text}") from reason
            package.mkdir(parents=True, exist_ok=True)
            note.write_text(text + "\n", encoding="utf-8")
            self.built = kernels.REASON
            print(
                f"torchcorr: WARNING: C++ kernels were not built: {text}\n"
                "torchcorr: the package works without them, but slowly. `torchcorr build` compiles "
                "them once PyTorch and a C++ compiler are there;\n"
                "torchcorr: where both are there already, "
                "pip install --no-build-isolation . builds with that PyTorch.",
                file=sys.stderr,
            )
        else:
            note.unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else [str(Path(self.build_lib) / "torchcorr" / self.built)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class ShipSources(build_py):
    """Copies csrc/ and examples/ into the package as well, for `torchcorr build` and `demo`."""

    def shipped(self) -> dict[Path, Path]:
        package = Path(self.build_lib) / "torchcorr"
        csrc, examples = package / kernels.SHIPPED_SOURCES, package / "_examples"
        sources = {p: csrc / p.relative_to(SOURCES) for p in kernels.source_files(SOURCES)}
        return sources | {p: examples / p.name for p in sorted((ROOT / "examples").glob("*.py"))}

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in (kernels.SHIPPED_SOURCES, "_examples"):
            shutil.rmtree(Path(self.build_lib) / "torchcorr" / folder, ignore_errors=True)
        for source, copy in self.shipped().items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        shipped = [] if self.editable_mode else map(str, self.shipped().values())
        return [*super().get_outputs(include_bytecode), *shipped]


class TagForAnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    # Only its presence counts: the wheel is for one platform. BuildKernels finds the sources.
    ext_modules=[Extension("torchcorr._kernels", [])],
    cmdclass={"build_ext": BuildKernels, "build_py": ShipSources, "bdist_wheel": TagForAnyPython},
)
