"""Which files of a tree nobody cares about: what git ignores there, and what editors leave lying about."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """What is ignored in one directory: its own .gitignore, and the rules of the directory above.

    The deepest file that says anything about a name decides; within a file its last word does (gitignore(5)).
    """

    directory: str
    spec: GitIgnoreSpec | None = None
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
        rules: Rules | None = self
        while rules is not None:
            if rules.spec is not None:
                inside = os.path.relpath(self.directory, rules.directory)
                path = name if inside == "." else f"{inside}/{name}"
                said = rules.spec.check_file(path).include
                if said is not None:
                    return said
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
        rules = Rules(directory=directory, spec=self._parse(file) if signature else None, above=above)
        self._known[key] = (signature, rules)
        return rules

    def _parse(self, file: str) -> GitIgnoreSpec | None:
        from pathspec import GitIgnoreSpec

        try:
            lines = Path(file).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        except OSError as error:
            self.problems.append(f"{file} can't be read ({error.strerror}): what it ignores isn't known")
            return None
        return GitIgnoreSpec.from_lines(self._good(file, lines))

    def _good(self, file: str, lines: list[str]) -> Iterator[str]:
        """Git skips a pattern that is none; pathspec refuses the whole file."""
        from pathspec import GitIgnoreSpec

        for number, line in enumerate(lines, start=1):
            try:
                GitIgnoreSpec.from_lines([line])
            except ValueError:
                self.problems.append(f"{file}, line {number}: {line!r} is no pattern and ignores nothing")
                continue
            yield line


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
