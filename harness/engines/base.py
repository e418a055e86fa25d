"""What the life cycle needs of an engine: five methods, and six of a host.

Every method may raise `errors.EngineError`. `close` is idempotent and is called after every job, also
by the supervisor that finds a dead one's job: what it removes is found by the job's name (labels,
directories), never by memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from harness.errors import EngineError
from harness.model import ExitStatus, HostLaunch, Usage

__all__ = ["Engine", "Host", "open_engine"]


class Host(Protocol):
    """A host that was started. Safe to use from several threads."""

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What this machine couldn't give the host, one sentence each."""
        ...

    @property
    def entry(self) -> Mapping[str, Any]:
        """How another process of this user finds the host, to run a command in it (`engines.enter`).

        Ready for JSON; `engine` names the engine, the rest is that engine's own. It stays what it is
        after the host has ended: who enters sees whether the host still runs, and whether it is the same.
        """
        ...

    def output(self, skip: int = 0) -> Iterator[bytes]:
        """Stdout and stderr as they come, as raw bytes, from byte `skip` on; ends with the host.

        Chunks end where the pipe's reads end, not at lines. After a crash `skip` is what the log file
        already holds, so no byte is lost or doubled.
        """
        ...

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """The exit status, or None when `timeout` seconds passed and the host still runs."""
        ...

    def signal(self, number: int) -> None:
        """Signal to the host's process 1 (contract: G9); nothing when it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL to every process of the host; returns when none is left."""
        ...

    def usage(self) -> Usage | None:
        """What it uses now; None when it has ended or can't be told."""
        ...


class Engine(Protocol):
    """Starts and stops the hosts of jobs."""

    @property
    def name(self) -> str: ...

    def prepare(self, launches: tuple[HostLaunch, ...]) -> None:
        """What all hosts of a job share (network, scratch), before the first `start`."""
        ...

    def start(self, launch: HostLaunch) -> Host:
        """Start one host. A command that can't be executed is no exception here: the host ends with
        `ExitStatus(code=126|127, error=…)`, as it does in the cloud (contract: A2, A3)."""
        ...

    def attach(self, job_name: str) -> Mapping[str, Host]:
        """Hosts of this job that survived their supervisor, running or ended, by name."""
        ...

    def close(self, job_name: str) -> None:
        """Remove everything of this job that the engine made, and give its files to the user."""
        ...


_ENGINES: Final = {
    "docker": ("harness.engines.docker", "DockerEngine"),
    "sandbox": ("harness.engines.sandbox", "SandboxEngine"),
    "fake": ("harness.engines.fake", "FakeEngine"),
}


def open_engine(name: str) -> Engine:
    """The engine of that name, its library imported only now."""
    try:
        module, cls = _ENGINES[name]
    except KeyError:
        raise EngineError(f"there is no engine {name!r}: use docker or sandbox") from None
    engine: Engine = getattr(importlib.import_module(module), cls)()
    return engine
