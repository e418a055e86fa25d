"""Docker's multiplexed stream: 8-byte headers that say stdout or stderr and how long, then the bytes."""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct(">BxxxL")
STDOUT: Final = 1
STDERR: Final = 2
DAEMON: Final = 3
"""Not the container's: the daemon tells that the stream broke."""

Piece = tuple[int, bytes]


class Demultiplexer:
    """Takes the stream as it is read, gives the payload at once, whole frames or not.

    A frame may be cut anywhere by a read, its header too. Payload is never held back to complete a
    frame: a line of 100 MB passes through in the pieces in which it came.
    """

    def __init__(self) -> None:
        self._stream = 0
        self._left = 0
        self._header = b""

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces in `data`, in order, neighbours of one stream joined."""
        pieces: list[tuple[int, list[bytes]]] = []
        at, end, unpack = 0, len(data), HEADER.unpack_from
        if self._header:
            at = min(HEADER.size - len(self._header), end)
            self._header += data[:at]
            if len(self._header) < HEADER.size:
                return []
            self._stream, self._left = unpack(self._header)
            self._header = b""
        stream, left = self._stream, self._left
        while at < end:
            if left == 0:
                if end - at < HEADER.size:
                    self._header = data[at:]
                    break
                stream, left = unpack(data, at)
                at += HEADER.size
                continue
            size = min(left, end - at)
            if pieces and pieces[-1][0] == stream:
                pieces[-1][1].append(data[at : at + size])
            else:
                pieces.append((stream, [data[at : at + size]]))
            at += size
            left -= size
        self._stream, self._left = stream, left
        return [
            (number if number in (STDERR, DAEMON) else STDOUT, b"".join(parts)) for number, parts in pieces
        ]
