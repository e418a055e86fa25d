"""Frames between the keeper and a warm host's first process: length (4 bytes, little-endian), then JSON.

Descriptors travel with the first byte of a frame. Python 3.8 and newer, its standard library only.
"""

from __future__ import annotations

import array
import json
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["receive", "send"]

_MOST_DESCRIPTORS = 8


def send(sock: socket.socket, value: Any, descriptors: Sequence[int] = ()) -> None:
    """One frame, whole. Raises OSError when the other end is gone."""
    data = json.dumps(value).encode("utf-8", "surrogateescape")
    data = len(data).to_bytes(4, "little") + data
    if descriptors:
        packed = array.array("i", descriptors)
        sent = sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
        data = data[sent:]
    if data:
        sock.sendall(data)


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """The next frame, and the descriptors that came with it. Raises EOFError when the other end is closed."""
    descriptors: list[int] = []
    size = int.from_bytes(_read(sock, 4, descriptors), "little")
    return json.loads(_read(sock, size, descriptors)), descriptors


def _read(sock: socket.socket, size: int, descriptors: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
        piece, extra, _, _ = sock.recvmsg(size - len(data), room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(packed[: len(packed) - len(packed) % found.itemsize])
                descriptors += found
        if not piece:
            raise EOFError
        data += piece
    return data
