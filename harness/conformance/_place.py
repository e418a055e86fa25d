"""A state directory for the jobs of one verification, gone with everything in it when that is over."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.engines import remove_tree
from harness.errors import HarnessError, MachineError
from harness.home import Home
from harness.store import Store
from harness.targets import local

__all__ = ["place", "sweep"]

_LOCK: Final = "lock"


@contextmanager
def place(home: Home) -> Iterator[Home]:
    """A home of its own below `home`, for jobs that nobody needs afterwards.

    Whoever dies in it leaves a lock that is free: the next one cleans up after it.
    """
    sweep(home)
    root = home.verify / secrets.token_hex(4)
    root.mkdir(parents=True)
    lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Home(root).ensure()
    finally:
        _remove(root)
        os.close(lock)


def sweep(home: Home) -> list[str]:
    """Remove the places of processes that were killed; their names."""
    removed = []
    for root in sorted(home.verify.glob("*")):
        try:
            lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            continue  # somebody else is removing it
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(root)
                removed.append(root.name)
        finally:
            os.close(lock)
    return removed


def _remove(root: Path) -> None:
    """End its jobs, whose supervisors clean up after them, and remove it."""
    home = Home(root)
    if home.db.exists():
        with Store(home) as store:
            left = store.unfinished()
        for name in left:
            with contextlib.suppress(HarnessError):  # it has ended meanwhile
                local.stop(name, now=True, home=home)
        for name in left:
            local.wait(name, home=home)
        local.collect(everything=True, home=home)
    with contextlib.suppress(MachineError):
        from harness.engines.image_facts import remove_lookers

        remove_lookers(root.name)
    remove_tree(root)
    if root.exists():
        shutil.rmtree(root)
