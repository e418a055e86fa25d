"""Reads a host's log as the events that CloudWatch Logs would hold."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import DiskError
from harness.telemetry._index import Index

__all__ = ["EVENT_BYTES", "LogEvent", "LogReader", "stream_name"]

EVENT_BYTES: Final = 256 << 10
"""A longer line becomes several events (contract: I20)."""

_BLOCK: Final = 1 << 20
# contract: I4: control characters are escaped as `#` and three octal digits, C1 ones too: a terminal obeys them.
_ESCAPES: Final = {code: f"#{code:03o}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def stream_name(job_name: str, host: str, started: float) -> str:
    """The log stream of one host's run, `<job>/<host>-<epoch seconds>` (contract: I2, I3)."""
    return f"{job_name}/{host}-{int(started)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEvent:
    """One line of a log, or a 256 KiB piece of a longer one."""

    timestamp_ms: int
    """When its last byte arrived."""
    message: str
    """For display: control characters escaped, invalid UTF-8 replaced, without the newline (contract: I4)."""
    offset: int
    """Of its first byte in the log file."""
    end: int
    """Where the next event begins: the token to go on from."""


class LogReader:
    """Reads `<directory>/<host>.log`, which another process may be appending to.

    A token is a byte offset; tokens that a reader gave out stay good for the life of the log. A log that
    isn't there yet reads as an empty one.
    """

    def __init__(self, directory: Path, host: str) -> None:
        self._path = directory / f"{host}.log"
        self._index = Index(directory / f"{host}.idx")
        self._fd: int | None = None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the files back; the next call opens them again."""
        self._index.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def size(self) -> int:
        """Bytes in the log now."""
        return os.fstat(self._fd).st_size if self._open() and self._fd is not None else 0

    def read(
        self, start: int = 0, *, limit: int = 10_000, max_bytes: int = _BLOCK, final: bool = False
    ) -> tuple[list[LogEvent], int]:
        """The events from token `start` on, and the token to go on from. Never waits.

        A last line without its newline is held back until it has one, or until `final` says that nothing
        more will come. At most `limit` events and about `max_bytes` of log are read.
        """
        events: list[LogEvent] = []
        token = start
        spent = 0
        while len(events) < limit and spent < max_bytes:
            data = self._bytes(token, max(min(max_bytes - spent, _BLOCK), EVENT_BYTES + 1))
            at_end = final and token + len(data) >= self.size
            token, taken = self._cut(data, token, limit, at_end, events)
            spent += taken
            if not taken:
                break
        return events, token

    def lines(
        self,
        start: int = 0,
        *,
        follow: Callable[[], bool] | None = None,
        poll: float = 0.03,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> Iterator[LogEvent]:
        """Every event from token `start` on, arrived in `start_ms` ≤ t < `end_ms` where given.

        With `follow`, waits for more (asking every `poll` seconds) as long as `follow()` says that the
        writer still runs. An unterminated last line comes last.
        """
        if start_ms is not None:
            start = max(start, self.seek(start_ms))
        while True:
            running = follow is not None and follow()
            events, following = self.read(start, final=not running)
            for event in events:
                if end_ms is not None and event.timestamp_ms >= end_ms:
                    return
                if start_ms is None or event.timestamp_ms >= start_ms:
                    yield event
            if following != start:
                start = following
            elif running:
                time.sleep(poll)
            else:
                return

    def tail(self, count: int, before: int | None = None) -> int:
        """The token of the last `count` lines (of those before token `before`); reads only those lines."""
        end = self.size if before is None else before
        if count <= 0:
            return end
        # The newline that ends the last line is not the one that starts it.
        position = end - 1 if end and self._bytes(end - 1, 1) == b"\n" else end
        while position > 0:
            start = max(0, position - _BLOCK)
            block = self._bytes(start, position - start)
            found = block.count(b"\n")
            if found >= count:
                at = len(block)
                for _ in range(count):
                    at = block.rindex(b"\n", 0, at)
                return start + at + 1
            count -= found
            position = start
        return 0

    def read_back(self, end: int, *, limit: int = 10_000) -> tuple[list[LogEvent], int]:
        """The last `limit` events before token `end`, in order, and the token to go back from."""
        start = self.tail(limit, before=end)
        events, token = self.read(start, limit=1 << 62, max_bytes=max(0, end - start), final=True)
        events = [event for event in events if event.end <= end][-limit:]
        return events, events[0].offset if events else min(end, token)

    def seek(self, time_ms: int) -> int:
        """The token of the first line that arrived at `time_ms` (epoch milliseconds) or later."""
        offset = self._index.offset_at(time_ms)
        if offset is None:
            return self.size
        return self.tail(1, before=offset) if offset and self._bytes(offset - 1, 1) != b"\n" else offset

    def _cut(
        self, data: bytes, token: int, limit: int, at_end: bool, events: list[LogEvent]
    ) -> tuple[int, int]:
        """Append the events of `data`, which starts at `token`; return the token after them and the bytes used."""
        at = 0
        while len(events) < limit:
            newline = data.find(b"\n", at, at + EVENT_BYTES + 1)
            if newline >= 0:
                stop, following = newline, newline + 1
            elif len(data) - at > EVENT_BYTES:
                stop = following = _character_start(data, at + EVENT_BYTES)
            elif at_end and at < len(data):
                stop = following = len(data)
            else:
                break
            events.append(self._event(data[at:stop], token + at, token + following))
            at = following
        return token + at, at

    def _event(self, raw: bytes, offset: int, end: int) -> LogEvent:
        message = raw.decode("utf-8", "replace")
        if not message.isprintable():
            message = message.translate(_ESCAPES)
        arrived = self._index.arrival(end - 1)
        if arrived is None:
            arrived = int(self._path.stat().st_mtime * 1000)
        return LogEvent(timestamp_ms=arrived, message=message, offset=offset, end=end)

    def _open(self) -> bool:
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise DiskError(
                    f"the log {self._path} can't be read: {error.strerror}; see whom it belongs to"
                ) from error
        return True

    def _bytes(self, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, offset) if self._open() and self._fd is not None else b""


def _character_start(data: bytes, at: int) -> int:
    """`at`, or up to three bytes earlier, so that no UTF-8 character is cut in two."""
    for back in range(4):
        if data[at - back] & 0xC0 != 0x80:
            return at - back
    return at
