"""Last words of a warm host: why it is gone, for the next job that would have used it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from harness.home import Home

__all__ = ["KILLED", "forget_last_words", "leave_last_words", "take_last_words"]

KILLED: Final = "the process that kept it was killed"
"""Last words of one that could leave none itself."""


def leave_last_words(home: Home, project: str, why: str) -> None:
    """`why`: as the end of "the warm host was gone: …"."""
    path = _path(home, project)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(why)


def take_last_words(home: Home, project: str) -> str | None:
    """What was said last of the project's hosts; it is told once."""
    path = _path(home, project)
    try:
        why = path.read_text()
        path.unlink()
    except OSError:
        return None
    return why


def forget_last_words(home: Home) -> None:
    """Of all projects."""
    folder = _path(home, "").parent
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _path(home: Home, project: str) -> Path:
    return home.cache / "warm" / f"{project}.txt"
