"""What changed between a job and the last one of its kind that completed: request, machine, code."""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness import contract
from harness._values import dataclass
from harness.model import JsonObject
from harness.objects import ObjectStore
from harness.store import JobRecord, Store
from harness.telemetry import HIDDEN, is_secret, read_packages

__all__ = ["Change", "Changes", "FileChange", "changes_since_good", "last_good", "source_path"]

_STAMP: Final = re.compile(r"-\d{4}-\d{2}-\d{2}-\d{2}-\d{2}-\d{2}-\d{3}$")
_LOOKED_AT: Final = 100
"""Completed jobs that are looked at, newest first."""
_ARCHIVE: Final = 16 << 20
_FILE: Final = 512 << 10
_LINES: Final = 3000
_DIFF: Final = 256 << 10
_SECONDS: Final = 1.0
"""Bytes of archives, files and the whole diff, and lines of a file, and seconds of comparing, beyond which nothing
is compared."""
_IGNORED: Final = (
    "TrainingJobName",
    "HyperParameters.sagemaker_submit_directory",
    "HyperParameters.sagemaker_job_name",
)
_PLAN: Final = ("engine", "image", "python", "shm_bytes", "memory_bytes", "world_size")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value of the request, or of how this machine stood in for the cloud, that is another now."""

    path: str
    before: Any
    """None: it wasn't there."""
    after: Any


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """A file of the source archive that is another now."""

    path: str
    kind: str
    """added, removed or changed"""
    added: int
    removed: int
    """Lines; 0 where they can't be told."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is different from `since`."""

    since: str | None
    """The last job of this kind that completed; None when there is none."""
    since_ended: float | None = None
    request: tuple[Change, ...] = ()
    machine: tuple[Change, ...] = ()
    packages: tuple[Change, ...] = ()
    """Python packages whose version is another; empty too where the hosts' packages aren't known."""
    files: tuple[FileChange, ...] = ()
    diff: str = ""
    """Of the text files, unified."""
    problem: str = ""
    """Why the code can't be compared."""

    @property
    def nothing(self) -> bool:
        return not (self.request or self.machine or self.packages or self.files or self.problem)


def changes_since_good(store: Store, record: JobRecord) -> Changes:
    """What changed since the last job of this kind that completed; bounded in size and time."""
    good = last_good(store, record)
    if good is None:
        return Changes(since=None)
    files, diff, problem = _code(ObjectStore(store.home.s3), good.request, record.request)
    return Changes(
        since=good.name,
        since_ended=good.ended,
        request=tuple(_differences(_flat_request(good), _flat_request(record))),
        machine=tuple(_differences(_machine(good), _machine(record))),
        packages=_packages(store, good, record),
        files=files,
        diff=diff,
        problem=problem,
    )


def last_good(store: Store, record: JobRecord) -> JobRecord | None:
    """The newest completed job before `record` that is most alike: of the same base name and source directory,
    else of that directory, else of that name and entry point."""
    mine = _kin(record)
    best: tuple[int, JobRecord] | None = None
    for each in store.jobs(status="Completed", limit=_LOOKED_AT):
        if each.created >= record.created:
            continue
        full = store.job(each.name)
        theirs = _kin(full)
        same_source = mine[1] is not None and mine[1] == theirs[1]
        same_name = mine[0] == theirs[0] and mine[2] == theirs[2]
        alike = 2 * same_source + same_name
        if alike == 3:
            return full
        if alike and (best is None or alike > best[0]):
            best = alike, full
    return None if best is None else best[1]


def _kin(record: JobRecord) -> tuple[str, Path | None, str | None]:
    program = record.request.get("HyperParameters", {}).get("sagemaker_program")
    return base_name(record.name), source_path(record), program


def base_name(name: str) -> str:
    """A job's name without the time that the SDK and we add to it."""
    return _STAMP.sub("", name)


def source_path(record: JobRecord) -> Path | None:
    """Where the job's code came from on this machine: source_dir, or the one script."""
    for upload in record.spec.get("uploads", ()):
        if upload.get("kind") == "source":
            return Path(upload["path"])
    source = record.spec.get("source")
    return None if source is None else Path(source)


def _flat_request(record: JobRecord) -> dict[str, Any]:
    return {
        path: value
        for path, value in _flatten(record.request)
        if path not in _IGNORED and record.name not in str(value)
    }


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            name = (
                next((item[key] for key in ("ChannelName", "Name", "Key") if key in item), number)
                if isinstance(item, Mapping)
                else number
            )
            yield from _flatten(item, f"{path}[{name}]")
    else:
        yield path, value


