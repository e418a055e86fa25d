"""Files between a job's host and this machine, by the rules of `docker cp`."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from harness._values import dataclass
from harness.debugging._kept_files import KeptFiles
from harness.debugging._shell import find_host, kept_entry
from harness.engines.archive import RefusedError, pack, unpack
from harness.engines.enter import Fill, GoneError, Kind, Report, open_door
from harness.errors import DiskError, UsageError
from harness.home import Home
from harness.store import Store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["Copied", "HostPath", "copy", "parse_place"]

_HOST_PATH: Final = re.compile(r"([A-Za-z0-9-]+)(?:/([A-Za-z0-9-]+))?:(.*)", re.DOTALL)
_STREAM: Final = "-"
_CHUNK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class HostPath:
    """A path in a host of a job."""

    job: str
    host: str | None
    """None: the first."""
    path: str


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What was copied."""

    files: int
    bytes: int
    skipped: int
    """How many weren't."""
    why: tuple[str, ...]
    """For the first of those, the path and the reason."""


class _Files(Protocol):
    def pack(
        self, path: str, *, follow: bool, contents: bool
    ) -> AbstractContextManager[tuple[IO[bytes], Callable[[], Report]]]: ...

    def unpack(self, fill: Fill, path: str, kind: Kind) -> Report: ...


def parse_place(text: str) -> HostPath | str:
    """`JOB:PATH` or `JOB/HOST:PATH`; anything else is a path of this machine, such as `./a:b`, or `-`."""
    match = _HOST_PATH.fullmatch(text)
    if match is None:
        return text
    job, host, path = match.groups()
    if not path:
        raise UsageError(f"{text} names no path in the host: write {text}/opt/ml/model, say")
    # As in a container: relative to its root.
    return HostPath(job=job, host=host, path=path if path.startswith("/") else f"/{path}")


def copy(source: str, target: str, *, follow: bool = False, home: Home | None = None) -> Copied:
    """Copy a file or a directory out of a host or into one; one of the two is `JOB[/HOST]:PATH`.

    A job's hosts must run, or it failed or was stopped: then it is what they left. Into a directory that is
    there the source goes under its own name; `SRC/.` means what is in it. `-` as the one on this machine is
    a tar stream on standard input or output. What is copied out belongs to the user.

    `follow`: if the source is a link, what it leads to.

    Raises:
        UsageError: the words make no sense, there is no such job, host or path, or the source doesn't fit
            its destination.
        GoneError: the host ended meanwhile.
        DiskError: this machine's disk is full or read-only.
    """
    here, there = parse_place(source), parse_place(target)
    home = home or Home.find()
    try:
        if isinstance(here, HostPath) and isinstance(there, str):
            report = _copy_out(_files(home, here), here, there, follow)
        elif isinstance(here, str) and isinstance(there, HostPath):
            report = _copy_in(_files(home, there), here, there, follow)
        else:
            which = "both" if isinstance(here, HostPath) else "neither"
            raise UsageError(
                f"{which} of {source} and {target} names a host: one must be JOB[/HOST]:PATH, the other a path here"
            )
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(f"can't write {error.filename or target}: {error.strerror}") from error
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"{error.filename or target}: {error.strerror}") from error
    if "refused" in report:
        raise UsageError(f"can't copy {source} to {target}: {report['refused']}")
    return Copied(
        files=report["files"], bytes=report["bytes"], skipped=report["skipped"], why=tuple(report["why"])
    )


def _files(home: Home, place: HostPath) -> _Files:
    with Store(home) as store:
        record = store.job(place.job)
    if record.ended_for_good:
        return KeptFiles(kept_entry(home, record, place.host).launch)
    entry = find_host(home, record, place.host)
    door = open_door(entry.entry, job=place.job, host=entry.host)
    if not door.runs:
        raise GoneError(place.job, entry.host)
    # Without namespaces its paths are this machine's: it has none of its own to enter.
    return door if door.confined else KeptFiles(entry.launch)


def _split(path: str) -> tuple[str, bool]:
    """The path, and whether only what is in that directory is meant."""
    if path == "." or path.endswith("/."):
        return path[:-1] or ".", True
    return path, False


# -------------------------------------------------------------------------------------------------- out


def _copy_out(files: _Files, source: HostPath, target: str, follow: bool) -> Report:
    path, contents = _split(source.path)
    with files.pack(path, follow=follow, contents=contents) as (stream, report):
        first = stream.read(1)
        if not first:
            return report()
        whole = _Prefixed(first, stream)
        if target == _STREAM:
            _pour(whole, sys.stdout.buffer)
            return {"files": 0, "bytes": 0, **report()}
        name = None if contents else PurePosixPath(os.path.normpath(path)).name or None
        try:
            done = unpack(whole, target, name=name)  # type: ignore[arg-type]
        except RefusedError as error:
            return {"refused": str(error)}
        told = report()
    if "refused" in told:
        return told
    return {
        **done,
        "skipped": done["skipped"] + told["skipped"],
        "why": [*told["why"], *done["why"]],
    }


class _Prefixed:
    """A stream of which the first bytes were read, to see whether there are any."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        first, self._first = self._first, b""
        if not first:
            return self._rest.read(size)
        return first + self._rest.read(size - len(first) if size >= 0 else -1)


def _pour(source: Any, target: IO[bytes]) -> None:
    if target.isatty():
        raise UsageError("a tar stream is nothing for a terminal: redirect standard output")
    while chunk := source.read(_CHUNK):
        target.write(chunk)
    target.flush()


# --------------------------------------------------------------------------------------------------- in


def _copy_in(files: _Files, source: str, target: HostPath, follow: bool) -> Report:
    if source == _STREAM:
        if sys.stdin.isatty():
            raise UsageError("no tar stream comes from a terminal: redirect standard input")
        return files.unpack(_forward, target.path, "archive")
    path, contents = _split(source)
    directory = os.path.isdir(path) and (follow or contents or path.endswith("/") or not os.path.islink(path))  # noqa: PTH112, PTH114 - a trailing slash counts
    if not os.path.lexists(path):
        return {"refused": f"{path}: no such file or directory"}
    if contents and not directory:
        return {"refused": f"{path} is not a directory"}

    def fill(stream: IO[bytes], name: str | None) -> Report:
        return pack(path, stream, follow=follow, contents=contents, name=name)

    return files.unpack(fill, target.path, "contents" if contents else "directory" if directory else "file")


def _forward(stream: IO[bytes], name: str | None) -> Report:
    del name
    while chunk := sys.stdin.buffer.read(_CHUNK):
        stream.write(chunk)
    return {"files": 0, "bytes": 0, "skipped": 0, "why": []}
