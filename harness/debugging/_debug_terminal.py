"""Our terminal, lent to the pdb of a process in a host: it gets one end of a pseudo-terminal, we keep the other.

While the program stands our own terminal is raw: every key goes to the program, and Ctrl-C to its prompt. In
between it is as it was. Whatever happens it ends as it was.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Protocol

from harness.debugging._debug_port import connect

__all__ = ["Stage", "Terminal"]

_CTRL_C: Final = b"\x03"
_CTRL_BACKSLASH: Final = b"\x1c"
_STANDS: Final = b"\2"
_OVER: Final = b"\0"
"""Written by the program when it stops, and when it goes on."""
_MARKS: Final = re.compile(b"([\0\2])")
_AGAIN: Final = 0.25
"""Seconds after which Ctrl-C is repeated."""
_TIMES: Final = 8
_LATE: Final = 0.02
"""Seconds that what was written to a pseudo-terminal may take to come out of it."""
_LINE: Final = 8192
"""Bytes of an unfinished line that are kept to show it again."""


class Stage(Protocol):
    """Who else writes to the terminal."""

    def hold(self, line: Callable[[], bytes]) -> None:
        """The program has the terminal from now on; `line` gives its unfinished line."""
        ...

    def release(self) -> None:
        """It is given back."""
        ...

    def raw(self, data: bytes) -> None:
        """Write what the program wrote."""
        ...


class Terminal:
    """One pseudo-terminal for all stops of one job."""

    def __init__(self, stage: Stage, *, stop: Callable[[], None]) -> None:
        """`stop` kills the job: the user has quit the debugger."""
        self._stage = stage
        self._stop = stop
        self._master, self._slave = os.openpty()
        self._saved: list[Any] | None = None
        self._line = bytearray()
        self._unheard = 0
        """How often Ctrl-C is still to be repeated, as nothing was heard since."""
        self._gate = threading.Lock()

    def __enter__(self) -> Terminal:
        self._resize()
        self._before = {
            number: signal.signal(number, self._die) for number in (signal.SIGTERM, signal.SIGHUP)
        }
        self._before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._slave)

    def _die(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def serve(self, path: Path) -> None:
        """Lend the terminal to the process that listens there, stop for stop, until it ends or quits.

        Raises:
            OSError: nobody listens there any more.
        """
        connection = connect(path)
        with connection:
            told = json.dumps({"term": os.environ.get("TERM", "dumb")}).encode()
            rights = array.array("i", [self._slave])
            connection.sendmsg([told], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            try:
                self._attend(connection)
            finally:
                self._drain()
                self._give_back()

    # ------------------------------------------------------------------------------------------ while it stands

    def _attend(self, connection: socket.socket) -> None:
        rest = b""
        while True:
            standing = self._saved is not None
            watched: list[Any] = [connection, self._master, *([sys.stdin] if standing else [])]
            ready, _, _ = select.select(watched, [], [], _AGAIN)
            if self._unheard and not ready:
                # A signal that comes just before a line editor waits for keys doesn't wake it.
                self._unheard -= 1
                connection.sendall(_CTRL_C)
            if self._master in ready:
                self._unheard = 0
                self._show(os.read(self._master, 65536))
            if connection in ready:
                data = connection.recv(65536)
                if not data:
                    return
                *messages, rest = (rest + data).split(b"\n")
                for message in messages:
                    if json.loads(message).get("quit"):
                        self._drain()
                        self._give_back()
                        self._stop()
            if sys.stdin in ready:
                self._type(connection, os.read(sys.stdin.fileno(), 4096))

    def _type(self, connection: socket.socket, data: bytes) -> None:
        if not data:  # our own terminal is gone: so is the program's
            data = b"\x04"
        if _CTRL_BACKSLASH in data:
            os.kill(os.getpid(), signal.SIGINT)  # stops the job, whatever the program is doing
            return
        *before, data = data.split(_CTRL_C)
        if before:
            connection.sendall(_CTRL_C)
            self._unheard = _TIMES
        os.write(self._master, data)

    def _show(self, data: bytes) -> None:
        for part in _MARKS.split(data):
            if part == _STANDS:
                self._take()
            elif part == _OVER:
                if self._line:
                    self._write(b"\r\n")
                self._give_back()
            elif part:
                self._write(part)

    def _write(self, data: bytes) -> None:
        _, newline, tail = data.rpartition(b"\n")
        if newline:
            self._line.clear()
        self._line += tail
        del self._line[:-_LINE]
        self._stage.raw(data)

    def _drain(self) -> None:
        """What the program wrote before it ended."""
        while select.select([self._master], [], [], _LATE)[0]:
            self._show(os.read(self._master, 65536))
        if self._line and self._saved is not None:
            self._write(b"\r\n")

    # ------------------------------------------------------------------------------------------- our own terminal

    def _take(self) -> None:
        with self._gate:
            if self._saved is not None:
                return
            saved = termios.tcgetattr(sys.stdin)
            self._stage.hold(lambda: bytes(self._line))
            self._saved = saved
            tty.setraw(sys.stdin, termios.TCSADRAIN)

    def _give_back(self) -> None:
        with self._gate:
            if self._saved is None:
                return
            saved, self._saved = self._saved, None
            with contextlib.suppress(termios.error):  # it was closed
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
            self._stage.release()

    def _resize(self) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(sys.stdin, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
