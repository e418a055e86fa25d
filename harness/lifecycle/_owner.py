"""Who owns a job: a supervisor process that holds the lock in the job's directory.

The lock is the kernel's (`flock`), so it goes with the process however it dies: no stale pid files, no
heart-beats. Whoever finds an unfinished job whose lock is free takes the lock and starts a supervisor that
inherits it. So a job has an owner from the moment it is found, and however many commands look at it while
the supervisor is still being loaded, there is never a second one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from harness.errors import StoreError
from harness.home import Home
from harness.lifecycle._detach import fork, stay
from harness.store import Store

__all__ = ["Taker", "own", "owned", "recover", "spawn"]

LOCK = "supervisor.lock"
LOG = "supervisor.log"
_PATIENCE = 1.0
"""Seconds to try for a lock: `owned` takes it too, for a moment, and must not send an owner away."""


@contextlib.contextmanager
def own(home: Home, name: str, held: int | None = None) -> Iterator[bool]:
    """Own the job inside the `with`; False when another process does.

    `held`: the descriptor of the lock that this process inherited; it keeps it until it has ended, so that a
    job without an owner has no process of ours either.
    """
    if held is not None:
        os.set_inheritable(held, False)
    with contextlib.nullcontext(held) if held is not None else _open_lock(home, name) as descriptor:
        if held is None and not _take(descriptor):
            yield False
            return
        # Only for people and tests who want to know which process it is; the lock alone decides.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield True


def _take(descriptor: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not _try_lock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def owned(home: Home, name: str) -> bool:
    """Whether a living supervisor owns the job."""
    with _open_lock(home, name) as descriptor:
        return not _try_lock(descriptor, fcntl.LOCK_SH)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _open_lock(home: Home, name: str) -> Iterator[int]:
    path = home.job(name) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"the job's directory can't be used: {error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Taker(Protocol):
    """A process that may take a job over."""

    def take_over(self, home: Home, name: str, log: Path, lock: int) -> bool:
        """Take the job with its lock; False when there is no such process."""
        ...


def spawn(home: Home, name: str, *takers: Taker) -> bool:
    """Start a supervisor for the job in a process of its own that outlives this one; False when it has one.

    The first of the `takers` that is there takes over. Else the process is forked, with what is imported
    already. One with threads or with an open store can't be forked safely (a lock or SQLite's own state would be
    carried along), so there a new interpreter is started.

    Raises:
        StoreError: the job's directory can't be used, or no process can be started.
    """
    with _open_lock(home, name) as lock:
        if not _take(lock):
            return False
        log = home.job(name) / LOG
        try:
            if any(taker.take_over(home, name, log, lock) for taker in takers):
                pass
            elif threading.active_count() == 1 and not Store.any_open():
                from harness.lifecycle._supervisor import supervise

                fork(lambda: supervise(home, name, stay(log, lock)))
            else:
                _start(
                    log, lock, [sys.executable, "-m", "harness.lifecycle", str(home.root), name, str(lock)]
                )
        except OSError as error:
            raise StoreError(f"no supervisor can be started for {name}: {error}") from error
        return True


def _start(log: Path, lock: int, command: list[str]) -> None:
    with log.open("ab") as out:
        intermediate = subprocess.Popen(  # it leaves at once, so no zombie stays with us
            [sys.executable, "-c", _DETACH, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            pass_fds=(lock,),
            start_new_session=True,
        )
        if intermediate.wait():
            raise OSError("the process that was to start it ended at once")


_DETACH = "import os, sys\nif os.fork() == 0:\n    os.execv(sys.argv[1], sys.argv[1:])"


def recover(home: Home, store: Store) -> list[str]:
    """Start a supervisor for each unfinished job that has none; their names.

    Every command calls this first, so a supervisor that was killed loses its job to the next command.
    """
    return [name for name in store.unfinished() if not owned(home, name) and spawn(home, name)]
