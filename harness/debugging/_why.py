"""Why a job ended as it did, or what a running one is doing: from its bundle, or from a look at it now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass, field
from harness.errors import UsageError
from harness.home import Home
from harness.lifecycle import Bundle, compose, read_bundle, source_digest
from harness.model import JsonObject
from harness.store import JobRecord, Store, to_json
from harness.telemetry import read_evidence, standstill, take_stacks

__all__ = ["Why", "latest", "why"]

_LIVE: Final = ("Training", "Stopping")


@dataclass(frozen=True, kw_only=True)
class Why:
    """The answer for one job."""

    record: JobRecord
    verdict: str
    """One sentence."""
    bundle: JsonObject | None = None
    """The post-mortem bundle's document (docs/post-mortem.md); None where there is nothing to explain."""
    directory: Path | None = None
    """Where the bundle and its files are."""
    edited: bool = False
    """The file of the verdict's line is another by now than the one that ran."""
    live: JsonObject | None = None
    """Of a running job: `telemetry.Stacks` as JSON, taken now."""
    earlier: tuple[str, ...] = ()
    """Verdicts of the attempts before."""
    next: tuple[str, ...] = field(default_factory=tuple)
    """Commands to go on with."""


def latest(store: Store) -> str:
    """The job to ask about when none is named: the newest that failed, else the newest that was stopped by
    a limit or is running.

    Raises:
        UsageError: there is none.
    """
    for status in ("Failed", "InProgress", "Stopped"):
        found = store.jobs(status=status, limit=1)
        if found:
            return found[0].name
    raise UsageError("no job has failed: name the one that you want to know about (see `harness jobs`)")


def why(home: Home, name: str) -> Why:
    """What there is to say about the job. Of a running one it takes the stacks of all processes now.

    Raises:
        UsageError: there is no such job.
    """
    with Store(home) as store:
        record = store.job(name)
        if not record.ended_for_good:
            return _running(home, store, record)
        if record.status == "Completed":
            return Why(record=record, verdict="it completed: there is nothing to explain")
        found = read_bundle(home, name)
        if found is None:
            found = Bundle(document=compose(home, store, record), directory=home.job(name))
    return Why(
        record=record,
        verdict=found.document["verdict"]["sentence"],
        bundle=found.document,
        directory=found.directory,
        edited=_edited(found.document["source"]),
        earlier=found.earlier,
        next=_commands(record, found.document),
    )


def _running(home: Home, store: Store, record: JobRecord) -> Why:
    span = time.time() - (record.transitions[-1].start if record.transitions else record.created)
    if record.secondary_status not in _LIVE:
        return Why(
            record=record,
            verdict=f"its script doesn't run now: it is {record.secondary_status} for {span:.0f} s"
            + _holders(store, record),
            next=(f"harness logs -f {record.name}",),
        )
    evidence = read_evidence(home.job(record.name) / "post-mortem")
    stacks = take_stacks(_living(evidence), "asked", seconds=10.0)
    hangs = [each for each in evidence.get("hangs", ()) if "until" not in each]
    waiting = standstill(stacks)
    scripts = [each for each in stacks.scripts if each.frames]
    if hangs:
        said = f"it runs, but seems to hang: {hangs[-1]['sentence']}"
    elif waiting is not None:
        said = f"it is running; at this moment {waiting.sentence}"
    elif scripts:
        said = f"it is running: the script is at {scripts[0].where}"
    elif any(each.role == "launcher" and each.frames for each in stacks.stacks):
        said = "it is running: the script has not begun, the toolkit is still preparing it"
    else:
        said = f"it is running, in {record.secondary_status} for {span:.0f} s"
    first = record.hosts[0].name if record.hosts else None
    behind = next((each.host for each in scripts if waiting is not None and each.pid in waiting.pids), first)
    return Why(
        record=record,
        verdict=said,
        live=to_json(stacks),
        next=(
            f"harness logs -f {record.name}",
            f"harness shell {record.name}" + (f" --host {behind}" if behind != first else ""),
            f"harness stop {record.name}",
        ),
    )


def _holders(store: Store, record: JobRecord) -> str:
    """Who has what a pending job waits for."""
    if record.secondary_status != "Pending":
        return ""
    holders = {name for kind in ("slot", "gpu") for name in store.claims(kind).values()} - {record.name}
    return (
        f", until there is room on this machine: {', '.join(sorted(holders))} {'has' if len(holders) == 1 else 'have'} it"
        if holders
        else ""
    )


def _edited(source: Mapping[str, Any] | None) -> bool:
    if source is None or source["path"] is None:
        return False
    try:
        lines = Path(source["path"]).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    return source_digest(lines) != str(source["sha256"])


def _living(evidence: Mapping[str, Any]) -> dict[str, list[int]]:
    """Host → its processes: those that the supervisor saw last and that are still the same, and what they
    have started since."""
    import psutil

    found: dict[str, list[int]] = {}
    for host, look in evidence.get("looks", {}).items():
        pids: dict[int, None] = {}
        for each in look["processes"]:
            try:
                process = psutil.Process(each["pid"])
                if abs(process.create_time() - each["started"]) > 1:
                    continue
                pids[process.pid] = None
                pids |= dict.fromkeys(child.pid for child in process.children(recursive=True))
            except psutil.Error:
                continue
        found[host] = list(pids)
    return found


def _commands(record: JobRecord, bundle: Mapping[str, Any]) -> tuple[str, ...]:
    host = bundle["verdict"]["host"]
    which = (
        f" --host {host}"
        if len(bundle["hosts"]) > 1 and host not in (None, bundle["hosts"][0]["name"])
        else ""
    )
    commands = [f"harness shell {record.name} --post-mortem{which}", f"harness rerun {record.name}"]
    origin = str(record.spec.get("origin", ""))
    if bundle["verdict"]["kind"] == "exception" and Path(origin).is_file():
        commands.insert(1, f"harness debug {origin} --post-mortem")
    if record.request.get("CheckpointConfig") and record.result.get("checkpoints_restored") is not None:
        commands.append(f"harness rerun {record.name} --from-checkpoint")
    return tuple(commands)
