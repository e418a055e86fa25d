"""An engine without processes, for tests: of the harness, and of what people build on it.

Hosts are threads that play a script: what to say and when, how to end, what to do on a signal. All that
was asked of the engine is recorded. Hosts live in a `World`, not in the engine: a second engine on the
same world finds them with `attach`, as a new supervisor finds containers.

    >>> world = World({"algo-1": Script(output=(b"epoch 1\\n",), code=3)})
    >>> engine = FakeEngine(world)
    >>> host = engine.start(launch)
    >>> b"".join(host.output()), host.wait().code
    (b'epoch 1\\n', 3)
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from harness.errors import EngineError
from harness.home import Home
from harness.model import ExitStatus, HostLaunch, Usage

__all__ = ["Call", "FakeEngine", "FakeHost", "Script", "Stage", "World"]

FOREVER: Final = math.inf


@dataclass(frozen=True, kw_only=True)
class Script:
    """What one host does. Times in seconds."""

    output: Sequence[bytes] = ()
    """Said one after the other."""
    delay: float = 0.0
    """Before each piece of `output`."""
    hold: float = 0.0
    """How long it lives on after the last piece; `math.inf`: until something ends it."""
    act: Callable[[Stage], int | None] | None = None
    """Called after `output`, with the stage: may say more, write to `stage.launch.ml`, wait; its result,
    unless None, is the exit code."""
    code: int = 0
    oom_killed: bool = False
    error: str | None = None
    """Given with code 126 or 127: the host never starts (contract: A2, A3)."""
    vanish: bool = False
    """At its end it is gone without an exit status."""
    refuse: str | None = None
    """`start` raises EngineError with these words."""
    on_signal: Mapping[int, int] = field(default_factory=dict)
    """Signal → exit code. Others are ignored, as process 1 ignores what it has no handler for
    (contract: G10); SIGKILL always ends it with 137."""
    usage: Usage | None = None


@dataclass(frozen=True)
class Call:
    """One thing that was asked: of the engine, or of a host."""

    method: str
    job: str
    host: str = ""
    argument: object = None


Scripts = Mapping[str, Script] | Callable[[HostLaunch], Script]


class Stage:
    """A running script's way to the world: what `Script.act` gets."""

    def __init__(self, host: FakeHost) -> None:
        self.launch = host.launch
        self._host = host

    def say(self, data: bytes) -> None:
        """Write to the host's output."""
        self._host.say(data)

    def wait(self, seconds: float) -> bool:
        """Sleep; True at once when a signal or `World.end` has ended the host."""
        return self._host.ended_within(seconds)

    @property
    def signals(self) -> tuple[int, ...]:
        """Signals received so far."""
        return tuple(self._host.signals)


class FakeHost:
    """A host that plays a script in a thread."""

    def __init__(self, launch: HostLaunch, script: Script, record: Callable[[Call], None]) -> None:
        self.launch = launch
        self.signals: list[int] = []
        self._script = script
        self._record = record
        self._said = bytearray()
        self._forced: ExitStatus | None = None
        self._status: ExitStatus | None = None
        self._changed = threading.Condition()

    @property
    def name(self) -> str:
        return self.launch.host

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def entry(self) -> Mapping[str, Any]:
        return {"engine": "fake", "host": self.name}

    def play(self) -> None:
        """Start the script."""
        if self._script.error is not None:
            self.end(ExitStatus(code=self._script.code, error=self._script.error))
            self._finish(None)
            return
        threading.Thread(target=self._play, name=f"fake-{self.name}", daemon=True).start()

    def output(self, skip: int = 0) -> Iterator[bytes]:
        at = skip
        while True:
            with self._changed:
                while len(self._said) <= at and self._status is None:
                    self._changed.wait()
                data = bytes(self._said[at:])
            if not data:
                return
            at += len(data)
            yield data

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None, timeout)
            return self._status

    def signal(self, number: int) -> None:
        self._record(Call("signal", self.launch.job_name, self.name, number))
        if number == signal.SIGKILL:
            self.end(ExitStatus(code=128 + number))
        elif number in self._script.on_signal:
            self.signals.append(number)
            self.end(ExitStatus(code=self._script.on_signal[number]))
        else:
            self.signals.append(number)

    def kill(self) -> None:
        self._record(Call("kill", self.launch.job_name, self.name))
        self.end(ExitStatus(code=128 + signal.SIGKILL))
        self.wait()

    def usage(self) -> Usage | None:
        with self._changed:
            return None if self._status is not None else self._script.usage

    # For scripts and worlds

    def say(self, data: bytes) -> None:
        """Append to the output."""
        with self._changed:
            self._said += data
            self._changed.notify_all()

    def end(self, status: ExitStatus) -> None:
        """End it from outside, if it hasn't ended: an OOM kill, `docker rm`, a power cut."""
        with self._changed:
            if self._forced is None and self._status is None:
                self._forced = status
            self._changed.notify_all()

    def ended_within(self, seconds: float) -> bool:
        """Wait until something ends it, at most `seconds`; whether it did."""
        with self._changed:
            timeout = None if seconds == FOREVER else seconds
            return self._changed.wait_for(lambda: self._forced is not None, timeout)

    def _play(self) -> None:
        script, code = self._script, None
        try:
            for data in script.output:
                if self.ended_within(script.delay):
                    return
                self.say(data)
            if script.act is not None:
                code = script.act(Stage(self))
            self.ended_within(script.hold)
        except Exception as error:
            # A mistake in a test's script, told where a test looks for it.
            self.say(f"the script of {self.name} raised {error!r}\n".encode())
            code = 1
        finally:
            self._finish(code)

    def _finish(self, code: int | None) -> None:
        script = self._script
        with self._changed:
            self._status = self._forced or ExitStatus(
                code=script.code if code is None else code,
                oom_killed=script.oom_killed,
                vanished=script.vanish,
                error="it vanished, as its script says" if script.vanish else None,
            )
            self._changed.notify_all()


