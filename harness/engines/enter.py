"""Into a running host, from any process of the user who runs it: a command, its terminal, files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any, Final, Literal, Protocol

from harness.engines._terminal import RESET, Terminal, TerminatedError
from harness.errors import EngineError

__all__ = [
    "RESET",
    "Command",
    "Door",
    "Ended",
    "Fill",
    "GoneError",
    "Kind",
    "Report",
    "Terminal",
    "TerminatedError",
    "merged",
    "open_door",
    "script_environment",
]

CODE: Final = "/opt/ml/code"


class GoneError(EngineError):
    """The host has ended."""

    def __init__(self, job: str, host: str) -> None:
        super().__init__(f"{host} of {job} has ended")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to run in a host, in the script's directory if it is there, else in `/`."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """The whole environment; in docker the image's own stands below it."""
    mark: str = ""
    """A `NAME=VALUE` of the environment that no other process has: by it all that the command started is
    found, should it have to be ended."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command in a host ended."""

    code: int
    """0–255, 128+n when signal n ended it; 126 and 127 with `error` when it never ran."""
    error: str | None = None
    host_ended: bool = False
    """The host ended, and the command with it."""


Report = dict[str, Any]
"""What was copied: `files`, `bytes`, `skipped`, `why` (one text for each of the first that were skipped);
or `refused`, and why."""
Fill = Callable[[IO[bytes], str | None], Report]
"""Writes a tar stream with one root of that name (None: its own) and reports."""
Kind = Literal["file", "directory", "contents", "archive"]
"""What is copied into a host: the contents of a directory go into another, an archive is unpacked."""


class Door(Protocol):
    """The way into one host. Every method may raise GoneError, or EngineError for another reason."""

    @property
    def runs(self) -> bool:
        """Whether the host still runs, and is the one that was recorded."""
        ...

    @property
    def confined(self) -> bool:
        """False where the host's processes see this machine's own files, and the user's (the sandbox without
        namespaces)."""
        ...

    def environments(self) -> Mapping[int, Mapping[str, str]]:
        """The environment, as it was when it was started, of each process that can be looked at."""
        ...

    def run(self, command: Command, *, terminal: Terminal | None, stdio: tuple[int, int, int]) -> Ended:
        """Run a command to its end: on a terminal of its own that is joined with the user's, or on three
        descriptors. However this is left, nothing of a command that hasn't ended stays."""
        ...

    def kill(self, mark: str) -> None:
        """End what bears that mark: for a process that takes over from one that was killed."""
        ...

    def pack(
        self, path: str, *, follow: bool, contents: bool
    ) -> AbstractContextManager[tuple[IO[bytes], Callable[[], Report]]]:
        """A tar stream of `path`, with one root member, and the report, to be asked for at its end.

        `follow`: of what a link at `path` leads to; `contents`: of what is in the directory, the root being
        `.`.
        """
        ...

    def unpack(self, fill: Fill, path: str, kind: Kind) -> Report:
        """Put the tar stream that `fill` writes at `path`: into it where it is a directory, else under its
        name. The report counts what `fill` wrote, and says what was skipped on either side."""
        ...


_DOORS: Final = {
    "docker": ("harness.engines.docker._enter", "DockerDoor"),
    "sandbox": ("harness.engines.sandbox._enter", "SandboxDoor"),
}


def open_door(entry: Mapping[str, Any], *, job: str, host: str) -> Door:
    """The way into the host that `Host.entry` tells of; job and host are for messages.

    Raises:
        EngineError: hosts of that engine can't be entered, or the engine doesn't answer.
    """
    name = str(entry["engine"])
    if name not in _DOORS:
        raise EngineError(f"hosts of the {name} engine can't be entered")
    module, cls = _DOORS[name]
    door: Door = getattr(importlib.import_module(module), cls)(entry, job=job, host=host)
    return door


def merged(sent: Report, done: Report) -> Report:
    """One report of the two ends of a stream: the counts of the first, what was skipped by either."""
    if "refused" in done:
        return done
    return {
        **sent,
        "skipped": sent.get("skipped", 0) + done["skipped"],
        "why": [*sent.get("why", []), *done["why"]],
    }


_TOOLKIT: Final = "SM_CURRENT_HOST"
"""What the toolkit gives every script, and nothing else has."""
_TRANSIENT: Final = ("PWD", "OLDPWD", "SHLVL", "_")
_OURS: Final = ("HARNESS_DEBUG_", "HARNESS_HOOK", "HARNESS_ENTERED")
"""Ours to one process; another one that had them would stop for a debugger as well."""
_MOUNTED: Final = "/run/harness/"


def script_environment(found: Mapping[int, Mapping[str, str]], recorded: Mapping[str, str]) -> dict[str, str]:
    """The environment of the user's process, of all those found in the host.

    Of several the oldest: a launcher such as torchrun, whose ranks have theirs from it. When it isn't there
    (yet), that of process 1 with what is `recorded` of the launch over it.
    """
    scripts = [
        pid for pid, variables in sorted(found.items()) if _TOOLKIT in variables and not _is_ours(variables)
    ]
    if scripts:
        environment = dict(found[scripts[0]])
    else:
        first = found[min(found)] if found else {}
        environment = {**first, **recorded}
    for name in list(environment):
        if name in _TRANSIENT or name.startswith(_OURS):
            del environment[name]
    if "PYTHONPATH" in environment:
        kept = [part for part in environment["PYTHONPATH"].split(":") if not part.startswith(_MOUNTED)]
        environment["PYTHONPATH"] = ":".join(kept)
    return environment


def _is_ours(variables: Mapping[str, str]) -> bool:
    return "HARNESS_ENTERED" in variables
