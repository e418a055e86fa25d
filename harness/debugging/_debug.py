"""A debugged job, from the machine's side: whether it can be debugged, and who attends to it while it runs."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from harness.errors import MachineError, UsageError
from harness.model import DebugOptions, Plan

if TYPE_CHECKING:
    from harness.debugging._debug_terminal import Terminal

__all__ = ["Attendant", "check_rank", "require_debugpy"]

_POLL: Final = 0.05
_ATTENDED: Final = "attended"
_QUIT: Final = "quit"
"""Made by the host when an editor wants the program ended."""


def require_debugpy() -> None:
    """Raises MachineError when debugpy isn't installed beside the harness."""
    if importlib.util.find_spec("debugpy") is None:
        raise MachineError(
            "debugpy isn't installed: pip install 'sagemaker-harness[debug]', or use --pdb, which needs nothing"
        )


def check_rank(plan: Plan, options: DebugOptions) -> None:
    """Raises UsageError when the job has no such rank here."""
    if options.rank is not None and not 0 <= options.rank < plan.world_size:
        ranks = "only rank 0" if plan.world_size == 1 else f"ranks 0 to {plan.world_size - 1}"
        raise UsageError(f"there is no rank {options.rank}: this job has {ranks} here")


class Attendant:
    """Holds the lock by which the hosts know that somebody is there, and finds their sockets."""

    def __init__(self, hosts: Path) -> None:
        """`hosts`: the directory that has a directory for each host."""
        self._hosts = hosts
        self._held: dict[Path, tuple[int, IO[bytes]]] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(
        self,
        ready: Callable[[Path], None] = lambda _: None,
        terminal: Terminal | None = None,
        stop: Callable[[], None] = lambda: None,
    ) -> Attendant:
        """Attend from now on. `ready` is told each socket that appears; `terminal` is lent to them; `stop` is
        called, once, when an editor wants the program ended."""
        self._thread = threading.Thread(
            target=self._run, args=(ready, terminal, stop), name="debug", daemon=True
        )
        self._thread.start()
        return self

    def find(self) -> Path | None:
        """The socket of the rank that can be attached to now."""
        return next(iter(sorted(self._hosts.glob("*/debug/rank-*.sock"))), None)

    def close(self) -> None:
        """Nobody attends any more: who stands in a host goes on or gives up."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(1.0)
        for _, file in self._held.values():
            file.close()

    def _run(
        self, ready: Callable[[Path], None], terminal: Terminal | None, stop: Callable[[], None]
    ) -> None:
        holding = threading.Thread(target=self._hold, name="debug-lock", daemon=True)
        holding.start()
        seen: set[tuple[Path, int]] = set()
        stopped = False
        while not self._over.is_set():
            if not stopped and next(self._hosts.glob(f"*/debug/{_QUIT}"), None) is not None:
                stopped = True
                stop()
            path = self.find()
            if path is not None:
                with contextlib.suppress(OSError):  # it may just be going
                    mark = (path, path.stat().st_ino)
                    if mark not in seen:
                        seen.add(mark)
                        ready(path)
                    if terminal is not None:
                        terminal.serve(path)
            time.sleep(_POLL)

    def _hold(self) -> None:
        """A new attempt has new directories: look for them as long as the job runs."""
        while not self._over.is_set():
            for path in self._hosts.glob(f"*/debug/{_ATTENDED}"):
                with contextlib.suppress(OSError):
                    inode = path.stat().st_ino
                    if path in self._held and self._held[path][0] == inode:
                        continue
                    file = path.open("r+b")
                    fcntl.lockf(file, fcntl.LOCK_EX)
                    self._held[path] = (inode, file)
            time.sleep(_POLL)
