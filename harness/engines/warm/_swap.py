"""A job's tree moves into the directory that a warm host has mounted, and out again when the run has ended.

What is mounted stays mounted: only its children are renamed, which costs the same for a gigabyte as for
nothing. A directory on which the host has something mounted (a channel), and those above it, can't move,
or the mount would go with them: they stay, and what is beside them moves.

    jobs/<job>/hosts/<host>/ml          while the run lasts a link to the warm directory, so that whoever
                                        looks for the job's files finds them where they always are
    jobs/<job>/hosts/<host>/ml.aside    what the tree was, emptied: it takes everything back

Each step can be done again, so `give_back` also ends what a process that was killed had begun.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from harness.engines.sandbox.inner.remove import remove_tree

__all__ = ["give_back", "lend", "lent_to"]

_ASIDE: Final = ".aside"


def lend(tree: Path, warm: Path, points: Collection[PurePosixPath] = ()) -> None:
    """Move all that is in `tree` into `warm`, and lead from `tree` to it.

    `points`: paths in the tree that are mount points in the host. What a former run left in `warm` is removed.

    Raises:
        OSError: it can't be done, with EXDEV when the two are on different file systems; `give_back` undoes
            what was done.
    """
    aside = _aside(tree)
    tree.rename(aside)
    tree.symlink_to(warm)
    _clear(warm, points)
    _move(aside, warm, points)


def give_back(tree: Path, points: Collection[PurePosixPath] = ()) -> None:
    """Undo `lend`; nothing when the tree isn't lent.

    Raises:
        OSError: something can't be moved.
    """
    aside = _aside(tree)
    if tree.is_symlink():
        warm = tree.readlink()
        if warm.is_dir() and aside.is_dir():
            _move(warm, aside, points)
        tree.unlink()
    if aside.is_dir() and not tree.exists():
        aside.rename(tree)


def lent_to(tree: Path) -> Path | None:
    """The warm directory that has the tree's content now."""
    return tree.readlink() if tree.is_symlink() else None


def _aside(tree: Path) -> Path:
    return tree.with_name(tree.name + _ASIDE)


def _move(
    source: Path, target: Path, points: Collection[PurePosixPath], at: PurePosixPath | None = None
) -> None:
    """Rename the children of `source`, all but mount points and what is above them; those get `source`'s mode."""
    at = at or PurePosixPath()
    with _writable(source), _writable(target):
        for name in os.listdir(source):  # noqa: PTH208 - names, not paths
            path = at / name
            if path in points:
                continue
            old, new = source / name, target / name
            if any(path in point.parents for point in points):
                new.mkdir(exist_ok=True)
            if _is_directory(new):
                # It stayed when the tree was lent, or it has to stay now.
                _move(old, new, points, path)
            else:
                _rename(old, new)
    _look_alike(source, target)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _rename(old: Path, new: Path) -> None:
    try:
        old.rename(new)
    except PermissionError:
        # A directory that moves to another parent is written to: its `..`. A script may forbid that.
        info = old.lstat()
        if not stat.S_ISDIR(info.st_mode):
            raise
        old.chmod(stat.S_IMODE(info.st_mode) | stat.S_IWUSR)
        try:
            old.rename(new)
        except OSError:
            old.chmod(stat.S_IMODE(info.st_mode))
            raise
        new.chmod(stat.S_IMODE(info.st_mode))


def _look_alike(source: Path, target: Path) -> None:
    """Mode and times of a directory that stands for another."""
    info = source.lstat()
    target.chmod(stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


@contextlib.contextmanager
def _writable(directory: Path) -> Iterator[None]:
    """Inside the `with`, its owner may look into the directory and change it."""
    mode = stat.S_IMODE(directory.lstat().st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        directory.chmod(mode | stat.S_IRWXU)
    try:
        yield
    finally:
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            directory.chmod(mode)


def _clear(warm: Path, points: Collection[PurePosixPath], at: PurePosixPath | None = None) -> None:
    at = at or PurePosixPath()
    for name in os.listdir(warm):  # noqa: PTH208 - names, not paths
        path = at / name
        if path in points:
            continue
        if any(path in point.parents for point in points):
            _clear(warm / name, points, path)
        else:
            remove_tree(str(warm / name))
