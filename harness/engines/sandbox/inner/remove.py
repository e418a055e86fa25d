"""Remove a tree that a host left: also what it, or overlayfs, made unreadable for its owner."""

from __future__ import annotations

import errno
import os
import stat


def remove_tree(path: str) -> None:
    """Remove `path` and all below it; nothing when it isn't there.

    overlayfs leaves a directory of mode 000 in its work directory, and a script can leave such as well:
    their owner may change that first. Not `shutil`: it takes longer to import than most trees to remove.
    """
    try:
        _remove(path)
    except (OSError, RecursionError) as error:
        # Deeper than a path may be long: only a tool that goes down step by step gets there.
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise
        import subprocess

        subprocess.run(["rm", "-rf", "--", path], check=True)


def _remove(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(path)
        return
    if stat.S_IMODE(mode) & 0o700 != 0o700:
        os.chmod(path, 0o700)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)
