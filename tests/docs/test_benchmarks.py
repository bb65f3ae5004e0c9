"""Logic of the benchmarks: turns, verdicts, and a page that agrees with the CSVs."""

from __future__ import annotations

import ast
import itertools
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import torchcorr  # noqa: E402
from benchmarks import (  # noqa: E402
    fit,
    fit_gpu,
    layers,
    load,
    measure,
    memory,
    photographs,
    report,
    run,
)
from benchmarks.child import limited  # noqa: E402
from torchcorr._plan.costs import costs_of  # noqa: E402

PEERS = {"cv2", "monai", "stumpy", "skimage", "scipy", "matplotlib", "obspy", "torch_fftconv"}


class Clock:
    """A clock that only moves when a contestant works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, *seconds: float):
        """Takes each of the times in turn, then the last one again and again."""
        left = list(seconds)

        def call() -> str:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return name

        return call


def alternate(clock: Clock, rounds: int, **contestants) -> dict[str, measure.Timing]:
    return measure.alternate(contestants, rounds, clock=clock)


def test_contestants_take_turns_after_a_warm_up():
    clock = Clock()
    ours, theirs = clock.contestant("ours", 9, 1, 3, 2), clock.contestant("theirs", 9, 4, 6, 5)
    timings = alternate(clock, 3, ours=ours, theirs=theirs)
    assert clock.log == ["ours", "theirs"] * 4
    assert timings["ours"] == measure.Timing(2000, 3, "ours")
    assert timings["theirs"] == measure.Timing(5000, 3, "theirs")


def test_a_slow_contestant_gets_fewer_rounds_and_says_so():
    clock = Clock()
    ours, theirs = clock.contestant("ours", 1), clock.contestant("theirs", 45)
    timings = alternate(clock, 7, ours=ours, theirs=theirs)
    assert (timings["ours"].rounds, timings["theirs"].rounds) == (7, 1)
    assert clock.log[:5] == ["ours", "theirs", "ours", "theirs", "ours"]


def test_quick_contestants_get_more_rounds_together():
    clock = Clock()
    ours, theirs = clock.contestant("ours", 0.001), clock.contestant("theirs", 0.02)
    timings = alternate(clock, 7, ours=ours, theirs=theirs)
    assert timings["ours"].rounds == timings["theirs"].rounds > 7
    assert clock.log == ["ours", "theirs"] * (timings["ours"].rounds + 1)


def test_a_pause_comes_before_each_timed_call_and_is_not_timed(monkeypatch):
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.log.append(f"{seconds} s")
        clock.now += seconds

    monkeypatch.setattr(measure.time, "sleep", sleep)
    calls = {name: clock.contestant(name, 9, 4) for name in ("ours", "theirs")}
    timings = measure.alternate(calls, 1, clock=clock, pause=0.25)
    assert clock.log == ["ours", "theirs", "0.25 s", "ours", "0.25 s", "theirs"]
    assert timings["ours"].ms == timings["theirs"].ms == 4000


@pytest.mark.parametrize(
    ("value", "bound", "error", "expected"),
    [
        (4.0, measure.at_least(4), 1e-6, "reached"),
        (3.9, measure.at_least(4), 1e-6, "short"),
        (1.6, measure.at_most(1.6), 1e-6, "reached"),
        (1.7, measure.at_most(1.6), 1e-6, "short"),
        (9.0, measure.at_least(4), 2e-5, "inexact"),
        (9.0, measure.at_least(4), float("inf"), "inexact"),
        (9.0, measure.at_least(4), float("nan"), "inexact"),
        (9.0, None, 2e-5, "inexact"),
        (9.0, None, 1e-6, "informative"),
        (float("nan"), measure.at_least(4), 1e-6, "short"),
        (60.0, measure.at_most(60), None, "reached"),
    ],
)
def test_verdicts(value, bound, error, expected):
    accuracy = None if error is None else measure.Accuracy(error, 1e-5)
    assert measure.verdict(value, bound, accuracy) == expected


def test_new_rows_replace_only_those_of_the_same_name():
    old = [{"row": "C1", "value": "1"}, {"row": "C2", "value": "1"}, {"row": "C3", "value": "1"}]
    new = [{"row": "C2", "value": "2"}, {"row": "C2", "value": "3"}]
    merged = run.merged(old, new, ["C1", "C2", "C3"])
    assert [(r["row"], r["value"]) for r in merged] == [
        ("C1", "1"), ("C2", "2"), ("C2", "3"), ("C3", "1"),
    ]  # fmt: skip


def test_rows_without_peers_run_and_are_kept(tmp_path):
    table = tmp_path / "cpu.csv"
    assert run.main(["--quick", "--rows", "C7,transform", "--output", str(table)]) == 0
    records = report.read(table)
    assert [r["row"] for r in records] == ["C7"] * 5 + ["transform"]
    assert all(float(r["error"]) <= float(r["allowed"]) for r in records)
    assert {"machine", "torch", "date", "threads", "rounds", "peer_rounds"} <= set(records[0])


def test_large_rows_are_measured_only_where_they_are_named():
    assert not {"M1", "large"} & set(run.chosen(None))
    assert list(run.chosen("large,C1")) == ["C1", "large"]


def test_rows_of_a_missing_peer_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    table = tmp_path / "cpu.csv"
    assert run.main(["--quick", "--rows", "C2,C7", "--output", str(table)]) == 0
    assert {r["row"] for r in report.read(table)} == {"C7"}
    assert "C2 is left out: import of cv2" in capsys.readouterr().err


def test_memory_of_a_backward_pass_has_a_bound_and_stands_beside_pytorch(monkeypatch):
    used = {"conv2d": 64.5, "F.conv2d": 99.0}
    asked = []

    def measured(size: int, window: int, which: str, *shape: int) -> float:
        asked.append((which, *shape, size, window))
        return used[which]

    monkeypatch.setattr(memory, "measured", measured)
    rows = [row for row in layers.c13m(measure.Settings()) if row.row == "C13M"]
    assert [row.verdict for row in rows] == ["short", "informative"] * 4
    assert asked[:2] == [(name, 1, 1, 1, 1, 1024, 31) for name in used]
    assert asked[4:6] == [(name, 8, 64, 64, 64, 56, 31) for name in used]
    used["conv2d"] = 64.0
    assert next(layers.c13m(measure.Settings(quick=True))).verdict == "reached"
    assert asked[-1] == ("conv2d", 1, 1, 1, 1, 128, 31)


reads_peaks = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are read in /proc"
)


@reads_peaks
def test_scratch_counts_and_results_do_not():
    def call(results: int, scratch: int) -> list[torch.Tensor]:
        made = [torch.ones(1 << 24) for _ in range(results + scratch)]
        return made[:results]

    for results, scratch in ((0, 1), (2, 1), (1, 0)):
        used = memory.used_by(lambda r=results, s=scratch: call(r, s))
        assert used == pytest.approx(64 * scratch, abs=2)


@reads_peaks
def test_the_backward_pass_of_a_depthwise_layer_has_bounded_scratch():
    used = memory.measured(56, 31, "conv2d", 8, 64, 64, 64)
    assert 0 < used < layers.SCRATCH


@reads_peaks
def test_long_windows_of_one_line_have_bounded_scratch():
    """Lanes of a march would hold a thousand numbers for each element."""
    x = torch.rand(2_000_000, dtype=torch.float64)
    torchcorr.local_std(x[:9000], 8500, ndim=1)
    used = memory.used_by(lambda: [torchcorr.local_std(x, 400_000, ndim=1)])
    assert used < 32


def _slow(row: measure.Row) -> measure.Row:
    time.sleep(600)
    return row


def _ending(row: measure.Row) -> measure.Row:
    os._exit(3)


def _measured(row: measure.Row, value: float) -> measure.Row:
    return replace(row, value=value, ours=measure.Timing(2.0, 7, torch.ones(3)))


def test_a_row_in_a_child_process_is_ended_at_its_limit():
    row = measure.Row("F1", "a case", "a peer", "peer / ours", math.nan, measure.at_least(2))
    done = limited(row, 60, _measured, 3.0)
    assert done == replace(row, value=3.0, ours=measure.Timing(2.0, 7, None))
    start = time.perf_counter()
    slow = limited(row, 0.1, _slow)
    assert time.perf_counter() - start < 30
    ending = limited(row, 60, _ending)
    assert (slow.case, ending.case) == (
        "a case: stopped after 0.1 s",
        "a case: ended with exit code 3",
    )
    assert all(math.isnan(r.value) and r.verdict == "short" for r in (slow, ending))


@pytest.mark.parametrize("scale", [1, 255])
def test_the_exact_scores_of_photographs(scale):
    grey = np.random.default_rng(0).integers(90, 250, (40, 37)).astype(np.uint8)
    grey[:20, :15] = 7
    image = grey if scale == 1 else grey.astype(np.float32) / scale
    template = image[12:24, 9:20]
    exact = oracle.zncc(image, template)
    assert (exact == 0).any()
    assert np.abs(photographs.exact_scores(image, template) - exact).max() < 1e-12


def test_a_busy_process_works_and_rests():
    def spent() -> int:
        fields = Path(f"/proc/{neighbour.child.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    with load.Neighbour(load.BUSY, measure.Settings(quick=True)) as neighbour:
        neighbour.works(False)
        resting = spent()
        time.sleep(0.3)
        assert spent() == resting
        neighbour.works(True)
        patience = time.monotonic() + 30
        while spent() == resting:
            assert time.monotonic() < patience
            time.sleep(0.05)
    assert neighbour.child.returncode is not None


def test_constants_of_a_gpu_can_be_fitted(capsys):
    fit_gpu.fit_gpu(1, "cpu", True)
    said = capsys.readouterr().out
    names = ("transform", "tile_element", "position", "product", "scored", "batch")
    assert all(f"\n{name}=" in said for name in names)
    if not torch.cuda.is_available():
        assert fit.main(["--device", "cuda"]) == 2


def test_the_fit_finds_the_costs_that_times_were_made_with():
    """Times of the model itself, with costs that are not those it starts from."""
    start = costs_of("cpu")
    truth = start._replace(product=2 * start.product, sums=(2.0, 1.1), emitted=0.9)
    made = []
    ways = list(itertools.product(("correlate", "zncc"), ("direct", "fft"), fit.DTYPES))
    for ndim, size, window, many in fit.problems(False):
        shapes = ((size,) * ndim, (many, *(window,) * ndim))
        for name, method, dtype in ways:
            x, w = (torch.empty(n, device="meta", dtype=dtype) for n in shapes)
            call = fit.arrangement(name, x, w, ndim, method)
            sample = fit.Sample(f"{name} {method}", call, 0.0)
            made.append(replace(sample, ns=fit.predicted(sample, truth) + 1e4))
    found = fit.fitted(made, start)
    for name, index in fit.FITTED:
        got, want = getattr(found, name), getattr(truth, name)
        if index is not None:
            got, want = got[index], want[index]
        assert got == pytest.approx(want, rel=0.05), (name, index)


def test_the_page_shows_every_row(tmp_path, monkeypatch):
    table = tmp_path / "cpu.csv"
    timing = measure.Timing(2.0, 7, None)
    exact, wrong = measure.Accuracy(1e-7, 1e-5), measure.Accuracy(1e-4, 1e-5)
    rows = [
        measure.Row("C1", "a case", "a peer", "peer / ours", 3.0, bound, accuracy, 1e-3, timing)
        for bound, accuracy in ((measure.at_least(4), exact), (measure.at_least(2), wrong))
    ]
    report.write(table, [row.record() | measure.machine() for row in rows])
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    section = report.table_section()
    assert "| C1 | a case | a peer | 2 × 7 |  | 3 | ≥ 4 | **short** | 1e-07 | 0.001 |" in section
    assert "**inexact**" in section
    assert "0 reached, 1 short, 1 inexact, 0 informative." in section
    monkeypatch.setattr(report, "RESULTS", tmp_path / "none")
    assert report.table_section() == report.NOTHING


def test_photographs_have_a_table_of_ratios(tmp_path, monkeypatch):
    exact, wrong = measure.Accuracy(1e-7, 1e-5), measure.Accuracy(1e-4, 1e-5)
    rows = [
        measure.Row(row, f"zncc clock 300×400/{k}²", "OpenCV", "peer / ours", value, None, kept)
        for row, k, value, kept in (
            ("P1", 128, 0.5, exact), ("P1", 16, 2.0, exact), ("P2", 16, 3.0, wrong),
        )
    ]  # fmt: skip
    rows.append(replace(rows[0], case="worst of the 2", bound=measure.at_least(1)))
    report.write(tmp_path / "cpu.csv", [row.record() | measure.machine() for row in rows])
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    section = report.photograph_section()
    assert "| photograph | P1 16² | P1 128² | P2 16² |" in section
    assert "| clock 300×400 | 2 | **0.5** | **3** |" in section
    table = report.table_section()
    assert "worst of the 2" in table and "clock" not in table


def test_the_page_names_every_row():
    page = report.PAGE.read_text(encoding="utf-8")
    described = page[page.index("## What the rows are") : page.index("## Results")]
    cells = [line.split("|")[1] for line in described.splitlines() if line.startswith("|")]
    named = {name.strip() for cell in cells for name in cell.split(",")}
    usual, large = run.known()
    assert set(usual) | set(large) <= named


def test_the_page_agrees_with_the_csvs():
    page = report.PAGE.read_text(encoding="utf-8")
    assert page == report.rendered(page), "run python -m benchmarks.report"


def test_benchmarks_import_without_their_peers():
    for path in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {node.module}
            else:
                continue
            peers = PEERS & {name.partition(".")[0] for name in names}
            assert not peers, f"{path.name} imports {peers} at import"
