"""Doors that open when somebody goes through: a room's parts are imported at their first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["closed"]


def closed(room: str, doors: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The `__getattr__` of the room's module: module of the room → the doors that are in it.

    A command needs few of a room's doors, and what it doesn't need takes up to half of its start.
    """
    where = {door: module for module, names in doors.items() for door in names}

    def open_door(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{room}.{where[name]}"), name)
        setattr(sys.modules[room], name, found)
        return found

    return open_door
