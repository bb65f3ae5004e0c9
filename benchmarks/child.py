"""Rows that are measured in a child process, which is ended when it takes too long."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from .measure import Row, Timing

Measure = Callable[..., Row]


def limited(row: Row, seconds: float, measure: Measure, *arguments: Any) -> Row:
    """What `measure(row, *arguments)` returns; if it does not within the limit, the row says so.

    `row` has the case and the target, and no value yet. The process is a new one, so a peak of its
    memory is that of this row.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(there, row, measure, arguments))
    child.start()
    there.close()
    try:
        if not here.poll(seconds):
            return _failed(row, f"stopped after {seconds:g} s")
        return here.recv()
    except EOFError:
        child.join()
        return _failed(row, f"ended with exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()


def _failed(row: Row, how: str) -> Row:
    return replace(row, case=f"{row.case}: {how}", value=float("nan"))


def _send(to: Connection, row: Row, measure: Measure, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    done = measure(row, *arguments)
    to.send(replace(done, ours=_without_result(done.ours), theirs=_without_result(done.theirs)))


def _end_with_parent() -> None:
    """A parent that is ended from outside cannot end its child."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _without_result(timing: Timing | None) -> Timing | None:
    """Results can be large, and only times go into a table."""
    return timing and replace(timing, result=None)
