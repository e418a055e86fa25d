"""Ctrl-C while somebody looks at a job: the first stops the job, the second kills it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

__all__ = ["Interrupts"]


class Interrupts:
    """Lets Ctrl-C raise as usual until the job is about to go on record, and counts it from there on.

    So nothing is on record that nobody stops: what is interrupted before leaves no job, and a job that is
    interrupted is stopped, however many Ctrl-C come and however close together.
    """

    def __init__(self) -> None:
        self.count = 0
        self.told = 0
        """How many of them the job was told. One that comes after the kill leaves the command line."""
        self._counting = False

    def begin(self) -> None:
        """From now on count."""
        self._counting = True

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self._counting or self.told > 1:
            raise KeyboardInterrupt
        self.count += 1
