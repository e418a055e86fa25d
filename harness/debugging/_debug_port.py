"""The port that an editor attaches to: bytes from there to the Unix socket of the debugged rank."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from harness.errors import MachineError

__all__ = ["DEFAULT_PORT", "Port", "connect"]

DEFAULT_PORT: Final = 5678
"""What editors propose for debugpy."""
_TRIES: Final = 100


def connect(path: Path) -> socket.socket:
    """A connection to a Unix socket, however long its path is.

    Raises:
        OSError: nobody listens there.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


class Port:
    """Listens on 127.0.0.1 from the moment it is made; relays inside the `with`."""

    def __init__(self, wanted: int | None) -> None:
        """`wanted`: exactly this one; None: DEFAULT_PORT, or the next that is free.

        Raises:
            MachineError: it is in use.
        """
        self._socket = _listen(wanted)
        self.number = int(self._socket.getsockname()[1])
        self.clients = 0
        """How many have come so far."""
        self._over = threading.Event()
        self._find: Callable[[], Path | None] = lambda: None

    def relay(self, find: Callable[[], Path | None]) -> Port:
        """Begin to let clients through to the socket that `find` finds; they wait while it finds none."""
        self._find = find
        threading.Thread(target=self._accept, name="debug-port", daemon=True).start()
        return self

    def close(self) -> None:
        """Nobody comes through any more; the connections end with the program they lead to."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Port:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), name="debug-client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            debugger = self._reach()
            if debugger is None:
                return
            self.clients += 1
            with debugger:
                back = threading.Thread(target=_pump, args=(client, debugger), daemon=True)
                back.start()
                _pump(debugger, client)
                back.join()

    def _reach(self) -> socket.socket | None:
        while not self._over.is_set():
            path = self._find()
            if path is not None:
                with contextlib.suppress(OSError):
                    return connect(path)
            time.sleep(0.05)
        return None


def _listen(wanted: int | None) -> socket.socket:
    first = DEFAULT_PORT if wanted is None else wanted
    for port in range(first, first + (_TRIES if wanted is None else 1)):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(8)
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise MachineError(f"can't listen on port {port} ({error.strerror})") from error
            if wanted is not None:
                raise MachineError(
                    f"port {port} can't be had ({error.strerror}): choose another with --port, or leave it "
                    "out for the next free one"
                ) from error
        else:
            return listener
    raise MachineError(f"none of the ports {first} to {first + _TRIES - 1} is free: choose one with --port")


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Until `source` has no more; then neither has anything to say or to hear."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
