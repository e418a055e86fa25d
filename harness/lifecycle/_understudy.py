"""A supervisor that is begun before its job: it learns its part while the job is being planned.

What a supervisor imports takes as long as reading and planning a job does, and has nothing to do with which
job it is. So the command line forks it first thing. What it is given later is the job's name and its lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from harness.engines import load_engine
from harness.home import Home
from harness.lifecycle._detach import fork, stay
from harness.machine import Sandbox, remember, sandbox

__all__ = ["Understudy"]

_PART: Final = ("harness.lifecycle._supervisor", "harness.telemetry", "hashlib", "random")
"""What every supervisor imports until a script starts, early or late."""
_MOST: Final = 1 << 16


class Understudy:
    """A process that waits for a job to supervise; it goes when the `with` is left without one.

    A process with threads can't be forked safely: there it takes no part, and `spawn` starts a supervisor
    in its own way.
    """

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        if threading.active_count() > 1:
            return
        ours, theirs = socket.socketpair()
        try:
            fork(lambda: _wait(theirs))
        except OSError:
            ours.close()  # not even a process can be had: whoever needs one will say so
        else:
            self._line = ours
        finally:
            theirs.close()

    def __enter__(self) -> Understudy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()

    def prepare(self, engine: str) -> None:
        """The job will probably need this engine ("auto": nobody knows yet)."""
        self._tell({"engine": engine})

    def take_over(self, home: Home, name: str, log: Path, lock: int) -> bool:
        """Give it the job, whose lock is the descriptor `lock`; False when it isn't there.

        Should it die later, the lock is free again, and the next command starts another supervisor.
        """
        found = dataclasses.asdict(sandbox())  # planned with it a moment ago: no need to try it again
        return self._tell({"home": str(home.root), "job": name, "log": str(log), "sandbox": found}, lock)

    def _tell(self, words: Mapping[str, object], *descriptors: int) -> bool:
        if self._line is None:
            return False
        try:
            socket.send_fds(self._line, [json.dumps(words).encode() + b"\n"], list(descriptors))
        except OSError:
            return False
        return True


def _wait(line: socket.socket) -> None:
    line = socket.socket(fileno=stay(os.devnull, line.detach()))
    for module in _PART:
        importlib.import_module(module)
    said = b""
    locks: list[int] = []
    while True:
        data, received, _, _ = socket.recv_fds(line, _MOST, 1)
        locks += received
        if not data:
            return  # nothing came of it
        *sentences, said = (said + data).split(b"\n")
        for words in map(json.loads, sentences):
            if "job" in words:
                line.detach()  # `stay` closes it
                _supervise(words, locks[0])
                return
            # What is wrong with the engine is for the supervisor to find, and to tell.
            with contextlib.suppress(Exception):
                load_engine(words["engine"])


def _supervise(words: Mapping[str, Any], lock: int) -> None:
    from harness.lifecycle._supervisor import supervise

    remember(Sandbox(**words["sandbox"]))
    supervise(Home(Path(words["home"])), words["job"], stay(words["log"], lock))
