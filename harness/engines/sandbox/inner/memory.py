"""A memory limit for those who may not make a control group: look often, and kill as the kernel would."""

from __future__ import annotations

import os

from . import kernel

_FASTEST = 4e9
"""Bytes a second: more than one machine's processes can newly touch."""


class Guard:
    """Keeps the processes below one process within a limit, by SIGKILL to the largest of them."""

    def __init__(self, first: int, limit: int) -> None:
        self._first = first
        self._limit = limit
        self.kills = 0

    def look(self) -> int:
        """Kill if it must be; milliseconds until the limit could be reached, when to look again."""
        tree = _tree(self._first)
        # Resident sizes count what is shared for each process: too much, but a hundred times cheaper.
        total = sum(_resident(pid) for pid in tree)
        if total > self._limit:
            sizes = {pid: _proportional(pid) for pid in tree}
            total = sum(sizes.values())
            if total > self._limit:
                os.kill(max(sizes, key=sizes.__getitem__), kernel.SIGKILL)
                self.kills += 1
        return int(min(max((self._limit - total) / _FASTEST, 0.01), 0.5) * 1000)


def _tree(first: int) -> list[int]:
    found = [first]
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += [int(child) for child in file.read().split()]
        except OSError:
            continue  # it ended meanwhile
    return found


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # it ended meanwhile


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended meanwhile
    return 0
