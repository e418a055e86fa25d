"""Disk space that a file has before it needs it."""

from __future__ import annotations

__all__ = ["hold_room"]

_KEEP_SIZE = 1


def hold_room(descriptor: int, start: int, size: int) -> None:
    """Allocate blocks for `size` bytes from `start` on; the file stays as long as it is.

    Where the file system can't, or has no space, nothing happens. `os.ftruncate` to the file's own
    length gives back what wasn't used.
    """
    import ctypes

    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    fallocate(descriptor, _KEEP_SIZE, start, size)
