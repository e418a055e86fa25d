"""`harness jobs --warm`: the hosts that are kept for next jobs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from harness.cli import _terminal

if TYPE_CHECKING:
    from harness.home import Home
    from harness.model import JsonObject

__all__ = ["show_warm"]


def show_warm(home: Home, *, as_json: bool) -> None:
    """List them, oldest first."""
    from harness.lifecycle import warm_sets

    found = warm_sets(home)
    if as_json:
        _terminal.emit_json({"warm": [{**each, "made": _terminal.json_time(each["made"])} for each in found]})
        return
    screen = _terminal.Screen(sys.stdout)
    if not found:
        screen.write("no hosts are kept warm; `harness run --warm` keeps those of its job")
        return
    head, *rows = _terminal.table(
        ("STATE", "ENGINE", "HOSTS", "MEMORY", "JOBS", "LEFT", "FIRST JOB", "PRELOADED"),
        [_cells(each) for each in found],
        right=(2, 3, 4, 5),
    )
    screen.write(screen.style(head, "bold"), *rows)


def _cells(each: JsonObject) -> tuple[str, ...]:
    left = each["idle_left"]
    return (
        f"busy with {each['job']}" if each["job"] else str(each["state"]),
        str(each["engine"]),
        str(len(each["hosts"])),
        _terminal.size(each["memory_bytes"]),
        str(each["jobs"]),
        "" if left is None else _terminal.duration(left),
        str(each["first_job"]),
        ", ".join(each["preloaded"]) or "nothing",
    )
