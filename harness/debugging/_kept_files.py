"""The files of a host that has no processes to enter, seen as it saw them: an ended job's, or without namespaces.

A path is followed as the host would: links, absolute ones too, lead to places of the host and never to this
machine's. Only what is a directory here can be had: /opt/ml, /tmp, and what was mounted.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from harness.engines.archive import RefusedError, pack, unpack
from harness.engines.enter import Fill, Kind, Report, merged
from harness.model import HostLaunch

__all__ = ["KeptFiles"]

_MOST_LINKS: Final = 40


class KeptFiles:
    """Copies from and to a host's directories; the files' half of `engines.enter.Door`."""

    def __init__(self, launch: HostLaunch) -> None:
        self._places: list[tuple[PurePosixPath, Path, bool]] = [
            (PurePosixPath("/opt/ml"), launch.ml, True),
            (PurePosixPath("/tmp"), launch.scratch / "tmp", True),
            *((mount.target, mount.source, mount.mode == "rw") for mount in launch.mounts),
        ]
        # The deepest first: it lies over the others.
        self._places.sort(key=lambda place: -len(place[0].parts))

    @contextlib.contextmanager
    def pack(
        self, path: str, *, follow: bool, contents: bool
    ) -> Iterator[tuple[IO[bytes], Callable[[], Report]]]:
        """See `Door.pack`."""
        told: Report = {}
        receive, send = os.pipe()

        def write() -> None:
            with os.fdopen(send, "wb") as stream, contextlib.suppress(BrokenPipeError):
                told.update(self._pack(path, stream, follow=follow, contents=contents))

        writer = threading.Thread(target=write, name="pack")
        writer.start()
        try:
            with os.fdopen(receive, "rb") as stream:

                def report() -> Report:
                    writer.join()
                    return told

                yield stream, report
        finally:
            writer.join()

    def _pack(self, path: str, stream: IO[bytes], *, follow: bool, contents: bool) -> Report:
        try:
            seen, real, _ = self._resolve(path, follow=follow or contents or path.endswith("/"))
        except RefusedError as error:
            return {"refused": str(error)}
        name = None if contents else PurePosixPath(os.path.normpath(path)).name or None
        try:
            told = _as_seen(pack(str(real), stream, contents=contents, name=name), real, seen)
        except RefusedError as error:
            return _as_seen({"refused": str(error)}, real, seen)
        for target, _, _ in self._places:
            if target != seen and target.is_relative_to(seen):
                told["skipped"] += 1
                told["why"].append(f"{target}: mounted from elsewhere, copy it by itself")
        return told

    def unpack(self, fill: Fill, path: str, kind: Kind) -> Report:
        """See `Door.unpack`."""
        try:
            seen, real, writable = self._resolve(path, follow=True)
            if not writable:
                raise RefusedError(f"{seen} is a channel's data, which is not the job's to change")
        except RefusedError as error:
            return {"refused": str(error)}
        slash = "/" if path.endswith("/") else ""
        return _as_seen(_into(f"{real}{slash}", fill, kind), real, seen)

    def _resolve(self, path: str, *, follow: bool) -> tuple[PurePosixPath, Path, bool]:
        """Where that path of the host is, there and here, and whether it may be written; `follow`: a link at
        its end too.

        Raises:
            RefusedError: it is nothing of what was kept.
        """
        seen = PurePosixPath("/")
        waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                seen = seen.parent
                continue
            seen /= part
            real, _ = self._real(seen)
            if real is None or not real.is_symlink() or (not waiting and not follow):
                continue
            links += 1
            if links > _MOST_LINKS:
                raise RefusedError(f"{path}: too many links")
            target = str(real.readlink())
            seen = PurePosixPath("/") if target.startswith("/") else seen.parent
            waiting += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        real, writable = self._real(seen)
        if real is None:
            kept = ", ".join(sorted(str(target) for target, _, _ in self._places))
            raise RefusedError(f"{seen} was not kept: {kept} can be copied")
        return seen, real, writable

    def _real(self, seen: PurePosixPath) -> tuple[Path | None, bool]:
        for target, source, writable in self._places:
            if seen.is_relative_to(target):
                return source / seen.relative_to(target), writable
        return None, False


def _as_seen(told: Report, real: Path, seen: PurePosixPath) -> Report:
    """The report with the host's paths instead of ours."""
    if "refused" in told:
        return {"refused": str(told["refused"]).replace(str(real), str(seen))}
    return {**told, "why": [str(each).replace(str(real), str(seen)) for each in told["why"]]}


def _into(path: str, fill: Fill, kind: Kind) -> Report:
    """Put the stream that `fill` writes at a path of this machine."""
    receive, send = os.pipe()
    sent: dict[str, Any] = {}
    problem: list[BaseException] = []

    def write() -> None:
        try:
            with os.fdopen(send, "wb", buffering=0) as stream:
                sent.update(fill(stream, None))
        except BrokenPipeError:
            pass  # it was refused, which is what counts
        except BaseException as error:
            problem.append(error)

    writer = threading.Thread(target=write, name="fill")
    writer.start()
    try:
        with os.fdopen(receive, "rb") as stream:
            done = unpack(stream, path, as_it_is=kind == "archive")
    except RefusedError as error:
        done = {"refused": str(error)}
    finally:
        writer.join()
    if problem:
        raise problem[0]
    return merged(sent, done)
