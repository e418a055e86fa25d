"""Files of others, read without being led astray; files of ours, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from harness.objects._uri import RESERVED

__all__ = [
    "Progress",
    "copy_data",
    "open_beneath",
    "out_of_space",
    "replacing",
    "sort_hosts",
    "temporary_file",
    "walk_beneath",
]

Progress = Callable[[int, int, str], None]
"""Called as `progress(done_bytes, total_bytes, what)`, from the thread that called us."""

CHUNK: Final = 64 << 20
_DEEPEST: Final = 250
"""Levels of directories below a tree, each of which takes a descriptor and a stack frame to walk."""
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_COPY_RANGE: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF}
)


def out_of_space(error: BaseException) -> bool:
    """Whether it says that the disk, the quota or the file size limit is used up."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def sort_hosts(names: Iterable[str]) -> list[str]:
    """algo-1, algo-2, … algo-10: by number, not by string."""
    return sorted(names, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])


def copy_data(
    source: int, target: int, tell: Callable[[int], None] | None = None, *, limit: int | None = None
) -> int:
    """What is in one open file to another, in the kernel, sharing blocks where it can; its bytes.

    At most `limit`: a file that somebody goes on writing has no end.
    """
    done = 0
    left = sys.maxsize if limit is None else limit
    in_kernel = True
    while left:
        try:
            count = os.copy_file_range(source, target, min(left, CHUNK)) if in_kernel else 0
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
            count = 0
        if not count:
            # What copy_file_range can't do (other file systems, pipes, /proc); nothing at the end of file.
            in_kernel = False
            data = os.read(source, min(left, 1 << 20))
            count = len(data)
            if not count:
                break
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
        done += count
        left -= count
        if tell is not None:
            tell(count)
    return done


@contextmanager
def temporary_file(place: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file to write at `place`; on an exception, also one of the caller's commit, it is removed."""
    fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, mode)  # contract: B6
        with open(fd, "wb", buffering=0) as file:  # noqa: PTH123  # a descriptor, no path
            yield file
    except BaseException:
        place.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `target` at the end: readers see the old file or the new one.

    On an exception nothing is left. Meanwhile it is beside the target, under a name that the object store
    doesn't list.
    """
    place = target.parent / f"{RESERVED}{os.getpid()}.{os.urandom(6).hex()}"
    with temporary_file(place) as file:
        yield file
        place.rename(target)


def open_beneath(root: Path, relative: str) -> int:
    """A descriptor of `root/relative`, following no symbolic link in `relative`, waiting for no FIFO.

    A host may put anything into its tree, also a link to a file that only we may read. Raises OSError:
    ELOOP or ENOTDIR for a link. The caller looks with fstat at what it got.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = relative.split("/")
        for part in parents:
            inner = _open_at(part, os.O_RDONLY | os.O_DIRECTORY, fd)
            os.close(fd)
            fd = inner
        return _open_at(name, os.O_RDONLY | os.O_NONBLOCK, fd)
    finally:
        os.close(fd)


def walk_beneath(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below `root` with its lstat, directories first, in S3's order; follows no link.

    Neither `root` nor its parent may be a link: both lie where a host could have put one. Nothing when
    `root` doesn't exist; entries that vanish meanwhile are left out. Raises NotADirectoryError when
    `root` is something else.
    """
    outer = os.open(root.parent.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fd = os.dup(outer)
            for part in (root.parent.name, root.name):
                if not part:
                    continue
                inner = _open_at(part, os.O_RDONLY | os.O_DIRECTORY, fd)
                os.close(fd)
                fd = inner
        except FileNotFoundError:
            os.close(fd)
            return
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(root)) from error
            raise
        try:
            yield from _walk(fd, "")
        finally:
            os.close(fd)
    finally:
        os.close(outer)


def _walk(fd: int, prefix: str, depth: int = 0) -> Iterator[tuple[str, os.stat_result]]:
    if depth > _DEEPEST:
        raise OSError(errno.ENAMETOOLONG, f"directories nested more than {_DEEPEST} deep", f"{prefix[:60]}…")
    with os.scandir(fd) as entries:
        names = sorted(
            ((e.name + "/" if e.is_dir(follow_symlinks=False) else e.name) for e in entries),
        )
    for name in names:
        bare = name.rstrip("/")
        try:
            status = os.stat(bare, dir_fd=fd, follow_symlinks=False)
            yield prefix + bare, status
            if stat.S_ISDIR(status.st_mode):
                inner = _open_at(bare, os.O_RDONLY | os.O_DIRECTORY, fd)
            else:
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            yield from _walk(inner, f"{prefix}{bare}/", depth + 1)
        finally:
            os.close(inner)


def _open_at(name: str, flags: int, directory: int) -> int:
    """openat without following a link; a file of ours that its mode locks is unlocked for the moment.

    In the cloud root packs what the script made `chmod 000`.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except PermissionError:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        kind_fits = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if status.st_uid != os.geteuid() or not kind_fits:
            raise
        os.chmod(name, mode | (0o500 if stat.S_ISDIR(status.st_mode) else 0o400), dir_fd=directory)
        return os.open(name, flags, dir_fd=directory)
