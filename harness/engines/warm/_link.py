"""The way from the keeper to the program that is a warm host's process 1.

A Unix stream socket in a directory that the host has mounted; `inner.frames` is what goes over it. One thread
per host reads what the program tells; everything is answered in the order in which it was asked.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from harness.engines.warm.inner import frames
from harness.errors import EngineError

__all__ = ["Link", "Listener"]

_SOCKET: Final = "k"
_LOOK_EVERY: Final = 0.005


class Listener(Protocol):
    """Who hears how a run goes; called by the link's thread."""

    def ended(self, code: int) -> None: ...

    def lost(self) -> None:
        """The program is gone, and everything in the host with it."""
        ...


class Link:
    """A connection to one host's program. Safe to use from several threads."""

    def __init__(self, io: Path, *, patience: float, given_up: Callable[[], str | None]) -> None:
        """Connect, and wait until the program has imported what it is to import, or gave that up.

        `given_up` says why to wait no longer; it may also raise.

        Raises:
            EngineError: the program isn't there after `patience` seconds, or `given_up` said so.
        """
        self._deadline = time.monotonic() + patience
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._closed = threading.Event()
        self.unclean: str | None = None
        """Why the host isn't as it was before the last run."""
        self._socket = self._connect(io, given_up)
        try:
            self.ready = self._await_ready(given_up)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._read, name="warm-link", daemon=True)
        self._thread.start()

    def _connect(self, io: Path, given_up: Callable[[], str | None]) -> socket.socket:
        directory = os.open(io, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Through the descriptor: the path of a socket may have 107 bytes only.
            address = f"/proc/self/fd/{directory}/{_SOCKET}"
            while True:
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                    found.connect(address)
                    return found
                self._check(given_up)
                time.sleep(_LOOK_EVERY)
        except BaseException as error:
            found.close()
            if isinstance(error, OSError):
                raise EngineError(f"the warm host can't be reached: {error}") from error
            raise
        finally:
            os.close(directory)

    def _await_ready(self, given_up: Callable[[], str | None]) -> Mapping[str, Any]:
        while True:
            self._socket.settimeout(0.1)
            try:
                first = self._socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                self._check(given_up)
                continue
            except OSError as error:
                raise EngineError(f"the warm host can't be reached: {error}") from error
            finally:
                self._socket.settimeout(None)
            if not first:
                self._check(given_up)
                raise EngineError("the program that keeps the warm host ended at once")
            told, _ = frames.receive(self._socket)
            ready: Mapping[str, Any] = told["ready"]
            return ready

    def _check(self, given_up: Callable[[], str | None]) -> None:
        if (why := given_up()) is not None:
            raise EngineError(why)
        if time.monotonic() > self._deadline:
            raise EngineError("the program that keeps the warm host doesn't answer")

    @property
    def alive(self) -> bool:
        return not self._closed.is_set()

    def run(
        self, listener: Listener, argv: Sequence[str], environment: Mapping[str, str], output: int
    ) -> None:
        """Run a command as the host's process 1 would; what it writes goes to the descriptor `output`.

        Raises:
            OSError: the program is gone.
        """
        self.unclean = None
        with self._lock:
            if self._closed.is_set():
                raise BrokenPipeError("the warm host's program has ended")
            self._listener = listener
            frames.send(
                self._socket, {"run": {"argv": list(argv), "environment": dict(environment)}}, [output]
            )

    def signal(self, number: int) -> None:
        """Signal to the run's process 1; nothing when the program is gone."""
        self._say({"signal": number})

    def leave(self) -> None:
        """Let the program end, and all in the host with it."""
        self._say({"exit": True})
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _say(self, words: Mapping[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            frames.send(self._socket, words)

    def _read(self) -> None:
        try:
            while True:
                told, _ = frames.receive(self._socket)
                if "ended" in told:
                    ended = told["ended"]
                    self.unclean = ended.get("unclean")
                    listener, self._listener = self._listener, None
                    if listener is not None:
                        listener.ended(int(ended["code"]))
        except (OSError, EOFError, ValueError, KeyError):
            pass
        finally:
            with self._lock:
                self._closed.set()
                self._socket.close()
                listener, self._listener = self._listener, None
            if listener is not None:
                listener.lost()
