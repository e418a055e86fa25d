"""The script's environment, from the log of its host: the toolkit writes it down before it starts the script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["logged_environment"]

_MOST: Final = 16 << 20
"""Bytes of the log's beginning that are read; before the script only pip says much."""
_LISTED: Final = re.compile(
    rb"^Environment variables:\r?\n\r?\n(.*?)\r?\n\r?\nInvoking script with the following command:",
    re.DOTALL | re.MULTILINE,
)
_VARIABLE: Final = re.compile(rb"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def logged_environment(log: Path) -> dict[str, str]:
    """What the toolkit says it gave the script; empty where it said nothing: it didn't come to that, its log
    level is above INFO, or the image has no toolkit, and then the platform's environment is all there was.

    The first such list counts: what the script itself says comes after it.
    """
    try:
        with log.open("rb") as file:
            found = _LISTED.search(file.read(_MOST))
    except FileNotFoundError:
        return {}
    if found is None:
        return {}
    environment: dict[bytes, bytes] = {}
    name = b""
    for line in found[1].split(b"\n"):
        match = _VARIABLE.fullmatch(line.rstrip(b"\r"))
        if match is not None:
            name = match[1]
            environment[name] = match[2]
        elif name:  # a value of several lines
            environment[name] += b"\n" + line
    return {key.decode(): value.decode(errors="surrogateescape") for key, value in environment.items()}
