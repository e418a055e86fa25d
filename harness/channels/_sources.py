"""The script's source: packed as the SDK packs it, unpacked as the toolkit unpacks it, but safely."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness._values import dataclass
from harness.errors import ClientError, DiskError, SpecError
from harness.model import Upload
from harness.objects import ObjectStore, open_archive, out_of_space, parse_uri

if TYPE_CHECKING:
    from harness.channels._remote import RemoteS3

__all__ = ["Extracted", "Materialised", "extract_source", "materialise_source"]

_BIG: Final = 100_000_000
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class Materialised:
    """A source archive in the object store."""

    uri: str
    files: int
    """Files packed; 0 for an archive that was ready."""
    size: int
    """Bytes of the archive."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """An archive that was unpacked."""

    files: int
    warnings: tuple[str, ...] = ()


def materialise_source(upload: Upload, objects: ObjectStore) -> Materialised:
    """Put the source of a job at `upload.uri`: sourcedir.tar.gz, packed as the SDK packs it.

    A directory's contents are the archive's root, dependencies beside them under their own names, links
    followed, nothing left out but editors' locks, of which the warnings tell. A ready tar.gz is stored as it is. The same tree gives the same bytes.
    Raises SpecError when something isn't there or can't be read (a dangling link too), DiskError when the
    store can't take it.
    """
    path = upload.path.absolute()
    if not path.exists():
        raise SpecError(f"the source {path} does not exist")
    if path.is_file() and _is_gzip(path):
        if upload.dependencies:
            raise SpecError(
                f"dependencies can't be added to the ready archive {path}: put them into it, or give a directory"
            )
        return Materialised(uri=upload.uri, files=0, size=objects.put_file(upload.uri, path).size)
    # As the SDK: a later member of the same name replaces an earlier one when it is unpacked.
    tops = (sorted(path.iterdir()) if path.is_dir() else [path]) + [
        dependency.absolute() for dependency in upload.dependencies
    ]
    files = total = 0
    locks: list[Path] = []
    archive = objects.private("tmp") / f"{os.getpid()}.{os.urandom(8).hex()}.tar.gz"
    try:
        with open_archive(archive) as tar:
            for top in tops:
                for name, place, status in _members(top, top.name, (), locks):
                    info = _header(name, status)
                    if info.isreg():
                        files += 1
                        total += info.size
                        with place.open("rb") as file:
                            tar.addfile(info, file)
                    else:
                        tar.addfile(info)
        info_ = objects.put_file(upload.uri, archive, move=True)
    except OSError as error:
        if out_of_space(error):
            raise DiskError(f"no space left to pack the source {path} in {archive.parent}") from error
        raise SpecError(
            f"can't pack the source {path} ({error.strerror or error}: {error.filename or path})"
        ) from error
    finally:
        archive.unlink(missing_ok=True)
    warnings: tuple[str, ...] = ()
    if locks:
        names = ", ".join(sorted(lock.name for lock in locks))
        text = (
            f"not packed: {names} in {locks[0].parent}, an editor's lock: the file has changes that aren't saved, "
            "and the SDK would fail on the lock with FileNotFoundError"
        )
        warnings = (text,)
    if total > _BIG:
        text = (
            f"the source {path} holds {total / 1e6:,.0f} MB, all of it packed and uploaded for every job, "
            "as the SDK does: keep data, checkpoints and .git out of source_dir"
        )
        warnings = (*warnings, text)
    return Materialised(uri=upload.uri, files=files, size=info_.size, warnings=warnings)


def extract_source(
    uri: str, objects: ObjectStore, dest: Path, *, remote: RemoteS3 | None = None
) -> Extracted:
    """Unpack the archive at `uri` into the directory `dest`, which may exist if it is empty.

    `remote`: real S3, asked when the local object store has no such object. Modes are kept, owners aren't;
    what is unpacked stays inside of `dest`. Raises ClientError, naming the member, for an absolute path,
    `..`, a link that leaves, a device; for an archive that isn't there or is damaged; for a full disk.
    Then nothing is left in `dest`.
    """
    half = dest.parent / f".half-{os.urandom(6).hex()}"
    try:
        half.mkdir(parents=True)
        archive = _fetch(uri, objects, half.with_suffix(".tar.gz"), remote)
        try:
            with tarfile.open(archive, "r:*") as tar:
                files = _extract(tar, half, uri)
        except (tarfile.TarError, EOFError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists every method that it tried
            raise ClientError(f"the source archive {uri} is damaged or no tar.gz ({reason})") from error
        half.chmod(0o755)
        half.rename(dest)
    except OSError as error:
        if out_of_space(error):
            raise ClientError(f"Data download failed:Insufficient disk space (unpacking {uri})") from error
        raise ClientError(
            f"can't unpack {uri} into {dest} ({error.strerror or error}: {error.filename})"
        ) from error
    finally:
        half.with_suffix(".tar.gz").unlink(missing_ok=True)
        if half.exists():
            _force_remove(half)
    return Extracted(files=files)


def _members(
    path: Path, name: str, above: tuple[str, ...], locks: list[Path]
) -> Iterator[tuple[str, Path, os.stat_result]]:
    """The file or tree at `path`, links followed; editors' locks go to `locks` instead."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        from harness.spec import is_editor_lock

        if is_editor_lock(path):
            locks.append(path)
            return
        what = "is a symbolic link to nothing" if path.is_symlink() else "does not exist"
        raise SpecError(f"can't pack the source: {path} {what}; remove or repair it") from error
    yield name, path, status
    if stat.S_ISDIR(status.st_mode):
        real = os.path.realpath(path)
        if real in above:
            raise SpecError(f"can't pack the source: {path} is a symbolic link to a directory above itself")
        for child in sorted(path.iterdir()):
            yield from _members(child, f"{name}/{child.name}", (*above, real), locks)


