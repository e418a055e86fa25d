"""What the processes of a host use, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["boot", "ending", "processes", "start_time", "totals"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")
_EXITING = 0x4
"""PF_EXITING, among the flags of `stat`."""


def processes(first: int) -> dict[int, list[bytes]]:
    """Process `first` and all below it: pid → the fields of its `stat` after the name.

    Below process 1 of a PID namespace hang all of that namespace, orphans too.
    """
    told: dict[int, list[bytes]] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir(_PROC):  # noqa: PTH208 - half the time of iterdir
        if not name.isdigit():
            continue
        try:
            fields = (_PROC / name / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        told[int(name)] = fields
        children.setdefault(int(fields[1]), []).append(int(name))
    found: dict[int, list[bytes]] = {}
    waiting = [first]
    while waiting:
        pid = waiting.pop()
        if pid in told:
            found[pid] = told[pid]
            waiting += children.get(pid, [])
    return found


def start_time(pid: int) -> int | None:
    """When that process started, in clock ticks since the machine did; None when there is none.

    With the number it names a process for good, as long as the machine isn't started anew.
    """
    try:
        return int((_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return None


def ending(pid: int) -> bool:
    """Whether that process has ended, or is about to: process 1 of a namespace waits for all others first."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _EXITING)


def boot() -> str:
    """Names the time since this machine was started."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def totals(found: dict[int, list[bytes]]) -> tuple[float, int]:
    """CPU seconds, with those of children that have ended, and bytes of memory.

    Memory is the proportional set size: what workers share counts once. Where the kernel doesn't tell
    it, the resident set size, which counts it for each.
    """
    ticks = sum(int(field) for fields in found.values() for field in fields[11:15])
    return ticks / _TICKS, sum(_memory(pid, fields) for pid, fields in found.items())


def _memory(pid: int, fields: list[bytes]) -> int:
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # ended, or not ours to look into
    return int(fields[21]) * _PAGE
