"""The debug loop: watch, debugger, shell, and what a failed job left to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.debugging._watch import Change, Watcher, scope_of, scope_of_file
    from harness.debugging._watch_tree import FileChange, Scope
    from harness.debugging._why import Why, latest, why
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_watch": ("Change", "Watcher", "scope_of", "scope_of_file"),
            "_watch_tree": ("FileChange", "Scope"),
            "_why": ("Why", "latest", "why"),
        },
    )

__all__ = [
    "Change",
    "FileChange",
    "Scope",
    "Watcher",
    "Why",
    "latest",
    "scope_of",
    "scope_of_file",
    "why",
]
