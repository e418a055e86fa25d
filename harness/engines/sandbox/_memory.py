"""A memory limit for a host, where a control group of ours can be made; cgroup v1 and v2."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from harness._values import dataclass

__all__ = ["MemoryGroup", "machine_memory", "oom_kills", "remove_left"]

_PREFIX = "harness"


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """A control group that holds one host."""

    directory: Path
    v2: bool
    limit: int

    @classmethod
    def make(cls, job: str, host: str, limit: int) -> MemoryGroup | None:
        """None where this user may not make one: no delegated cgroup, or a read-only hierarchy."""
        for parent, v2 in _parents():
            directory = parent / f"{_PREFIX}.{job}.{host}.{os.getpid()}"
            try:
                directory.mkdir()
            except OSError:
                continue
            group = cls(directory=directory, v2=v2, limit=limit)
            try:
                group._limit()
            except OSError:
                directory.rmdir()
                continue
            return group
        return None

    def _limit(self) -> None:
        if not os.access(self.processes, os.W_OK):
            raise PermissionError(self.processes)
        if self.v2:
            (self.directory / "memory.max").write_text(str(self.limit))
            swap, size = self.directory / "memory.swap.max", 0
        else:
            (self.directory / "memory.limit_in_bytes").write_text(str(self.limit))
            swap, size = self.directory / "memory.memsw.limit_in_bytes", self.limit
        if swap.exists():  # a machine without swap accounting has no such file
            swap.write_text(str(size))

    @property
    def processes(self) -> Path:
        return self.directory / "cgroup.procs"

    def oom_kills(self) -> int:
        """How many processes of the group the kernel killed; 0 when the group is gone."""
        return _count(self.oom_file)

    @property
    def oom_file(self) -> Path:
        """Has a line `oom_kill N`."""
        return self.directory / ("memory.events" if self.v2 else "memory.oom_control")

    def remove(self) -> None:
        """When no process is in it any more; the launcher does it after a host."""
        with contextlib.suppress(FileNotFoundError):
            self.directory.rmdir()

    def used(self) -> int | None:
        """Bytes in use without the file cache that the kernel would give up first."""
        current = "memory.current" if self.v2 else "memory.usage_in_bytes"
        inactive = "inactive_file" if self.v2 else "total_inactive_file"
        try:
            used = int((self.directory / current).read_text())
            lines = (self.directory / "memory.stat").read_text().splitlines()
        except OSError:
            return None
        fields = dict(line.split() for line in lines)
        return max(0, used - int(fields.get(inactive, 0)))


def _parents() -> list[tuple[Path, bool]]:
    """Directories in which a group of ours may work, best first.

    v1: our own group, so that its limits hold for the host as well. v2: a group can't have both processes
    and limited children, so it's the parent of our own (a systemd user's `app.slice`), or the root.
    """
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    found: list[tuple[Path, bool]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        if kind == "cgroup" and "memory" in options.split(","):
            mine = next((path for names, path in own.items() if "memory" in names.split(",")), "/")
            found.append((_seen(point, root, mine), False))
        elif kind == "cgroup2" and "" in own:
            place = _seen(point, root, own[""])
            candidates = [Path(point)] if place == Path(point) else [place.parent, Path(point)]
            for parent in candidates:
                with contextlib.suppress(OSError):
                    if "memory" in (parent / "cgroup.subtree_control").read_text().split() and os.access(
                        parent / "cgroup.procs", os.W_OK
                    ):
                        found.append((parent, True))
    return found


def _seen(point: str, root: str, path: str) -> Path:
    inside = path.removeprefix(root.rstrip("/"))
    return Path(point, inside.lstrip("/"))


def oom_kills() -> int:
    """How often the machine's OOM killer has killed, in all."""
    return _count(Path("/proc/vmstat"))


def _count(path: Path) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def remove_left(job: str) -> None:
    """Remove groups of this job that a process which is gone left behind."""
    for parent, _ in _parents():
        for directory in parent.glob(f"{_PREFIX}.{job}.*"):
            owner = directory.name.rpartition(".")[2]
            if owner.isdigit() and not Path("/proc", owner).exists():
                with contextlib.suppress(OSError):  # another supervisor removes it at the same moment
                    directory.rmdir()
