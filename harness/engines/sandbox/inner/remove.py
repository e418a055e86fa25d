"""Remove a tree that a host left: also what it, or overlayfs, made unreadable for its owner."""

from __future__ import annotations

import os
import shutil


def remove_tree(path: str) -> None:
    """Remove `path` and all below it; nothing when it isn't there.

    overlayfs leaves a directory of mode 000 in its work directory, and a script can leave such as well:
    their owner may change that first.
    """
    try:
        _remove(path)
    except PermissionError:
        _open_up(path)
        _remove(path)


def _remove(path: str) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise


def _open_up(folder: str) -> None:
    os.chmod(folder, 0o700)
    with os.scandir(folder) as entries:
        inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in inner:
        _open_up(path)
