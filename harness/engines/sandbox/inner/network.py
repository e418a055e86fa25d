"""A network of the job's own: loopback, and an interface that bears the expected name. By rtnetlink."""

from __future__ import annotations

import errno
import os
import socket
import struct

_RTM_NEWLINK = 16
_RTM_NEWADDR = 20
_REQUEST_ACK = 0x1 | 0x4
_CREATE_EXCLUSIVE = 0x400 | 0x200
_IFLA_IFNAME = 3
_IFLA_LINKINFO = 18
_IFLA_INFO_KIND = 1
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFF_UP = 1
_NESTED = 0x8000

_KINDS = ("dummy", "bridge", "veth")
"""Kinds of link that can stand for a network card; which of them a kernel has differs."""


def set_up(interface: str, addresses: list[str]) -> str:
    """Bring loopback up, make `interface` with `addresses` (/16). The interface that bears them: `lo`
    where the kernel lets us make none."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        _up(kernel, socket.if_nametoindex("lo"))
        name = interface if interface == "lo" or _add_link(kernel, interface) else "lo"
        index = socket.if_nametoindex(name)
        for address in addresses:
            raw = socket.inet_aton(address)
            _request(
                kernel,
                _RTM_NEWADDR,
                _CREATE_EXCLUSIVE,
                struct.pack("=BBBBI", socket.AF_INET, 16, 0, 0, index)
                + _attribute(_IFA_LOCAL, raw)
                + _attribute(_IFA_ADDRESS, raw),
            )
        _up(kernel, index)
    return name


def _add_link(kernel: socket.socket, name: str) -> bool:
    for kind in _KINDS:
        body = (
            struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
            + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
            + _attribute(_IFLA_LINKINFO | _NESTED, _attribute(_IFLA_INFO_KIND, kind.encode()))
        )
        try:
            _request(kernel, _RTM_NEWLINK, _CREATE_EXCLUSIVE, body)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.ENODEV, errno.EINVAL):
                continue
            raise
        return True
    return False


def _up(kernel: socket.socket, index: int) -> None:
    _request(kernel, _RTM_NEWLINK, 0, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))


def _attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + b"\0" * (-size % 4)


def _request(kernel: socket.socket, kind: int, flags: int, body: bytes) -> None:
    kernel.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK | flags, 1, 0) + body)
    answer = kernel.recv(65536)
    (code,) = struct.unpack_from("=i", answer, 16)
    if code:
        raise OSError(-code, f"{os.strerror(-code)} in a network request")
