"""Warm hosts as other processes see them: who keeps some for a job, what there is, an end to it.

A set of warm hosts belongs to a process that was the supervisor of the job that made it (`_keeper`). It listens
on a socket in the set's directory; a line of JSON is asked, a line of JSON answers. A job is handed over with
its lock, so that its owner is never in doubt: the lock goes with the descriptor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from harness.engines.warm import KILLED, Place, code_version, places, take_last_words
from harness.errors import HarnessError
from harness.home import Home
from harness.model import Plan, Spec
from harness.store import Store

__all__ = [
    "Keepers",
    "WarmSet",
    "clean_dead",
    "end_idle",
    "project",
    "read_line",
    "recover_warm",
    "warm_sets",
]

_ANSWER_SECONDS: Final = 5.0
_END_SECONDS: Final = 120.0
_SEIZE_SECONDS: Final = 1.0
_MOST: Final = 1 << 20
_LOST: Final = "the warm host was lost while the job was prepared"
_CHANGED: Final = "the harness itself changed"
_ORDER: Final = ("other", "busy", "gone", "silent", "words")
"""Of several reasons why a job is cold: which is told."""

WarmSet = dict[str, Any]
"""What a keeper tells of itself; keys as in `harness jobs --warm --json`."""


def project(spec: Spec, plan: Plan) -> str:
    """What a set of warm hosts is kept for: the next job of the same project finds it by this name."""
    program = (spec.request.get("HyperParameters") or {}).get("sagemaker_program")
    source = next((str(upload.path.absolute()) for upload in spec.uploads if upload.kind == "source"), None)
    told = json.dumps([plan.engine, source or [spec.origin, plan.image], program])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


class Keepers:
    """Looks for a process that keeps hosts for a job, and reserves it until the `with` is left.

    `why` says why there is none, as the end of "cold: …".
    """

    def __init__(self, home: Home, spec: Spec, plan: Plan) -> None:
        self._line: socket.socket | None = None
        self.why = ""
        whys: dict[str, str] = {}
        key = project(spec, plan)
        for place in places(home.warm):
            if place.facts().get("project") != key:
                continue
            answer = self._reserve(place)
            if answer is None:
                whys = {**_silence(place), **whys}
            elif answer.get("reserved"):
                return
            elif answer.get("version"):
                _end(place, _CHANGED)
                whys["other"] = f"{_CHANGED} since the warm host was made"
            elif answer.get("gone"):
                whys["gone"] = f"the warm host was gone: {answer['gone']}"
            else:
                whys["busy"] = f"the warm host was busy with {answer.get('job')}"
        if (words := take_last_words(home, key)) is not None:
            whys["words"] = f"the warm host was gone: {words}"
        self.why = next((whys[each] for each in _ORDER if each in whys), "there was no warm host for it")

    def _reserve(self, place: Place) -> dict[str, Any] | None:
        line = place.connect(_ANSWER_SECONDS)
        if line is None:
            return None
        try:
            line.sendall(json.dumps({"reserve": code_version()}).encode() + b"\n")
            answer = read_line(line)[0]
        except (OSError, ValueError):
            answer = None
        if answer is not None and answer.get("reserved"):
            self._line = line
        else:
            line.close()
        return answer

    def __enter__(self) -> Keepers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()

    def take_over(self, home: Home, name: str, log: Path, lock: int) -> bool:
        """Give the job, whose lock is the descriptor `lock`, to the process that was found; False without one.

        Should that die later, the lock is free again, and the next command starts a supervisor.
        """
        if self._line is None:
            return False
        if not self._hand_over(name, log, lock):
            with Store(home) as store:
                store.merge_result(name, warm={"reused": False, "kept": False, "why": _LOST})
            return False
        return True

    def _hand_over(self, name: str, log: Path, lock: int) -> bool:
        assert self._line is not None
        umask = os.umask(0)
        os.umask(umask)
        words = {
            "job": name,
            "log": str(log),
            "environment": dict(os.environ),
            "umask": umask,
        }
        data = json.dumps(words).encode() + b"\n"
        try:
            sent = socket.send_fds(self._line, [data], [lock])
            if sent < len(data):
                self._line.sendall(data[sent:])
            # It takes nothing before it has answered.
            return read_line(self._line)[0] is not None
        except TimeoutError:
            return True  # it may still do so: nobody else may be given the lock now
        except (OSError, ValueError):
            return False


def _silence(place: Place) -> dict[str, str]:
    """Why a set's process gave no answer."""
    if place.dead():
        return {"gone": f"the warm host was gone: {KILLED}"}
    if not place.there():
        return {"gone": "the warm host was gone: it was just going away"}
    return {"silent": f"the process {place.facts().get('pid')}, which keeps the warm host, doesn't answer"}


