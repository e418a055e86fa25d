"""The post-mortem bundle: what is kept of a job that failed, was stopped by a time limit, or hung.

`jobs/<name>/post-mortem/bundle.json` and the files that it names; docs/post-mortem.md has its members. Made
by whoever ends the job, from what is on disk: a supervisor that took the job over makes the same bundle as the
one that was killed would have. It can't change how the job ends: what can't be had is told in `problems`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass
from harness.home import Home
from harness.lifecycle._compare import Changes, changes_since_good, source_path
from harness.lifecycle._verdict import Facts, HostFacts, Verdict, exit_words, judge, own_path
from harness.model import JsonObject
from harness.objects import open_beneath
from harness.store import JobRecord, Store, to_json
from harness.telemetry import (
    Frame,
    hider,
    is_own_code,
    is_secret,
    kernel_lines,
    read_evidence,
    read_stacks,
    scan,
    short_path,
)

__all__ = ["BUNDLE", "PLACE", "Bundle", "compose", "keep", "read_bundle", "set_aside", "source_digest"]

PLACE: Final = "post-mortem"
BUNDLE: Final = "bundle.json"
VERSION: Final = 1
_TAIL: Final = 1 << 20
"""Bytes of each log's end that are read."""
_LAST: Final = 40
_FAILURE: Final = 1 << 20
_INLINE: Final = 64 << 10
_AROUND: Final = 5
"""Lines of source before and after the one that is shown."""
_ROOM: Final = 16 << 20
"""Bytes of disk that must be free: the job's own end comes first."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was kept."""

    document: JsonObject
    """As docs/post-mortem.md says."""
    directory: Path
    earlier: tuple[str, ...] = ()
    """The verdicts of earlier attempts, one sentence each."""


def set_aside(directory: Path, attempt: int) -> None:
    """Keep an earlier attempt's bundle as `post-mortem/attempt-<n>` when another attempt starts."""
    place = directory / PLACE
    if not place.is_dir():
        return
    earlier = place / f"attempt-{attempt}"
    earlier.mkdir(exist_ok=True)
    for path in place.iterdir():
        if not path.name.startswith("attempt-"):
            path.replace(earlier / path.name)


def keep(
    home: Home, store: Store, name: str, *, status: str, secondary: str, reason: str | None
) -> str | None:
    """Make the bundle of a job that is about to end so, and return the verdict's sentence.

    None, and no bundle, for a job that was stopped by request and didn't seem to hang.

    Raises:
        OSError: it can't be written, as on a full disk.
    """
    place = home.job(name) / PLACE
    if shutil.disk_usage(home.root).free < _ROOM:
        raise OSError(28, f"less than {_ROOM >> 20} MiB are free")
    if secondary == "Stopped" and not read_evidence(place).get("hangs"):
        return None
    record = store.job(name)
    bundle, verdict, changes, failures = _compose(
        home, store, record, status=status, secondary=secondary, reason=reason
    )
    hide = hider(_secrets(record.request))
    place.mkdir(parents=True, exist_ok=True)
    for host, text in failures.items():
        _write(place / f"failure-{host}.txt", hide(text))
    if changes.diff:
        _write(place / "code.diff", hide(changes.diff))
    if verdict.traceback is not None:
        _write(place / "traceback.txt", hide(verdict.traceback.text) + "\n")
    if bundle["stacks"]:
        _write(place / "stacks.txt", "\n".join(_stack_lines(bundle["stacks"])) + "\n")
    _write(place / BUNDLE, json.dumps(bundle, indent=1))
    return str(bundle["verdict"]["sentence"])


def compose(home: Home, store: Store, record: JobRecord) -> JsonObject:
    """The bundle of a job that ended without one: from what is left of it."""
    document, *_ = _compose(
        home,
        store,
        record,
        status=record.status,
        secondary=record.secondary_status,
        reason=record.failure_reason,
    )
    return document


def read_bundle(home: Home, name: str) -> Bundle | None:
    """The job's bundle; None when it has none."""
    place = home.job(name) / PLACE
    document = _read(place)
    if document is None:
        return None
    attempts = sorted(place.glob("attempt-*"), key=lambda path: int(path.name.partition("-")[2]))
    earlier = [(path.name, _read(path)) for path in attempts]
    return Bundle(
        document=document,
        directory=place,
        earlier=tuple(
            f"attempt {name.partition('-')[2]}: {told['verdict']['sentence']}"
            for name, told in earlier
            if told is not None
        ),
    )


