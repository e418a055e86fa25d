"""What the kernel logged that may have ended a job: OOM kills, crashes, GPU and disk errors."""

from __future__ import annotations

import os
import re
import time
from typing import Final

from harness._values import dataclass

__all__ = ["KernelLine", "kernel_lines"]

_TELLING: Final = re.compile(
    r"Out of memory|oom-kill|invoked oom-killer|Killed process|segfault at|general protection|"
    r"\btraps?: |NVRM: Xid|I/O error|EXT4-fs error|XFS .*(?:error|Corruption)|blocked for more than"
)
_PID: Final = re.compile(r"Killed process (\d+)|\w\[(\d+)\]|task=[^,]*,pid=(\d+)|pid[= ]'?(\d+)")
_DEVICE: Final = "/dev/kmsg"
_KEEP: Final = 40
_SLACK: Final = 0.2
"""Seconds by which the kernel's clock may differ from ours."""


@dataclass(frozen=True, kw_only=True)
class KernelLine:
    """One line of the kernel's log."""

    at: float
    """Epoch seconds."""
    text: str
    pid: int | None
    """The process that it names."""


def kernel_lines(since: float, until: float) -> tuple[tuple[KernelLine, ...], str | None]:
    """Telling lines between two moments (epoch seconds), the last ones if there are many; and a sentence when
    the kernel's log can't be read."""
    try:
        descriptor = os.open(_DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return (), f"the kernel's log can't be read by this user ({_DEVICE}: {error.strerror})"
    found: list[KernelLine] = []
    # The kernel counts from its start; the difference is asked anew, since somebody may have set the clock.
    start = time.time() - time.monotonic()
    try:
        while True:
            try:
                record = os.read(descriptor, 16384)
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten while we read: go on with the oldest that is left
                continue
            except OSError as error:
                return tuple(found), f"the kernel's log can't be read ({error.strerror})"
            if not record:
                break
            line = _line(record, start)
            if line is not None and since - _SLACK <= line.at <= until + _SLACK:
                found.append(line)
    finally:
        os.close(descriptor)
    return tuple(found[-_KEEP:]), None


def _line(record: bytes, start: float) -> KernelLine | None:
    """`priority,number,microseconds,flags;text`, then lines of properties."""
    head, _, rest = record.decode("utf-8", "replace").partition(";")
    text = rest.split("\n", 1)[0]
    if not _TELLING.search(text):
        return None
    try:
        at = start + int(head.split(",")[2]) / 1e6
    except (IndexError, ValueError):
        return None
    named = _PID.search(text)
    pid = next((int(each) for each in named.groups() if each), None) if named else None
    return KernelLine(at=at, text=text[:500], pid=pid)
