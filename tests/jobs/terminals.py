"""A terminal of a test's own: what is typed there, and what is seen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Typist:
    """Runs a command in a pseudo-terminal of 30 lines."""

    def __init__(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd)
                os.execvpe(command[0], list(command), {**environment, "TERM": "xterm"})
            finally:
                os._exit(127)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.seen = ""
        self._at = 0

    @property
    def modes(self) -> list[object]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self._fd)

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def expect(self, text: str, seconds: float = 60) -> str:
        """Wait until that is seen after what was expected before; everything up to it."""
        deadline = time.monotonic() + seconds
        while text not in self.seen[self._at :]:
            more = self._more()
            if text not in self.seen[self._at :]:
                assert more, f"it ended without {text!r}: {self.seen[-4000:]}"
                assert time.monotonic() < deadline, f"no {text!r}: {self.seen[-4000:]}"
        begin, self._at = self._at, self.seen.index(text, self._at) + len(text)
        return self.seen[begin : self._at]

    def shows(self, text: str, seconds: float = 60) -> None:
        """Wait until that was seen at any time."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert self._more(), f"it ended without {text!r}: {self.seen[-4000:]}"
            assert time.monotonic() < deadline, f"no {text!r}: {self.seen[-4000:]}"

    def end(self, seconds: float = 60) -> int:
        """Read until the command ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self._more():
            assert time.monotonic() < deadline, f"it doesn't end: {self.seen[-4000:]}"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended."""
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def close(self) -> None:
        self.kill()
        os.close(self._fd)

    def _more(self) -> bool:
        if not select.select([self._fd], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody has it open any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)