def _read(place: Path) -> JsonObject | None:
    try:
        found = json.loads((place / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("version") == VERSION else None


def _compose(
    home: Home, store: Store, record: JobRecord, *, status: str, secondary: str, reason: str | None
) -> tuple[JsonObject, Verdict, Changes, dict[str, str]]:
    """The bundle's document; the verdict, the changes, and failure files by host that it refers to."""
    directory = home.job(record.name)
    evidence = read_evidence(directory / PLACE)
    problems: list[str] = list(evidence.get("problems", ()))
    now = time.time()
    lines, kernel_problem = kernel_lines(record.training_start or record.created, now)
    kernel = [{"at": line.at, "text": line.text, "pid": line.pid} for line in lines]
    failures: dict[str, str] = {}
    hosts = []
    for host in _host_names(record):
        text = _failure_file(directory / "hosts" / host / "ml")
        if text is not None:
            failures[host] = text
        hosts.append(_host_facts(home, record, host, text or "", evidence))
    stacks = tuple(read_stacks(each) for each in evidence.get("stacks", ()))
    facts = Facts(
        status=status,
        secondary_status=secondary,
        reason=reason,
        first=record.result.get("failed_first"),
        hosts=tuple(hosts),
        world_size=int(record.plan.get("world_size") or 1),
        hangs=evidence.get("hangs", ()),
        stacks=stacks,
        kernel=kernel,
        kernel_problem=kernel_problem,
        request=record.request,
        memory_limit=record.plan.get("memory_bytes"),
        stopped=record.result.get("stop") is not None,
    )
    verdict = judge(facts)
    changes = changes_since_good(store, record)
    code = _Code(home, record)
    bundle: JsonObject = {
        "version": VERSION,
        "job": record.name,
        "attempt": record.attempt,
        "made": now,
        "status": status,
        "secondary_status": secondary,
        "failure_reason": reason,
        "failure": {
            host: {"text": text[:_INLINE], "file": f"failure-{host}.txt"} for host, text in failures.items()
        },
        "verdict": {
            "kind": verdict.kind,
            "sentence": verdict.sentence,
            "host": verdict.host,
            "rank": verdict.rank,
            "frame": code.frame(verdict.frame),
            "advice": [each.replace(" JOB", f" {record.name}") for each in verdict.advice],
        },
        "source": code.around(verdict.frame),
        "hosts": [_told(host, home, record, stopped=facts.stopped) for host in hosts],
        "tracebacks": [
            {
                "host": host.name,
                "rank": each.rank,
                "type": each.type,
                "message": each.message,
                "launcher": each.is_launchers,
                "consequence": each.is_secondary,
                "text": each.text,
                "frames": [code.frame(frame) for frame in each.frames],
            }
            for host in hosts
            for each in host.scan.tracebacks[-16:]
        ],
        "looks": evidence.get("looks", {}),
        "hangs": evidence.get("hangs", []),
        "stacks": [to_json(each) for each in stacks],
        "kernel": {"lines": kernel, "problem": kernel_problem},
        "changes": {
            **{key: value for key, value in to_json(changes).items() if key != "diff"},
            "diff_file": "code.diff" if changes.diff else None,
        },
        "problems": problems,
    }
    return hider(_secrets(record.request))(bundle), verdict, changes, failures


def _secrets(request: JsonObject) -> Iterator[str]:
    """The values of what is called like a secret: they may be in a log, a command line, a message."""
    for group in ("Environment", "HyperParameters"):
        for name, value in request.get(group, {}).items():
            if is_secret(name):
                yield value
                with contextlib.suppress(ValueError):  # the SDK sends JSON
                    if isinstance(plain := json.loads(value), str):
                        yield plain


# -------------------------------------------------------------------------------------------- parts


def _host_names(record: JobRecord) -> list[str]:
    return [host.name for host in record.hosts] or []


def _host_facts(
    home: Home, record: JobRecord, host: str, failure: str, evidence: Mapping[str, Any]
) -> HostFacts:
    row = next(each for each in record.hosts if each.name == host)
    end = evidence.get("ends", {}).get(host, {})
    said = _tail(home.logs(record.name, record.attempt) / f"{host}.log")
    return HostFacts(
        name=host,
        exit_code=row.exit_code if row.exit_code is not None else end.get("code"),
        oom_killed=row.oom_killed or bool(end.get("oom_killed")),
        vanished=bool(end.get("vanished")),
        error=end.get("error"),
        failure=failure,
        scan=scan(said.split("\n"), keep_last=_LAST),
        said=said,
        look=evidence.get("looks", {}).get(host, {}),
    )


def _told(host: HostFacts, home: Home, record: JobRecord, *, stopped: bool) -> JsonObject:
    root = host.scan.root_cause
    return {
        "name": host.name,
        "exit_code": host.exit_code,
        "exit_words": exit_words(host.exit_code, oom_killed=host.oom_killed, stopped=stopped),
        "script_exit_code": host.script_code,
        "script_exit_words": None
        if host.script_code is None
        else exit_words(host.script_code, oom_killed=host.oom_killed, stopped=stopped),
        "failed_step": host.failed_step or None,
        "oom_killed": host.oom_killed,
        "vanished": host.vanished,
        "error": host.error,
        "first_failed_rank": None if root is None else to_json(root),
        "log": str(home.logs(record.name, record.attempt) / f"{host.name}.log"),
        "last_lines": [line[:2000] for line in host.scan.last_lines],
    }


def _tail(log: Path) -> str:
    """The end of a log; of what a progress bar wrote over only what was left to see."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            data = file.read(_TAIL)
    except OSError:
        return ""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    return "\n".join(line.rpartition("\r")[2] or line.rstrip("\r") for line in text.split("\n"))


def _failure_file(tree: Path) -> str | None:
    """The whole failure file, as far as it isn't absurd; a link or FIFO in its place is none."""
    import stat

    try:
        descriptor = open_beneath(tree, "output/failure")
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return file.read(_FAILURE).decode("utf-8", "replace")


class _Code:
    """The user's source: as it ran, and where it lies on this machine."""

    def __init__(self, home: Home, record: JobRecord) -> None:
        self._home = home
        self._record = record
        self._source = source_path(record)
        uploads = [each for each in record.spec.get("uploads", ()) if each.get("kind") == "source"]
        self._entry = uploads[0].get("entry_point") if uploads else None
        self._texts: dict[str, list[str] | None] = {}

    def frame(self, frame: Frame | None) -> JsonObject | None:
        if frame is None:
            return None
        path = own_path(frame.file, self._source, self._entry)
        return {
            "file": frame.file,
            "line": frame.line,
            "function": frame.function,
            "source": frame.source,
            "path": None if path is None else str(path),
        }

    def around(self, frame: Frame | None) -> JsonObject | None:
        """The lines around it, of the code as it ran."""
        if frame is None or not is_own_code(frame.file):
            return None
        lines = source_lines(self._home, self._record, short_path(frame.file))
        if lines is None or not 0 < frame.line <= len(lines):
            return None
        first = max(1, frame.line - _AROUND)
        path = own_path(frame.file, self._source, self._entry)
        return {
            "file": frame.file,
            "path": None if path is None else str(path),
            "sha256": source_digest(lines),
            "line": frame.line,
            "first": first,
            "lines": [line[:400] for line in lines[first - 1 : frame.line + _AROUND]],
        }


def source_digest(lines: list[str]) -> str:
    """Tells whether a file is still the one that ran."""
    import hashlib

    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def source_lines(home: Home, record: JobRecord, inside: str) -> list[str] | None:
    """A file of the job's code as it ran: of its first host's /opt/ml/code, else of the source archive."""
    for host in _host_names(record):
        tree = home.job(record.name) / "hosts" / host / "ml"
        with contextlib.suppress(OSError):
            descriptor = open_beneath(tree, f"code/{inside}")
            with open(descriptor, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                return file.read(4 << 20).splitlines()
    return None


def _stack_lines(taken: list[JsonObject]) -> Iterator[str]:
    for stacks in taken:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stacks["at"]))
        yield f"=== {stacks['reason']}, {moment}{': ' + stacks['problem'] if stacks['problem'] else ''}"
        for stack in stacks["stacks"]:
            rank = "" if stack["rank"] is None else f" rank {stack['rank']}"
            yield f"--- {stack['host']}{rank} process {stack['pid']} ({stack['role']}): {stack['command']}"
            if stack["problem"]:
                yield f"    {stack['problem']}"
            for name, frames in {"MainThread": stack["frames"], **stack["threads"]}.items():
                yield f"  thread {name}"
                yield from (f"    {each['file']}:{each['line']} in {each['function']}" for each in frames)
        yield ""


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.new")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
