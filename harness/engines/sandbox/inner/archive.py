"""Files from one place to another as a tar stream, with the rules of `docker cp`.

The stream has one root member, named as the source. Ownership isn't carried: what is written belongs to
whoever writes it. Unpacking never goes through a link below the destination, whatever the stream says, and
replaces a file by a new one in its place: what a link leads to is never written.

Standard library only: in a sandbox this runs inside the host.
"""

from __future__ import annotations

import os
import stat
import tarfile

TYPE_CHECKING = False
if TYPE_CHECKING:  # see launcher
    from typing import IO, Any

    Report = dict[str, Any]

_CHUNK = 1 << 20
_MOST_TOLD = 20
_NEW = ".harness-cp-"


class RefusedError(Exception):
    """What was asked can't be done; the text says why."""


def carry_out(job: dict[str, Any], source: int, target: int) -> Report:
    """`pack` a path into the stream `target`, or `unpack` the stream `source` at a path."""
    try:
        if job["do"] == "pack":
            with open(target, "wb", closefd=False) as stream:
                return pack(job["path"], stream, follow=job["follow"], contents=job["contents"])
        with open(source, "rb", closefd=False) as stream:
            return unpack(stream, job["path"], as_it_is=job["kind"] == "archive")
    except RefusedError as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"refused": f"{error.filename or job['path']}: {os.strerror(error.errno or 0)}"}


def report() -> Report:
    return {"files": 0, "bytes": 0, "skipped": 0, "why": []}


def _skip(told: Report, path: str, why: str) -> None:
    told["skipped"] += 1
    if len(told["why"]) < _MOST_TOLD:
        told["why"].append(f"{path}: {why}")


# ------------------------------------------------------------------------------------------------- pack


def pack(
    path: str, stream: IO[bytes], *, follow: bool = False, contents: bool = False, name: str | None = None
) -> Report:
    """Write `path` and all below it, the root named `name` (default: as `path`, or `.` with `contents`).

    `follow`: what a link at `path` leads to. `contents`: what is in the directory, to be put into another
    one. What vanishes, can't be read or is no file, directory or link is skipped and told.
    """
    told = report()
    name = name or ("." if contents else os.path.basename(os.path.normpath(path)) or ".")
    if (contents or path.endswith("/")) and os.path.lexists(path.rstrip("/")) and not os.path.isdir(path):
        raise RefusedError(f"{path} is not a directory")
    if follow or contents or path.endswith("/"):
        path = os.path.realpath(path)
    try:
        os.lstat(path)
    except OSError as error:
        raise RefusedError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error
    with tarfile.open(fileobj=stream, mode="w|", bufsize=_CHUNK) as tar:
        setattr(tar, "copybufsize", _CHUNK)  # noqa: B010 - its stubs don't know it
        waiting = [(path, name)]
        while waiting:
            path, name = waiting.pop()
            try:
                below = _add(tar, path, name, told)
            except OSError as error:
                if error.filename != path:
                    raise  # the stream's: nobody reads it any more
                _skip(told, path, os.strerror(error.errno or 0).lower())
            else:
                waiting += [(f"{path.rstrip('/')}/{child}", f"{name}/{child}") for child in below]
    return told


def _add(tar: tarfile.TarFile, path: str, name: str, told: Report) -> list[str]:
    """Add one thing; the names in it."""
    info = os.lstat(path)
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(info.st_mode)
    member.mtime = info.st_mtime
    below: list[str] = []
    if stat.S_ISREG(info.st_mode):
        _add_file(tar, path, member, told)
    elif stat.S_ISDIR(info.st_mode):
        below = sorted(os.listdir(path), reverse=True)
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif stat.S_ISLNK(info.st_mode):
        member.type = tarfile.SYMTYPE
        member.linkname = os.readlink(path)
        tar.addfile(member)
    else:
        _skip(told, path, "neither a file nor a directory nor a link")
    return below


def _add_file(tar: tarfile.TarFile, path: str, member: tarfile.TarInfo, told: Report) -> None:
    # Not a FIFO that took the file's place meanwhile: it would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        member.size = os.fstat(descriptor).st_size
        early = b"" if member.size else file.read(_CHUNK)  # of /proc, whose files have no size
        member.size = member.size or len(early)
        reader = _Padded(file, member.size, early)
        tar.addfile(member, reader)  # type: ignore[arg-type]
    told["files"] += 1
    told["bytes"] += member.size
    if reader.short:
        _skip(told, path, "it became shorter while it was copied; the rest is zeros")


class _Padded:
    """A file that gives as many bytes as its header promised, though a job writes to it meanwhile."""

    def __init__(self, file: IO[bytes], size: int, early: bytes) -> None:
        self._file = file
        self._early = early
        self._left = size
        self.short = False

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data, self._early = self._early[:size], self._early[size:]
        while len(data) < size:
            more = self._file.read(size - len(data))
            if not more:
                self.short = True
                more = bytes(size - len(data))
            data += more
        self._left -= size
        return data


# ----------------------------------------------------------------------------------------------- unpack


def unpack(stream: IO[bytes], path: str, *, as_it_is: bool = False, name: str | None = None) -> Report:
    """Put what the stream holds at `path`: into it where it is a directory, else under its name.

    `name`: what the root is called when it is put into a directory; default: as the stream calls it. The root `.` stands for a directory's contents. `as_it_is`: any archive, with any number of roots,
    unpacked in the directory `path`.

    Raises:
        RefusedError: the place doesn't fit what comes, or a link stands in the way.
        OSError: the place can't be written.
    """
    told = report()
    try:
        with tarfile.open(fileobj=stream, mode="r|*", bufsize=_CHUNK) as tar:
            member = tar.next()
            if member is None:
                return told
            place = _Place(path, member, as_it_is, name)
            try:
                while member is not None:
                    _put(tar, member, place, told)
                    member = tar.next()
                    setattr(tar, "members", [])  # noqa: B010 - or a million files are kept in memory
                place.finish()
                while stream.read(_CHUNK):
                    pass  # what pads the stream: whoever writes it must not find that nobody reads
            finally:
                place.close()
    except tarfile.TarError as error:
        raise RefusedError(f"the stream is not a whole tar archive: {error}") from error
    return told


