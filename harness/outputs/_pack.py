"""Artifacts: model.tar.gz and output.tar.gz, or plain files where compression is off."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from harness._values import dataclass
from harness.errors import ClientError
from harness.objects import Progress, copy_data, open_archive, open_beneath, out_of_space, replacing
from harness.outputs._merge import Entry, Merged, merge

__all__ = ["Packed", "copy_uncompressed", "pack"]

_TELL_BYTES: Final = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What became of the hosts' trees."""

    files: int
    size: int
    """Bytes of the archive, or of the files where compression is off."""
    clashes: tuple[str, ...] = ()
    """Names that hosts have with different content; algo-1's copy was taken (contract: F4)."""
    warnings: tuple[str, ...] = ()


def pack(trees: Mapping[str, Path], archive: Path, *, progress: Progress | None = None) -> Packed | None:
    """The contents of all hosts' directories as one tar.gz at `archive` (contract: F1, F2, F4).

    None, and no archive, when there is nothing in them (contract: F5). The archive appears whole or not at
    all; the trees stay as they are. Raises ClientError in SageMaker's words when the disk is full (F22) or
    a file can't be read.
    """
    merged = merge(trees)
    if not merged.entries:
        return None
    work = _Work(merged, f"packing {archive.name}", progress)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with open_archive(archive) as tar:
            for entry in merged.entries:
                work.add(tar, entry)
        size = archive.stat().st_size
    except OSError as error:
        raise _failed(error, archive, merged) from error
    return work.result(size)


def copy_uncompressed(
    trees: Mapping[str, Path], directory: Path, *, progress: Progress | None = None
) -> Packed | None:
    """The contents of all hosts' directories as plain files in `directory` (contract: F8, F9).

    As `pack`, but objects are files: empty directories are nothing, and a link inside the tree gives its
    target's content. A failure leaves the files that were complete.
    """
    merged = merge(trees)
    if not any(not stat.S_ISDIR(entry.status.st_mode) for entry in merged.entries):
        return None
    work = _Work(merged, f"copying {directory.name}", progress)
    size = 0
    try:
        for entry in merged.entries:
            if not stat.S_ISDIR(entry.status.st_mode):
                size += work.copy(entry, directory / entry.name)
    except OSError as error:
        raise _failed(error, directory, merged) from error
    return work.result(size)


class _Work:
    """One run over merged trees: counts, progress, what changed meanwhile."""

    def __init__(self, merged: Merged, what: str, progress: Progress | None) -> None:
        self._merged = merged
        self._what = what
        self._progress = progress
        self._total = merged.size
        self._done = self._told = 0
        self._files = 0
        self._warnings = list(merged.warnings)

    def add(self, tar: tarfile.TarFile, entry: Entry) -> None:
        """The entry into the archive: root's, with its mode and modification time."""
        info = tarfile.TarInfo(entry.name)
        info.mode = stat.S_IMODE(entry.status.st_mode)
        info.mtime = int(entry.status.st_mtime)
        info.uname = info.gname = "root"
        if entry.link is not None:
            info.type, info.linkname = tarfile.SYMTYPE, entry.link
            tar.addfile(info)
        elif not entry.is_file:
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        else:
            fd = self._open(entry)
            if fd is None:
                return
            try:
                status = os.fstat(fd)
                info.size = status.st_size
                reader = _Exactly(fd, info.size, self.count)
                tar.addfile(info, reader)  # type: ignore[arg-type]  # all of a file that tarfile uses
                self._check(entry, fd, status)
            finally:
                os.close(fd)
            self._files += 1

    def copy(self, entry: Entry, target: Path) -> int:
        """The entry's content to `target`; its bytes."""
        name = entry.name
        if entry.link is not None:
            name = os.path.relpath(os.path.realpath(entry.root / name), os.path.realpath(entry.root))
        fd = self._open(entry, name)
        if fd is None:
            return 0
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self._warnings.append(f"{entry.name} is a link to a directory: left out (contract F26)")
                return 0
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                size = copy_data(fd, file.fileno(), self.count, limit=status.st_size)
            self._check(entry, fd, status)
        finally:
            os.close(fd)
        self._files += 1
        return size

    def count(self, size: int) -> None:
        """So many bytes more are done."""
        self._done += size
        if self._progress is not None and self._done - self._told >= _TELL_BYTES:
            self._told = self._done
            self._progress(min(self._done, self._total), self._total, self._what)

    def result(self, size: int) -> Packed:
        if self._progress is not None:
            self._progress(self._total, self._total, self._what)
        return Packed(
            files=self._files, size=size, clashes=self._merged.clashes, warnings=tuple(self._warnings)
        )

    def _open(self, entry: Entry, name: str | None = None) -> int | None:
        try:
            return open_beneath(entry.root, name or entry.name)
        except FileNotFoundError:
            self._warnings.append(f"{entry.name} vanished before it was packed")
            return None
        except OSError as error:
            raise ClientError(
                f"Artifact upload failed: can't read {entry.root / entry.name} ({error.strerror})"
            ) from error

    def _check(self, entry: Entry, fd: int, before: os.stat_result) -> None:
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            self._warnings.append(f"{entry.name} changed while it was packed: its copy may be torn")


class _Exactly:
    """A file of exactly the size that its header tells, zeros where it was cut meanwhile."""

    def __init__(self, fd: int, size: int, count: Callable[[int], None]) -> None:
        self._fd = fd
        self._left = size
        self._count = count

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        parts: list[bytes] = []
        while wanted:
            part = os.read(self._fd, wanted) or bytes(wanted)
            parts.append(part)
            wanted -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._left -= len(data)
        self._count(len(data))
        return data


def _failed(error: OSError, target: Path, merged: Merged) -> ClientError:
    if out_of_space(error):
        return ClientError(  # contract: F22
            f"Artifact upload failed:Insufficient disk space (for {target}; the {merged.size:,} bytes that were "
            "to be packed stay where they are)"
        )
    reason = error.strerror or str(error)
    return ClientError(f"Artifact upload failed: {target} ({reason}: {error.filename})")
