"""The FIFOs of one channel on one host: `<channel>_<epoch>`, one after the other (contract: E11, E12)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from harness.channels._pace import Pace
from harness.errors import ClientError

__all__ = ["Writer", "fifo_name", "make_fifo", "open_epoch"]

_SIZE: Final = 1 << 20
"""What a FIFO holds, if this user may have so much: of a slow reader's data no more is ever underway."""
_MOST: Final = 8 << 20
_LOOK: Final = (0.0005, 0.1)
"""Seconds between two looks whether the reader has closed: at first, and when it takes its time."""
_NO_SPLICE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def fifo_name(channel: str, epoch: int) -> str:
    return f"{channel}_{epoch}"


def make_fifo(directory: int, name: str) -> None:
    """The FIFO `name` in an open directory; nothing when it is there. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(name, 0o644, dir_fd=directory)
        os.chmod(name, 0o644, dir_fd=directory)  # contract: B6, whatever the umask


class Writer:
    """The writing end of a FIFO. Methods raise BrokenPipeError when the reader has closed it."""

    def __init__(self, descriptor: int, pace: Pace) -> None:
        self._descriptor = descriptor
        self._pace = pace
        with contextlib.suppress(OSError):  # a user may have used up what pipes may hold in all
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _SIZE)

    def data(self, data: bytes | memoryview) -> None:
        """All of `data`, as fast as the reader takes it."""
        view = memoryview(data)
        while view:
            piece = view[: self._pace.piece]
            self._pace.take(len(piece))
            view = view[len(piece) :]
            while piece:
                piece = piece[os.write(self._descriptor, piece) :]

    def file(self, source: int, limit: int | None = None) -> int:
        """What is left in an open file, or `limit` bytes of it, without copying it; the bytes that were sent."""
        done = 0
        while limit is None or done < limit:
            want = min(_MOST if limit is None else limit - done, self._pace.piece or _MOST)
            try:
                count = os.splice(source, self._descriptor, want)
            except OSError as error:
                if error.errno not in _NO_SPLICE:
                    raise
                data = os.read(source, min(want, _SIZE))  # some file systems can't
                self.data(data)
                count = len(data)
            else:
                self._pace.take(count)
            if not count:
                break
            done += count
        return done


@contextlib.contextmanager
def open_epoch(directory: int, channel: str, epoch: int, pace: Pace) -> Iterator[Writer]:
    """The FIFO of that epoch, once somebody reads it; on leaving it is closed and gone, and no reader has it open.

    `directory`: a descriptor of the host's /opt/ml/input/data, wherever that lies. A reader that closes early
    ends the `with` in silence. Raises ClientError when the script put something else in the FIFO's place.
    """
    name = fifo_name(channel, epoch)
    make_fifo(directory, name)
    # Looked at before it is opened: a script could put a link to a file of ours in its place.
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISFIFO(os.fstat(place).st_mode):
            raise ClientError(f"the script put something else in the place of /opt/ml/input/data/{name}")
        path = f"/proc/self/fd/{place}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # until there is a reader
        try:
            with contextlib.suppress(BrokenPipeError):
                yield Writer(descriptor, pace)
        except BaseException:
            # Not closed: the reader must not take a stream that broke off for one that ended.
            descriptor = -1
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        _await_close(path)
    finally:
        os.close(place)


def _await_close(path: str) -> None:
    """Until no process has the FIFO open for reading (contract: E12)."""
    pause, longest = _LOOK
    while True:
        try:
            # A reader that waits in between sees nothing of it: the end comes when this is closed again.
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        time.sleep(pause)
        pause = min(longest, pause * 1.5)