def _machine(record: JobRecord) -> dict[str, Any]:
    return {key: record.plan.get(key) for key in _PLAN}


def _packages(store: Store, good: JobRecord, record: JobRecord) -> tuple[Change, ...]:
    before, after = (_packages_of(store, each) for each in (good, record))
    if not before or not after:
        return ()
    if _machine(good) != _machine(record):  # another image has other packages; what both have is telling
        before, after = (
            {name: each[name] for name in before.keys() & after.keys()} for each in (before, after)
        )
    return tuple(
        Change(path=name, before=before.get(name), after=after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def _packages_of(store: Store, record: JobRecord) -> dict[str, str]:
    first = record.plan["hosts"][0]["name"]
    return read_packages(
        store.home.job(record.name), store.home.logs(record.name, record.attempt) / f"{first}.log"
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            secret = is_secret(path.rpartition(".")[2])
            told = (
                (HIDDEN if secret and value is not None else value)
                for value in (before.get(path), after.get(path))
            )
            yield Change(path=path, before=next(told), after=next(told))


# ----------------------------------------------------------------------------------------- the code


def _code(
    objects: ObjectStore, before: JsonObject, after: JsonObject
) -> tuple[tuple[FileChange, ...], str, str]:
    places = []
    for request in (before, after):
        uri = _archive(request)
        if uri is None:
            return (), "", ""  # the image runs as it is: there is no code of ours to compare
        info = objects.head(uri)
        if info is None:
            return (), "", f"the code can't be compared: {uri} is not in the local object store any more"
        if info.size > _ARCHIVE:
            return (), "", f"the code can't be compared: {uri} has more than {_ARCHIVE >> 20} MiB"
        places.append(info.path)
    try:
        if (
            places[0].stat().st_size == places[1].stat().st_size
            and places[0].read_bytes() == places[1].read_bytes()
        ):
            return (), "", ""
        old, new = _members(places[0]), _members(places[1])
    except (OSError, tarfile.TarError, EOFError) as error:
        return (), "", f"the code can't be compared: {error}"
    return (*_compare(old, new), "")


def _archive(request: JsonObject) -> str | None:
    uri = contract.submit_directory(request)
    if uri is not None and uri.startswith("s3://"):
        return uri
    for channel in request.get("InputDataConfig", ()):  # network isolation: the code comes as a channel
        if channel.get("ChannelName") == "code":
            found: str | None = channel.get("DataSource", {}).get("S3DataSource", {}).get("S3Uri")
            return found
    return None


def _members(archive: Path) -> dict[str, bytes | int]:
    """Name → content, or the size of what is too big to compare."""
    found: dict[str, bytes | int] = {}
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if not member.isfile() or "__pycache__/" in name or name.endswith(".pyc"):
                continue
            file = tar.extractfile(member) if member.size <= _FILE else None
            found[name] = member.size if file is None else file.read()
    return found


def _compare(
    old: Mapping[str, bytes | int], new: Mapping[str, bytes | int]
) -> tuple[tuple[FileChange, ...], str]:
    import difflib

    files: list[FileChange] = []
    parts: list[str] = []
    room = _DIFF
    deadline = time.monotonic() + _SECONDS
    for name in sorted({*old, *new}):
        before, after = old.get(name, b""), new.get(name, b"")
        if before == after and name in old and name in new:
            continue
        kind = "changed" if name in old and name in new else "added" if name in new else "removed"
        lines = [_text(each) for each in (before, after)]
        added = removed = 0
        if lines[0] is not None and lines[1] is not None and time.monotonic() < deadline:
            diff = list(
                difflib.unified_diff(
                    lines[0],
                    lines[1],
                    f"a/{name}" if name in old else "/dev/null",
                    f"b/{name}" if name in new else "/dev/null",
                    n=3,
                )
            )
            added = sum(line.startswith("+") for line in diff[2:])
            removed = sum(line.startswith("-") for line in diff[2:])
            text = "".join(line if line.endswith("\n") else f"{line}\n" for line in diff)
            if room > 0:
                parts.append(text[:room] if len(text) <= room else f"{text[:room]}\n[the diff is cut here]\n")
                room -= len(text)
        files.append(FileChange(path=name, kind=kind, added=added, removed=removed))
    return tuple(files), "".join(parts)


def _text(content: bytes | int) -> list[str] | None:
    if isinstance(content, int) or b"\0" in content[:8192]:
        return None
    try:
        lines = content.decode("utf-8").splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
    return lines if len(lines) <= _LINES else None
