"""CSV files, and the tables of docs/benchmarks.md that are made from them.

`python -m benchmarks.report` writes the page's sections between `<!-- begin: NAME -->` and
`<!-- end: NAME -->`; the prose around them is written by hand. A test compares page and CSV.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from . import RESULTS, ROOT
from .photographs import GROUPS

PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "_static" / "benchmarks"
NOTHING = "Nothing measured yet."

Record = dict[str, str]


def read(path: Path) -> list[Record]:
    """The lines of a CSV; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        # Rows measured before a column was added have none of it.
        columns = list(dict.fromkeys(column for record in records for column in record))
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _distinct(records: Sequence[Record], column: str) -> str:
    values = (record.get(column) for record in records)
    return ", ".join(dict.fromkeys(value for value in values if value))


def _where(records: Sequence[Record]) -> str:
    """Machine and versions in a sentence or two, from the lines themselves."""
    names = {
        "torchcorr": "torchcorr",
        "torch": "PyTorch",
        "numpy": "NumPy",
        "opencv": "OpenCV",
        "scikit_image": "scikit-image",
        "scipy": "SciPy",
        "stumpy": "stumpy",
        "monai": "MONAI",
        "ipp": "Intel IPP",
        "torch_fftconv": "torch-fftconv",
    }
    versions = [
        f"{shown} {_distinct(records, column)}"
        for column, shown in names.items()
        if _distinct(records, column)
    ]
    return (
        f"{_distinct(records, 'machine')}, {_distinct(records, 'cores')} cores "
        f"({_distinct(records, 'instructions')}; {_distinct(records, 'caches')}), "
        f"{_distinct(records, 'threads')} threads; {_distinct(records, 'date')}. "
        f"{', '.join(versions)}."
    )


def _bound(record: Record) -> str:
    return record["bound"].replace(">=", "≥").replace("<=", "≤")


def _value(record: Record) -> str:
    unit = record["quantity"] if record["quantity"] in ("MiB", "µs", "s") else ""
    return f"{record['value']} {unit}".strip()


def _times(record: Record) -> list[str]:
    return [
        f"{record[time]} × {record[rounds]}" if record[time] else ""
        for time, rounds in (("ours_ms", "rounds"), ("peer_ms", "peer_rounds"))
    ]


def _rows(records: Sequence[Record]) -> str:
    """The table of a CSV's rows, after how many reached what they should."""
    head = ["row", "case", "peer", "ours, ms", "peer, ms", "value", "to reach", "verdict"]
    head += ["our error", "peer's"]
    rows = [
        [
            r["row"], r["case"], r["peer"], *_times(r), _value(r), _bound(r),
            f"**{r['verdict']}**" if r["verdict"] in ("short", "inexact") else r["verdict"],
            r["error"], r["peer_error"],
        ]
        for r in records
    ]  # fmt: skip
    counts = [
        f"{sum(r['verdict'] == kind for r in records)} {kind}"
        for kind in ("reached", "short", "inexact", "informative")
    ]
    return f"{', '.join(counts)}.\n\n{_table(head, rows)}"


def _is_photograph(record: Record) -> bool:
    """Whether a row is one photograph with one template; means and the worst have a target."""
    return record["row"] in GROUPS and not record["bound"]


def table_section(name: str = "cpu.csv") -> str:
    records = [r for r in read(RESULTS / name) if not _is_photograph(r)]
    return f"{_where(records)}\n\n{_rows(records)}" if records else NOTHING


def photograph_section() -> str:
    """Ratios, a line for each photograph and a column for each row and template."""
    records = [r for r in read(RESULTS / "cpu.csv") if _is_photograph(r)]
    if not records:
        return NOTHING
    ratios: dict[str, dict[str, str]] = {}
    for r in records:
        picture, _, template = r["case"].removeprefix("zncc ").rpartition("/")
        slow = float(r["value"]) < 1 or r["verdict"] == "inexact"
        shown = f"**{r['value']}**" if slow else r["value"]
        ratios.setdefault(picture, {})[f"{r['row']} {template}"] = shown
    columns = sorted({c for cells in ratios.values() for c in cells}, key=_row_and_size)
    rows = [[picture, *(cells.get(c, "") for c in columns)] for picture, cells in ratios.items()]
    return "\n\n".join((_where(records), _table(["photograph", *columns], rows)))


def _row_and_size(column: str) -> tuple[str, int]:
    row, template = column.split()
    return row, int(template.rstrip("²"))


def gpu_section() -> str:
    records = read(RESULTS / "gpu.csv")
    if not records:
        return NOTHING
    card = f"{_distinct(records, 'card')}, CUDA {_distinct(records, 'cuda')}"
    where = f"{card}, Triton {_distinct(records, 'triton')}; {_where(records)}"
    return "\n\n".join((where, _rows(records)))


def torture_section() -> str:
    records = read(RESULTS / "torture.csv")
    if not records:
        return NOTHING
    libraries = list(dict.fromkeys(r["library"] for r in records))
    cases = list(dict.fromkeys(r["case"] for r in records))
    error = {(r["case"], r["library"]): r["error"] for r in records}
    rows = [[case, *(_marked(error[case, name]) for name in libraries)] for case in cases]
    failed = [str(sum(not _kept(error[c, name]) for c in cases)) for name in libraries]
    rows.append(["**beyond 1e-5**", *failed])
    return "\n\n".join((_where(records), _table(["input", *libraries], rows)))


def _kept(error: str) -> bool:
    return float(error) <= 1e-5


def _marked(error: str) -> str:
    shown = f"{float(error):.0e}"
    return shown if _kept(error) else f"**{shown}**"


def plot_section() -> str:
    records = read(RESULTS / "cpu_sizes.csv")
    plots = sorted(PLOTS.glob("*.svg"))
    if not records or not plots:
        return NOTHING
    captions = {
        "image_size": "Milliseconds of a call against the image's size; template 64².",
        "template_size": "Milliseconds of a call against the template's size; image 1024².",
    }
    pictures = [f"![{captions[p.stem]}](_static/benchmarks/{p.name})" for p in plots]
    return "\n\n".join((_where(records), *pictures))


SECTIONS: dict[str, Callable[[], str]] = {
    "table": table_section,
    "photographs": photograph_section,
    "plots": plot_section,
    "torture": torture_section,
    "amd": partial(table_section, "cpu_amd.csv"),
    "gpu": gpu_section,
}


def rendered(page: str) -> str:
    """The page with all its sections made again."""
    for name, section in SECTIONS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"the page must have one section {name!r}")
        body = f"{begin}\n\n{section()}\n\n{end}"
        page = pattern.sub(lambda _, body=body: body, page)
    return page


def main() -> int:
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
