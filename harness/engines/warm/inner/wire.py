"""Messages between the processes of one host: marshal, and descriptors beside it.

Only `_socket`: a preloaded interpreter may have nothing imported that its children wouldn't have.
"""

from __future__ import annotations

import _socket
import marshal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["pair", "receive", "receive_stream", "send", "send_stream", "wrap"]

_PACKET = 128 * 1024
_MOST_DESCRIPTORS = 250
"""The kernel's own limit is 253."""
_INT = 4


def pair(*, stream: bool = False) -> tuple[Any, Any]:
    """Two connected sockets: for packets, or for messages of any size."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM if stream else _socket.SOCK_SEQPACKET)


def wrap(descriptor: int) -> Any:
    return _socket.socket(fileno=descriptor)


def send(sock: Any, value: Any, descriptors: Sequence[int] = ()) -> None:
    """One packet, whole or not at all; several processes may send on one socket."""
    sock.sendmsg([marshal.dumps(value)], _ancillary(descriptors))


def receive(sock: Any) -> tuple[Any, list[int]]:
    """The next packet. Raises EOFError when nobody holds the other end any more."""
    data, descriptors = _receive(sock, _PACKET)
    return marshal.loads(data), descriptors


def send_stream(sock: Any, value: Any, descriptors: Sequence[int] = ()) -> None:
    """One message of any size, on a socket that only this process sends on."""
    data = marshal.dumps(value)
    data = len(data).to_bytes(8, "little") + data
    sent = sock.sendmsg([data], _ancillary(descriptors))
    if sent < len(data):
        sock.sendall(data[sent:])


def receive_stream(sock: Any) -> tuple[Any, list[int]]:
    """The next such message. Raises EOFError when the other end is closed."""
    descriptors: list[int] = []
    size = int.from_bytes(_exactly(sock, 8, descriptors), "little")
    data = _exactly(sock, size, descriptors)
    return marshal.loads(data), descriptors


def _exactly(sock: Any, size: int, descriptors: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        piece, more = _receive(sock, size - len(data))
        data += piece
        descriptors += more
    return data


def _ancillary(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    if not descriptors:
        return []
    packed = b"".join(number.to_bytes(_INT, sys.byteorder) for number in descriptors)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]


def _receive(sock: Any, size: int) -> tuple[bytes, list[int]]:
    data, extra, _, _ = sock.recvmsg(
        size, _socket.CMSG_SPACE(_MOST_DESCRIPTORS * _INT), _socket.MSG_CMSG_CLOEXEC
    )
    found = []
    for level, kind, packed in extra:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = len(packed) - len(packed) % _INT
            found += [
                int.from_bytes(packed[start : start + _INT], sys.byteorder) for start in range(0, whole, _INT)
            ]
    if not data:
        raise EOFError
    return data, found
