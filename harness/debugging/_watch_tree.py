"""The content of what is watched, and how two looks at it differ."""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from harness.debugging._ignore import Ignore, Rules, is_litter
from harness.model import JsonObject

__all__ = ["Entry", "FileChange", "Look", "Scope", "Tree", "compare"]

_TEXT: Final = 256 << 10
"""Bytes of the biggest file whose text is kept, to show what changed in it."""
_TEXTS: Final = 32 << 20
"""Bytes of all texts that are kept."""
_HASHED: Final = 64 << 20
"""Bytes from which a file's size and times stand for its content."""
_DIFFED: Final = 1500
"""Lines, of both versions, beyond which only their number is told."""
_SHOWN: Final = 40
"""Lines of a difference that are kept."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is watched: trees without what is ignored in them, and single files whatever their name."""

    trees: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def covers(self, path: str) -> bool:
        """Whether the path, as the user calls it, is in it."""
        return path in self.files or any(path.startswith(f"{tree}/") for tree in self.trees)

    def joined(self, other: Scope) -> Scope:
        """What is in one of the two."""
        return Scope(
            trees=tuple(dict.fromkeys((*self.trees, *other.trees))),
            files=tuple(dict.fromkeys((*self.files, *other.files))),
        )

    def to_json(self) -> JsonObject:
        return {"trees": list(self.trees), "files": list(self.files)}

    @classmethod
    def from_json(cls, value: Mapping[str, list[str]]) -> Scope:
        return cls(trees=tuple(value["trees"]), files=tuple(value["files"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file as it was found."""

    signature: tuple[int, ...]
    digest: bytes
    """Stands for what the job would see of it: bytes and permissions, or why it can't be read."""
    text: bytes | None = None

    @property
    def is_empty(self) -> bool:
        """A file without a byte, as one is between being opened for writing and being written."""
        return self.text == b""


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """What became of one file."""

    path: str
    kind: Literal["changed", "added", "removed"]
    added: int = 0
    """Lines; 0 where they can't be told."""
    removed: int = 0
    lines: tuple[str, ...] = ()
    """The changed lines, `+` or `-` before each; the first forty of them."""


@dataclass(kw_only=True)
class Look:
    """Everything that was found at one look."""

    entries: dict[str, Entry] = field(default_factory=dict)
    directories: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Real path → device and inode of each directory in which a change would matter."""
    trees: set[str] = field(default_factory=set)
    """Those in which everything matters, but for `noise`."""
    names: set[str] = field(default_factory=set)
    """What matters in the others; real paths."""
    noise: set[str] = field(default_factory=set)
    """What doesn't matter; real paths."""
    ignored: set[str] = field(default_factory=set)
    """Files and directories that were passed over."""
    problems: list[str] = field(default_factory=list)

    def concerns(self, real: str) -> bool:
        """Whether what happened to that real path could be a change."""
        directory, _, name = real.rpartition("/")
        if real in self.names:
            return True
        return directory in self.trees and real not in self.noise and not is_litter(name)


class Tree:
    """Looks at a scope, again and again; reads only what may have changed since the last look."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._ignore = [Ignore() for _ in scope.trees]
        self._texts = 0

    def look(self, before: Look | None = None) -> Look:
        """The present state; entries of `before` whose signature is the same are taken over."""
        look = Look()
        known = before.entries if before is not None else {}
        self._texts = 0
        for path in self.scope.files:
            self._watch_place_of(path, look)
            self._file(path, known, look)
        for path, ignore in zip(self.scope.trees, self._ignore, strict=True):
            self._watch_place_of(path, look)
            real = os.path.realpath(path)
            rules = ignore.root(real)
            self._directory(path, real, rules, ignore, (), known, look)
            for file in ignore.files:
                self._watch_name(file, look)
            look.problems += ignore.problems
        return look

    def _directory(
        self,
        path: str,
        real: str,
        rules: Rules,
        ignore: Ignore,
        above: tuple[tuple[int, int], ...],
        known: Mapping[str, Entry],
        look: Look,
    ) -> None:
        """`path`: as the user calls it; `real`: without links. Links are followed, as the archive does."""
        try:
            status = os.stat(real)  # noqa: PTH116
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                return  # a link to a directory above itself: packing says so
            look.directories[real] = identity
            look.trees.add(real)
            with os.scandir(real) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return  # what was in it is gone, and the difference says so
        except OSError as error:
            look.entries[path] = Entry(signature=(), digest=f"directory: {error.strerror}".encode())
            return
        for entry in found:
            try:
                is_directory = entry.is_dir()
                is_link = entry.is_symlink()
            except OSError:
                is_directory = is_link = False
            inner = f"{path}/{entry.name}"
            if rules.ignores(entry.name, is_directory=is_directory):
                look.ignored.add(inner)
                look.noise.add(entry.path)
                continue
            if not is_directory:
                if is_link:
                    self._watch_name(os.path.realpath(entry.path), look)
                self._file(inner, known, look)
                continue
            if is_link:
                real_inner = os.path.realpath(entry.path)
                self._watch_place_of(real_inner, look)
            else:
                real_inner = entry.path
            # The rules go by the name that git sees, wherever a link leads to.
            self._directory(
                inner,
                real_inner,
                ignore.enter(entry.path, rules),
                ignore,
                (*above, identity),
                known,
                look,
            )

    def _file(self, path: str, known: Mapping[str, Entry], look: Look) -> None:
        try:
            status = os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):  # noqa: PTH114
                look.entries[path] = Entry(signature=(), digest=b"link to nothing")
            return
        except OSError as error:
            look.entries[path] = Entry(signature=(), digest=f"file: {error.strerror}".encode())
            return
        signature = (
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            status.st_dev,
        )
        entry = known.get(path)
        if entry is None or entry.signature != signature:
            entry = self._read(path, status, signature)
        if entry.text is not None:
            self._texts += len(entry.text)
        look.entries[path] = entry

    def _read(self, path: str, status: os.stat_result, signature: tuple[int, ...]) -> Entry:
        seal = hashlib.blake2b(f"{stat.S_IMODE(status.st_mode):o}\0".encode(), digest_size=16)
        text = None
        if not stat.S_ISREG(status.st_mode) or status.st_size > _HASHED:
            seal.update(repr(signature[:3]).encode())  # nobody opens a FIFO, or reads a model for this
        else:
            try:
                with open(path, "rb") as file:  # noqa: PTH123
                    content = file.read()
            except OSError as error:
                return Entry(signature=(), digest=f"file: {error.strerror}".encode())
            seal.update(content)
            if len(content) <= _TEXT and self._texts < _TEXTS and b"\0" not in content[:8192]:
                text = content
        return Entry(signature=signature, digest=seal.digest(), text=text)

    def _watch_place_of(self, path: str, look: Look) -> None:
        """See it come, go or be replaced; as long as the directory above isn't there, see that one come."""
        name = os.path.abspath(path)  # noqa: PTH100
        while not os.path.isdir(os.path.dirname(name)):  # noqa: PTH112, PTH120
            name = os.path.dirname(name)  # noqa: PTH120
        above, base = os.path.split(name)
        self._watch_name(os.path.join(os.path.realpath(above), base), look)  # noqa: PTH118
        self._watch_name(os.path.realpath(path), look)

    def _watch_name(self, real: str, look: Look) -> None:
        """One name in a directory of which the rest doesn't matter."""
        place = os.path.dirname(real)  # noqa: PTH120
        try:
            status = os.stat(place)  # noqa: PTH116
        except OSError:
            return  # not there: it is made in a directory that is watched, or the next look finds it
        if stat.S_ISDIR(status.st_mode):
            look.directories.setdefault(place, (status.st_dev, status.st_ino))
            look.names.add(real)


def compare(before: Look, after: Look) -> list[FileChange]:
    """What changed in content or permissions, in the order of the names.

    A file that became ignored (it is still there) or that is no longer ignored (it was there before) is no
    change of anybody's work.
    """
    return list(_changes(before, after))


def _changes(before: Look, after: Look) -> Iterator[FileChange]:
    for path in sorted({*before.entries, *after.entries}):
        old, new = before.entries.get(path), after.entries.get(path)
        if old is not None and new is not None:
            if old.digest != new.digest:
                yield _difference(path, "changed", old.text, new.text)
        elif new is not None:
            if before.ignored and _is_within(path, before.ignored):
                continue
            yield _difference(path, "added", b"", new.text)
        elif old is not None and not os.path.lexists(path):
            yield _difference(path, "removed", old.text, b"")


def _is_within(path: str, places: set[str]) -> bool:
    while path not in places:
        above = path.rpartition("/")[0]
        if not above:
            return False
        path = above
    return True


def _difference(
    path: str, kind: Literal["changed", "added", "removed"], old: bytes | None, new: bytes | None
) -> FileChange:
    if old is None or new is None:
        return FileChange(path=path, kind=kind)
    before, after = _lines(old), _lines(new)
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    before, after = before[start : len(before) - end], after[start : len(after) - end]
    if not before or not after or len(before) + len(after) > _DIFFED:
        lines = [f"-{line}" for line in before] + [f"+{line}" for line in after]
        return _counted(path, kind, lines, len(after), len(before))
    lines = []
    added = 0
    for what, *span in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if what != "equal":
            lines += [f"-{line}" for line in before[span[0] : span[1]]]
            lines += [f"+{line}" for line in after[span[2] : span[3]]]
            added += span[3] - span[2]
    return _counted(path, kind, lines, added, len(lines) - added)


def _counted(
    path: str, kind: Literal["changed", "added", "removed"], lines: list[str], added: int, removed: int
) -> FileChange:
    shown = tuple(line[:400] for line in lines[:_SHOWN])
    return FileChange(path=path, kind=kind, added=added, removed=removed, lines=shown)


def _lines(text: bytes) -> list[str]:
    return text.decode("utf-8", "replace").splitlines()