class _Place:
    """Where the members go: `directory`, an open descriptor, and the parts of a path below it."""

    def __init__(self, path: str, first: tarfile.TarInfo, as_it_is: bool, name: str | None) -> None:
        top = _parts(first.name)[:1]
        self._strip = len(top)
        root = path
        self._prefix: tuple[str, ...] = ()
        if as_it_is:
            self._strip = 0
        elif os.path.isdir(path):
            self._prefix = (name,) if top and name else top
        elif os.path.lexists(path.rstrip("/")) and (first.isdir() or path.endswith("/")):
            raise RefusedError(f"{path} is not a directory: a directory can't be copied over it")
        elif path.endswith("/") and not first.isdir():
            raise RefusedError(f"there is no directory {path}")
        else:
            root, last = os.path.split(path.rstrip("/"))
            self._prefix = (last,)
        try:
            self._root = os.open(root or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise RefusedError(f"there is no directory {root}") from None
        self._path = root
        self._open: tuple[tuple[str, ...], int] = ((), self._root)
        self._modes: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []

    def parts(self, name: str) -> tuple[str, ...]:
        """Where a member of that name goes, below the root."""
        return self._prefix + _parts(name)[self._strip :]

    def shown(self, parts: tuple[str, ...]) -> str:
        """That path, for people."""
        return os.path.join(self._path, *parts)

    def directory(self, parts: tuple[str, ...]) -> int:
        """The directory of that path, made where it is missing; it is open until the next call."""
        if self._open[0] == parts:
            return self._open[1]
        at = os.dup(self._root)
        try:
            for number, part in enumerate(parts):
                try:
                    below = _open_directory(part, at)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=at)
                    below = _open_directory(part, at)
                except OSError as error:
                    shown = "/".join(parts[: number + 1])
                    link = stat.S_ISLNK(os.lstat(part, dir_fd=at).st_mode)
                    if link:
                        raise RefusedError(
                            f"{shown} at the destination is a link: nothing is written through it"
                        ) from error
                    raise RefusedError(f"{shown} at the destination is not a directory") from error
                os.close(at)
                at = below
        except BaseException:
            os.close(at)
            raise
        self._let_go()
        self._open = (parts, at)
        return at

    def remember(self, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        """The mode and time of a directory are set last: it may be read-only, and writing changes the time."""
        self._modes.append((parts, member))

    def finish(self) -> None:
        for parts, member in reversed(self._modes):
            descriptor = self.directory(parts)
            os.chmod(descriptor, (member.mode & 0o777) | 0o700)
            os.utime(descriptor, (member.mtime, member.mtime))

    def close(self) -> None:
        self._let_go()
        os.close(self._root)

    def _let_go(self) -> None:
        if self._open[1] != self._root:
            os.close(self._open[1])
        self._open = ((), self._root)


def _open_directory(name: str, at: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name:
        raise RefusedError(f"the stream has a member {name!r}, which would leave the destination")
    return parts


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, place: _Place, told: Report) -> None:
    parts = place.parts(member.name)
    if member.isdir():
        place.directory(parts)
        if parts:
            place.remember(parts, member)
        return
    if not parts:
        raise RefusedError("the stream has a file without a name")
    at, name = place.directory(parts[:-1]), parts[-1]
    if _is_directory(name, at):
        raise RefusedError(f"{'/'.join(parts)} at the destination is a directory: no file can replace it")
    new = _NEW + os.urandom(6).hex()
    try:
        if member.isreg():
            _put_file(tar, member, new, at, told)
        elif member.issym():
            os.symlink(member.linkname, new, dir_fd=at)
        elif member.islnk():
            _put_hard_link(member, place, new, parts)
            at = place.directory(parts[:-1])
        else:
            _skip(told, member.name, "neither a file nor a directory nor a link")
            return
        os.rename(new, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException as error:
        try:
            os.unlink(new, dir_fd=at)
        except OSError:
            pass  # it wasn't made
        if isinstance(error, OSError) and error.filename == new:
            error.filename = place.shown(parts)
        raise


def _is_directory(name: str, at: int) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=at).st_mode)
    except FileNotFoundError:
        return False


def _put_file(tar: tarfile.TarFile, member: tarfile.TarInfo, new: str, at: int, told: Report) -> None:
    data = tar.extractfile(member)
    assert data is not None
    descriptor = os.open(
        new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at
    )
    with open(descriptor, "wb", buffering=0) as file:
        while chunk := data.read(_CHUNK):
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
        os.chmod(descriptor, (member.mode & 0o777) | 0o400)
        os.utime(descriptor, (member.mtime, member.mtime))
    told["files"] += 1
    told["bytes"] += member.size


def _put_hard_link(member: tarfile.TarInfo, place: _Place, new: str, parts: tuple[str, ...]) -> None:
    """A second name of a file that the stream brought before."""
    source = place.parts(member.linkname)
    kept = os.dup(place.directory(source[:-1]))
    try:
        at = place.directory(parts[:-1])
        os.link(source[-1], new, src_dir_fd=kept, dst_dir_fd=at, follow_symlinks=False)
    finally:
        os.close(kept)
