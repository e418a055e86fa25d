"""The supervisor of a warm job stays when its job has ended, with the hosts, and takes the next job.

All that a job goes through is the supervisor's own code; what is here is the time between two jobs: listening,
waiting, and the end of it when nobody comes, memory is short, or the hosts have died.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.engines import Engine, open_engine
from harness.errors import MachineError
from harness.home import VARIABLE, Home
from harness.lifecycle._capacity import slots
from harness.lifecycle._warm import (
    end_idle,
    leave_last_words,
    project,
    read_line,
    short_path,
    warm_sets,
)
from harness.machine import available_memory

if TYPE_CHECKING:
    from harness.engines.warm import Place, WarmEngine
    from harness.lifecycle._supervisor import Supervisor

__all__ = ["Keeper"]

_TICK: Final = 1.0
_RESERVED_SECONDS: Final = 30.0
_FINISH_SECONDS: Final = 20.0
_DEFAULT_SHARE: Final = 0.1
"""Of the machine's memory: what must stay available."""


class Keeper:
    """Engines for the jobs of this process, and what becomes of their hosts."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._version = ""
        self._place: Place | None = None
        self._lock = -1
        self._engine: WarmEngine | None = None
        self._surroundings: dict[str, str] = {}
        self._warm = False
        self._project = ""
        self._seed: str | None = None
        self._idle_seconds = 0.0
        self._floor: int | None = None
        self._socket: socket.socket | None = None
        self._changed = threading.Condition()
        self._state = "busy"
        self._job = ""
        self._finishing = False
        self._next: tuple[dict[str, Any], int] | None = None
        self._why_end: str | None = None
        self._idle_since = 0.0
        self._ended = threading.Event()

    # -------------------------------------------------------------------------- while a job is run

    def engine(self, job: Supervisor) -> Engine:
        """The engine for this job: one that keeps hosts if the job wants them warm.

        Raises:
            MachineError: the engine can't be used.
        """
        self._job = job.name
        local = job.spec.local
        self._warm = local.warm
        if not local.warm:
            return open_engine(job.plan.engine)
        from harness.engines.warm import Expectation, WarmEngine  # not for jobs that end with their hosts

        self._idle_seconds = local.warm_idle
        self._floor = _size(local.warm_memory)
        why = job.cold_reason
        surroundings = _surroundings()
        if self._engine is not None and surroundings != self._surroundings:
            self._engine.discard_quietly()
            why = "the Docker daemon's address changed since the warm host was made"
            self._engine = None
        if self._engine is None:
            inner = open_engine(job.plan.engine)
            if self._place is None and (problem := self._settle_down(job)) is not None:
                job.note(f"no warm host can be kept: {problem}")
                return inner
            assert self._place is not None
            self._engine = WarmEngine(inner, self._place)
        self._surroundings = surroundings
        program = (job.request.get("HyperParameters") or {}).get("sagemaker_program")
        self._engine.expect = Expectation(
            why=why,
            preload=local.preload,
            entry=_plain(program),
            check=job.check_stop,
            room=self._room,
        )
        return self._engine

    def finishing(self) -> None:
        """The job is about to end: who comes for the hosts now needs to wait only for a moment."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def told(self) -> dict[str, Any] | None:
        """How the present job got its hosts; None for one that doesn't want them warm."""
        return dict(self._engine.told) if self._warm and self._engine is not None else None

    def hostname_seed(self, name: str) -> str:
        """What the names of the hosts are made from: hosts that are kept go on with theirs."""
        if self._seed is None:
            self._seed = name
        return self._seed

    def preferred_gpus(self) -> frozenset[str]:
        """The GPUs that the kept hosts have."""
        if self._engine is None:
            return frozenset()
        return frozenset(gpu for gpus in self._engine.fingerprint.get("GPUs", {}).values() for gpu in gpus)

    def _settle_down(self, job: Supervisor) -> str | None:
        """A directory and a socket; why not, when there can't be any."""
        from harness.engines.warm import Place, code_version

        self._version = code_version()
        self._project = project(job.spec, job.plan)
        facts = {"project": self._project, "engine": job.plan.engine, "first": job.name}
        try:
            self._place, self._lock = Place.make(self._home.warm, facts)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o177)
            try:
                with short_path(self._place.socket) as address:
                    self._socket.bind(address)
            finally:
                os.umask(before)
            self._socket.listen(16)
        except OSError as error:
            traceback.print_exc()
            return str(error)
        threading.Thread(target=self._listen, name="warm-listen", daemon=True).start()
        return None

    def _room(self, hosts: int) -> str | None:
        """Why so many hosts more can't be kept, after idle ones of other projects made room; None: they can."""
        assert self._place is not None
        mine = self._place.name
        while True:
            others = [each for each in warm_sets(self._home) if each["id"] != mine]
            count = sum(len(each["hosts"]) for each in others)
            short = self._memory_short()
            if short is None and count + hosts <= max(slots(), hosts):
                return None
            idle = [each for each in others if each["state"] == "idle"]
            if not idle:
                return short or f"{count} warm hosts are busy, and this machine keeps {slots()} at most"
            oldest = max(idle, key=lambda each: float(each["idle_seconds"]))
            if not end_idle(self._home, "another job needed the room", only=str(oldest["id"])):
                return short or "no room could be made among other warm hosts"

    def _memory_short(self) -> str | None:
        total, available = available_memory()
        floor = int(total * _DEFAULT_SHARE) if self._floor is None else self._floor
        if available >= floor:
            return None
        return f"memory was short ({available >> 20:,} MiB available, {floor >> 20:,} MiB must stay)"

    # ------------------------------------------------------------------------------ between two jobs

    @property
    def keeps(self) -> bool:
        """Whether there is anything to stay for."""
        return self._engine is not None and self._engine.keeps

    def stay(self, run: Callable[[str, int], None]) -> None:
        """`run` one job after the other, each with the descriptor of its lock, until it's time to go."""
        try:
            while self.keeps:
                self._rest()
                taken = self._await()
                if taken is None:
                    return
                words, lock = taken
                self._begin(words)
                run(words["job"], lock)
        finally:
            self._go()

    def _rest(self) -> None:
        """Nothing of the last job stays but its hosts."""
        assert self._place is not None
        _write_to(self._place.log)
        gc.collect()

    def _await(self) -> tuple[dict[str, Any], int] | None:
        """The next job and its lock; None when it's time to go."""
        with self._changed:
            self._state, self._idle_since, self._job = "idle", time.monotonic(), ""
            self._changed.notify_all()
            while True:
                if self._next is not None:
                    taken, self._next = self._next, None
                    return taken
                if self._state == "idle":
                    self._why_end = self._why_end or self._time_to_go()
                    if self._why_end is not None:
                        self._state = "ending"
                        return None
                self._changed.wait(_TICK)

    def _time_to_go(self) -> str | None:
        assert self._engine is not None
        assert self._place is not None
        if not self._place.there():
            return "its directory was removed"
        if time.monotonic() - self._idle_since > self._idle_seconds:
            return f"nobody used it for {self._idle_seconds:,.0f} s"
        return self._engine.ended() or self._memory_short()

    def _begin(self, words: dict[str, Any]) -> None:
        """Be what a supervisor that the command line starts would be."""
        os.environ.clear()
        os.environ.update(words["environment"])
        os.environ[VARIABLE] = str(self._home.root)
        os.umask(words["umask"])
        _write_to(Path(words["log"]))

    def _go(self) -> None:
        with self._changed:
            self._state = "ending"
            if self._why_end is None and self._engine is not None:
                self._why_end = self._engine.told.get("discarded")
            self._changed.notify_all()
            unwanted, self._next = self._next, None
        if unwanted is not None:
            os.close(unwanted[1])  # its lock is free: whoever waits for the job starts a supervisor
        try:
            if self._engine is not None:
                self._engine.discard()
            if self._place is not None:
                if self._why_end:
                    leave_last_words(self._home, self._project, self._why_end)
                self._place.remove()
        except (MachineError, OSError):
            traceback.print_exc()  # the next command finds the lock free, and tries again
        finally:
            self._ended.set()
            if self._socket is not None:
                self._socket.close()
            if self._lock >= 0:
                os.close(self._lock)
        sys.stderr.flush()

    # --------------------------------------------------------------------------------- the socket's side

    def _listen(self) -> None:
        assert self._socket is not None
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
                _say(line, {"ended": self._end(str(words["end"]))})
            elif "reserve" in words:
                self._reserve(line, str(words["reserve"]))

    def _reserve(self, line: socket.socket, version: str) -> None:
        with self._changed:
            if version != self._version:
                answer: dict[str, Any] = {"version": self._version}
            elif (state := self._settled()) == "idle":
                self._state = "reserved"
                answer = {"reserved": True}
            elif state == "ending":
                answer = {"gone": self._why_end or "it was just going away"}
            else:
                answer = {"job": self._job or "another job"}
        _say(line, answer)
        if "reserved" not in answer:
            return
        locks: list[int] = []
        try:
            words, locks = read_line(line)
            if words is not None and locks:
                with self._changed:
                    self._job, self._state, self._finishing = str(words["job"]), "busy", False
                    self._next = words, locks.pop(0)
                    self._changed.notify_all()
                _say(line, {"taken": True})
        finally:
            for descriptor in locks:
                os.close(descriptor)
            with self._changed:
                if self._state == "reserved":
                    self._state, self._idle_since = "idle", time.monotonic()

    def _settled(self) -> str:
        """The state, after the last moments of a job whose end is as good as decided."""
        self._changed.wait_for(lambda: self._state != "busy" or not self._finishing, _FINISH_SECONDS)
        return self._state

    def _end(self, why: str) -> bool:
        with self._changed:
            if self._settled() not in ("idle", "ending"):
                return False
            self._why_end = self._why_end or why
            self._changed.notify_all()
        return self._ended.wait(_RESERVED_SECONDS)

    def _status(self) -> dict[str, Any]:
        engine, place = self._engine, self._place
        assert place is not None
        hosts = {} if engine is None else dict(engine.hosts)
        usages = [host.usage() for host in hosts.values()]
        idle = time.monotonic() - self._idle_since if self._state == "idle" else 0.0
        facts = place.facts()
        return {
            "id": place.name,
            "state": self._state,
            "job": self._job or None,
            "engine": facts.get("engine"),
            "first_job": facts.get("first"),
            "hosts": sorted(hosts),
            "memory_bytes": sum(usage.memory_bytes for usage in usages if usage is not None),
            "preloaded": [] if engine is None else engine.told.get("preloaded", []),
            "excluded": {} if engine is None else engine.told.get("excluded", {}),
            "jobs": 0 if engine is None else engine.jobs,
            "idle_seconds": idle,
            "idle_left": max(0.0, self._idle_seconds - idle) if self._state == "idle" else None,
            "fingerprint": {} if engine is None else dict(engine.fingerprint),
            "pid": os.getpid(),
            "made": facts.get("made", 0.0),
        }


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    from harness.plan import parse_size

    return parse_size(text, "[local] warm_memory")


def _say(line: socket.socket, words: dict[str, Any]) -> None:
    line.sendall(json.dumps(words).encode() + b"\n")


def _surroundings() -> dict[str, str]:
    """What decides which daemon is talked to."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("DOCKER_") or name == "XDG_RUNTIME_DIR"
    }


def _write_to(log: Path) -> None:
    """From now on what this process has to say goes to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
    finally:
        os.close(out)


def _plain(program: str | None) -> str | None:
    """A hyperparameter's value, which the SDK sends as JSON."""
    try:
        value = json.loads(program) if program is not None else None
    except ValueError:
        value = program
    return value if isinstance(value, str) else None
