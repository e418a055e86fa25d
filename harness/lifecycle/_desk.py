"""Where other processes ask for warm hosts: the socket of the process that keeps them, and whose turn it is.

    busy       with the job of that name: the process is its supervisor
    idle       anybody may reserve the hosts, or end them
    reserved   for a process that prepares a job of its own; the line to it holds the reservation
    ending     nobody gets them any more

A question is a line of JSON, and so is its answer (`_warm` asks). What is said with "reserve" is followed by the
job itself, with the descriptor of its lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from harness.lifecycle._warm import read_line

__all__ = ["Desk"]

_TICK: Final = 1.0
_RESERVED_SECONDS: Final = 300.0
"""How long a process may take to prepare the job for which it reserved the hosts."""
_PATIENCE: Final = 4.0
"""How long who wants the hosts is let wait for a job that is over to let go of them: less than he waits."""
_FINISH_SECONDS: Final = 20.0
_END_SECONDS: Final = 90.0
"""The same for who wants their end, and how long that may take."""


class Desk:
    """Open as long as there are hosts. Safe to use from several threads."""

    def __init__(
        self, listener: socket.socket, *, version: str, job: str, status: Callable[[], dict[str, Any]]
    ) -> None:
        """`listener`: closed at the end. `version`: that of this process's code; others get nothing but an end."""
        self._version = version
        self._status = status
        self._changed = threading.Condition()
        self._state = "busy"
        self._job = job
        self._over = False
        self._next: tuple[dict[str, Any], int] | None = None
        self._why_end: str | None = None
        self._idle_since = 0.0
        self._gone = threading.Event()
        self._socket = listener
        threading.Thread(target=self._listen, name="warm-listen", daemon=True).start()

    # ------------------------------------------------------------------------- for the process itself

    def job_is_over(self) -> None:
        """Who comes for the hosts now needs to wait only for a moment. Call it before the job is on record as
        ended: from then on nobody may be told that it has them."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def next_job(self, time_to_go: Callable[[], str | None]) -> tuple[dict[str, Any], int] | None:
        """What was said of the next job, and the descriptor of its lock; None when it's time to go.

        `time_to_go` is asked once a second as long as the hosts are idle.
        """
        with self._changed:
            self._become_idle()
            while True:
                if self._next is not None:
                    taken, self._next = self._next, None
                    return taken
                if self._state == "idle":
                    self._why_end = self._why_end or time_to_go()
                    if self._why_end is not None:
                        self._state = "ending"
                        return None
                self._changed.wait(_TICK)

    def leave(self, why: str | None) -> str | None:
        """From now on nobody gets the hosts; why, as those who ask are told."""
        with self._changed:
            self._state = "ending"
            self._why_end = self._why_end or why
            self._changed.notify_all()
            unwanted, self._next = self._next, None
        if unwanted is not None:
            os.close(unwanted[1])  # its lock is free: whoever waits for the job starts a supervisor
        return self._why_end

    def close(self) -> None:
        """The hosts are gone, or will be removed by somebody else."""
        self._gone.set()
        self._socket.close()

    def facts(self) -> dict[str, Any]:
        """`state`, `job`, and for how long it has been idle, in seconds."""
        return {
            "state": self._state,
            "job": self._job or None,
            "idle_seconds": self.idle_seconds if self._state == "idle" else 0.0,
        }

    @property
    def idle_seconds(self) -> float:
        return time.monotonic() - self._idle_since

    def _become_idle(self) -> None:
        self._state, self._idle_since, self._job = "idle", time.monotonic(), ""
        self._changed.notify_all()

    # ------------------------------------------------------------------------------ for those who ask

    def _listen(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), name="warm-serve", daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError, ValueError):
            line.settimeout(_RESERVED_SECONDS)
            words, _ = read_line(line)
            if words is None:
                return
            if "status" in words:
                _say(line, self._status())
            elif "end" in words:
                _say(line, {"heard": True})
                _say(line, {"ended": self._end(str(words["end"]))})
            elif "reserve" in words:
                self._reserve(line, str(words["reserve"]))

    def _reserve(self, line: socket.socket, version: str) -> None:
        with self._changed:
            if version != self._version:
                answer: dict[str, Any] = {"version": self._version}
                self._why_end = (
                    self._why_end or "the harness itself changed"
                )  # after the job that has them now
                self._changed.notify_all()
            elif (state := self._settled(_PATIENCE)) == "idle":
                self._state = "reserved"
                answer = {"reserved": True}
            elif state == "ending":
                answer = {"gone": self._why_end or "it was just going away"}
            else:
                answer = {"job": self._job or "another job"}
        if "reserved" not in answer:
            _say(line, answer)
            return
        locks: list[int] = []
        try:
            _say(line, answer)
            words, locks = read_line(line)
            if words is not None and locks:
                # Who hears nothing looks for another supervisor. Who doesn't listen any more doesn't.
                with contextlib.suppress(OSError):
                    _say(line, {"taken": True})
                with self._changed:
                    self._job, self._state, self._over = str(words["job"]), "busy", False
                    self._next = words, locks.pop(0)
                    self._changed.notify_all()
        finally:
            for descriptor in locks:
                os.close(descriptor)
            with self._changed:
                if self._state == "reserved":
                    self._become_idle()

    def _settled(self, seconds: float) -> str:
        """The state, after the last moments of a job that is over."""
        self._changed.wait_for(lambda: self._state != "busy" or not self._over, seconds)
        return self._state

    def _end(self, why: str) -> bool:
        with self._changed:
            if self._settled(_FINISH_SECONDS) not in ("idle", "ending"):
                return False
            self._why_end = self._why_end or why
            self._changed.notify_all()
        return self._gone.wait(_END_SECONDS)


def _say(line: socket.socket, words: dict[str, Any]) -> None:
    line.sendall(json.dumps(words).encode() + b"\n")
