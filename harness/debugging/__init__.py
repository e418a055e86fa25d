"""The debug loop: watch, debugger, shell, and what a failed job left to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.debugging._copy import Copied, copy
    from harness.debugging._debug import Attendant, check_rank, require_debugpy
    from harness.debugging._debug_config import launch_configuration, path_mappings, project_of, write_vscode
    from harness.debugging._debug_port import Port
    from harness.debugging._debug_terminal import Terminal
    from harness.debugging._rerun import rerun
    from harness.debugging._shell import Standing, shell_command, stand
    from harness.debugging._watch import Change, Watcher, scope_of, scope_of_file
    from harness.debugging._watch_tree import FileChange, Scope
    from harness.debugging._why import Why, latest, why
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_copy": ("Copied", "copy"),
            "_debug": ("Attendant", "check_rank", "require_debugpy"),
            "_debug_config": ("launch_configuration", "path_mappings", "project_of", "write_vscode"),
            "_debug_port": ("Port",),
            "_debug_terminal": ("Terminal",),
            "_rerun": ("rerun",),
            "_shell": ("Standing", "shell_command", "stand"),
            "_watch": ("Change", "Watcher", "scope_of", "scope_of_file"),
            "_watch_tree": ("FileChange", "Scope"),
            "_why": ("Why", "latest", "why"),
        },
    )

__all__ = [
    "Attendant",
    "Change",
    "Copied",
    "FileChange",
    "Port",
    "Scope",
    "Standing",
    "Terminal",
    "Watcher",
    "Why",
    "check_rank",
    "copy",
    "latest",
    "launch_configuration",
    "path_mappings",
    "project_of",
    "require_debugpy",
    "rerun",
    "scope_of",
    "scope_of_file",
    "shell_command",
    "stand",
    "why",
    "write_vscode",
]
