"""Where a set of warm hosts lies: `$HARNESS_HOME/warm/<id>`.

keeper.json           what it is for, by whom it is kept; written once
lock                  held by the process that keeps the set: free means that it is dead
sock                  where that process listens
log                   what it has to say while no job of its own runs
code                  our program, as it was when the set was made
hosts/<host>/ml       what the host has at /opt/ml
hosts/<host>/own/<n>  what it has where a job has directories of its own elsewhere
hosts/<host>/scratch  the engine's
hosts/<host>/io       the way to the program that is the host's process 1
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from harness.engines.sandbox.inner.remove import remove_tree

__all__ = ["HostPlace", "Place", "places"]

_INNER: Final = Path(__file__).parent / "inner"
_SOCKET: Final = "sock"
_NEW: Final = ".new-"
_OLD_SECONDS: Final = 60.0


class HostPlace:
    """The directories of one host of a set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ml = root / "ml"
        self.scratch = root / "scratch"
        self.io = root / "io"

    def own(self, number: int) -> Path:
        """What stands for a directory of the job's own that isn't below /opt/ml."""
        return self.root / "own" / str(number)

    def remove(self) -> None:
        remove_tree(str(self.root))

    def make(self) -> None:
        """All of them, empty."""
        self.remove()
        for path in (self.ml, self.scratch, self.io):
            path.mkdir(parents=True)
        # Whoever the image's user is must get in; on this machine the set's directory keeps others out.
        self.io.chmod(0o777)


class Place:
    """The directory of one set."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def make(cls, warm: Path, facts: dict[str, Any]) -> tuple[Place, int, socket.socket]:
        """A new one in `warm`, locked by this process, which listens at its socket: the lock's descriptor and the
        socket come with it. Nobody sees it without them.

        It has a copy of the hosts' program, so that what starts scripts in a host stays of one version when the
        harness is changed under it.

        Raises:
            OSError: it can't be made.
        """
        warm.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = os.urandom(4).hex()
        half = warm / f"{_NEW}{name}"  # unseen until it is locked
        half.mkdir(mode=0o700)
        lock = -1
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock = os.open(half / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.copytree(_INNER, half / "code", ignore=shutil.ignore_patterns("*.pyc.*"))
            with _short(half / _SOCKET) as address:
                listener.bind(address)
            (half / _SOCKET).chmod(0o600)  # and nobody else gets into the directory
            listener.listen(socket.SOMAXCONN)
            (half / "keeper.json").write_text(json.dumps({**facts, "pid": os.getpid(), "made": time.time()}))
            half.rename(warm / name)
        except BaseException:
            listener.close()
            if lock >= 0:
                os.close(lock)
            remove_tree(str(half))
            raise
        return cls(warm / name), lock, listener

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def job(self) -> str:
        """What the engine takes for the job's name; no job can have it, for `_` isn't allowed in those."""
        return f"warm_{self.name}"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def code(self) -> Path:
        return self.root / "code"

    def clear(self) -> None:
        """Remove the directories of all hosts."""
        remove_tree(str(self.root / "hosts"))

    def host(self, name: str) -> HostPlace:
        return HostPlace(self.root / "hosts" / name)

    def facts(self) -> dict[str, Any]:
        """What `make` was told; empty when the set is just being removed."""
        try:
            told: dict[str, Any] = json.loads((self.root / "keeper.json").read_text())
        except (OSError, ValueError):
            return {}
        return told

    def there(self) -> bool:
        """Whether it is where this process made it."""
        return (self.root / "keeper.json").exists()

    def connect(self, timeout: float) -> socket.socket | None:
        """A connection to the process that keeps the set; None when nobody listens."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(timeout)
        try:
            with _short(self.root / _SOCKET) as address:
                line.connect(address)
        except OSError:
            line.close()
            return None
        return line

    @contextlib.contextmanager
    def seized(self, patience: float = 0.0) -> Iterator[bool]:
        """Hold the lock of a set whose keeper is dead inside the `with`; False when somebody else has it still
        after `patience` seconds, or when it is gone."""
        try:
            lock = os.open(self.root / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        deadline = time.monotonic() + patience
        try:
            while not _try_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.02)
            yield self.there()
        finally:
            os.close(lock)

    def dead(self) -> bool:
        """Whether nobody keeps it. Nobody who looks as well is in the way of that."""
        try:
            lock = os.open(self.root / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return _try_lock(lock, fcntl.LOCK_SH) and self.there()
        finally:
            os.close(lock)

    def remove(self) -> None:
        """All of it; `keeper.json` first, for what is half removed is no set."""
        (self.root / "keeper.json").unlink(missing_ok=True)
        remove_tree(str(self.root))


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Another name for a socket's path, which may have 107 bytes only. Raises OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def places(warm: Path) -> list[Place]:
    """The sets of that directory. What was never finished of one is removed, and what is left of one that was
    being removed."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(warm) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            place = Place(Path(entry.path))
            if not entry.name.startswith(".") and place.there():
                found.append(place)
            elif time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD_SECONDS:
                with contextlib.suppress(OSError):  # somebody else is about it, or it is for its owner to see
                    remove_tree(entry.path)
    return found
