"""The failure file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from harness.objects import open_beneath

__all__ = ["read_failure"]

_LIMIT: Final = 4 * 1024
"""1,024 characters of UTF-8 (contract: F21)."""


def read_failure(ml: Path) -> bytes | None:
    """The beginning of `output/failure` below the host's /opt/ml: at least its first 1,024 characters.

    None when the script left none, or something else than a regular file of its own there: a FIFO is not
    waited for and a link is not followed, since it leads to this machine's files, not the host's.
    """
    try:
        fd = open_beneath(ml, "output/failure")
    except OSError:  # absent, a link, a socket, a directory in the way: no failure file
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return os.read(fd, _LIMIT)
    finally:
        os.close(fd)
