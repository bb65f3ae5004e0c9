"""The README states each operator by the PyTorch line it equals; those lines are run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torchcorr

README = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text()
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
