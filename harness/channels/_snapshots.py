"""Frozen trees of a channel's files, made once and mounted by every job that has the same data.

A snapshot is named by its content: names and identities of its files. It holds hard links to the object
store's files, which are replaced by rename and so never change under a job; copies where a link can't be.
Hosts never write into one: it is mounted read-only or under an overlay.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness._values import dataclass
from harness.channels._items import Item
from harness.channels._remote import RemoteObject, RemoteS3
from harness.errors import ClientError
from harness.objects import Progress, copy_data, out_of_space

__all__ = ["Snapshot", "Snapshots", "collect"]

_NO_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP})
_TOLD_EVERY: Final = 500
_VERSION: Final = "1"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A finished snapshot."""

    path: Path
    reused: bool


class Snapshots:
    """The snapshots in `cache`. Safe for concurrent processes."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._trees = cache / "channels"

    def get(
        self, items: Sequence[Item], *, channel: str, remote: RemoteS3 | None, progress: Progress | None
    ) -> Snapshot:
        """The tree of these items, made unless it is there already."""
        name = _digest(items)
        tree = self._trees / name
        if tree.is_dir():
            return Snapshot(path=tree, reused=True)
        try:
            self._trees.mkdir(parents=True, exist_ok=True)
            with _locked(self._cache / "locks" / name):
                if tree.is_dir():  # another job made it while we waited
                    return Snapshot(path=tree, reused=True)
                half = self._trees / f".half-{os.getpid()}-{os.urandom(4).hex()}"
                half.mkdir()
                try:
                    located = self._download(items, channel, remote, progress)
                    _fill(half, located, channel, progress)
                    half.rename(tree)
                except BaseException:
                    shutil.rmtree(half, ignore_errors=True)
                    raise
        except OSError as error:
            raise _explained(error, channel, self._cache) from error
        return Snapshot(path=tree, reused=False)

    def _download(
        self, items: Sequence[Item], channel: str, remote: RemoteS3 | None, progress: Progress | None
    ) -> list[tuple[Item, str]]:
        """Every item with its file: what isn't on this machine comes into the cache, by ETag and size."""
        located: list[tuple[Item, str]] = []
        missing: dict[Path, RemoteObject] = {}
        for item in items:
            if item.location is not None:
                located.append((item, item.location))
            else:
                assert item.remote is not None
                blob = self._blob(item.remote)
                located.append((item, str(blob)))
                if not item.name.endswith("/") and not blob.exists():
                    missing[blob] = item.remote
        if missing:
            assert remote is not None
            need, free = sum(found.size for found in missing.values()), shutil.disk_usage(self._cache).free
            if need > free:
                raise ClientError(
                    f"Data download failed:Insufficient disk space (channel {channel} needs {need:,} bytes "
                    f"in {self._cache}, where {free:,} are free)"  # contract: E32
                )
            incoming = self._cache / "s3" / f".half-{os.getpid()}-{os.urandom(4).hex()}"
            incoming.mkdir(parents=True)
            try:
                wanted = [(found, incoming / blob.name) for blob, found in missing.items()]
                remote.download(wanted, progress, f"downloading channel {channel}")
                for blob in missing:
                    blob.parent.mkdir(parents=True, exist_ok=True)
                    (incoming / blob.name).rename(blob)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        return located

    def _blob(self, found: RemoteObject) -> Path:
        name = hashlib.sha256(f"{found.key}\0{found.etag}\0{found.size}".encode()).hexdigest()
        return self._cache / "s3" / found.bucket / name


def collect(cache: Path, *, keep: Iterable[Path] = (), dry_run: bool = False) -> int:
    """Remove snapshots and downloads; the bytes that it frees (with `dry_run`: would free).

    What `keep` names, by a path in it or of it, stays: the mounts of jobs that run (`used(job_dir)`). A
    file that the object store also has frees nothing and counts nothing.
    """
    kept = {path.resolve() for path in keep}
    doomed: list[Path] = []
    for place in (cache / "channels", cache / "s3"):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            inside = path.resolve()
            if not any(inside == other or inside in other.parents for other in kept):
                doomed.append(path)
    freed = _freed(doomed)
    if not dry_run:
        for path in doomed:
            # Renamed first: nobody takes half a snapshot for a whole one.
            gone = path.with_name(f".gone-{os.urandom(4).hex()}")
            path.rename(gone)
            shutil.rmtree(gone)
        for lock in (cache / "locks").glob("*"):
            lock.unlink()
    return freed


def _freed(doomed: Sequence[Path]) -> int:
    """Bytes of the files all of whose links are doomed."""
    seen: dict[tuple[int, int], list[int]] = {}
    for top in doomed:
        for directory, _, names in os.walk(top):
            for name in names:
                status = os.lstat(os.path.join(directory, name))  # noqa: PTH118  # 50,000 files
                links = seen.setdefault((status.st_dev, status.st_ino), [status.st_nlink, 0, status.st_size])
                links[1] += 1
    return sum(size for links, ours, size in seen.values() if links == ours)


def _digest(items: Sequence[Item]) -> str:
    text = "".join([f"{item.name}\0{item.identity}\n" for item in items])
    data = f"{_VERSION}\n{text}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _fill(half: Path, located: Sequence[tuple[Item, str]], channel: str, progress: Progress | None) -> None:
    root = str(half)
    made = {root}
    total = sum(item.size for item, _ in located)
    done = 0
    half.chmod(0o755)  # contract: B6
    for number, (item, source) in enumerate(located):
        target = f"{root}/{item.name}"
        parent = target.rpartition("/")[0]
        try:
            if parent not in made:
                _make(parent, made)
            if not item.name.endswith("/"):  # contract: E7
                _place(source, target)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ClientError(
                f"Data download failed: in channel {channel} {item.name!r} is a file and a folder at once, "
                "or there twice; rename an object"
            ) from error
        done += item.size
        if progress is not None and number % _TOLD_EVERY == 0:
            progress(done, total, f"staging channel {channel}")
    if progress is not None and located:
        progress(total, total, f"staging channel {channel}")


def _make(directory: str, made: set[str]) -> None:
    parent = directory.rpartition("/")[0]
    if parent not in made:
        _make(parent, made)
    os.mkdir(directory, 0o755)  # noqa: PTH102  # 50,000 files
    os.chmod(directory, 0o755)  # noqa: PTH101
    made.add(directory)


def _place(source: str, target: str) -> None:
    """A hard link, else a copy."""
    try:
        os.link(source, target)
        return
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            copy_data(reader, writer)
            os.fchmod(writer, 0o644)  # contract: B6
        finally:
            os.close(writer)
    finally:
        os.close(reader)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go when it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _explained(error: OSError, channel: str, cache: Path) -> ClientError:
    if out_of_space(error):
        return ClientError(
            f"Data download failed:Insufficient disk space (channel {channel}, in {cache})"  # contract: E32
        )
    reason = error.strerror or str(error)
    return ClientError(f"Data download failed: channel {channel} ({reason}: {error.filename})")
