"""What a host writes, through a pipe that a supervisor reads."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from typing import Final

from harness.errors import EngineError

__all__ = ["Output"]

_READ: Final = 1 << 20


class Output:
    """Hands out each byte once, straight from the pipe, and ends with the host, whoever else may hold the pipe.

    Its descriptors are closed when nobody has it any more, the reader included: another file that got their
    numbers would be read.
    """

    def __init__(self, host: str, pipe: int) -> None:
        """`host`: its name, for messages; `pipe`: the end to read from, which is ours from now on."""
        self._host = host
        self._pipe = pipe
        self._position = 0
        self._lock = threading.Lock()
        self._end_signal, self._end_tell = os.pipe()

    def __del__(self) -> None:
        for descriptor in (self._pipe, self._end_signal, self._end_tell):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def end(self) -> None:
        """The host has ended: what is in the pipe by now is all. To be called once."""
        descriptor, self._end_tell = self._end_tell, -1
        os.close(descriptor)

    def read(self, skip: int = 0) -> Iterator[bytes]:
        """See `Host.output`. A second call goes on where the first stopped.

        Raises:
            EngineError: bytes are asked for that were handed out already; a pipe has them only once.
        """
        with self._lock:
            if 0 < skip < self._position:
                raise EngineError(
                    f"the first {self._position} bytes of {self._host}'s output were read already, not only {skip}"
                )
            skip = max(skip, self._position)
            poll = select.poll()
            poll.register(self._pipe, select.POLLIN)
            poll.register(self._end_signal, select.POLLIN)
            while True:
                ready = dict(poll.poll())
                if not ready.get(self._pipe, 0):
                    return
                chunk = os.read(self._pipe, _READ)
                if not chunk:
                    return
                start, self._position = self._position, self._position + len(chunk)
                if start < skip:
                    chunk = chunk[skip - start :]
                if chunk:
                    yield chunk
