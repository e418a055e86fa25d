"""The trees of all hosts as one (contract: F4)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from harness.errors import ClientError
from harness.objects import open_beneath, sort_hosts, walk_beneath

__all__ = ["Entry", "Merged", "merge"]

_BLOCK: Final = 1 << 20
_SAMPLE: Final = 5
"""How many names a warning about many files tells."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory, regular file or symbolic link of one host's tree."""

    name: str
    root: Path
    status: os.stat_result
    link: str | None = None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What goes into the archive, in order, and what is to be told about it."""

    entries: tuple[Entry, ...]
    clashes: tuple[str, ...]
    """Names that hosts have with different content; the first host's is in `entries`."""
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(entry.status.st_size for entry in self.entries if entry.is_file)


def merge(trees: Mapping[str, Path]) -> Merged:
    """One tree out of the hosts' trees, algo-1's files first.

    The same name with the same content is harmless. A symbolic link that leaves its tree and a special
    file are left out with a warning; a link inside the tree stays a link, with a warning (contract: F26).
    """
    merged: dict[str, Entry] = {}
    clashes: dict[str, None] = {}
    leaving: list[str] = []
    links: list[str] = []
    special: list[str] = []
    for host in sort_hosts(trees):
        root = trees[host]
        dropped: str | None = None
        try:
            for name, status in walk_beneath(root):
                if dropped is not None and name.startswith(dropped):
                    continue  # below a name that another host has as a file
                entry = _entry(name, root, status)
                if entry is None:
                    (leaving if stat.S_ISLNK(status.st_mode) else special).append(f"{host}:{name}")
                    continue
                first = merged.get(name)
                if first is None:
                    merged[name] = entry
                    if entry.link is not None:
                        links.append(f"{host}:{name}")
                elif not _same(first, entry):
                    clashes[name] = None
                    if stat.S_ISDIR(status.st_mode):
                        dropped = name + "/"
        except NotADirectoryError as error:
            raise ClientError(
                f"Artifact upload failed: on {host} {root.name} is no directory any more, the script put a "
                "link or file in its place"
            ) from error
        except OSError as error:
            raise ClientError(
                f"Artifact upload failed: can't read {error.filename or root} of {host} ({error.strerror})"
            ) from error
    warnings = [
        *_tell(
            leaving, "left out, it leads out of the directory", "left out, they lead out of the directory"
        ),
        *_tell(links, "stays a link in the archive", "stay links in the archive"),
        *_tell(special, "left out, it is no file", "left out, they are no files"),
    ]
    return Merged(
        entries=tuple(sorted(merged.values(), key=lambda entry: entry.name)),
        clashes=tuple(clashes),
        warnings=tuple(warnings),
    )


def _entry(name: str, root: Path, status: os.stat_result) -> Entry | None:
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return Entry(name, root, status)
    if not stat.S_ISLNK(status.st_mode):
        return None
    target = str((root / name).readlink())
    top = os.path.realpath(root)
    real = os.path.realpath(root / name)
    lexical = os.path.normpath(PurePosixPath(name).parent / target)
    stays = not target.startswith("/") and lexical.partition("/")[0] != ".."
    return Entry(name, root, status, target) if stays and (real + "/").startswith(top + "/") else None


def _same(one: Entry, other: Entry) -> bool:
    if stat.S_IFMT(one.status.st_mode) != stat.S_IFMT(other.status.st_mode):
        return False
    if one.is_file:
        return one.status.st_size == other.status.st_size and _equal(one, other)
    return one.link == other.link


def _equal(one: Entry, other: Entry) -> bool:
    first = open_beneath(one.root, one.name)
    try:
        second = open_beneath(other.root, other.name)
        try:
            while data := os.read(first, _BLOCK):
                if data != os.read(second, _BLOCK):
                    return False
            return True
        finally:
            os.close(second)
    finally:
        os.close(first)


def _tell(names: list[str], one: str, many: str) -> Iterable[str]:
    if len(names) == 1:
        yield f"symbolic link or special file {names[0]}: {one} (contract F26)"
    elif names:
        shown = ", ".join(names[:_SAMPLE]) + (", …" if len(names) > _SAMPLE else "")
        yield f"{len(names)} symbolic links or special files ({shown}): {many} (contract F26)"
