"""After a run: nothing of it may be left in the host but what it wrote to /opt/ml and installed."""

from __future__ import annotations

import os
import signal
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

__all__ = ["Places", "end_processes", "remove_ipc"]

_PATIENCE = 10.0
"""Seconds after which a process that SIGKILL doesn't end is told."""
_IPC = (("shm", "shmctl"), ("sem", "semctl"), ("msg", "msgctl"))
_IPC_RMID = 0


def end_processes(keep: Callable[[], Container[int]], reap: Callable[[], None]) -> str | None:
    """Kill every process of the host but this one, those that `keep` has, and their children; why that failed,
    or None."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        reap()
        kept = keep()
        found = [pid for pid, parent in _processes().items() if pid not in kept and parent not in kept]
        if not found:
            return None
        if time.monotonic() > deadline:
            return "process %d doesn't end after SIGKILL" % found[0]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended meanwhile
        time.sleep(0.0005)


def _processes() -> dict[int, int]:
    """Those of the host, with their parents: all that process 1 can see, otherwise its descendants."""
    me = os.getpid()
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
    if me == 1:
        return {pid: parent for pid, parent in parents.items() if pid != 1 and parent}
    below = {me}
    size = 0
    while size != len(below):
        size = len(below)
        below |= {pid for pid, parent in parents.items() if parent in below}
    return {pid: parents[pid] for pid in below - {me}}


def remove_ipc() -> None:
    """System V objects of this host's IPC namespace: those that it can see."""
    library = None
    for kind, call in _IPC:
        try:
            with open("/proc/sysvipc/" + kind, "rb") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            if library is None:
                import ctypes

                library = ctypes.CDLL(None, use_errno=True)
            number = int(line.split()[1])
            arguments = (number, 0, _IPC_RMID, 0) if kind == "sem" else (number, _IPC_RMID, 0)
            getattr(library, call)(*arguments)


class Places:
    """Directories that are empty when a host starts. What is mounted in them stays."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [(path, os.stat(path)) for path in paths if os.path.isdir(path)]
        self._mounted = _mount_points()

    def reset(self) -> str | None:
        """Empty them; why one couldn't be, or None."""
        why = None
        for path, before in self._paths:
            try:
                self._empty(path)
                now = os.stat(path)
                if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
                    os.chown(path, before.st_uid, before.st_gid)
                if now.st_mode != before.st_mode:
                    os.chmod(path, stat.S_IMODE(before.st_mode))
            except (OSError, RecursionError) as error:
                why = "%s can't be emptied (%s)" % (path, error)
        return why

    def _empty(self, path: str) -> None:
        with os.scandir(path) as entries:
            found = list(entries)
        for entry in found:
            if any(point == entry.path or point.startswith(entry.path + "/") for point in self._mounted):
                if entry.path not in self._mounted:
                    self._empty(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                self._remove(entry.path)
            else:
                os.unlink(entry.path)

    def _remove(self, path: str) -> None:
        """A tree, also what its owner may not read; not by recursion, for it may be deep."""
        top = os.path.dirname(path)
        pending = [path]
        while pending:
            place = pending[-1]
            if stat.S_IMODE(os.lstat(place).st_mode) & 0o700 != 0o700:
                os.chmod(place, 0o700)
            folders = []
            with os.scandir(place) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                    elif len(entry.path) > 2000:
                        # Deeper than a path may be long: its top comes out, and is one of ours.
                        name = os.path.join(top, ".%s" % os.urandom(8).hex())
                        os.rename(entry.path, name)
                        folders.append(name)
                    else:
                        folders.append(entry.path)
            if folders:
                pending += folders
            else:
                os.rmdir(place)
                pending.pop()


def _mount_points() -> set[str]:
    found = set()
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = line.split()[4]
            for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
                point = point.replace(code, char)
            found.add(os.fsdecode(point))
    return found
