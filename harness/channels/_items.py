"""The files of a channel, wherever they come from, before they are anywhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness._values import dataclass
from harness.channels._remote import RemoteObject
from harness.errors import ClientError

__all__ = ["Item", "LocalTree", "names_below", "read_tree"]


class Item(NamedTuple):
    """One object of a channel. A tuple: 50,000 of them are made in no time."""

    key: str
    """Its key in its bucket; of a local file, the name below its root."""
    name: str
    """Where it will be, below the channel's directory; ends with `/` for a marker, which is a directory."""
    size: int
    identity: str
    """Changes whenever the content does."""
    location: str | None = None
    """Its file on this machine; None when it has to be downloaded."""
    remote: RemoteObject | None = None


@dataclass(frozen=True, kw_only=True)
class LocalTree:
    """A directory of the user's, read through."""

    items: Sequence[Item]
    mountable: bool
    """Whether a host that sees only this directory sees all of it: no link in it leads out."""
    warnings: tuple[str, ...] = ()


def read_tree(root: Path, channel: str) -> LocalTree:
    """Every file below `root`, links followed as an upload would follow them.

    Raises ClientError, naming the first file that can't be read.
    """
    real = os.path.realpath(root)
    items: list[Item] = []
    special: list[str] = []
    leaves = False
    # Root reads everything; asking for each file would only cost time.
    privileged = os.geteuid() == 0

    def entries(directory: str, name: str, above: tuple[str, ...]) -> Iterator[Item]:
        nonlocal leaves
        try:
            with os.scandir(directory) as found:
                ordered = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(channel, directory, error.strerror) from error
        for entry in ordered:
            path = entry.path
            if entry.is_symlink():
                path = os.path.realpath(entry.path)
                inside = path == real or path.startswith(real + os.sep)
                leaves = leaves or not inside or Path(entry.path).readlink().is_absolute()
            try:
                status = entry.stat()
            except OSError as error:
                what = "a symbolic link to nothing" if entry.is_symlink() else error.strerror
                raise _unreadable(channel, entry.path, what) from error
            if stat.S_ISDIR(status.st_mode):
                if path in above:
                    raise _unreadable(channel, entry.path, "a symbolic link to a directory above itself")
                yield from entries(path, f"{name}{entry.name}/", (*above, path))
            elif stat.S_ISREG(status.st_mode):
                if not (privileged or status.st_mode & 0o444 == 0o444 or os.access(path, os.R_OK)):
                    raise _unreadable(channel, entry.path, "permission denied")
                yield Item(
                    name + entry.name,
                    name + entry.name,
                    status.st_size,
                    f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}:{status.st_dev}",
                    path,
                )
            else:
                special.append(name + entry.name)

    items.extend(entries(str(root), "", (real,)))
    items.sort(key=lambda item: item.name)
    warnings = _warn_of(special, root, channel)
    return LocalTree(items=items, mountable=not leaves, warnings=warnings)


def names_below(root: Path, channel: str) -> tuple[list[str], tuple[str, ...]] | None:
    """Every file below `root` in key order, with warnings, without a look at any of them; None when there is a link.

    Raises ClientError, naming the first directory that can't be read.
    """
    names: list[str] = []
    special: list[str] = []
    pending = [""]
    while pending:
        above = pending.pop()
        try:
            with os.scandir(f"{root}/{above}") as entries:
                for entry in entries:
                    # What kind of entry it is the directory says: no file is asked for anything.
                    if entry.is_file(follow_symlinks=False):
                        names.append(above + entry.name)
                    elif entry.is_symlink():
                        return None
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(f"{above}{entry.name}/")
                    else:
                        special.append(above + entry.name)
        except OSError as error:
            raise _unreadable(channel, f"{root}/{above}", error.strerror) from error
    names.sort()
    return names, _warn_of(special, root, channel)


def _warn_of(special: Sequence[str], root: Path, channel: str) -> tuple[str, ...]:
    if not special:
        return ()
    text = (
        f"channel {channel}: {len(special)} special files below {root} are no objects and wouldn't be "
        f"in the cloud, {special[0]} for one"
    )
    return (text,)


def _unreadable(channel: str, path: str, why: str | None) -> ClientError:
    return ClientError(f"Data download failed: channel {channel} can't read {path} ({why})")
