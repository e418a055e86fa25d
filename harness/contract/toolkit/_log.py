"""The toolkit's log lines, in its format, on stderr (contract: G34). `logging` would cost 10 ms."""

from __future__ import annotations

import os
import time

__all__ = ["PYTORCH", "TOOLKIT", "Log", "write"]

INFO = 20
WARNING = 30
ERROR = 40
TOOLKIT = "sagemaker-training-toolkit"
PYTORCH = "sagemaker_pytorch_container.training"

_NAMES = {INFO: "INFO", WARNING: "WARNING", ERROR: "ERROR"}


class Log:
    """Writes what is at least as grave as `level`; lines that come before `level` is known wait for it."""

    def __init__(self) -> None:
        self._level: int | None = None
        self._waiting: list[tuple[int, str, str]] = []

    @property
    def configured(self) -> bool:
        return self._level is not None

    def configure(self, level: int) -> None:
        """Write from now on, the waiting lines first (contract: D33)."""
        self._level = level
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self._write(*line)

    def info(self, message: str, name: str = TOOLKIT) -> None:
        self._write(INFO, message, name)

    def warning(self, message: str, name: str = TOOLKIT) -> None:
        self._write(WARNING, message, name)

    def error(self, message: str, name: str = TOOLKIT) -> None:
        self._write(ERROR, message, name)

    def _write(self, level: int, message: str, name: str) -> None:
        if self._level is None:
            self._waiting.append((level, message, name))
        elif level >= self._level:
            now = time.time()
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
            line = f"{stamp},{int(now % 1 * 1000):03d} {name:<12} {_NAMES[level]:<8} {message}\n"
            write(2, line.encode("utf-8", "replace"))


def write(fd: int, data: bytes) -> None:
    """All of `data`, whatever the pipe takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
