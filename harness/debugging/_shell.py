"""A place to stand in a job's host: running, or started anew on what a failed one left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from harness.debugging._guard import Guard
from harness.debugging._script_log import logged_environment
from harness.engines.enter import Command, Door, Ended, Terminal, open_door, script_environment
from harness.errors import EngineError, UsageError
from harness.home import Home
from harness.lifecycle import HostEntry, host_entries, kept_host
from harness.store import Store

if TYPE_CHECKING:
    from harness.store import JobRecord

__all__ = ["Standing", "find_host", "kept_entry", "shell_command", "stand"]

_PATIENCE: Final = 15.0
"""Seconds that hosts may take to start while the job is in Training already."""
_MARK: Final = "HARNESS_ENTERED"
_SHELL: Final = 'if command -v bash >/dev/null 2>&1; then exec bash "$@"; else exec sh "$@"; fi'
_FROM_HERE: Final = ("TERM", "COLORTERM")
"""What a program must know of the user's terminal."""


class Standing:
    """A host that commands can be run in."""

    def __init__(self, home: Home, record: JobRecord, entry: HostEntry, *, kept: bool) -> None:
        """Raises EngineError when the host's engine doesn't answer."""
        self.home = home
        self.job = record.name
        self.host = entry.host
        self.entry = entry
        self.kept = kept
        """Whether this is a new host, on what one of an ended job left."""
        self.has_tmp = not record.spec["local"].get("warm", False)
        """Whether a kept host's /tmp is the script's: a warm host empties it for the next run."""
        self.door: Door = open_door(entry.entry, job=record.name, host=entry.host)
        self._attempt = record.attempt

    def environment(self) -> dict[str, str]:
        """The script's own environment; before its process is there, what the platform gives the host."""
        recorded = dict(self.entry.launch.environment)
        if self.kept:
            # Its process is gone; the toolkit wrote down what it gave it.
            recorded |= logged_environment(self.home.logs(self.job, self._attempt) / f"{self.host}.log")
        return script_environment(self.door.environments(), recorded)

    def run(
        self,
        argv: Sequence[str],
        *,
        terminal: Terminal | None = None,
        stdio: tuple[int, int, int] = (0, 1, 2),
        extra: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command in the script's directory with the script's environment, to its end.

        `terminal`: it gets a terminal of its own, and all keys, Ctrl-C too. Without, it has the three
        descriptors. However this process ends, the command and all that it started end with it; what a
        command that has ended left behind lives on in the host.

        Raises:
            GoneError: the host has ended.
            EngineError: the host can't be entered.
        """
        mark = os.urandom(8).hex()
        environment = self.environment() | {_MARK: mark} | dict(extra or {})
        if terminal is not None:
            environment |= {name: os.environ[name] for name in _FROM_HERE if name in os.environ}
            environment.setdefault("TERM", "xterm")
        command = Command(argv=tuple(argv), environment=environment, mark=f"{_MARK}={mark}")
        guard = Guard(
            home=self.home,
            job=self.job,
            host=self.host,
            entry=self.entry.entry,
            mark=command.mark,
            kept=self.kept,
        )
        with guard.over(terminal):
            if terminal is None:
                return self.door.run(command, terminal=None, stdio=stdio)
            with terminal:
                return self.door.run(command, terminal=terminal, stdio=stdio)

    def job_runs(self) -> bool:
        """Whether the job's hosts still are to run: a kept one's always."""
        with Store(self.home) as store:
            return self.kept or store.summary(self.job).secondary_status == "Training"


def shell_command(job: str, host: str, words: str | None = None) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command for a shell, bash if the host has it, and what its environment needs for the prompt.

    `words`: a command line for the shell instead.
    """
    arguments = () if words is None else ("-c", words)
    prompt = f"({job} {host}) "
    # A bash sets its prompt from the system's files, whatever its environment says; this comes after them.
    late = f"PS1='{prompt}\\w\\$ '; unset PROMPT_COMMAND"
    extra = {} if words is not None else {"PS1": f"{prompt}$ ", "PROMPT_COMMAND": late}
    return ("sh", "-c", _SHELL, "sh", *arguments), extra


@contextlib.contextmanager
def stand(
    job: str, *, host: str | None = None, post_mortem: bool = False, home: Home | None = None
) -> Iterator[Standing]:
    """The host of that job: one that runs, or with `post_mortem` a new one on what it left, removed afterwards.

    `host`: default the first.

    Raises:
        UsageError: there is no such job or host, or it isn't in a state for that; says what to do.
        EngineError: the host can't be entered or started.
    """
    home = home or Home.find()
    with Store(home) as store:
        record = store.job(job)
    if not post_mortem:
        yield Standing(home, record, find_host(home, record, host), kept=False)
        return
    entry = kept_entry(home, record, host)
    with kept_host(home, job, entry) as started:
        yield Standing(home, record, started, kept=True)


def find_host(home: Home, record: JobRecord, host: str | None) -> HostEntry:
    """How to find that running host of the job; of several hosts the first, if none is named."""
    name = record.name
    if record.ended_for_good:
        raise UsageError(_ended(record))
    chosen = _choose(record, host)
    deadline = time.monotonic() + _PATIENCE
    while True:
        with Store(home) as store:
            now = store.summary(name)
        if now.ended_for_good:
            raise UsageError(_ended(now))
        if now.secondary_status in ("Starting", "Pending", "Downloading"):
            raise UsageError(
                f"the hosts of {name} don't run yet, it is {now.secondary_status}: try again when it is Training"
            )
        if now.secondary_status not in ("Training", "Stopping"):
            raise UsageError(f"the hosts of {name} have ended, it is {now.secondary_status}")
        entry = host_entries(home, name).get(chosen)
        if entry is not None:
            return entry
        if time.monotonic() > deadline:
            raise EngineError(
                f"{chosen} of {name} is not to be found: its supervisor didn't tell where it runs"
            )
        time.sleep(0.1)


def kept_entry(home: Home, record: JobRecord, host: str | None) -> HostEntry:
    """How that host of an ended job was launched, whose directories are still there."""
    name = record.name
    if not record.ended_for_good:
        raise UsageError(f"{name} has not ended, it is {record.secondary_status}: use `harness shell {name}`")
    if record.status == "Completed":
        raise UsageError(_ended(record))
    chosen = _choose(record, host)
    entry = host_entries(home, name).get(chosen)
    if entry is None or not entry.launch.ml.is_dir():
        raise UsageError(
            f"nothing is left of {chosen} of {name}: it ended before its hosts ran, or they were removed; "
            f"see `harness why {name}`"
        )
    return entry


def _choose(record: JobRecord, host: str | None) -> str:
    names = [str(each["name"]) for each in record.plan["hosts"]]
    if host is None:
        return names[0]
    if host in names:
        return host
    import difflib

    close = difflib.get_close_matches(host, names, n=1)
    shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"{record.name} has no host {host!r}: {hint}it has {shown}")


def _ended(record: JobRecord) -> str:
    if record.status != "Completed":
        return (
            f"{record.name} has ended, it is {record.status}: "
            f"`harness shell {record.name} --post-mortem` stands in what it left"
        )
    artifacts = record.result.get("artifacts", {})
    places = [str(each["path"]) for each in artifacts.values() if isinstance(each, dict) and "path" in each]
    where = f"its outputs are {' and '.join(places)}" if places else "it left no outputs"
    return f"{record.name} has completed, and of such a job its hosts' state isn't kept: {where}"
