"""The object store: buckets are directories, objects are files."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from harness.errors import ClientError, DiskError
from harness.objects._files import copy_data, out_of_space, temporary_file
from harness.objects._opaque import Opaque
from harness.objects._uri import RESERVED, check_key, is_plain, parse_uri

__all__ = ["ObjectInfo", "ObjectStore", "digest"]

_PRIVATE: Final = ".harness"
"""Beside the buckets: no bucket's name begins with a dot."""
_Row = tuple[str, str, os.stat_result]


class ObjectInfo(NamedTuple):
    """One object, as it was when it was listed. A tuple: 50,000 of them are made in no time."""

    bucket: str
    key: str
    location: str
    """Its file; a symbolic link that was dropped into the store is resolved."""
    size: int
    mtime_ns: int
    inode: int

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def identity(self) -> str:
        """Changes whenever the content does: an object is replaced by rename, so its inode changes.

        Without ctime: a snapshot's hard links change it.
        """
        return f"{self.size}:{self.mtime_ns}:{self.inode}"


class ObjectStore:
    """The local S3 at `root`: plain files `<root>/<bucket>/<key>`. Safe for concurrent processes.

    A put writes a temporary file on the same file system and renames it: readers see the old object or
    the new one, and a killed put leaves nothing visible. Nothing is fsynced: objects survive the death
    of any process, and of the machine as far as its file system does that by itself. A file dropped into
    the tree by hand is an object, a symbolic link to a file or directory too. Keys that can't be files
    are kept in `<root>/.harness/opaque`. Methods raise ClientError for a bad URI or key and DiskError when
    the disk is full or can't be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---------------------------------------------------------------------- writing

    @contextmanager
    def writing(self, uri: str) -> Iterator[BinaryIO]:
        """A file to write that becomes the object when the block ends; an exception leaves all as it was."""
        bucket, key = self._object(uri)
        temporary = self.private("tmp") / f"{os.getpid()}.{os.urandom(8).hex()}"
        try:
            with temporary_file(temporary) as file:
                yield file
                self._commit(bucket, key, temporary)
        except OSError as error:
            raise self._explained(error, uri) from error

    def put_file(self, uri: str, path: Path, *, move: bool = False) -> ObjectInfo:
        """Store a file's content. `move` adopts the file itself, by rename where it is on this file system.

        Raises ClientError when `path` is no readable regular file.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if move else 0))
        except OSError as error:
            raise ClientError(f"can't read {path} to store it as {uri} ({error.strerror})") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ClientError(f"{path} is no regular file, so it can't be stored as {uri}")
            if not (move and self._adopt(uri, path, fd)):
                with self.writing(uri) as file:
                    copy_data(fd, file.fileno())
                if move:
                    path.unlink()
        finally:
            os.close(fd)
        return self._stored(uri)

    def put_bytes(self, uri: str, data: bytes) -> ObjectInfo:
        """Store `data`."""
        with self.writing(uri) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        return self._stored(uri)

    def delete(self, uri: str) -> bool:
        """Remove the object, and directories that it leaves empty; whether there was one."""
        bucket, key = self._object(uri)
        removed = self._opaque(bucket).discard(key)
        if is_plain(key):
            path = self.root / bucket / key
            try:
                if not stat.S_ISDIR(path.stat().st_mode):
                    self._stay_inside(bucket, path, uri)
                    path.unlink()
                    removed = True
                    self._prune(bucket, path.parent)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                raise self._explained(error, uri) from error
        return removed

    # ---------------------------------------------------------------------- reading

    def path(self, uri: str) -> Path:
        """The object's file, or where it would be; for a URI that ends with `/`, the folder's directory."""
        bucket, key = parse_uri(uri)
        folder = key.rstrip("/")
        if key.endswith("/") or not key:
            if folder and not is_plain(folder):
                raise ClientError(f"{uri!r} can't be a folder of the local object store: rename it")
            return self.root / bucket / folder
        info = self.head(uri)
        if info is not None:
            return info.path
        return self.root / bucket / key if is_plain(key) else self._opaque(bucket).path(key)

    def directory(self, folder_uri: str) -> Path | None:
        """The directory whose files are the folder's objects; None when some of them can't be files.

        For reading only, and it may hold links that lead elsewhere.
        """
        bucket, key = parse_uri(folder_uri)
        path = self.path(folder_uri)
        for opaque, _, status in self._opaque(bucket).scan(key):
            marked = opaque.endswith("/") and not status.st_size and (self.root / bucket / opaque).is_dir()
            if not marked:
                return None
        return path if path.is_dir() else None

    def head(self, uri: str) -> ObjectInfo | None:
        """The object, or None when there is none."""
        bucket, key = self._object(uri)
        candidates = [self._opaque(bucket).path(key)]
        if is_plain(key):
            candidates.insert(0, self.root / bucket / key)
        for path in candidates:
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    continue
                raise self._explained(error, uri) from error
            if stat.S_ISREG(status.st_mode):
                return _info(bucket, (key, os.path.realpath(path), status))
        return None

    def exists(self, uri: str) -> bool:
        """Whether there is an object of exactly this key."""
        return self.head(uri) is not None

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with the prefix, in UTF-8 byte order of the keys.

        The prefix is a string, no folder: `s3://b/train` also finds `train2/…` (contract: E5).
        """
        bucket, prefix = parse_uri(prefix_uri)
        for row in self._scan(bucket, prefix):
            yield _info(bucket, row)

    def fingerprint(self, prefix_uri: str) -> str:
        """A digest that changes whenever an object of the prefix is added, removed or changed."""
        return digest((info.key, info.identity) for info in self.list(prefix_uri))

    # ------------------------------------------------------------------ housekeeping

    def private(self, name: str) -> Path:
        """A directory of that name for the harness's own use, beside the buckets; made if need be."""
        path = self.root / _PRIVATE / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explained(error, str(path)) from error
        return path

    def sweep(self, older_than: float = 86400) -> int:
        """Remove what killed writers left more than `older_than` seconds ago; the bytes that it freed."""
        horizon = time.time() - older_than
        freed = 0
        for directory, _, names in os.walk(self.root):
            everything = directory == str(self.root / _PRIVATE / "tmp")
            for name in names:
                if everything or name.startswith(RESERVED):
                    path = Path(directory, name)
                    with suppress(FileNotFoundError):
                        status = path.lstat()
                        if status.st_mtime <= horizon:
                            path.unlink()
                            freed += status.st_size
        return freed

    # ------------------------------------------------------------------------- parts

    def _object(self, uri: str) -> tuple[str, str]:
        bucket, key = parse_uri(uri)
        check_key(key)
        return bucket, key

    def _opaque(self, bucket: str) -> Opaque:
        return Opaque(self.root / _PRIVATE / "opaque" / bucket)

    def _stored(self, uri: str) -> ObjectInfo:
        info = self.head(uri)
        if info is None:
            raise ClientError(f"{uri} was removed as soon as it was stored")
        return info

    def _adopt(self, uri: str, path: Path, fd: int) -> bool:
        """Rename `path` to the object; False when it is on another file system."""
        bucket, key = self._object(uri)
        try:
            if os.fstat(fd).st_dev != self.private("tmp").stat().st_dev:
                return False
            os.fchmod(fd, 0o644)  # contract: B6
            self._commit(bucket, key, path)
        except OSError as error:
            if error.errno == errno.EXDEV:  # two mounts of one device
                return False
            raise self._explained(error, uri) from error
        return True

    def _commit(self, bucket: str, key: str, temporary: Path) -> None:
        """Make a finished file the object, where a file can have that name, else in the opaque area."""
        opaque = self._opaque(bucket)
        (self.root / bucket).mkdir(parents=True, exist_ok=True)
        if is_plain(key):
            target = self.root / bucket / key
            for _ in range(100):  # a delete may prune the directory that we made
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._stay_inside(bucket, target, f"s3://{bucket}/{key}")
                    temporary.rename(target)
                except FileNotFoundError:
                    if not temporary.exists():
                        raise
                    continue
                except (FileExistsError, NotADirectoryError):
                    break  # a part of the path is an object
                except IsADirectoryError:
                    try:
                        target.rmdir()  # left empty by hand
                    except OSError:
                        break  # the key is also a folder
                    continue
                opaque.discard(key)
                return
        opaque.adopt(key, temporary)

    def _stay_inside(self, bucket: str, path: Path, uri: str) -> None:
        """A linked directory may be read, never written: it isn't the store's."""
        home = os.path.realpath(self.root / bucket)
        real = os.path.realpath(path.parent)
        if real != home and not real.startswith(home + os.sep):
            raise ClientError(
                f"{uri} can't be changed: {path.parent} leads out of the object store through a symbolic link"
            )

    def _prune(self, bucket: str, directory: Path) -> None:
        top = self.root / bucket
        while directory != top:
            try:
                directory.rmdir()
            except OSError:
                return
            directory = directory.parent

    def _explained(self, error: OSError, uri: str) -> DiskError:
        if out_of_space(error):
            return DiskError(f"no space left for {uri} in the object store {self.root}; free the disk")
        reason = error.strerror or str(error)
        return DiskError(
            f"the object store {self.root} can't take or give {uri} ({reason}: {error.filename})"
        )

    def _scan(self, bucket: str, prefix: str) -> Iterator[_Row]:
        folder, slash, _ = prefix.rpartition("/")
        plain: Iterable[_Row] = ()
        if not slash or is_plain(folder):
            plain = _tree(str(self.root / bucket / folder), folder + slash, prefix)
        opaque = list(self._opaque(bucket).scan(prefix))
        return heapq.merge(plain, opaque, key=lambda row: row[0]) if opaque else iter(plain)


