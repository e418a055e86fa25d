"""Watches the hosts of a running job, so that there is something to tell when it has died.

Processes are gone when their death is learned of. So the last look at them is kept, a look costs next to
nothing, and what is kept says how old it is. Nothing here can change how a job ends: whatever goes wrong
becomes a sentence in what is kept.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.engines.base import Host
from harness.model import ExitStatus, Gpu, JsonObject, Usage
from harness.store import to_json

if TYPE_CHECKING:
    from harness.telemetry._hang import HangDetector
    from harness.telemetry._stacks import Stacks

__all__ = ["EVIDENCE", "Witness", "read_evidence", "read_packages"]

EVIDENCE: Final = "witness.json"
_PACKAGES: Final = "packages.json"
_STACKS_KEPT: Final = 6
_WRITE_EVERY: Final = 30.0
_SHARE: Final = 0.005
"""Of one core, that looking at a host may take."""
_AT_STOP: Final = 2.5
"""Seconds that the stacks before a stop may take."""


class Witness:
    """What is known of the hosts of one attempt; kept in `directory` as witness.json.

    Called from the supervisor's own thread, but for `heard`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        trees: Mapping[str, Path],
        gpus: Mapping[str, Sequence[Gpu]],
        hang_after: float,
        note: Callable[[str], None],
        paused: Callable[[], bool] = lambda: False,
        python: str | None = None,
    ) -> None:
        """`note` takes a sentence for the job's notes; `paused`: whether a debugger holds the job; `python`: the
        hosts' interpreter, where it is one of this machine."""
        self._directory = directory
        self._trees = dict(trees)
        self._gpus = dict(gpus)
        self._hang_after = hang_after
        self._note = note
        self._paused = paused
        self._python = python
        self._packages: dict[str, str] = {}
        self._started = time.time()
        self._last_heard = time.monotonic()
        self._heard = False
        self._looks: dict[str, JsonObject] = {}
        self._next_look: dict[str, float] = {}
        self._peak: dict[str, int] = {}
        self._ends: dict[str, JsonObject] = {}
        self._taken: list[Stacks] = []
        self._hangs: list[JsonObject] = []
        self._problems: dict[str, None] = {}
        self._hosts: dict[str, Host] = {}
        self._detector: HangDetector | None = None
        self._looking: threading.Thread | None = None
        self._found: Stacks | None = None
        self._written_at = 0.0
        self._known: frozenset[int] = frozenset()

    # --------------------------------------------------------------- while the job runs

    def heard(self) -> None:
        """A host printed something. Cheap, and safe from any thread."""
        self._last_heard = time.monotonic()
        self._heard = True

    def look(self, host: Host, usage: Usage | None) -> None:
        """Keep how the host is now; `usage` is what its engine told a moment ago."""
        self._hosts[host.name] = host
        if usage is None or time.monotonic() < self._next_look.get(host.name, 0.0):
            return
        from harness.telemetry._processes import look

        began = time.thread_time()
        try:
            found = look(usage, ml=self._trees.get(host.name), gpus=self._gpus.get(host.name, ()))
            self._look_at_packages(host.name, usage)
        except Exception as error:
            self._problem(f"a look at {host.name} failed: {type(error).__name__}: {error}")
            return
        # Many processes are looked at less often: the supervisor must not take what the script needs.
        self._next_look[host.name] = time.monotonic() + (time.thread_time() - began) / _SHARE
        self._peak[host.name] = max(self._peak.get(host.name, 0), usage.memory_bytes)
        found["memory_peak"] = self._peak[host.name]
        self._looks[host.name] = found
        known = frozenset(each["pid"] for told in self._looks.values() for each in told["processes"])
        if known != self._known or time.monotonic() - self._written_at > _WRITE_EVERY:
            self._known = known
            self._write()

    def tick(self) -> None:
        """Look for a hang, when it is time to; the looking itself happens beside."""
        if self._hang_after <= 0 or not self._looks:
            return
        if self._detector is None:
            from harness.telemetry._hang import HangDetector

            self._detector = HangDetector(
                self._hang_after, take=self._take_for_hang, cpu=self._cpu, gpus=any(self._gpus.values())
            )
        if self._heard or self._paused():
            self._heard = False
            if self._detector.moved() and self._hangs:
                self._hangs[-1]["until"] = time.time()
                self._note("the job that seemed to hang moves again")
                self._write()
        if self._looking is not None:
            if self._looking.is_alive():
                return
            self._looking = None
            if (stacks := self._found) is not None:
                self._found = None
                self._tell_hang(stacks)
        elif self._detector.due:
            self._looking = threading.Thread(target=self._look_for_hang, name="hang", daemon=True)
            self._looking.start()

    def before_stop(self, reason: str, hosts: Sequence[Host]) -> None:
        """The hosts are about to be stopped: where is everybody? Takes `_AT_STOP` seconds at most."""
        from harness.telemetry._stacks import take_stacks

        try:
            self._next_look.clear()
            for host in hosts:
                self.look(host, host.usage())
            stacks = take_stacks(self._pids(hosts), reason, seconds=_AT_STOP)
        except Exception as error:
            self._problem(f"no stacks before the stop: {type(error).__name__}: {error}")
            return
        self._keep(stacks)

    def ended(self, host: str, status: ExitStatus) -> None:
        """A host ended."""
        self._ends[host] = {
            "at": time.time(),
            "code": status.code,
            "oom_killed": status.oom_killed,
            "error": status.error,
            "vanished": status.vanished,
        }
        if status.code:
            self._write()

    def finish(self) -> None:
        """All hosts have ended: the last word is on disk."""
        if self._looking is not None:
            self._looking.join(_AT_STOP)
        self._write_packages()
        if self._taken or any(end["code"] for end in self._ends.values()):
            self._write()
        else:
            with contextlib.suppress(OSError):
                (self._directory / EVIDENCE).unlink(missing_ok=True)
                self._directory.rmdir()

    # -------------------------------------------------------------------------- parts

    def _look_at_packages(self, host: str, usage: Usage) -> None:
        """Those of the first host: all have the same image. Again at each look, since pip may be at work."""
        if host != next(iter(self._trees), host):
            return
        from harness.telemetry._packages import packages_of_process

        for pid in usage.pids:
            if found := packages_of_process(pid):
                self._packages = found
                return

    def _write_packages(self) -> None:
        """For the comparison of a later job that fails with this one, or of this one with an earlier."""
        if not self._packages and self._python is not None:  # it ended before the first look
            from harness.telemetry._packages import packages_of, places_of

            self._packages = packages_of(places_of(self._python))
        if not self._packages:
            return
        try:
            (self._directory.parent / _PACKAGES).write_text(json.dumps(self._packages))
        except OSError as error:
            self._problem(f"the packages of the hosts can't be written down: {error.strerror}")

    def _take_for_hang(self) -> Stacks:
        from harness.telemetry._stacks import take_stacks

        return take_stacks(self._pids(list(self._hosts.values())), "hang", seconds=10.0)

    def _look_for_hang(self) -> None:
        assert self._detector is not None
        try:
            self._found = self._detector.look()
        except Exception as error:
            self._problem(f"the look for a hang failed: {type(error).__name__}: {error}")

    def _tell_hang(self, stacks: Stacks) -> None:
        from harness.telemetry._hang import describe_hang

        quiet = time.monotonic() - self._last_heard
        sentence = describe_hang(stacks, quiet)
        self._hangs.append({"at": stacks.at, "quiet": round(quiet, 1), "sentence": sentence})
        self._keep(stacks)
        self._note(f"the job seems to hang: {sentence}; it goes on waiting, as the cloud would")

    def _keep(self, stacks: Stacks) -> None:
        self._taken.append(stacks)
        del self._taken[:-_STACKS_KEPT]
        self._write()

    def _pids(self, hosts: Sequence[Host]) -> dict[str, tuple[int, ...]]:
        found = {}
        for host in hosts:
            usage = host.usage()
            found[host.name] = usage.pids if usage is not None else ()
        return found

    def _cpu(self) -> dict[int, float]:
        from harness.telemetry._processes import process

        told = (process(pid) for pids in self._pids(list(self._hosts.values())).values() for pid in pids)
        return {each["pid"]: each["cpu_seconds"] for each in told if each is not None}

    def _problem(self, sentence: str) -> None:
        self._problems[sentence] = None

    def _write(self) -> None:
        """On a full disk, or wherever it can't be written, it stays in memory."""
        self._written_at = time.monotonic()
        document = {
            "version": 1,
            "started": self._started,
            "at": time.time(),
            "looks": self._looks,
            "ends": self._ends,
            "hangs": self._hangs,
            "stacks": [to_json(stacks) for stacks in self._taken],
            "problems": list(self._problems),
        }
        place = self._directory / EVIDENCE
        draft = place.with_suffix(".new")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(document))
            draft.replace(place)
        except OSError as error:
            self._problem(f"what is known of the hosts can't be written: {error.strerror}")
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def read_evidence(directory: Path) -> JsonObject:
    """What a witness kept there; empty when there is nothing, or nothing that can be read."""
    try:
        found: Any = json.loads((directory / EVIDENCE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_packages(job: Path, log: Path) -> dict[str, str]:
    """Name → version of the Python packages that a job's hosts had; empty where that isn't known.

    `job` is its directory, `log` that of its first host.
    """
    from harness.telemetry._packages import installed_by_pip

    try:
        found: Any = json.loads((job / _PACKAGES).read_text())
    except (OSError, ValueError):
        return {}
    return {**found, **installed_by_pip(log)} if isinstance(found, dict) else {}
