"""How many cores and how much memory this process may use: the machine's, or less in a control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory", "cores", "memory_bytes"]

_ROOT = Path("/")
_UNLIMITED = 1 << 60
"""Control groups of version 1 write a number of this size for "no limit"."""


def cores(root: Path = _ROOT) -> int:
    """Cores that may be used: the affinity mask, and the control group's quota rounded up; one at least."""
    usable = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        quota = _quota(group)
        if quota is not None:
            usable = min(usable, quota)
    return max(1, -int(-usable // 1))


def memory_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory that may be used: the machine's, or the smallest limit of the control groups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(group / name)
            if limit is not None and 0 < limit < _UNLIMITED:
                total = min(total, limit)
    return total


def available_memory(root: Path = _ROOT) -> tuple[int, int]:
    """Bytes of memory that may be used in all, and how many of them are free or could be freed at once.

    A control group's page cache counts as used, but for the part that nobody asked for lately.
    """
    total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for group in _groups(root, "memory"):
        for most, used, inactive in (
            ("memory.max", "memory.current", "inactive_file "),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        ):
            limit, usage = _number(group / most), _number(group / used)
            if limit is None or usage is None or not 0 < limit < _UNLIMITED:
                continue
            total = min(total, limit)
            available = min(available, limit - usage + _field(group / "memory.stat", inactive))
    return total, max(available, 0)


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _quota(group: Path) -> float | None:
    """Cores' worth of time that the group gets; None when it has no limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # no control group of version 2, or its root, which has no such file
    micros, period_v1 = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    if micros is None or not period_v1 or micros <= 0:
        return None
    return micros / period_v1


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control group for `controller` and all above it, in either version.

    In a container the group's path can be one of the host's that isn't mounted: then the root of the
    mount is the container's own group, and it is among the directories that are given.
    """
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = mounted if (mounted / "cgroup.controllers").exists() else mounted / "unified"
        elif controller in controllers.split(","):
            base = mounted / controllers
            base = base if base.exists() else mounted / controller
        else:
            continue
        group = base / path.lstrip("/")
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(base)))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # not there, or "max"
