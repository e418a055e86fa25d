"""How the keeper starts a preloaded interpreter, agreed between the two."""

from __future__ import annotations

import os

__all__ = ["CONTROL", "PACKAGE", "PADDING", "placeholder"]

PACKAGE = "_harness_warm"
"""The name of this package in a host; no script has it."""
CONTROL = "HARNESS_WARM_CONTROL"
"""The variable that says which descriptor leads to the keeper."""
PADDING = "HARNESS_WARM_PADDING"
"""A variable with room for another environment, as /proc shows it."""

_ROOM = 16 * 1024


def placeholder() -> str:
    """The script's name that it is started with: nowhere else in its memory, and longer than any other."""
    return "/" + os.urandom(8).hex() + "-" * _ROOM
