"""What a container uses: from its control group's files when the daemon is on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.engines.docker._daemon import lost
from harness.model import Usage

if TYPE_CHECKING:
    from harness.engines.docker._daemon import Daemon

CGROUPS: Final = Path("/sys/fs/cgroup")
PROCESSES: Final = Path("/proc")


@dataclass
class Meter:
    """Reads one container; finds its control group once."""

    daemon: Daemon
    container: str
    groups: dict[str, Path] | None = None
    """Controller → directory ("" for the unified hierarchy); empty when they can't be seen from here."""

    def read(self) -> Usage | None:
        """What it uses now; None when it has ended or the daemon doesn't answer."""
        if self.groups is None:
            pid = self._pid()
            if not pid:
                return None
            self.groups = find_groups(pid, self.container)
        if not self.groups:
            return self._asked()
        try:
            return read_groups(self.groups)
        except (OSError, ValueError):  # the group goes when the container ends
            return None

    def oom_kills(self) -> int:
        """How many processes of the container the kernel killed for want of memory; 0 where it can't be told."""
        if self.groups is None:
            self.read()
        if not self.groups:
            return 0
        name, file = ("memory", "memory.oom_control") if "memory" in self.groups else ("", "memory.events")
        try:
            return _stat(self.groups[name] / file, "oom_kill")
        except (OSError, ValueError):
            return 0

    def _pid(self) -> int:
        from docker.errors import DockerException

        try:
            return int(self.daemon.client.inspect_container(self.container)["State"]["Pid"])
        except DockerException:
            return 0
        except Exception as error:
            if not lost(error):
                raise
            return 0

    def _asked(self) -> Usage | None:
        """The daemon's own numbers: a call of some milliseconds, and no process ids."""
        from docker.errors import DockerException

        try:
            stats = self.daemon.client.stats(self.container, stream=False, one_shot=True)
        except DockerException:
            return None
        except Exception as error:
            if not lost(error):
                raise
            return None
        memory = stats.get("memory_stats") or {}
        if "usage" not in memory:
            return None
        details = memory.get("stats") or {}
        cache = details.get("inactive_file", details.get("total_inactive_file", 0))
        return Usage(
            cpu_seconds=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            memory_bytes=max(memory["usage"] - cache, 0),
            memory_limit_bytes=memory.get("limit", 0),
        )


def find_groups(pid: int, container: str) -> dict[str, Path]:
    """The control group directories of process `pid`, if it is really that container's and seen here."""
    try:
        lines = (PROCESSES / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return {}
    groups: dict[str, Path] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if container not in path:
            continue
        for controller in controllers.split(","):
            directory = CGROUPS / controllers / path.lstrip("/")
            if directory.is_dir():
                groups[controller] = directory
    unified = "" in groups and (groups[""] / "memory.current").exists()
    return groups if unified or {"cpuacct", "memory"} <= groups.keys() else {}


def read_groups(groups: dict[str, Path]) -> Usage:
    """Usage by the kernel's files; memory without the page cache that can go at any time, as Docker tells it."""
    if "memory" in groups:
        memory = groups["memory"]
        cpu = int((groups["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        used = int((memory / "memory.usage_in_bytes").read_text())
        limit = (memory / "memory.limit_in_bytes").read_text().strip()
        inactive = _stat(memory / "memory.stat", "total_inactive_file")
    else:
        memory = groups[""]
        cpu = _stat(memory / "cpu.stat", "usage_usec") / 1e6
        used = int((memory / "memory.current").read_text())
        limit = (memory / "memory.max").read_text().strip()
        inactive = _stat(memory / "memory.stat", "inactive_file")
    total = _stat(PROCESSES / "meminfo", "MemTotal:") * 1024
    pids = tuple(int(line) for line in (memory / "cgroup.procs").read_text().split())
    return Usage(
        cpu_seconds=cpu,
        memory_bytes=max(used - inactive, 0),
        memory_limit_bytes=total if limit == "max" else min(int(limit), total),
        pids=pids,
    )


def _stat(path: Path, key: str) -> int:
    """The number beside `key` in a file of `key number` lines."""
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name == key:
            return int(rest.split()[0])
    raise ValueError(f"{path} has no {key}")
