"""What `pip install` is asked for, so that the same needn't be done twice in one host."""

from __future__ import annotations

import hashlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["digest"]

_PLAIN = ["-m", "pip", "install", "-r", "requirements.txt"]
_MARKS = ("/", "\\", "@", "-", ".", "${")
"""How a line begins or goes on that may mean more than names: paths, addresses, options, other files."""


def digest(argv: list[str], cwd: str, environment: Mapping[str, str]) -> str | None:
    """A digest of what this pip installs; None when its success says nothing about the next time."""
    if argv[1:] != _PLAIN:
        return None
    try:
        with open(os.path.join(cwd, _PLAIN[-1]), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        return None
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        name = line.partition(";")[0]
        if line.startswith(_MARKS) or any(mark in name for mark in "/\\@$"):
            return None
    configured = sorted("%s=%s" % item for item in environment.items() if item[0].startswith("PIP_"))
    return hashlib.sha256("\0".join([argv[0], text, *configured]).encode()).hexdigest()