def _header(name: str, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = int(status.st_mtime)
    info.uname = info.gname = "root"
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISREG(status.st_mode):
        info.size = status.st_size
    else:
        raise SpecError(f"can't pack the source: {name} is neither a file nor a directory; remove it")
    return info


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _fetch(uri: str, objects: ObjectStore, temporary: Path, remote: RemoteS3 | None) -> Path:
    info = objects.head(uri)
    if info is not None:
        return info.path
    if remote is not None and (found := remote.head(*parse_uri(uri))) is not None:
        remote.download([(found, temporary)], None, f"downloading {uri}")
        return temporary
    raise ClientError(f"Data download failed: the source archive {uri} is not in {objects.root}")


def _extract(tar: tarfile.TarFile, root: Path, uri: str) -> int:
    """Every member; links are made last, so that nothing is ever written through one."""
    files = 0
    directories: list[tuple[Path, int]] = []
    links: list[tarfile.TarInfo] = []
    for member in tar:
        name = _inside(member, uri)
        if not name:
            continue
        path = root / name
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            directories.append((path, member.mode))
        elif member.isreg():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, path.open("xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            path.chmod(member.mode & 0o777)
            os.utime(path, (member.mtime, member.mtime))
            files += 1
        elif member.islnk() or member.issym():
            links.append(member)
        else:
            raise _refused(member, uri, "is a device or FIFO")
    files += _link(links, root, uri)
    for path, mode in reversed(directories):
        path.chmod(mode & 0o777 | 0o700)
    return files


def _link(links: Sequence[tarfile.TarInfo], root: Path, uri: str) -> int:
    """Hard links while there is no symbolic one to be led astray by, then those."""
    for member in links:
        if member.islnk():
            path = _free(member, root, uri)
            target = Path(os.path.normpath(root / member.linkname))
            if not target.is_relative_to(root) or not target.is_file():
                raise _refused(member, uri, f"is a hard link to {member.linkname!r}, no file of the archive")
            path.hardlink_to(target)
    made = []
    for member in links:
        if member.issym():
            path = _free(member, root, uri)
            path.symlink_to(member.linkname)
            made.append((member, path))
    top = os.path.realpath(root)
    for member, path in made:
        real = os.path.realpath(path)
        inside = real == top or real.startswith(top + os.sep)
        if member.linkname.startswith("/") or not inside:
            raise _refused(member, uri, f"is a link that leaves the archive, to {member.linkname!r}")
    return len(links)


def _free(member: tarfile.TarInfo, root: Path, uri: str) -> Path:
    """Where to make the link, which is no place behind another link."""
    path = root / _inside(member, uri)
    inner = path.parent
    while inner != root:
        if inner.is_symlink():
            raise _refused(member, uri, "lies behind a symbolic link")
        inner = inner.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    if path == root or (path.is_dir() and not path.is_symlink()):
        raise _refused(member, uri, "is a link and a directory at once")
    path.unlink(missing_ok=True)
    return path


def _inside(member: tarfile.TarInfo, uri: str) -> str:
    """The member's path below the root; empty for the root itself."""
    if member.name.startswith("/"):
        raise _refused(member, uri, "has an absolute path")
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused(member, uri, "has '..' in its path")
    return "/".join(parts)


def _refused(member: tarfile.TarInfo, uri: str, why: str) -> ClientError:
    return ClientError(
        f"the source archive {uri} was not unpacked: its member {member.name!r} {why}; pack it again without"
    )


def _force_remove(directory: Path) -> None:
    """rmtree, also of directories that the archive made unreadable."""
    for inner, _, _ in os.walk(directory):
        Path(inner).chmod(0o700)
    shutil.rmtree(directory)
