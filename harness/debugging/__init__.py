"""The debug loop: watch, debugger, shell, and what a failed job left to look at."""

from __future__ import annotations

from harness.debugging._watch import Change, Watcher, scope_of, scope_of_file
from harness.debugging._watch_tree import FileChange, Scope

__all__ = ["Change", "FileChange", "Scope", "Watcher", "scope_of", "scope_of_file"]
