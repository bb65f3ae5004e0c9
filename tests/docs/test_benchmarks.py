"""Logic of the benchmarks: turns, verdicts, and a page that agrees with the CSVs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import fit, measure, report, run  # noqa: E402

PEERS = {"cv2", "monai", "stumpy", "skimage", "scipy", "matplotlib"}


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


def test_constants_of_a_gpu_can_be_fitted(capsys):
    fit.fit_gpu(1, "cpu", True)
    said = capsys.readouterr().out
    names = ("transform", "tile_element", "position", "product", "scored", "batch")
    assert all(f"\n{name}=" in said for name in names)
    if not torch.cuda.is_available():
        assert fit.main(["--device", "cuda"]) == 2


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
