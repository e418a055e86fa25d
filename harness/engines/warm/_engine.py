"""Hosts that outlive their job: the next one that would get the same gets them as they are, within a blink."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final

from harness.engines.base import Engine, Host
from harness.engines.keeping import Keepable, KeepableHost, Keeping
from harness.engines.warm import _match, _preload
from harness.engines.warm._host import WarmHost
from harness.engines.warm._link import Link
from harness.engines.warm._match import Fingerprint
from harness.engines.warm._place import Place, places
from harness.engines.warm._swap import give_back, lend, lent_to
from harness.engines.warm._words import KILLED, leave_last_words
from harness.errors import EngineError, HarnessError
from harness.home import Home
from harness.model import ExitStatus, HostLaunch, Mount
from harness.quantities import harmless

__all__ = ["Expectation", "WarmEngine", "clean_up"]

_ML: Final = PurePosixPath("/opt/ml")
_CODE_CHANNEL: Final = _ML / "input/data/code"
_CODE: Final = PurePosixPath("/run/harness/code")
_IO: Final = PurePosixPath("/run/harness/io")
_PRELOAD_SECONDS: Final = 60.0
_START_SECONDS: Final = 60.0
_SEIZE_SECONDS: Final = 10.0
"""How long somebody else may take to clean up after a dead keeper."""
_KILLED: Final = 137
_LAST_WORDS: Final = 4096
"""Bytes that are kept of what a host's program itself says."""
_WORDS_SECONDS: Final = 1.0
_WHY: Final = 150
"""Characters of it in a sentence."""
_WRITTEN: Final = ("sandbox/layers/*/upper", "overlay/*/upper")
"""Where engines keep what a host writes over a channel."""


@dataclasses.dataclass(kw_only=True)
class Expectation:
    """What a job brings along that no launch tells."""

    why: str
    """Why its hosts aren't warm, if nothing better is known, as the end of "cold: …"."""
    preload: tuple[str, ...] | None = None
    """The user's own list of modules; None: those that the script imports."""
    entry: str | None = None
    """The script, relative to /opt/ml/code."""
    check: Callable[[], None] = lambda: None
    """Called while a host starts; raises what is to end that."""
    room: Callable[[int], str | None] | None = None
    """Why no more than so many hosts can be kept now; None: they can."""


