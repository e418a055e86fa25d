"""Seconds that a job stood in a debugger: no time limit counts them.

A host stands as long as one of its processes holds the kernel's lock on `debug/paused` in the host's directory.
So a debugger that dies, whatever way, never leaves a job without limits.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.lifecycle._debug import GO, PAUSED
from harness.store import Store

__all__ = ["Pause", "stands"]

_KEY = "paused"


def stands(hosts: Path) -> bool:
    """Whether one of the hosts in that directory stands in a debugger now."""
    return any(_locked(path) for path in hosts.glob(f"*/debug/{PAUSED}"))


class Pause:
    """Looks at the hosts of one job, and keeps the sum where the next supervisor finds it."""

    def __init__(self, store: Store, name: str, hosts: Path, *, debugged: bool) -> None:
        """`hosts`: the directory that has a directory for each host. Without `debugged` it never stands."""
        self._store = store
        self._name = name
        self._hosts = hosts
        self._debugged = debugged
        kept: Mapping[str, Any] = (store.job(name).result.get(_KEY) or {}) if debugged else {}
        self._sum = float(kept.get("seconds", 0.0))
        since = kept.get("since")
        # A pause that an earlier supervisor saw begin: until now, if it has ended, for nobody saw its end.
        self._since: float | None = None if since is None else time.monotonic() - (time.time() - since)

    @property
    def standing(self) -> bool:
        """Whether the job stood at the last look."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """All that it stood, up to now."""
        return self._sum + (0.0 if self._since is None else max(0.0, time.monotonic() - self._since))

    def look(self) -> None:
        """See whether it stands, and let the ranks of all hosts begin when the debugged one did. Call it
        often; it costs nothing for a job that isn't debugged."""
        if not self._debugged:
            return
        places = sorted(self._hosts.glob("*/debug"))
        if len(places) > 1 and any((place / GO).exists() for place in places):
            for place in places:
                (place / GO).touch()
        standing = stands(self._hosts)
        if standing == self.standing:
            return
        if standing:
            self._since = time.monotonic()
            self._keep(since=time.time())
        else:
            self._sum = self.seconds
            self._since = None
            self._keep(since=None)

    def _keep(self, *, since: float | None) -> None:
        self._store.merge_result(self._name, **{_KEY: {"seconds": self._sum, "since": since}})


def _locked(path: Path) -> bool:
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # EACCES or EAGAIN: somebody holds it
        return True
    return False
