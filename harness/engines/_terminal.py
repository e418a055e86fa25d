"""The user's terminal, handed to a command in a host; and bytes to and fro between the two."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Protocol

__all__ = ["Remote", "Terminal", "TerminatedError", "relay", "write_all"]

_CHUNK: Final = 1 << 16
_MODE: Final = re.compile(rb"\x1b\[\?(\d+)([hl])")
_LONGEST: Final = 8
_USUAL: Final = {b"25": b"h"}
"""Modes that are on when nobody changes them: the cursor is shown."""
RESET: Final = b"\x1b[?2004l\x1b[?25h"
"""What a killed shell most likely left on or off, where nobody knows better; harmless where it didn't."""


class TerminatedError(BaseException):
    """A signal that ends this process came while the terminal was the command's: first it is given back."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Terminal:
    """The terminal at `stdin` and `stdout`, raw inside the `with`: every key goes to the command.

    It is given back as it was however the `with` is left; only who is killed by SIGKILL can't do that:
    `saved` lets another process do it.
    """

    _FATAL: Final = (signal.SIGTERM, signal.SIGHUP)

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        """Raises OSError (termios.error) when `stdin` is no terminal."""
        self.stdin = stdin
        self.stdout = stdout
        self.saved: list[Any] = termios.tcgetattr(stdin)
        self.resized, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._former: dict[int, Any] = {}
        self._modes: dict[bytes, bytes] = {}
        self._tail = b""

    def show(self, data: bytes) -> None:
        """Write what the command says, keeping in mind how it changes the terminal: the other screen, hidden
        cursor, reports of the mouse. A command that is killed leaves that to us."""
        for number, state in _MODE.findall(self._tail + data):
            self._modes[number] = state
        self._tail = data[-_LONGEST:]
        write_all(self.stdout, data)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; 24 × 80 where the terminal doesn't tell."""
        try:
            columns, rows = os.get_terminal_size(self.stdin)
        except OSError:
            return 24, 80
        return rows or 24, columns or 80

    def __enter__(self) -> Terminal:
        if threading.current_thread() is threading.main_thread():  # others may not ask for signals
            self._former[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._on_resize)
            for number in self._FATAL:
                self._former[number] = signal.signal(number, self._on_end)
        tty.setraw(self.stdin, termios.TCSANOW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        changed = {name for name, state in self._modes.items() if state != _USUAL.get(name, b"l")}
        undo = b"".join(b"\x1b[?%s%s" % (name, _USUAL.get(name, b"l")) for name in sorted(changed))
        with contextlib.suppress(OSError):  # the terminal is gone
            write_all(self.stdout, undo)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.stdin, termios.TCSADRAIN, self.saved)
        for number, former in self._former.items():
            signal.signal(number, former)
        os.close(self._tell)
        os.close(self.resized)

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        with contextlib.suppress(BlockingIOError):  # it is full of such news
            os.write(self._tell, b"r")

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        del frame
        raise TerminatedError(number)


class Remote(Protocol):
    """The command's side: doesn't block."""

    def fileno(self) -> int: ...

    def read(self) -> bytes:
        """What came; empty at the end. Raises BlockingIOError when it was nothing after all."""
        ...

    def write(self, data: bytes) -> int:
        """How much of it was taken."""
        ...

    def end(self) -> None:
        """No more input will come."""
        ...


def relay(
    remote: Remote,
    *,
    stdin: int,
    sink: Callable[[bytes], None],
    resized: int | None = None,
    resize: Callable[[], None] = lambda: None,
    until: int | None = None,
) -> None:
    """`stdin` to the command, what it says to `sink`, until it closes its side or `until` can be read.

    Neither side waits for the other: a command that writes while nobody reads goes on being fed.
    """
    poll = select.poll()
    poll.register(remote, select.POLLIN)
    poll.register(stdin, select.POLLIN)
    for extra in (resized, until):
        if extra is not None:
            poll.register(extra, select.POLLIN)
    waiting = b""
    while True:
        events = dict(poll.poll())
        state = events.get(remote.fileno(), 0)
        if resized in events:
            os.read(resized or 0, _CHUNK)
            resize()
        if state & (select.POLLIN | select.POLLHUP | select.POLLERR) and not _receive(remote, sink):
            return
        if until in events:
            while _readable(remote) and _receive(remote, sink):
                pass  # its last words
            return
        if waiting and state & select.POLLOUT:
            waiting = waiting[_give(remote, waiting) :]
        if stdin in events and not waiting:
            waiting = _take(stdin)
            if not waiting:
                poll.unregister(stdin)
                remote.end()
        if waiting:
            waiting = waiting[_give(remote, waiting) :]
        poll.modify(remote, select.POLLIN | (select.POLLOUT if waiting else 0))
        with contextlib.suppress(FileNotFoundError, KeyError):
            poll.modify(stdin, 0 if waiting else select.POLLIN)


def write_all(descriptor: int, data: bytes) -> None:
    """All of `data`, to a descriptor that blocks."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _receive(remote: Remote, sink: Callable[[bytes], None]) -> bool:
    try:
        data = remote.read()
    except BlockingIOError:
        return True
    if data:
        sink(data)
    return bool(data)


def _readable(remote: Remote) -> bool:
    return bool(select.select([remote], [], [], 0)[0])


def _give(remote: Remote, data: bytes) -> int:
    try:
        return remote.write(data)
    except BlockingIOError:
        return 0


def _take(stdin: int) -> bytes:
    try:
        return os.read(stdin, _CHUNK)
    except OSError:
        return b""  # the terminal is gone
