"""The supervisor of a warm job stays when its job has ended, with the hosts, and takes the next job.

All that a job goes through is the supervisor's own code; what is here is the time between two jobs: waiting, and
the end of it when nobody comes, memory is short, or the hosts have died.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.engines import Engine, open_engine
from harness.engines.warm import leave_last_words
from harness.errors import HarnessError
from harness.home import VARIABLE, Home
from harness.lifecycle._capacity import slots
from harness.lifecycle._desk import Desk
from harness.lifecycle._warm import end_idle, project, warm_sets
from harness.machine import available_memory

if TYPE_CHECKING:
    from harness.engines.warm import Place, WarmEngine
    from harness.lifecycle._supervisor import Supervisor

__all__ = ["Keeper"]

_DEFAULT_SHARE: Final = 0.1
"""Of the machine's memory: what must stay available."""


class Keeper:
    """Engines for the jobs of this process, and what becomes of their hosts."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._desk: Desk | None = None
        self._place: Place | None = None
        self._lock = -1
        self._engine: WarmEngine | None = None
        self._surroundings: dict[str, str] = {}
        self._why_not: str | None = None
        self._project = ""
        self._seed: str | None = None
        self._idle_seconds = 0.0
        self._floor: int | None = None

    def work(self, run: Callable[[str, int | None], None], job: str, lock: int | None) -> None:
        """`run` that job, with the descriptor of its lock, and those that come for its hosts, one after the other,
        until it's time to go. However it ends, it ends the hosts."""
        why = None
        try:
            while True:
                run(job, lock)
                if self._engine is None or self._desk is None or not self._let_go(self._engine):
                    return
                if lock is not None:
                    os.close(lock)  # the process stays, the job has ended
                taken = self._desk.next_job(self._time_to_go)
                if taken is None:
                    return
                words, lock = taken
                job = words["job"]
                self._begin(words)
        except BaseException as error:
            why = f"the process that kept it failed ({type(error).__name__})"
            raise
        finally:
            self._go(why)

    # -------------------------------------------------------------------------- while a job is run

    def engine(self, job: Supervisor) -> Engine:
        """The engine for this job: one that keeps hosts if the job wants them warm.

        Raises:
            MachineError: the engine can't be used.
        """
        local = job.spec.local
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
            if self._desk is None:
                try:
                    self._settle_down(job)
                except OSError as error:
                    traceback.print_exc()
                    self._why_not = f"no host can be kept here ({error.strerror or error})"
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

    def job_is_over(self) -> None:
        """Who comes for the hosts now needs to wait only for a moment; call it before the job is on record as
        ended."""
        if self._desk is not None:
            self._desk.job_is_over()

    def told(self) -> dict[str, Any] | None:
        """How the present job got its hosts; None for one that doesn't want them warm."""
        if self._engine is not None:
            return dict(self._engine.told) or None  # nothing before it was asked for hosts
        return None if self._why_not is None else {"reused": False, "kept": False, "why": self._why_not}

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

    def _settle_down(self, job: Supervisor) -> None:
        """A directory and a socket. Raises OSError."""
        from harness.engines.warm import Place, code_version

        version = code_version()
        self._project = project(job.spec, job.plan)
        facts = {"project": self._project, "engine": job.plan.engine, "first": job.name}
        self._place, self._lock, listener = Place.make(self._home.warm, facts)
        self._desk = Desk(listener, version=version, job=job.name, status=self._status)

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
                busy = f"{count} warm host{'s are' if count > 1 else ' is'} busy"
                return short or f"{busy}, and this machine keeps {slots()} at most"
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

    def _let_go(self, engine: WarmEngine) -> bool:
        """Nothing of the last job stays but its hosts; False when they don't either."""
        assert self._place is not None
        engine.end_run()
        if not engine.keeps:
            return False
        _write_to(self._place.log)
        gc.collect()
        return True

    def _time_to_go(self) -> str | None:
        assert self._engine is not None
        assert self._place is not None
        assert self._desk is not None
        if not self._place.there():
            return "its directory was removed"
        if self._desk.idle_seconds > self._idle_seconds:
            return f"nobody used it for {self._idle_seconds:,.0f} s"
        return self._engine.ended() or self._memory_short()

    def _begin(self, words: dict[str, Any]) -> None:
        """Be what a supervisor that the command line starts would be."""
        os.environ.clear()
        os.environ.update(words["environment"])
        os.environ[VARIABLE] = str(self._home.root)
        os.umask(words["umask"])
        _write_to(Path(words["log"]))

    def _go(self, why: str | None) -> None:
        """End the hosts. What can't be removed the next command finds, for the lock is free then."""
        try:
            if self._engine is not None:
                why = why or self._engine.told.get("discarded")
            if self._desk is not None:
                why = self._desk.leave(why)
            if self._engine is not None:
                self._engine.discard()
            if self._place is not None:
                if why:
                    leave_last_words(self._home, self._project, why)
                self._place.remove()
        except (HarnessError, OSError):
            traceback.print_exc()
        finally:
            if self._desk is not None:
                self._desk.close()
            if self._lock >= 0:
                os.close(self._lock)
            sys.stderr.flush()

    def _status(self) -> dict[str, Any]:
        engine, place, desk = self._engine, self._place, self._desk
        assert place is not None
        assert desk is not None
        hosts = {} if engine is None else dict(engine.hosts)
        usages = [host.usage() for host in hosts.values()]
        now = desk.facts()
        facts = place.facts()
        return {
            "id": place.name,
            "state": now["state"],
            "job": now["job"],
            "engine": facts.get("engine"),
            "first_job": facts.get("first"),
            "hosts": sorted(hosts),
            "memory_bytes": sum(usage.memory_bytes for usage in usages if usage is not None),
            "preloaded": [] if engine is None else engine.told.get("preloaded", []),
            "excluded": {} if engine is None else engine.told.get("excluded", {}),
            "jobs": 0 if engine is None else engine.jobs,
            "idle_seconds": now["idle_seconds"],
            "idle_left": max(0.0, self._idle_seconds - now["idle_seconds"])
            if now["state"] == "idle"
            else None,
            "fingerprint": {} if engine is None else dict(engine.fingerprint),
            "pid": os.getpid(),
            "made": facts.get("made", 0.0),
        }


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    from harness.plan import parse_size

    return parse_size(text, "[local] warm_memory")


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