def warm_sets(home: Home) -> list[WarmSet]:
    """What is kept now, by age. One whose process doesn't answer has the state "silent"."""
    answers = [_ask(place, {"status": True}) or _silent(place) for place in places(home.warm)]
    return sorted((answer for answer in answers if answer is not None), key=lambda each: each["made"])


def _silent(place: Place) -> WarmSet | None:
    """What the directory tells of a set whose process doesn't; None when that is dead, or the set just going."""
    facts = place.facts()
    if not facts or place.dead():
        return None
    return {
        "id": place.name,
        "state": "silent",
        "job": None,
        "engine": facts["engine"],
        "first_job": facts["first"],
        "hosts": sorted(path.name for path in (place.root / "hosts").glob("*")),
        "memory_bytes": 0,
        "preloaded": [],
        "excluded": {},
        "jobs": 0,
        "idle_seconds": 0.0,
        "idle_left": None,
        "fingerprint": {},
        "pid": facts["pid"],
        "made": facts["made"],
    }


def end_idle(home: Home, why: str, *, only: str | None = None) -> list[str]:
    """End the sets that no job is using, or `only` that one of them; their names."""
    ended = []
    for place in places(home.warm):
        if (only is not None and place.name != only) or place.dead():
            continue
        if _end(place, why) or not place.there():  # it may be gone before it can answer
            ended.append(place.name)
    return ended


def _end(place: Place, why: str) -> bool:
    """Ask its process to end the set; False when a job has it, or the process doesn't answer."""
    line = place.connect(_ANSWER_SECONDS)
    if line is None:
        return False
    with line:
        try:
            line.sendall(json.dumps({"end": why}).encode() + b"\n")
            if read_line(line)[0] is None:  # it has heard
                return False
            line.settimeout(_END_SECONDS)
            answer, _ = read_line(line)
        except (OSError, ValueError):
            return False
    return bool((answer or {}).get("ended"))


def clean_dead(home: Home) -> list[str]:
    """Remove what killed keepers left; one sentence for each that can't be removed now."""
    from harness.engines import open_engine
    from harness.engines.warm import clean_up

    problems = []
    for place in places(home.warm):
        if not place.dead():
            continue
        with place.seized(_SEIZE_SECONDS) as mine:
            if not mine:
                continue  # somebody else is about it
            try:
                clean_up(place, open_engine(place.facts()["engine"]))
            except (HarnessError, OSError) as error:
                problems.append(f"what is left of the warm host {place.name} can't be removed: {error}")
    return problems


def recover_warm(home: Home) -> None:
    """Have what killed keepers left removed, by a process that nobody waits for; quick when there is nothing."""
    if not any(place.dead() for place in places(home.warm)):
        return
    # A new interpreter: this one may have threads, or a store open.
    command = [sys.executable, "-m", "harness.lifecycle", str(home.root)]
    with open(os.devnull, "r+b") as null, contextlib.suppress(OSError):  # noqa: PTH123
        subprocess.Popen(
            [sys.executable, "-c", _DETACH, *command],
            stdin=null,
            stdout=null,
            stderr=null,
            cwd="/",
            start_new_session=True,
        ).wait()


_DETACH: Final = "import os, sys\nif os.fork() == 0:\n    os.execv(sys.argv[1], sys.argv[1:])"


def read_line(line: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next line of JSON, and the descriptors that came along; None at the end. Raises OSError, ValueError."""
    data, descriptors = b"", list[int]()
    while not data.endswith(b"\n"):
        piece, received, _, _ = socket.recv_fds(line, _MOST, 4)
        descriptors += received
        if not piece:
            return None, descriptors
        data += piece
    told: dict[str, Any] = json.loads(data)
    return told, descriptors


def _ask(place: Place, words: Mapping[str, Any]) -> dict[str, Any] | None:
    line = place.connect(_ANSWER_SECONDS)
    if line is None:
        return None
    with line:
        try:
            line.sendall(json.dumps(words).encode() + b"\n")
            return read_line(line)[0]
        except (OSError, ValueError):
            return None
