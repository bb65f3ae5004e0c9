"""What README and pages state is checked: lines of PyTorch, scratch, names, equations, links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torchcorr
from torchcorr._plan import choose

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| `(\w+\([^|]*)` \| (.*) \|$", README, re.M)


def names() -> dict[str, Any]:
    x, t, k = (torch.randn(size, dtype=torch.float64) for size in ((9, 8), (3, 2), (2, 4)))
    x[:5, :5] = 0.5
    y = torch.randn(9, 8, dtype=torch.float64)
    u, v = (z.unfold(-2, 3, 1).unfold(-2, 2, 1) for z in (x, y))

    def standard(v: torch.Tensor) -> torch.Tensor:
        mean, std = v.mean((-2, -1), keepdim=True), v.std((-2, -1), correction=0, keepdim=True)
        return (v - mean) / std

    found = {"torch": torch, "F": F, "x": x, "y": y, "t": t, "k": k, "u": u, "v": v}
    return found | {"standard": standard, "h": 3, "w": 2} | vars(torchcorr)


def line_of(cell: str) -> str:
    """The PyTorch line of a cell; `the same with` refers to the line of local_sum."""
    code = re.findall(r"`([^`]+)`", cell)[0]
    if not cell.startswith("the same with"):
        return code
    base = line_of(next(other for ours, other in ROWS if ours.startswith("local_sum")))
    return base.removesuffix(".sum((-2, -1))") + code


def test_the_table_names_every_operator() -> None:
    said = {ours.split("(")[0] for ours, _ in ROWS}
    assert said >= {
        "correlate",
        "convolve",
        "zncc",
        "ncc",
        "lncc",
        "local_sum",
        "local_mean",
        "local_std",
    }


@pytest.mark.parametrize(("ours", "cell"), ROWS, ids=[ours for ours, _ in ROWS])
def test_operator_equals_its_line(ours: str, cell: str) -> None:
    scope = names()
    got, expected = eval(ours, scope), eval(line_of(cell), scope)
    live = torch.ones_like(got, dtype=torch.bool)
    if ours.startswith(("zncc", "lncc")):
        live = ~torchcorr.flat_windows(scope["x"], (3, 2))
        assert (got[~live] == 0).all() and not live.all()
    torch.testing.assert_close(got[live], expected[live])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read in /proc")
@pytest.mark.parametrize(
    ("size", "window", "stated"),
    [(2048, 64, "below 64 MiB"), (4096, 64, "below 64 MiB"), (4096, 256, "below 100 MiB")],
)
def test_scratch_is_what_the_readme_says(size: int, window: int, stated: str) -> None:
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "benchmarks.memory", str(size), str(window), "forward"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=two)
    assert f"{stated} for templates up to" in README or f"{stated} up to" in README
    assert float(done.stdout) < {"below 64 MiB": 64, "below 100 MiB": 100}[stated]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read in /proc")
@pytest.mark.parametrize(("size", "window"), [(2048, 64), (2048, 512), (4096, 64)])
def test_scratch_of_gradients_is_bounded(size: int, window: int) -> None:
    """By 64 MiB and one image, and a plan by 64 MiB, as the page on resources says."""
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "benchmarks.memory", str(size), str(window), "backward"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=two)
    sizes = ((1, size, size), (1, window, window), (1, 1))
    call = choose.arrange_gradients(*sizes, dtype=torch.float32, device="cpu")
    assert float(done.stdout) < 64 + 4 * size**2 / 2**20
    assert call.plan.bytes < 64 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read in /proc")
def test_parts_of_an_image_are_not_copied() -> None:
    """As the page on strides says: scratch stays what it is for an image that is contiguous."""
    size = 4096
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", str(size), "64", "cropped-backward"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=one)
    assert float(done.stdout) * 2**20 < 4 * size**2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read in /proc")
@pytest.mark.parametrize("which", ["lncc-zeros", "lncc-masks"])
def test_registration_holds_less_than_five_volumes(which: str) -> None:
    """Of memory beyond inputs and results, as the page on resources says."""
    size = 128
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "benchmarks.memory", str(size), "9", which]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=two)
    assert float(done.stdout) * 2**20 < 5 * 4 * size**3


@pytest.mark.parametrize("size", [600, 1024, 4096, 16384])
@pytest.mark.parametrize("window", [16, 64, 256, 512])
def test_planned_scratch_does_not_grow_with_the_image(size: int, window: int) -> None:
    image, template = torch.empty(size, size, device="meta"), torch.empty(window, window)
    assert torchcorr.plan(image, template.to("meta")).bytes < 64 * 2**20


def test_the_page_on_layers_cites_tests_that_exist() -> None:
    rows = re.findall(r"^\| .+ \| (`test_.+) \|$", (ROOT / "docs" / "layers.md").read_text(), re.M)
    assert rows
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", " ".join(rows)):
        text = next((ROOT / "tests").rglob(file)).read_text()
        assert f"def {test}(" in text, f"{file} has no {test}"


def test_readme_links_to_files() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target
    assert (ROOT / "docs" / "_static" / "find_coins.png").stat().st_size < 100_000


def test_the_api_page_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "api.rst").read_text()
    listed = set()
    module = ""
    for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", page, re.M):
        if kind == "currentmodule":
            module = name.removeprefix("torchcorr").lstrip(".")
        else:
            listed.add(f"{module}.{name}".lstrip("."))
    lines = (ROOT / "tests" / "public_api.txt").read_text().splitlines()
    public = {line.split("(")[0] for line in lines}
    assert listed == public - {"nn", "plot", "__version__"}
    assert "``torchcorr.__version__``" in page


def test_code_cites_equations_that_exist() -> None:
    page = (ROOT / "docs" / "math.md").read_text()
    labels = set(re.findall(r"^:label: (\S+)$", page, re.M))
    # The names are shown in the table, as built pages show numbers.
    assert set(re.findall(r"^\| \{eq\}`[^`]+` \| `([^`]+)` \|", page, re.M)) == labels
    sources = [p for folder in ("src", "csrc") for p in (ROOT / folder).rglob("*")]
    texts = [p.read_text() for p in sources if p.suffix in (".py", ".cpp", ".h")]
    cited = {name for text in texts for name in re.findall(r"\beq\. ([a-z][a-z-]*)", text)}
    assert cited and cited <= labels


def test_examples_of_the_demo_are_in_the_gallery() -> None:
    from torchcorr._command import demo

    for part in demo._PARTS:
        assert (ROOT / "examples" / f"{part}.py").is_file()
