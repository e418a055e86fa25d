"""How other processes find a job's hosts, and how each was launched: `hosts/<host>/entry.json`.

Written by the supervisor when the hosts run; it stays with the directories of a job that didn't complete,
and lets a new host be started on what they hold.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass
from harness.engines import Host
from harness.home import Home
from harness.model import HostLaunch
from harness.store import from_json, to_json

__all__ = ["HostEntry", "host_entries", "record_entries"]

_FILE: Final = "entry.json"


@dataclass(frozen=True, kw_only=True)
class HostEntry:
    """One host of a job's present attempt."""

    host: str
    entry: Mapping[str, Any]
    """`Host.entry`."""
    launch: HostLaunch


def record_entries(directory: Path, hosts: Iterable[Host], launches: Iterable[HostLaunch]) -> None:
    """Put on record how to find these hosts of the job in `directory`.

    `launches`: empty for hosts that an earlier supervisor started; how it launched them is on record.
    The environment of a launch may hold secrets: only the user can read the file.

    Raises:
        OSError: it can't be written.
    """
    told = {launch.host: to_json(launch) for launch in launches}
    for host in hosts:
        path = directory / "hosts" / host.name / _FILE
        launch = told.get(host.name)
        if launch is None:
            try:
                launch = json.loads(path.read_text())["launch"]
            except FileNotFoundError:
                continue  # killed before it came to writing: that host can't be entered
        text = json.dumps({"entry": dict(host.entry), "launch": launch})
        new = path.with_name(f"{_FILE}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
        new.rename(path)


def host_entries(home: Home, name: str) -> dict[str, HostEntry]:
    """Host → how to find it, of the hosts that the job's present attempt has started."""
    found = {}
    for path in (home.job(name) / "hosts").glob(f"*/{_FILE}"):
        try:
            told = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # the job just completed
        launch = from_json(HostLaunch, told["launch"])
        found[launch.host] = HostEntry(host=launch.host, entry=told["entry"], launch=launch)
    return found
