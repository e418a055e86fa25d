"""/opt/ml/checkpoints ↔ CheckpointConfig.S3Uri's place in the local object store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.channels import RemoteS3, open_remote
from harness.errors import ClientError, DiskError
from harness.model import LocalOptions
from harness.objects import (
    ObjectInfo,
    ObjectStore,
    Progress,
    copy_data,
    local_name,
    open_beneath,
    out_of_space,
    parse_uri,
    refuse_local_name,
    replacing,
    sort_hosts,
    walk_beneath,
)

__all__ = ["CheckpointSync", "Synced"]

_SETTLED_NS: Final = 1_000_000_000
"""A file that was modified more recently may be half-written: the next sync takes it (contract: F15)."""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What one sync did."""

    uploaded: int
    deleted: int
    size: int
    """Bytes uploaded."""
    waiting: int
    """Files that were being written, left to the next sync."""


@dataclass(frozen=True, slots=True)
class _Local:
    """A file of one host, as it was seen."""

    name: str
    host: str
    size: int
    mtime_ns: int
    inode: int

    @property
    def identity(self) -> str:
        return f"{self.size}:{self.mtime_ns}:{self.inode}"


class CheckpointSync:
    """The checkpoints of one job: down to every host before it starts, up while it runs and at its end.

    Plain objects (contract: F18) in the local object store, never in real S3. What is known of the files is
    kept on disk, by the hosts' directories, so that the supervisor that takes a job over goes on where the
    last one was. Methods raise ClientError and DiskError; call them from one thread at a time.

    `local`, `region`, `client`: with them, and where the local place is empty, `restore` looks into real S3
    (`client`: a boto3 S3 client instead of the default one).
    """

    def __init__(
        self,
        objects: ObjectStore,
        uri: str,
        directories: Mapping[str, Path],
        *,
        local: LocalOptions | None = None,
        region: str | None = None,
        client: Any = None,
    ) -> None:
        self._objects = objects
        self._bucket, self._prefix = parse_uri(uri)
        self._uri = uri
        self._base = uri if uri.endswith("/") else uri + "/"
        self._directories = {host: directories[host] for host in sort_hosts(directories)}
        self._remote = (local, region, client)
        self._warnings: dict[str, None] = {}
        places = "\0".join([uri, *(str(path.absolute()) for path in self._directories.values())])
        self._state = (
            objects.private("checkpoints") / f"{hashlib.sha256(places.encode()).hexdigest()[:40]}.json"
        )
        self._known: dict[str, dict[str, str]] = {host: {} for host in directories}
        """Host → name → identity of the file that was restored or uploaded."""
        self._writers: dict[str, tuple[str, int]] = {}
        """Name → host whose file the object is, and that file's mtime."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one sentence each, each once."""
        return tuple(self._warnings)

    # ---------------------------------------------------------------------- restore

    def restore(self, progress: Progress | None = None) -> int:
        """The objects under the URI into every host's directory (contract: F12, F19); how many objects.

        The directories are made. A URI without a slash at its end is a string prefix and brings its
        siblings too (contract: F17), with a warning. Raises ClientError for an object whose name can't be
        a file, DiskError when the disk is full.
        """
        found = list(self._objects.list(self._uri)) or self._fetch(progress)
        wanted: list[tuple[ObjectInfo, str]] = []
        for info in found:
            name = local_name(self._prefix, info.key)
            if name.endswith("/") or not name:
                continue
            refuse_local_name(name, info.uri, "the checkpoint directory")
            wanted.append((info, name))
        if siblings := [info.uri for info, _ in wanted if not info.uri.startswith(self._base)]:
            self._warn(
                f"the checkpoint URI {self._uri} doesn't end with a slash and also restored {siblings[0]}"
                + (f" and {len(siblings) - 1} more" if len(siblings) > 1 else "")
                + " (contract F17)"
            )
        total, done = sum(info.size for info, _ in wanted) * len(self._directories), 0
        self._known = {host: {} for host in self._directories}
        self._writers = {}
        for host, directory in self._directories.items():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                for info, name in wanted:
                    known = self._known[host]
                    known[name] = _restore(info, directory / name)
                    done += info.size
                    if progress is not None:
                        progress(done, total, "restoring checkpoints")
            except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
                raise ClientError(
                    f"Data download failed: under {self._uri} {error.filename} is a file and a folder at once"
                ) from error
            except OSError as error:
                raise _disk(error, f"restoring checkpoints into {directory}") from error
        self._save()
        return len(wanted)

    def _fetch(self, progress: Progress | None) -> list[ObjectInfo]:
        """What real S3 has under the URI, copied into the local place; nothing when it can't be asked."""
        local, region, client = self._remote
        if local is None:
            return []
        remote = open_remote(local, region, client)
        if not isinstance(remote, RemoteS3):
            return []
        listed = [one for one in remote.list(self._bucket, self._prefix) if not one.key.endswith("/")]
        if not listed:
            return []
        place = self._objects.private("tmp") / self._state.stem
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            wanted = [(one, place / str(number)) for number, one in enumerate(listed)]
            remote.download(wanted, progress, "restoring checkpoints from Amazon S3")
            for one, path in wanted:
                self._objects.put_file(one.uri, path, move=True)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        self._warn(
            f"{len(listed)} checkpoints were copied from {self._uri} in Amazon S3 to the local object store; "
            "what the job writes stays local"
        )
        return list(self._objects.list(self._uri))

    # ------------------------------------------------------------------------- sync

    def sync(self, *, final: bool = False) -> Synced:
        """New and changed files up, files that were deleted here away there (contract: F14).

        Objects that this job neither restored nor wrote are never touched (F13). A file modified within
        the last second, or while it was read, waits for the next sync; `final`, after the hosts have
        ended, waits for nothing. Several hosts: the last writer wins, and a name that two of them write
        with different content is told (F16). Links and special files are no objects and stay here.
        """
        self._load()
        before = (json.dumps(self._known), json.dumps(self._writers))
        now = time.time_ns()
        changed: list[_Local] = []
        gone: list[tuple[str, str]] = []
        waiting = 0
        for host, directory in self._directories.items():
            files = self._look(host, directory)
            if files is None:
                continue
            known = self._known[host]
            for name, file in files.items():
                if known.get(name) == file.identity:
                    continue
                if not final and now - file.mtime_ns < _SETTLED_NS:
                    waiting += 1
                else:
                    changed.append(file)
            gone += [(host, name) for name in known if name not in files]
        # The last writer is the one whose file is newest.
        changed.sort(key=lambda file: (file.mtime_ns, file.host))
        uploaded = size = 0
        for file in changed:
            outcome = self._upload(file, final=final)
            if outcome is None:
                waiting += 1
            elif outcome:
                uploaded += 1
                size += file.size
        # After the uploads: a checkpoint that was renamed is never missing from the store.
        deleted = sum(self._drop(host, name) for host, name in gone)
        if (json.dumps(self._known), json.dumps(self._writers)) != before:
            self._save()
        if final:
            if waiting:
                self._warn(f"{waiting} checkpoint files changed while the last sync read them")
            self._state.unlink(missing_ok=True)
        return Synced(uploaded=uploaded, deleted=deleted, size=size, waiting=waiting)

    def _look(self, host: str, directory: Path) -> dict[str, _Local] | None:
        """The host's files; None when its directory is gone, which deletes nothing."""
        files = {}
        skipped = []
        try:
            if not directory.is_dir():
                raise NotADirectoryError
            for name, status in walk_beneath(directory):
                if stat.S_ISREG(status.st_mode):
                    files[name] = _Local(name, host, status.st_size, status.st_mtime_ns, status.st_ino)
                elif not stat.S_ISDIR(status.st_mode):
                    skipped.append(name)
        except NotADirectoryError:
            if self._known[host]:
                self._warn(f"{host} has no checkpoint directory any more: nothing is synced from there")
            return None
        except OSError as error:
            raise _disk(error, f"reading the checkpoints of {host}") from error
        for name in skipped:
            self._warn(
                f"the checkpoint {name} of {host} is a link or special file, which S3 can't hold: not synced"
            )
        return files

    def _upload(self, file: _Local, *, final: bool) -> bool | None:
        """True: uploaded. False: nothing to do. None: it changed meanwhile, so the next sync takes it."""
        uri = self._base + file.name
        known = self._known[file.host]
        try:
            fd = open_beneath(self._directories[file.host], file.name)
        except FileNotFoundError:
            return False  # renamed or deleted since we looked
        except OSError as error:
            self._warn(
                f"the checkpoint {file.name} of {file.host} can't be read ({error.strerror}): not synced"
            )
            return False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            if self._clash(file, fd, uri):
                known[file.name] = file.identity
                return False
            try:
                with self._objects.writing(uri) as target:
                    copy_data(fd, target.fileno(), limit=os.fstat(fd).st_size)
                    after = os.fstat(fd)
                    same = (after.st_size, after.st_mtime_ns) == (file.size, file.mtime_ns)
                    if not same and not final:
                        raise _ChangedError
            except _ChangedError:
                return None
        finally:
            os.close(fd)
        known[file.name] = file.identity
        self._writers[file.name] = (file.host, file.mtime_ns)
        return True

    def _clash(self, file: _Local, fd: int, uri: str) -> bool:
        """Whether the object stays: another host wrote the same, or wrote it later (contract: F16)."""
        writer = self._writers.get(file.name)
        if writer is None or writer[0] == file.host:
            return False
        info = self._objects.head(uri)
        if info is None:
            return False
        if info.size == file.size and _equal(fd, info.path):
            return True
        os.lseek(fd, 0, os.SEEK_SET)
        self._warn(
            f"{writer[0]} and {file.host} both write the checkpoint {file.name}, with different content: "
            "the last writer wins (contract F16)"
        )
        return writer[1] > file.mtime_ns

    def _drop(self, host: str, name: str) -> bool:
        """Delete the object of a file that is gone, unless another host has written it since."""
        del self._known[host][name]
        writer = self._writers.get(name)
        if writer is not None and writer[0] != host:
            return False
        self._writers.pop(name, None)
        # A sibling that a prefix without slash brought along (F17) isn't this job's to delete.
        return self._objects.delete(self._base + name)

    # ------------------------------------------------------------------------ state

    def _warn(self, text: str) -> None:
        self._warnings.setdefault(text)

    def _load(self) -> None:
        """The state on disk is the truth: another instance may have restored."""
        try:
            state = json.loads(self._state.read_bytes())
        except FileNotFoundError:
            return
        self._known |= {host: dict(names) for host, names in state["known"].items()}
        self._writers = {name: (host, mtime) for name, (host, mtime) in state["writers"].items()}

    def _save(self) -> None:
        data = json.dumps({"known": self._known, "writers": self._writers}).encode()
        try:
            with replacing(self._state) as file:
                file.write(data)
        except OSError as error:
            raise _disk(error, "remembering checkpoints") from error


class _ChangedError(Exception):
    """The file was written while it was copied."""


def _restore(info: ObjectInfo, target: Path) -> str:
    """A copy of the object: the script may write it in place. Its identity."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with info.path.open("rb") as source, replacing(target) as file:
        copy_data(source.fileno(), file.fileno())
        os.utime(file.fileno(), ns=(info.mtime_ns, info.mtime_ns))
    status = target.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _equal(fd: int, path: Path) -> bool:
    with path.open("rb", buffering=0) as other:
        while data := os.read(fd, _BLOCK):
            if data != other.read(len(data)):
                return False
        return not other.read(1)


def _disk(error: OSError, doing: str) -> DiskError:
    if out_of_space(error):
        return DiskError(f"no space left while {doing}; free the disk")
    return DiskError(f"{doing} failed ({error.strerror or error}: {error.filename})")