def digest(pairs: Iterable[tuple[str, str]]) -> str:
    """One hash over names and identities, in their order."""
    text = "".join([f"{name}\0{identity}\n" for name, identity in pairs])
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()


def _info(bucket: str, row: _Row) -> ObjectInfo:
    key, path, status = row
    return ObjectInfo(bucket, key, path, status.st_size, status.st_mtime_ns, status.st_ino)


def _tree(directory: str, key: str, prefix: str) -> Iterator[_Row]:
    """Files below a directory whose keys begin with the prefix.

    In one directory `a-b` sorts before `a/…` and `a/…` before `a0`: a directory sorts with its slash, as
    its keys do. Code point order, Python's own, is UTF-8's byte order.
    """
    try:
        with os.scandir(directory) as found:
            entries = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return
        raise ClientError(f"Data download failed: can't read {directory} ({error.strerror})") from error
    entries.sort(key=lambda item: item[0])
    for name, entry in entries:
        full = key + name
        if not full.startswith(prefix) or name.startswith(RESERVED):
            continue
        link = entry.is_symlink()
        if name.endswith("/"):
            # A link to a directory above itself would have keys without end.
            if not (link and os.path.realpath(directory).startswith(os.path.realpath(entry.path))):
                yield from _tree(entry.path, full, prefix)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:
            if link:
                raise ClientError(
                    f"Data download failed: {entry.path} in the object store is a symbolic link to nothing"
                ) from None
            continue  # deleted while we listed
        if stat.S_ISREG(status.st_mode):
            yield full, os.path.realpath(entry.path) if link else entry.path, status