class _Kept:
    """One host that is kept."""

    def __init__(self, inner: KeepableHost, launch: HostLaunch, own: Mapping[Path, Path]) -> None:
        self.inner = inner
        self.launch = launch
        """As the engine started it."""
        self.points = tuple(
            mount.target.relative_to(_ML) for mount in launch.mounts if mount.target.is_relative_to(_ML)
        )
        self.own = own
        """Mount of a job's own directory, by its place in the job's → what stands for it."""
        self.link: Link | None = None
        self.last_words = b""
        self._inodes: list[int] = []
        self._listener = threading.Thread(target=self._listen, name=f"warm-words-{inner.name}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Drain what the program itself writes: nothing, unless something is wrong."""
        try:
            for chunk in self.inner.output():
                self.last_words = (self.last_words + chunk)[-_LAST_WORDS:]
        except HarnessError as error:
            self.last_words += str(error).encode()

    def connect(self, io: Path, check: Callable[[], None]) -> None:
        def given_up() -> str | None:
            check()
            status = self.inner.wait(0)
            return None if status is None else self._obituary(status)

        self.link = Link(io, patience=_PRELOAD_SECONDS + _START_SECONDS, given_up=given_up)
        self._inodes = self._look()

    def _obituary(self, status: ExitStatus) -> str:
        """Why the host's program didn't live to be connected with; all that it said goes to the log."""
        self._listener.join(_WORDS_SECONDS)
        said = self.last_words.decode(errors="replace").strip()
        if said:
            print(
                f"what the program said that keeps {self.inner.name} warm:\n{said}",
                file=sys.stderr,
                flush=True,
            )
        if status.oom_killed:
            return "memory ran out while it started"
        if status.code == _KILLED:
            return "it was killed while it started"
        last = (status.error or said).strip().rpartition("\n")[2]
        why = f": {harmless(last)[:_WHY]}" if last else ""
        return f"its program ended with code {status.code} while it started{why}"

    def ended(self) -> str | None:
        """Why the host can't be used any more; None when it can."""
        if self.link is not None and self.link.alive and self.inner.wait(0) is None:
            return None
        status = self.inner.wait(5)
        if status is None:
            return "its program ended"
        if status.oom_killed:
            return "it was killed when memory ran out"
        if status.code == _KILLED:
            return "it was killed"
        return status.error or f"it ended with code {status.code}"

    def unclean(self) -> str | None:
        """Why the next run would not find what a new host has; None when it would."""
        if self.link is not None and self.link.unclean:
            return self.link.unclean
        if any("in memory" in note for note in self.inner.notes):
            return "what was written to its channels can't be seen"
        for pattern in _WRITTEN:
            for upper in self.launch.scratch.glob(pattern):
                if upper.parent.name.isdigit():
                    continue  # over the interpreter, for pip: the host's program looks after that
                if next(upper.iterdir(), None) is not None:
                    return "the script wrote into a channel"
        if self._look() != self._inodes:
            return "the script moved the directory of a channel"
        return None

    def _look(self) -> list[int]:
        """Which directories the mount points below /opt/ml are."""
        found = []
        for point in self.points:
            try:
                found.append((self.launch.ml / point).lstat().st_ino)
            except OSError:
                found.append(-1)
        return found


class _Run:
    """A job on kept hosts."""

    def __init__(self, launches: tuple[HostLaunch, ...]) -> None:
        self.launches = {launch.host: launch for launch in launches}
        self.hosts: list[WarmHost] = []
        self.lock = threading.Lock()


class WarmEngine:
    """Runs jobs on hosts of another engine that it keeps from job to job; one set of hosts, one job at a time.

    Where hosts can't be kept, or what they are doesn't fit a job, it starts them as that engine does; `told`
    says so.
    """

    def __init__(self, inner: Engine, place: Place) -> None:
        self._inner = inner
        self._place = place
        self._fingerprint: Fingerprint = {}
        self._keeping: dict[str, Keeping] = {}
        self._begun = False
        """Whether the other engine may have something of ours."""
        self._kept: dict[str, _Kept] = {}
        self._run: tuple[str, _Run] | None = None
        self._done: set[str] = set()
        self.expect = Expectation(why="")
        self.told: dict[str, Any] = {}
        """Of the last `prepare`: `reused`, `kept`, `why`, `preloaded`, `excluded`."""
        self.jobs = 0
        """How many ran on the hosts that are kept."""

    @property
    def name(self) -> str:
        return self._inner.name

    # ------------------------------------------------------------------------------ what an engine does

    def prepare(self, launches: tuple[HostLaunch, ...]) -> None:
        """See `Engine.prepare`. Starts the hosts as well, unless they are there or can't be kept."""
        job = launches[0].job_name
        self.end_run()
        self._done.discard(job)
        self.told = {"reused": False, "kept": False, "why": self.expect.why}
        why = self._fit(launches)
        if why is None:
            self.told |= {"reused": True, "kept": True, "why": ""}
        elif not self._renew(launches, why):
            self._inner.prepare(launches)
            return
        if self._run is None:
            try:
                self._run = job, self._lend(launches)
            except OSError as error:
                traceback.print_exc()
                self._undo(launches)
                self.told |= {"reused": False, "kept": False, "why": f"its files can't be moved ({error})"}
                self._inner.prepare(launches)
                return
        self.told |= self._preloaded()

    def start(self, launch: HostLaunch) -> Host:
        """See `Engine.start`."""
        if self._run is None or self._run[0] != launch.job_name:
            return self._inner.start(launch)
        run, kept = self._run[1], self._kept[launch.host]
        assert kept.link is not None
        given = _match.start_environment(launch.environment)
        environment = {
            **kept.link.ready["environment"],
            **{name: value for name, value in launch.environment.items() if name not in given},
        }
        try:
            host = WarmHost(
                kept.inner,
                kept.link,
                argv=self._keeping[launch.host].command,
                environment=environment,
                notes=kept.inner.notes,
            )
        except OSError as error:
            raise EngineError(f"the warm host {launch.host} is gone: {kept.ended() or error}") from error
        with run.lock:
            run.hosts.append(host)
        return host

    def attach(self, job_name: str) -> Mapping[str, Host]:
        """See `Engine.attach`: hosts that were kept died with the process that kept them."""
        if self._reclaim(job_name):
            return {}
        return self._inner.attach(job_name)

    def close(self, job_name: str) -> None:
        """See `Engine.close`: of a job on kept hosts only the run; they go on if they can."""
        if self._run is not None and self._run[0] == job_name:
            self.end_run()
        elif job_name not in self._done:
            self._reclaim(job_name)
            self._inner.close(job_name)

    # ------------------------------------------------------------------------ what the keeper asks of it

    @property
    def keeps(self) -> bool:
        """Whether there are hosts for a next job."""
        return bool(self._kept)

    @property
    def hosts(self) -> Mapping[str, KeepableHost]:
        return {name: kept.inner for name, kept in self._kept.items()}

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def ended(self) -> str | None:
        """Why the hosts can't be used any more; None when they can."""
        return next((why for kept in self._kept.values() if (why := kept.ended()) is not None), None)

    def end_run(self) -> None:
        """Take back what a job has in the hosts, if whoever ran it didn't come to close it.

        Raises:
            EngineError, OSError: something can't be taken back; to be tried again.
        """
        if self._run is not None:
            self._close_run(*self._run)

    def discard(self) -> None:
        """End the hosts and remove all that they had.

        Raises:
            EngineError, OSError: something can't be removed; to be tried again.
        """
        self.end_run()
        self._end()
        self._place.clear()

    def discard_quietly(self) -> bool:
        """`discard`; False when that can't be done now, with the reason in the log."""
        try:
            self.discard()
        except (HarnessError, OSError):
            traceback.print_exc()
            return False
        return True

    # ------------------------------------------------------------------------------------------ internals

    def _end(self) -> None:
        """End the hosts, whose directories stay."""
        if not self._begun:
            return
        for each in self._kept.values():
            if each.link is not None:
                each.link.leave()
        self._inner.close(self._place.job)
        self._begun, self._kept, self._fingerprint, self.jobs = False, {}, {}, 0

    def _fit(self, launches: tuple[HostLaunch, ...]) -> str | None:
        """Why the kept hosts don't do for these launches; None when they do."""
        inner = self._inner
        if not isinstance(inner, Keepable):
            self._keeping = {}
            return f"the {inner.name} engine keeps no hosts"
        self._keeping = {launch.host: inner.keeping(launch) for launch in launches}
        expect = self.expect
        preload = expect.preload
        if preload is None:
            preload = _preload.modules(launches[0].ml / "code", expect.entry) if expect.entry else ()
        wanted = _match.fingerprint(
            launches,
            engine=inner.name,
            surroundings=self._keeping[launches[0].host].facts,
            preload=preload,
        )
        # As JSON has it: what it is compared with may have come from a file.
        wanted = json.loads(json.dumps(wanted))
        old, self._wanted = self._fingerprint, wanted
        if not self._kept:
            return expect.why
        if (why := self.ended()) is not None:
            return f"the warm host was gone: {why}"
        if not self._place.there():
            return "the warm host's directory was gone"
        return _match.difference(old, wanted)

    def _renew(self, launches: tuple[HostLaunch, ...], why: str) -> bool:
        """Hosts for these launches that will be kept, in place of those that were; False when there can't be any."""
        self.told["why"] = why
        if not self.discard_quietly():
            self.told["why"] = f"{why}, and what is left of that can't be removed"
            return False
        refusal = next((each.refusal for each in self._keeping.values() if each.refusal), None)
        if any(
            mount.target == _CODE_CHANNEL and launch.network_isolated
            for mount in launches[0].mounts
            for launch in launches
        ):
            refusal = "without a network its code comes in a channel, which is mounted for each job"
        if not self._keeping or refusal:
            self.told["why"] = refusal or why
            return False
        full = self.expect.room(len(launches)) if self.expect.room else None
        if full is not None:
            self.told["why"] = full
            return False
        try:
            self._run = launches[0].job_name, self._start_kept(launches)
        except (EngineError, OSError) as error:
            self._undo(launches)
            if not isinstance(error, EngineError) and error.errno != errno.EXDEV:
                traceback.print_exc()
            self.told["why"] = (
                "the state directory is in pieces on several file systems"
                if isinstance(error, OSError) and error.errno == errno.EXDEV
                else f"no host could be kept: {error}"
            )
            return False
        except BaseException:
            self._undo(launches)
            raise
        self._fingerprint = self._wanted
        self.told["kept"] = True
        return True

    def _start_kept(self, launches: tuple[HostLaunch, ...]) -> _Run:
        warm = {launch.host: self._warm_launch(launch) for launch in launches}
        for launch in launches:
            self._place.host(launch.host).make()
            self._configure(launch)
        # The trees first: an engine looks into them, and makes the places to mount channels on.
        for launch in launches:
            changed, own = warm[launch.host]
            for source, stand_in in own.items():
                stand_in.mkdir(parents=True, exist_ok=True)
                lend(source, stand_in)
            points = [m.target.relative_to(_ML) for m in changed.mounts if m.target.is_relative_to(_ML)]
            lend(launch.ml, changed.ml, points)
        self._begun = True
        self._inner.prepare(tuple(changed for changed, _ in warm.values()))
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="start") as pool:
            started = list(pool.map(self._start_one, [warm[launch.host] for launch in launches]))
        self._kept = {kept.launch.host: kept for kept in started}
        for kept in started:
            kept.connect(self._place.host(kept.launch.host).io, self.expect.check)
        return _Run(launches)

    def _start_one(self, made: tuple[HostLaunch, Mapping[Path, Path]]) -> _Kept:
        launch, own = made
        return _Kept(self._inner.start(launch), launch, own)  # type: ignore[arg-type]

    def _configure(self, launch: HostLaunch) -> None:
        config = {
            "preload": list(self._wanted["preload"]),
            "argv": list(self._keeping[launch.host].command),
            "timeout": _PRELOAD_SECONDS,
        }
        path = self._place.host(launch.host).io / "config.json"
        path.write_text(json.dumps(config))
        path.chmod(0o644)

    def _warm_launch(self, launch: HostLaunch) -> tuple[HostLaunch, Mapping[Path, Path]]:
        """The launch of a host that runs our program, and what stands for directories of the job's own."""
        place = self._place.host(launch.host)
        mounts: list[Mount] = []
        own: dict[Path, Path] = {}
        for mount in launch.mounts:
            if _match.is_own(launch, mount):
                own[mount.source] = place.own(len(own))
                mount = dataclasses.replace(mount, source=own[mount.source])
            mounts.append(dataclasses.replace(mount, scratch=None))
        mounts.append(Mount(source=self._place.code, target=_CODE, mode="ro"))
        mounts.append(Mount(source=place.io, target=_IO, mode="rw"))
        changed = dataclasses.replace(
            launch,
            job_name=self._place.job,
            entrypoint=(self._keeping[launch.host].python, str(_CODE)),
            command=(),
            environment=_match.start_environment(launch.environment),
            ml=place.ml,
            scratch=place.scratch,
            mounts=tuple(mounts),
        )
        return changed, own

    def _lend(self, launches: tuple[HostLaunch, ...]) -> _Run:
        run = _Run(launches)
        for launch in launches:
            kept = self._kept[launch.host]
            for source, stand_in in zip(_own_sources(launch), kept.own.values(), strict=True):
                lend(source, stand_in)
            lend(launch.ml, kept.launch.ml, kept.points)
        return run

    def _return(self, launches: Mapping[str, HostLaunch]) -> None:
        for launch in launches.values():
            points = [m.target.relative_to(_ML) for m in launch.mounts if m.target.is_relative_to(_ML)]
            give_back(launch.ml, points)
            for source in _own_sources(launch):
                give_back(source)

    def _undo(self, launches: tuple[HostLaunch, ...]) -> None:
        """After hosts couldn't be started: as it was before. What can't be done is for the log."""
        self._run = None
        try:
            try:
                self._end()
            finally:
                self._return({launch.host: launch for launch in launches})
            self._place.clear()  # not before the job's files are out of there
        except (HarnessError, OSError):
            traceback.print_exc()

    def _close_run(self, job_name: str, run: _Run) -> None:
        for host in run.hosts:
            if host.wait(0) is None:
                host.kill()
        assert isinstance(self._inner, Keepable)
        gone = self.ended()
        if gone is None:
            self._inner.settle(self._place.job)
        else:
            # The engine gives the files to the user when it removes what is left of the hosts.
            self._inner.close(self._place.job)
        self._return(run.launches)
        self._run = None
        self._done.add(job_name)
        self.jobs += 1
        unclean = next((why for kept in self._kept.values() if (why := kept.unclean()) is not None), None)
        if gone or unclean:
            self.told["discarded"] = gone or unclean
            self.discard_quietly()

    def _preloaded(self) -> dict[str, Any]:
        links = [kept.link for kept in self._kept.values() if kept.link is not None]
        if not links:
            return {}
        ready = links[0].ready
        return {
            "preloaded": list(ready.get("preloaded", ())),
            "excluded": dict(ready.get("excluded", {})),
            "forks": bool(ready.get("forks", True)),
            "no_fork": ready.get("why", ""),
        }

    def _reclaim(self, job_name: str) -> bool:
        """Take back what a dead keeper's hosts have of this job; False when they have nothing."""
        lent = {tree: warm for tree in _trees(job_name) if (warm := lent_to(tree)) is not None}
        if not lent:
            return False
        for place in places(Home.find().warm):
            if any(warm.is_relative_to(place.root) for warm in lent.values()):
                with place.seized(_SEIZE_SECONDS) as mine:
                    if mine:
                        clean_up(place, self._inner)
        for tree in lent:
            give_back(tree)  # nothing to do, unless its set is gone
        return True


def clean_up(place: Place, inner: Engine) -> None:
    """Remove what a dead keeper left; jobs get back what was theirs, and the project's next one is told. The
    caller holds the set's lock.

    Raises:
        EngineError, OSError: something can't be removed.
    """
    inner.close(place.job)
    home = Home.find()
    jobs = home.jobs
    for job in jobs.iterdir() if jobs.is_dir() else ():
        for tree in _trees(job.name):
            if (warm := lent_to(tree)) is not None and warm.is_relative_to(place.root):
                give_back(tree)
    leave_last_words(home, str(place.facts().get("project")), KILLED)
    place.remove()


def _trees(job_name: str) -> list[Path]:
    return [path for path in Home.find().job(job_name).glob("hosts/*/*") if path.is_symlink()]


def _own_sources(launch: HostLaunch) -> list[Path]:
    return [mount.source for mount in launch.mounts if _match.is_own(launch, mount)]
