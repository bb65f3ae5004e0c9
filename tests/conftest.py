"""The device of a session, engines it goes without, seeds, and fresh memory that is NaN."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter. This is read when triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True

TESTS = Path(__file__).parent
# Tests of an engine compare it with the CPU and move tensors to its device themselves.
ENGINES = "engines"
# The files in tests/engines/ that need an engine of the package.
ENGINE_TESTS = {
    "_cpu": (
        "test_byte_kernels.py",
        "test_counters.py",
        "test_dense_grads.py",
        "test_dense_scores.py",
        "test_direct_kernel.py",
        "test_exact_windows.py",
        "test_faint_windows.py",
        "test_folds.py",
        "test_halved_rows.py",
        "test_kernels.py",
        "test_layer_ways.py",
        "test_layouts.py",
        "test_long_lines.py",
        "test_masked_pass.py",
        "test_medians.py",
        "test_moment_pass.py",
        "test_overlap_kernels.py",
        "test_parts.py",
        "test_score_grads.py",
        "test_strided_sums.py",
        "test_sum_pass.py",
        "test_templates.py",
        "test_threads.py",
        "test_tiles.py",
    ),
    "_triton": ("test_cuda.py", "test_triton_*.py"),
}
# Files, relative to tests/, that concern the CPU, files or text, whatever the device.
CPU_ONLY = (
    *(f"{ENGINES}/{name}" for name in ENGINE_TESTS["_cpu"]),
    "docs/test_*.py",
    "apps/test_cli.py",
    "apps/test_cli_align.py",
)
MARK = "cpu_only(reason): skipped on other devices, since it concerns the CPU, files or text alone"
WARNINGS = (
    # PyTorch's debugging mode that some tests switch on.
    "Synchronization debug mode is",
    # PyTorch's own operators on a GPU.
    ".*does not have a deterministic implementation",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that tests create their tensors on")
    parser.addoption(
        "--without",
        action="append",
        default=[],
        choices=sorted(ENGINE_TESTS),
        help="run as if this engine of the package were deleted, and leave out its own tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARK)
    for message in WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
    without = config.getoption("--without")
    if "_cpu" in without:
        config.addinivalue_line("filterwarnings", "ignore:torchcorr has no kernels for cpu")
    for engine in without:
        # Importing it now raises ModuleNotFoundError, as if its folder were not there.
        sys.modules[f"torchcorr.{engine}"] = None  # type: ignore[assignment]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.parent == TESTS / ENGINES:
        for engine in config.getoption("--without"):
            if any(collection_path.match(pattern) for pattern in ENGINE_TESTS[engine]):
                return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--device")
    for item in items:
        if any(item.path.match(str(TESTS / pattern)) for pattern in CPU_ONLY):
            item.add_marker(pytest.mark.cpu_only("concerns the CPU, files or text"))
        mark = item.get_closest_marker("cpu_only")
        if mark is not None and torch.device(device).type != "cpu":
            item.add_marker(pytest.mark.skip(reason=f"not on {device}: {mark.args[0]}"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the session, on which tensors lie that a test creates by PyTorch or inputs."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _default_device(request: pytest.FixtureRequest, device: torch.device) -> Iterator[None]:
    if device.type == "cpu" or request.path.parent == TESTS / ENGINES:
        yield
        return
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """The same random numbers and the same number of threads in each test, in any order."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