class World:
    """Where fake hosts live. It survives its engines, as containers survive a supervisor."""

    _worlds: ClassVar[dict[str, World]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, scripts: Scripts | None = None) -> None:
        """`scripts`: by host name (a host without one ends at once with 0), or a function of the launch."""
        self.scripts: Scripts = scripts if scripts is not None else {}
        self.calls: list[Call] = []
        self.hosts: dict[str, dict[str, FakeHost]] = {}
        """Job → host name → host."""
        self.down: str | None = None
        """When set, the engine is out of order: every call raises EngineError with these words."""
        self._lock = threading.Lock()

    @classmethod
    def here(cls) -> World:
        """The world of the current $HARNESS_HOME in this process: what `open_engine("fake")` uses."""
        with cls._guard:
            return cls._worlds.setdefault(os.path.realpath(Home.find().root), cls())

    def script(self, launch: HostLaunch) -> Script:
        """What the host of this launch is to do."""
        if callable(self.scripts):
            return self.scripts(launch)
        return self.scripts.get(launch.host, Script())

    def record(self, call: Call) -> None:
        """Note a call, in the order in which they come."""
        with self._lock:
            self.calls.append(call)

    def methods(self, job: str) -> list[str]:
        """The names of the calls for a job, in order."""
        with self._lock:
            return [call.method for call in self.calls if call.job == job]

    def end(self, job: str, host: str, status: ExitStatus) -> None:
        """End a host from outside: `ExitStatus(code=137, oom_killed=True)`, `ExitStatus(code=137, vanished=True)`…"""
        self.hosts[job][host].end(status)


class FakeEngine:
    """The engine over a world."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world if world is not None else World.here()

    @property
    def name(self) -> str:
        return "fake"

    def prepare(self, launches: tuple[HostLaunch, ...]) -> None:
        self._asked("prepare", launches[0].job_name, argument=launches)
        self.world.hosts.setdefault(launches[0].job_name, {})

    def start(self, launch: HostLaunch) -> FakeHost:
        self._asked("start", launch.job_name, launch.host, launch)
        if launch.job_name not in self.world.hosts:
            raise EngineError(f"{launch.job_name} has no network: prepare() comes before start()")
        script = self.world.script(launch)
        if script.refuse is not None:
            raise EngineError(script.refuse)
        host = FakeHost(launch, script, self.world.record)
        self.world.hosts[launch.job_name][launch.host] = host
        host.play()
        return host

    def attach(self, job_name: str) -> Mapping[str, FakeHost]:
        self._asked("attach", job_name)
        return dict(self.world.hosts.get(job_name, {}))

    def close(self, job_name: str) -> None:
        self._asked("close", job_name)
        for host in self.world.hosts.pop(job_name, {}).values():
            host.end(ExitStatus(code=128 + signal.SIGKILL))
            host.wait()

    def _asked(self, method: str, job: str, host: str = "", argument: object = None) -> None:
        self.world.record(Call(method, job, host, argument))
        if self.world.down is not None:
            raise EngineError(self.world.down)
