"""One run on a warm host, as the supervisor sees a host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from harness.engines._output import Output
from harness.engines.keeping import KeepableHost
from harness.engines.warm._link import Link
from harness.errors import EngineError
from harness.model import ExitStatus, Usage

__all__ = ["WarmHost"]

_PIPE_SIZE: Final = 1 << 20
_KILL_PATIENCE: Final = 30.0
_END_PATIENCE: Final = 30.0
"""How long the engine may take to tell how a host ended whose program is gone."""


class WarmHost:
    """Begins with the run and ends with it; the host that it runs on goes on. Safe to use from several threads."""

    def __init__(
        self,
        inner: KeepableHost,
        link: Link,
        *,
        argv: Sequence[str],
        environment: Mapping[str, str],
        notes: tuple[str, ...],
    ) -> None:
        """Start the run.

        Raises:
            OSError: the host's program is gone.
        """
        self._inner = inner
        self._link = link
        self._oom: Callable[[int], bool] = inner.watch_oom()
        self._we_killed = False
        self._status: ExitStatus | None = None
        self._ended = threading.Event()
        read, write = os.pipe()
        self._output = Output(inner.name, read)
        self.notes = notes
        """What this machine couldn't give the host, one sentence each."""
        try:
            with contextlib.suppress(OSError):  # a user may have used up what pipes may hold in all
                fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            link.run(self, argv, environment, write)
        finally:
            os.close(write)

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def entry(self) -> Mapping[str, Any]:
        """See `Host.entry`."""
        return self._inner.entry

    def output(self, skip: int = 0) -> Iterator[bytes]:
        """See `Host.output`. A second call goes on where the first stopped.

        Raises:
            EngineError: bytes are asked for that were handed out already.
        """
        return self._output.read(skip)

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """See `Host.wait`."""
        self._ended.wait(timeout)
        return self._status

    def signal(self, number: int) -> None:
        """See `Host.signal`; only what has a handler gets through, and SIGKILL (contract: G10)."""
        number = signal.Signals(number).value
        if self._ended.is_set():
            return
        if number == signal.SIGKILL:
            self._we_killed = True
        self._link.signal(number)

    def kill(self) -> None:
        """See `Host.kill`. A host whose program doesn't do it is killed as a whole.

        Raises:
            EngineError: the kernel doesn't end a process.
        """
        self.signal(signal.SIGKILL)
        if not self._ended.wait(_KILL_PATIENCE):
            self._inner.kill()
            if not self._ended.wait(_KILL_PATIENCE):
                raise EngineError(f"{self.name} doesn't end: look for a process in state D")

    def usage(self) -> Usage | None:
        """See `Host.usage`: with what the host needs to stay warm."""
        return None if self._ended.is_set() else self._inner.usage()

    # ------------------------------------------------------------------ what the link's thread tells

    def ended(self, code: int) -> None:
        """The run's process 1 and all that it left have ended."""
        self._end(ExitStatus(code=code, oom_killed=not self._we_killed and self._oom(code)))

    def lost(self) -> None:
        """The host is gone, with the run."""
        threading.Thread(target=self._lose, name=f"warm-lost-{self.name}", daemon=True).start()

    def _lose(self) -> None:
        try:
            status = self._inner.wait(_END_PATIENCE)
        except EngineError as error:
            status = ExitStatus(code=137, vanished=True, error=str(error))
        if status is None:
            status = ExitStatus(code=137, error="its program is gone")
        if self._we_killed or status.oom_killed or status.vanished:
            self._end(status)
        else:
            why = f": {status.error}" if status.error else ""
            self._end(
                ExitStatus(
                    code=status.code,
                    vanished=True,
                    error=f"the program that keeps the warm host ended with code {status.code}{why}",
                )
            )

    def _end(self, status: ExitStatus) -> None:
        if self._ended.is_set():
            return
        self._status = status
        self._ended.set()
        self._output.end()
