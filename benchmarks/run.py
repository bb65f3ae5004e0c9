"""Times torchcorr against its peers and its limits: `python -m benchmarks.run`.

Each row is printed with its verdict and kept in a CSV with machine, versions and date. Rows that
are run alone replace those of the same name in it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import torchcorr  # noqa: F401  (registers the operators)

from . import RESULTS
from .measure import LIMIT, ROUNDS, Row, Settings, machine
from .report import read, write

TABLE = RESULTS / "cpu.csv"
# Load average from which on other processes affect the times.
BUSY = 0.5


Functions = dict[str, Callable[[Settings], Iterator[Row]]]


def known() -> tuple[Functions, Functions]:
    """Functions that measure the rows of each name: the usual ones, and the large ones."""
    from .aligning import ALIGNING
    from .cases import CASES
    from .full import f1
    from .large import LARGE
    from .layers import CASES as LAYERS
    from .limits import LIMITS
    from .load import l1
    from .photographs import PHOTOGRAPHS

    usual = CASES | LAYERS | ALIGNING | PHOTOGRAPHS | {"F1": f1, "L1": l1} | LIMITS
    return usual, LARGE


def chosen(names: str | None) -> Functions:
    """Functions of the named rows; of all usual ones for None."""
    usual, large = known()
    if names is None:
        return usual
    every = usual | large
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in every:
            raise SystemExit(f"--rows must name rows of {', '.join(every)}; got {name!r}")
    return {name: every[name] for name in every if name in wanted}


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
    parser.add_argument(
        "--rows", help="names of rows, between commas; by default all but the large ones"
    )
    parser.add_argument("--rounds", type=int, help=f"rounds of each contestant, default {ROUNDS}")
    parser.add_argument(
        "--limit", type=float, default=LIMIT,
        help=f"seconds of a row that has a process of its own, default {LIMIT:g}",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, one round, nothing kept: does it run?"
    )
    parser.add_argument("--output", type=Path, help="the CSV to keep the rows in")
    args = parser.parse_args(arguments)
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    settings = Settings(rounds, args.quick, args.limit)
    output = args.output or (None if args.quick else TABLE)
    functions = chosen(args.rows)
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is busy (load {load:.1f}): ratios suffer", file=sys.stderr)
    records: list[dict[str, str]] = []
    # Once, since a row may change the number of threads.
    where, start = machine(), time.monotonic()
    for name, make in functions.items():
        if not args.quick:
            touch_memory()
        try:
            for row in make(settings):
                print(line(row), flush=True)
                records.append(row.record() | where)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if output is not None:
            # After each row, so that a row that fails does not lose the earlier ones.
            order = [name for functions in known() for name in functions]
            write(output, merged(read(output), records, order))
    short = sum(record["verdict"] in ("short", "inexact") for record in records)
    minutes = (time.monotonic() - start) / 60
    print(f"{len(records)} rows, {short} of them short or inexact, in {minutes:.1f} min")
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
