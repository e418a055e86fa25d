"""Who owns a job: a supervisor process that holds the lock in the job's directory.

The lock is the kernel's (`flock`), so it goes with the process however it dies: no stale pid files, no
heart-beats. Whoever finds an unfinished job whose lock is free starts a new supervisor for it; should
two do so at once, the second finds the lock taken and leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import StoreError
from harness.home import Home
from harness.store import Store

__all__ = ["own", "owned", "recover", "spawn"]

LOCK = "supervisor.lock"
LOG = "supervisor.log"
_PATIENCE = 1.0
"""Seconds to try for a lock: `owned` takes it too, for a moment, and must not send an owner away."""


@contextlib.contextmanager
def own(home: Home, name: str) -> Iterator[bool]:
    """Own the job inside the `with`; False when another process does."""
    with _open_lock(home, name) as descriptor:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                yield False
                return
            time.sleep(0.02)
        # Only for people and tests who want to know which process it is; the lock alone decides.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield True


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


def spawn(home: Home, name: str) -> None:
    """Start a supervisor for the job in a process of its own that outlives this one.

    It is forked, with everything imported already, which saves a tenth of a second before the script's
    first line. A process with threads or with an open store can't be forked safely (a lock or SQLite's own
    state would be carried along), so there a new interpreter is started.
    """
    directory = home.job(name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the job's directory can't be made: {error}") from error
    if threading.active_count() == 1 and not Store.any_open():
        _fork(directory, lambda: _supervise(home, name))
    else:
        command = [sys.executable, "-m", "harness.lifecycle", str(home.root), name]
        with (directory / LOG).open("ab") as log:
            subprocess.Popen(  # the intermediate process leaves at once, so no zombie stays with us
                [sys.executable, "-c", _DETACH, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            ).wait()


_DETACH = "import os, sys\nif os.fork() == 0:\n    os.execv(sys.argv[1], sys.argv[1:])"


def _supervise(home: Home, name: str) -> None:
    from harness.lifecycle._supervisor import supervise

    supervise(home, name)


def _fork(directory: Path, work: Callable[[], None]) -> None:
    """Run `work` in a detached grandchild: own session, no terminal, no descriptor of ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _redirect(directory / LOG)
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        # Not sys.exit: the caller's `finally` blocks and exit handlers are not this process's to run.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def _redirect(log: Path) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, _highest_descriptor() + 1)
    # The caller's sys.stdout may be a test's or a notebook's object that writes elsewhere.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115


def _highest_descriptor() -> int:
    return max(int(entry) for entry in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths


def recover(home: Home, store: Store) -> list[str]:
    """Start a supervisor for each unfinished job that has none; their names.

    Every command calls this first, so a supervisor that was killed loses its job to the next command.
    """
    lost = [name for name in store.unfinished() if not owned(home, name)]
    for name in lost:
        spawn(home, name)
    return lost
