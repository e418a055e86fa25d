"""RecordIO as SageMaker wraps it around what has no frame of its own (contract: E15, E16)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["LARGEST", "frames", "padding"]

_MAGIC: Final = 0xCED7230A
LARGEST: Final = (1 << 29) - 4
"""Bytes of the largest part: the length has 29 bits, and only the last part of a record may need padding."""
_WHOLE, _FIRST, _MIDDLE, _LAST = 0, 1, 2, 3


def frames(length: int) -> Iterator[tuple[bytes, int]]:
    """For a record of `length` bytes: what goes before each of its parts, and that part's length.

    One part, unless the length doesn't fit into the header: then the continuation flags say which parts
    make up the record, as AWS's own reader puts them together.
    """
    if length <= LARGEST:
        yield _header(_WHOLE, length), length
        return
    done = 0
    while done < length:
        part = min(LARGEST, length - done)
        flag = _FIRST if not done else _LAST if done + part == length else _MIDDLE
        yield _header(flag, part), part
        done += part


def padding(length: int) -> bytes:
    """The zeros after a record of `length` bytes."""
    return bytes(-length % 4)


def _header(flag: int, length: int) -> bytes:
    return struct.pack("<II", _MAGIC, flag << 29 | length)
