"""Times torchcorr against its peers and its limits: `python -m benchmarks.run`.

Each row is printed with its verdict and kept in a CSV with machine, versions and date. Rows that
are run alone replace those of the same name in it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

import torchcorr  # noqa: F401  (registers the operators)

from . import RESULTS
from .measure import ROUNDS, Row, Settings, machine
from .report import read, write

TABLE = RESULTS / "cpu.csv"
# Load average from which on other processes affect the times.
BUSY = 0.5


def chosen(names: str | None) -> dict[str, object]:
    """Functions that measure the named rows; all of them for None."""
    from .cases import CASES
    from .limits import LIMITS

    known = CASES | LIMITS
    if names is None:
        return known
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise SystemExit(f"--rows must name rows of {', '.join(known)}; got {name!r}")
    return {name: known[name] for name in known if name in wanted}


def touch_memory() -> None:
    """Writes to half of the memory that is free, 16 GiB at most, and gives it back.

    A virtual machine's memory is slow when it is first written to, whichever contestant does so,
    and again after its host has taken back idle memory.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = torch.empty(min(free // 2, 16 << 30), dtype=torch.uint8)
    torch.ops.torchcorr_cpu.take_large_pages(memory)
    memory.fill_(1)


def line(row: Row) -> str:
    """A row as it is printed."""
    bound = f"({row.bound})" if row.bound else ""
    error = f"error {row.accuracy.error:.1e}" if row.accuracy else ""
    times = ", ".join(
        f"{name} {timing.ms:.4g} ms × {timing.rounds}"
        for name, timing in (("ours", row.ours), (row.peer, row.theirs))
        if timing is not None
    )
    what = f"{row.value:.3g} {row.quantity} {bound}"
    return f"{row.row:12}{row.verdict:12}{row.case:58}{what:34}{error:16}{times}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rows", help="names of rows, between commas; all by default")
    parser.add_argument("--rounds", type=int, help=f"rounds of each contestant, default {ROUNDS}")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, one round, nothing kept: does it run?"
    )
    parser.add_argument("--output", type=Path, help="the CSV to keep the rows in")
    args = parser.parse_args(arguments)
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    settings = Settings(rounds, args.quick)
    output = args.output or (None if args.quick else TABLE)
    functions = chosen(args.rows)
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is busy (load {load:.1f}): ratios suffer", file=sys.stderr)
    records: list[dict[str, str]] = []
    for make in functions.values():
        if not args.quick:
            touch_memory()
        for row in make(settings):
            print(line(row), flush=True)
            records.append(row.record() | machine())
        if output is not None:
            # After each row, so that a row that fails does not lose the earlier ones.
            write(output, merged(read(output), records, list(chosen(None))))
    short = sum(record["verdict"] in ("short", "inexact") for record in records)
    print(f"{len(records)} rows, {short} of them short or inexact")
    return 0


def merged(
    old: list[dict[str, str]], new: list[dict[str, str]], order: list[str]
) -> list[dict[str, str]]:
    """The new rows, and of the old ones those with another name, in the order of the table."""
    replaced = {record["row"] for record in new}
    rows = [record for record in old if record["row"] not in replaced] + new
    known = [record for record in rows if record["row"] in order]
    return sorted(known, key=lambda record: order.index(record["row"]))


if __name__ == "__main__":
    sys.exit(main())
