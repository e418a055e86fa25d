"""Which files of a tree nobody cares about: what git ignores there, and what editors leave lying about."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Ignore", "Rules", "is_litter"]

_LITTER: Final = (
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    "*.py[co]",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".DS_Store",
    "4913",  # vim tries with it whether it may write
    "*~",
    ".*.sw[a-z]",  # vim
    "#*#",
    ".#*",  # emacs: the lock is a link to nothing
    ".goutputstream-*",  # GNOME's atomic save
    "*.kate-swp",
    "*___jb_tmp___",
    "*___jb_old___",  # JetBrains' safe write
    ".nfs????????*",
    ".~lock.*#",
)
_IS_LITTER: Final = re.compile("|".join(map(fnmatch.translate, _LITTER)))


def is_litter(name: str) -> bool:
    """Whether a file or directory of that name is never a user's own work, whatever .gitignore says."""
    return _IS_LITTER.match(name) is not None


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """One line of a .gitignore."""

    regex: re.Pattern[str]
    """pathspec's. It also finds a path that only lies below what the line names, and then captures a group."""
    ignores: bool
    directories: bool
    """It is about directories only."""


def _pattern(line: str) -> _Pattern | None:
    """What pathspec makes of the line; None when it says nothing. Raises ValueError when it is no pattern.

    pathspec judges files: by a line for directories it finds what is in them. Watch judges each directory
    before what is in it, as git does, so whether a line is for directories is kept apart.
    """
    from pathspec import GitIgnoreSpec

    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    directories = line.endswith("/") and line.strip("!/") != ""
    for found in GitIgnoreSpec.from_lines([line[:-1] if directories else line]).patterns:
        if found.include is not None and found.regex is not None:
            return _Pattern(regex=found.regex, ignores=found.include, directories=directories)
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """What is ignored in one directory: its own .gitignore, and the rules of the directory above.

    The deepest file that says anything about a name decides; within a file its last word does (gitignore(5)).
    """

    directory: str
    patterns: tuple[_Pattern, ...] = ()
    above: Rules | None = None
    decided: dict[str, bool] = field(default_factory=dict)
    """Answers that were given; `/` at the end of a directory's name."""

    def ignores(self, name: str, *, is_directory: bool) -> bool:
        """Whether the entry of this directory is ignored. What is in an ignored directory is never asked for."""
        if is_litter(name):
            return True
        key = f"{name}/" if is_directory else name
        if key not in self.decided:
            self.decided[key] = self._decide(key)
        return self.decided[key]

    def _decide(self, name: str) -> bool:
        is_directory = name.endswith("/")
        rules: Rules | None = self
        while rules is not None:
            inside = os.path.relpath(self.directory, rules.directory)
            path = os.path.normpath(f"{inside}/{name}")
            for pattern in reversed(rules.patterns):
                if pattern.directories and not is_directory:
                    continue
                found = pattern.regex.search(path)
                if found is not None and found.lastindex is None:
                    return pattern.ignores
            rules = rules.above
        return False


class Ignore:
    """The rules of a tree's directories, read again only where they changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[object, Rules]] = {}
        self.files: set[str] = set()
        """The files that say what is ignored, and where such ones could be made; each was looked at."""
        self.problems: list[str] = []

    def root(self, directory: str) -> Rules:
        """The rules of the directory that the user named, with those of the repository that it lies in.

        A directory that is itself ignored was named all the same: then only what it says itself counts.
        """
        self.files.clear()
        self.problems.clear()
        above, ignored = self._above(directory)
        return self.enter(directory, None if ignored else above)

    def enter(self, directory: str, above: Rules | None) -> Rules:
        """The rules of a directory below (or of the first one)."""
        return self._read(directory, os.path.join(directory, ".gitignore"), above)  # noqa: PTH118

    def _above(self, directory: str) -> tuple[Rules | None, bool]:
        """The rules of the directories above up to the repository's root, and whether they ignore this one."""
        place = Path(directory)
        top = next((each for each in (place, *place.parents) if _is_repository(each)), None)
        if top is None:
            return None, False
        exclude = _git_directory(top) / "info" / "exclude"
        rules = self._read(str(top), str(exclude), None)
        inside = place.relative_to(top).parts
        for depth, name in enumerate(inside):
            rules = self.enter(str(top.joinpath(*inside[:depth])), rules)
            if rules.ignores(name, is_directory=True):
                return rules, True
        return rules, False

    def _read(self, directory: str, file: str, above: Rules | None) -> Rules:
        self.files.add(file)
        key, signature = (file, id(above)), _signature(file)
        known = self._known.get(key)
        if known is not None and known[0] == signature and known[1].above is above:
            return known[1]
        rules = Rules(directory=directory, patterns=self._parse(file) if signature else (), above=above)
        self._known[key] = (signature, rules)
        return rules

    def _parse(self, file: str) -> tuple[_Pattern, ...]:
        try:
            text = Path(file).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            self.problems.append(f"{file} can't be read ({error.strerror}): what it ignores isn't known")
            return ()
        return tuple(self._patterns(file, text.split("\n")))

    def _patterns(self, file: str, lines: list[str]) -> Iterator[_Pattern]:
        for number, line in enumerate(lines, start=1):
            try:
                pattern = _pattern(line.removesuffix("\r"))
            except ValueError:
                self.problems.append(f"{file}, line {number}: {line!r} is no pattern and ignores nothing")
                continue
            if pattern is not None:
                yield pattern


def _signature(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _is_repository(directory: Path) -> bool:
    return (directory / ".git").exists()


def _git_directory(top: Path) -> Path:
    """Where the repository keeps what isn't versioned; in a worktree or submodule `.git` is a file that says it."""
    place = top / ".git"
    try:
        if place.is_file():
            words = place.read_text(encoding="utf-8", errors="surrogateescape").strip()
            place = (top / words.removeprefix("gitdir:").strip()).resolve()
            common = place / "commondir"
            if common.is_file():
                place = (place / common.read_text(encoding="utf-8").strip()).resolve()
    except OSError:
        return top / ".git"  # nothing can be read there, so nothing is excluded by it
    return place
