"""Processes of a job that outlived those who should have ended them; found by what they bear, not by memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from harness.engines.sandbox._layout import MARK_VARIABLE, RECORD
from harness.engines.sandbox._mode import MARK
from harness.engines.sandbox.inner.remove import remove_tree
from harness.home import Home

__all__ = ["end_marked", "end_orphans", "remove_left"]

_PATIENCE = 5.0


def end_orphans(job: str) -> None:
    """End what has no living supervisor. Launchers end by themselves, unless they hang: those get a while."""
    deadline = time.monotonic() + _PATIENCE
    while (found := _find(job, _is_dead)) and time.monotonic() < deadline:
        for pid, launcher in found:
            if not launcher:
                _kill(pid)
        time.sleep(0.02)
    for pid, _ in found:
        _kill(pid)


def end_marked(job: str) -> None:
    """End this process's host of the job after its launcher died where no PID namespace does it."""
    me = os.getpid()
    while found := [pid for pid, launcher in _find(job, lambda owner: owner == me) if not launcher]:
        for pid in found:
            _kill(pid)
        time.sleep(0.005)


def remove_left(job: str) -> None:
    """Remove what hosts of the job left in its directory whose supervisor and launcher were both killed."""
    for record in Home.find().job(job).glob(f"*/*/scratch/sandbox/{RECORD}"):
        told = json.loads(record.read_text())
        if _is_dead(int(told["owner"])):
            for path in told["remove"]:
                remove_tree(path)


def _is_dead(owner: int) -> bool:
    return not Path("/proc", str(owner)).exists()


def _find(job: str, wanted: Callable[[int], bool]) -> list[tuple[int, bool]]:
    """(pid, whether it is a launcher) of the job's processes whose supervisor is wanted."""
    launchers = f"\0{MARK}\0{job}\0".encode()
    hosts = f"\0{MARK_VARIABLE}={job}:".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            command = Path(entry, "cmdline").read_bytes()
            variables = b"\0" + Path(entry, "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if launchers in command:
            owner = command.split(b"\0")[-2]
        elif hosts in variables:
            owner = variables.partition(hosts)[2].partition(b"\0")[0]
        else:
            continue
        if wanted(int(owner)):
            found.append((int(entry.name), launchers in command))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
