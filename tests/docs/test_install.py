"""Installing without PyTorch, `torchcorr build`, and what is said while there are no kernels.

Most tests compile one small source in place of csrc/; `make wheel` compiles the real ones.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from torchcorr.__main__ import main
from torchcorr._cpu import compile, library

ROOT = Path(__file__).resolve().parent.parent.parent
CURE = "; to compile them: torchcorr build"
# Drops root's right to write anywhere, so that permissions count for root as well.
AS_A_USER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0);"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a package without a library, whose sources are one function in two folders."""
    folder = tmp_path / "site-packages" / "torchcorr"
    sources = folder / compile.SHIPPED_SOURCES
    for name in ("common", "windows"):
        (sources / name).mkdir(parents=True)
    (sources / "common" / "seven.h").write_text("inline int seven() { return 7; }\n")
    (sources / "windows" / "seven.cpp").write_text(
        '#include "common/seven.h"\n'
        'extern "C" __attribute__((visibility("default"))) int torchcorr_seven() {\n'
        "  return seven();\n"
        "}\n"
    )
    monkeypatch.setattr(library, "PACKAGE", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def seven(path: Path) -> int:
    return ctypes.CDLL(str(path)).torchcorr_seven()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def programme(package: Path) -> dict[str, str]:
    """The environment in which `python -m torchcorr` is this package, with this checkout's code."""
    for path in (ROOT / "src" / "torchcorr").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            shutil.copytree(path, package / path.name, ignore=lambda *_: ["__pycache__"])
        elif path.suffix == ".py":
            shutil.copy(path, package)
    return {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def test_build_compiles_the_shipped_sources_into_the_package(package, capsys):
    assert main(["build"]) == 0
    built = package / library.build_targets()[0].name
    assert names(package) == sorted([compile.SHIPPED_SOURCES, built.name])
    assert seven(built) == 7
    said = capsys.readouterr().out
    assert said.startswith("compiling for PyTorch")
    assert said.rstrip().endswith(str(built))
    assert library.load() is None


def test_read_only_package_is_built_into_the_cache(package, tmp_path):
    environment = programme(package)
    package.chmod(0o555)
    command = [sys.executable, "-c", AS_A_USER, "-m", "torchcorr", "build"]
    before = names(package)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    package.chmod(0o755)
    assert done.returncode == 0, done.stderr
    built = tmp_path / "cache" / "torchcorr" / library.build_targets()[1].name
    assert done.stdout.rstrip().endswith(str(built))
    assert seven(built) == 7
    assert names(package) == before
    assert library.load() is None


def test_no_place_to_build_names_every_folder(package, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "a" / "x.so", tmp_path / "file" / "b" / "x.so"]
    monkeypatch.setattr(library, "build_targets", lambda: places)
    assert main(["build"]) == 2
    said = capsys.readouterr().err
    assert all(f"{place.parent} cannot be written: Not a directory" in said for place in places)


def test_missing_compiler_is_named_with_the_package_to_install(package, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(package))
    assert main(["build"]) == 2
    said = capsys.readouterr().err
    assert "looked for c++, g++, clang++; CXX can name another" in said
    assert "apt install g++" in said
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert main(["build"]) == 2
    assert "looked for CXX=no-such-compiler -O2" in capsys.readouterr().err
    assert names(package) == [compile.SHIPPED_SOURCES]


def test_failed_compilation_shows_the_compilers_message(package, capsys):
    source = package / compile.SHIPPED_SOURCES / "windows" / "seven.cpp"
    source.write_text("#error this is what the compiler says\n")
    assert main(["build"]) == 2
    *printed, last = capsys.readouterr().err.splitlines()
    assert last.startswith("torchcorr: compiling windows/seven.cpp failed: ")
    assert "error: #error this is what the compiler says" in last
    assert any(line.startswith("1 |") or "seven.cpp:1" in line for line in map(str.strip, printed))
    assert names(package) == [compile.SHIPPED_SOURCES]


def test_library_that_does_not_load_replaces_none(package, capsys):
    source = package / compile.SHIPPED_SOURCES / "windows" / "seven.cpp"
    source.write_text('extern "C" int missing_function();\nint calls = missing_function();\n')
    target = library.build_targets()[0]
    target.write_text("the old one")
    assert main(["build"]) == 2
    said = capsys.readouterr().err
    assert "the compiled library cannot be loaded: " in said
    assert "undefined symbol: missing_function" in said
    assert target.read_text() == "the old one"
    assert names(package) == sorted([compile.SHIPPED_SOURCES, target.name])


def test_builds_at_once_leave_one_whole_library_at_any_time(package, tmp_path):
    sources, target = package / compile.SHIPPED_SOURCES, package / "both.so"
    compile.build_library(target, sources)
    expected = target.read_bytes()
    failures: list[BaseException] = []

    def build(objects: Path | None) -> None:
        try:
            for _ in range(4):
                compile.build_library(target, sources, objects=objects)
        except BaseException as error:
            failures.append(error)
            raise

    for objects in (None, tmp_path / "objects"):
        builders = [threading.Thread(target=build, args=(objects,)) for _ in range(3)]
        for builder in builders:
            builder.start()
        while any(builder.is_alive() for builder in builders):
            assert target.read_bytes() == expected
        assert not failures
    assert seven(target) == 7
    assert names(package) == sorted([compile.SHIPPED_SOURCES, target.name])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_build_leaves_nothing_that_is_used(package, tmp_path, monkeypatch, stop):
    started = tmp_path / "started"
    compiler = tmp_path / "slow-compiler"
    compiler.write_text(
        f'#!/bin/sh\nfor last; do :; done\necho half > "$last"\ntouch {started}\nexec sleep 10\n'
    )
    compiler.chmod(0o755)
    environment = programme(package) | {"CXX": str(compiler)}
    before = names(package)
    running = subprocess.Popen(
        [sys.executable, "-m", "torchcorr", "build"],
        env=environment,
        start_new_session=True,
        # Jobs in the background of a shell ignore interrupts, and so do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not started.exists():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    os.killpg(running.pid, stop)
    said = running.communicate(timeout=30)[1]
    if stop == signal.SIGINT:
        assert running.returncode == 130
        assert said == "torchcorr: interrupted\n"
        assert names(package) == before
    target = library.build_targets()[0]
    assert not target.exists()
    assert library.load() == f"they were not compiled{CURE}"
    assert main(["build"]) == 0
    assert seven(target) == 7


def test_sources_are_read_only_where_a_library_was_built(package, monkeypatch):
    installed = package / compile.LIBRARY
    monkeypatch.setattr(compile, "key", lambda _: "abc")
    built = package / f"{installed.stem}-abc.so"
    built.touch()
    assert library.candidates()[:2] == [built, installed]
    built.unlink()
    monkeypatch.delattr(compile, "key")
    assert library.candidates() == [installed]


def test_library_of_other_sources_is_not_loaded(package):
    assert main(["build"]) == 0
    for target in library.build_targets():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("not a library, so loading it is an error")
    assert "cannot be loaded" in library.load()
    header = package / compile.SHIPPED_SOURCES / "common" / "seven.h"
    header.write_text(header.read_text().replace("7", "8"))
    assert library.load() == f"they were not compiled{CURE}"


def test_libraries_are_tried_in_turn_and_the_first_failure_is_named(package):
    installed = package / compile.LIBRARY
    installed.write_text("not a library")
    said = library.load()
    assert said.startswith(f"{installed} cannot be loaded: ")
    assert "file too short" in said or "invalid ELF header" in said
    assert said.endswith(CURE)
    assert main(["build"]) == 0
    assert library.load() is None


def test_cause_that_the_installation_noted_is_named(package):
    (package / compile.REASON).write_text("PyTorch was missing\nand more\n")
    assert library.load() == f"PyTorch was missing{CURE}"


def test_cache_folder_without_a_home(package, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert all(path.is_absolute() for path in library.build_targets())

    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    assert [path.parent for path in library.build_targets()] == [package]


def set_up(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run setup.py in a copy of the checkout, as an isolated build does: without PyTorch."""
    project = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("src", "csrc"):
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, project)
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = ['setup.py', *{arguments!r}]\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    clean = {k: v for k, v in os.environ.items() if k != "TORCHCORR_REQUIRE_KERNELS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=project,
        env={**clean, **environment},
    )


def test_install_without_pytorch_notes_the_cause_and_ships_the_sources(tmp_path):
    start = time.perf_counter()
    done = set_up(tmp_path, "--quiet", "build")
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 30, "a build that compiles nothing is quick"
    for word in ("PyTorch was missing", "torchcorr build", "pip install --no-build-isolation ."):
        assert word in done.stderr
    (package,) = (tmp_path / "project" / "build").glob("lib*/torchcorr")
    assert (package / compile.REASON).read_text().startswith("PyTorch was missing when")
    assert not (package / compile.LIBRARY).exists()
    shipped = package / compile.SHIPPED_SOURCES
    kept = {p.relative_to(shipped): p.read_bytes() for p in compile.source_files(shipped)}
    sources = ROOT / "csrc"
    assert kept == {p.relative_to(sources): p.read_bytes() for p in compile.source_files(sources)}
    assert compile.key(shipped) == compile.key(sources)
    assert kept


def test_wheel_lists_the_note_and_sdist_has_the_sources(tmp_path):
    done = set_up(tmp_path, "--quiet", "bdist_wheel", "sdist")
    assert done.returncode == 0, done.stderr
    dist = tmp_path / "project" / "dist"
    (wheel,) = dist.glob("torchcorr-*-py3-none-*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    (tmp_path / "sdist").mkdir()
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path / "sdist"], check=True)
    assert (tmp_path / "wheel" / "torchcorr" / compile.REASON).exists()
    (record,) = (tmp_path / "wheel").glob("*.dist-info/RECORD")
    assert f"torchcorr/{compile.REASON}," in record.read_text()
    (project,) = (tmp_path / "sdist").iterdir()
    for folder in (tmp_path / "wheel" / "torchcorr" / compile.SHIPPED_SOURCES, project / "csrc"):
        assert compile.key(folder) == compile.key(ROOT / "csrc")


def test_kernels_can_be_required(tmp_path):
    done = set_up(tmp_path, "--quiet", "build", TORCHCORR_REQUIRE_KERNELS="1")
    assert done.returncode == 1
    assert "torchcorr: C++ kernels were not built: PyTorch was missing" in done.stderr
