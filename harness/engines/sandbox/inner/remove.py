"""Remove a tree that a host left: also what it, or overlayfs, made unreadable for its owner."""

from __future__ import annotations

import os
import stat

_DEEP = 100
"""Levels: well within what paths and Python's stack can hold."""


def remove_tree(path: str) -> None:
    """Remove `path` and all below it; nothing when it isn't there, or another process removes it meanwhile.

    overlayfs leaves a directory of mode 000 in its work directory, and a script can leave such as well:
    their owner may change that first. A script's tree can be deeper than a path may be long: what lies deep
    is moved up into `path`, for the next round. Not `shutil`: it takes longer to import than most trees to
    remove.
    """
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(path)
            return
        _make_writable(path)
        while entries := _entries(path):
            for entry in entries:
                try:
                    _remove(entry, path, 1)
                except FileNotFoundError:
                    pass  # the next round sees what is left
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _remove(entry: os.DirEntry[str], top: str, depth: int) -> None:
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.path)
        return
    _make_writable(entry.path)
    if depth == _DEEP:
        os.rename(entry.path, f"{top}/{os.urandom(16).hex()}")
        return
    for each in _entries(entry.path):
        _remove(each, top, depth + 1)
    os.rmdir(entry.path)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return list(entries)


def _make_writable(directory: str) -> None:
    if stat.S_IMODE(os.lstat(directory).st_mode) & 0o700 != 0o700:
        os.chmod(directory, 0o700)
