"""Appends what a host prints to its log, byte for byte."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from harness.errors import DiskError
from harness.telemetry._index import RECORD
from harness.telemetry._reader import EVENT_BYTES
from harness.telemetry._room import hold_room

__all__ = ["LogWriter"]

_KEEP_BYTES: Final = 16 << 20
"""What is held in memory while the disk is full."""
_ROOM: Final = 1 << 20
_INDEX_ROOM: Final = 64 << 10
"""Bytes of disk that log and index have ahead: what a script says when it finds the disk full is worth most."""


class LogWriter:
    """The one writer of `<directory>/<host>.log` and its index.

    `size` is what the log holds. A supervisor that takes over a running job opens the same files again and
    asks the engine for the output from byte `size` on, so no byte is lost or doubled.
    """

    def __init__(self, directory: Path, host: str) -> None:
        self._path = directory / f"{host}.log"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._log = os.open(self._path, flags | os.O_APPEND, 0o644)
            self._index = os.open(directory / f"{host}.idx", flags, 0o644)
        except OSError as error:
            raise DiskError(
                f"the log {self._path} can't be opened: {error.strerror}; make its directory writable"
            ) from error
        self._size = os.fstat(self._log).st_size
        self._records, self._last_ms = self._last_record()
        self._pending = bytearray()
        self._cut = False
        self._log_room = self._index_room = 0
        self._hold_room()
        self.lost = 0
        """Bytes that were dropped because the disk stayed full; the log is then cut at `size`."""

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The log file."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes that the log holds: where the host's output goes on."""
        return self._size

    def feed(self, data: bytes, now_ms: int) -> None:
        """Append `data`, which arrived at `now_ms` (epoch milliseconds).

        Raises `DiskError` when the disk takes no more. The rest is kept (up to 16 MiB) and written with a
        later `feed` or with `close`, so a caller may note the error and go on. When even that is not
        enough, the log ends there, as a true beginning of the output, and `lost` counts the rest.
        """
        if self._cut:
            self.lost += len(data)
            return
        if self._pending:
            self._pending += data
            self._flush(now_ms)
        elif data:
            self._write(data, now_ms)

    def unterminated(self) -> bytes:
        """The log's last line so far, if no newline ends it: what a new `MetricScanner` is to be fed first."""
        window = min(self._size, EVENT_BYTES)
        tail = os.pread(self._log, window, self._size - window)
        return tail[tail.rfind(b"\n") + 1 :]

    def close(self) -> None:
        """Write what is kept back and close the files. What the disk still doesn't take is in `lost` then."""
        if self._log < 0:
            return
        if self._pending:
            with contextlib.suppress(DiskError):  # an earlier `feed` raised it already
                self._flush(self._last_ms)
            self.lost += len(self._pending)
        with contextlib.suppress(OSError):  # a disk that can't even cut a file: its space is lost, no byte is
            os.ftruncate(self._log, self._size)
            os.ftruncate(self._index, self._records * RECORD.size)
        os.close(self._log)
        os.close(self._index)
        self._log = self._index = -1

    def _flush(self, now_ms: int) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        self._write(data, now_ms)

    def _write(self, data: bytes, now_ms: int) -> None:
        view = memoryview(data)
        try:
            # First the index: a reader that sees the bytes then finds their time. A record whose bytes
            # never came, after a crash, is outdone by the next one with the same offset.
            self._note(now_ms)
            while view:
                written = os.write(self._log, view)
                self._size += written
                view = view[written:]
            self._hold_room()
        except OSError as error:
            self._keep(bytes(view))
            raise DiskError(
                f"the log {self._path} can't be written: {error.strerror}; free some space, "
                "the job goes on meanwhile"
            ) from error

    def _hold_room(self) -> None:
        end = self._records * RECORD.size
        if self._size + _ROOM // 2 >= self._log_room:
            self._log_room = self._size + _ROOM
            hold_room(self._log, self._size, _ROOM)
        if end + _INDEX_ROOM // 2 >= self._index_room:
            self._index_room = end + _INDEX_ROOM
            hold_room(self._index, end, _INDEX_ROOM)

    def _keep(self, rest: bytes) -> None:
        if len(rest) > _KEEP_BYTES:
            self._cut = True
            self.lost += len(rest)
        else:
            self._pending += rest

    def _note(self, now_ms: int) -> None:
        if now_ms <= self._last_ms and self._records:
            # The same millisecond, or the clock was set back: the index must rise to be searchable.
            return
        os.pwrite(self._index, RECORD.pack(now_ms, self._size), self._records * RECORD.size)
        self._records += 1
        self._last_ms = now_ms

    def _last_record(self) -> tuple[int, int]:
        """How many whole records there are, and the time of the last; a torn one is written over."""
        records = os.fstat(self._index).st_size // RECORD.size
        if not records:
            return 0, 0
        time_ms, _ = RECORD.unpack(os.pread(self._index, RECORD.size, (records - 1) * RECORD.size))
        return records, time_ms
