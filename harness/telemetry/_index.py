"""`<host>.idx`: when which byte of `<host>.log` arrived.

Records of 16 bytes, little-endian: arrival in epoch milliseconds, offset of the first byte that arrived
then. Both columns rise, so both can be searched by halving. The index is advice: the log is whole without
it, so a record that a crash cut off or left out costs precision, never bytes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

__all__ = ["RECORD", "Index"]

RECORD = struct.Struct("<qq")


class Index:
    """Reads an index that another process may be appending to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._at = -1
        self._record = (0, 0)
        self._next_offset = -1

    def close(self) -> None:
        """Give the file back; the next question opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.close()

    def arrival(self, offset: int) -> int | None:
        """Epoch milliseconds at which the byte at `offset` arrived; None when no record covers it.

        Offsets asked for in rising order cost no search.
        """
        if self._at >= 0 and self._record[1] <= offset < self._next_offset:
            return self._record[0]
        count = self._count()
        low, high = 0, count
        if self._at >= 0 and offset >= self._record[1]:
            low = self._at
            # Forward readers mostly want the very next record.
            if self._at + 1 < count:
                after = self._read(self._at + 1)
                beyond = self._read(self._at + 2)[1] if self._at + 2 < count else None
                if after[1] <= offset and (beyond is None or offset < beyond):
                    return self._keep(self._at + 1, count)
        while low < high:
            middle = (low + high) // 2
            if self._read(middle)[1] <= offset:
                low = middle + 1
            else:
                high = middle
        return self._keep(low - 1, count) if low else None

    def offset_at(self, time_ms: int) -> int | None:
        """Offset of the first byte that arrived at `time_ms` or later; None when nothing did."""
        low, high = 0, self._count()
        count = high
        while low < high:
            middle = (low + high) // 2
            if self._read(middle)[0] < time_ms:
                low = middle + 1
            else:
                high = middle
        return self._read(low)[1] if low < count else None

    def _keep(self, at: int, count: int) -> int:
        self._at, self._record = at, self._read(at)
        # The last record's reach is not known yet: it must be looked up again.
        self._next_offset = self._read(at + 1)[1] if at + 1 < count else -1
        return self._record[0]

    def _count(self) -> int:
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return 0
        return os.fstat(self._fd).st_size // RECORD.size

    def _read(self, at: int) -> tuple[int, int]:
        assert self._fd is not None
        time_ms, offset = RECORD.unpack(os.pread(self._fd, RECORD.size, at * RECORD.size))
        return time_ms, offset
