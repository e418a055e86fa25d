"""EFS and FSx: is there a directory of this machine for each file system of the request?"""

from __future__ import annotations

from pathlib import Path

from harness.model import Spec

__all__ = ["missing"]


def missing(spec: Spec) -> str:
    """Which file system of the request has no directory here, and what to do; empty when all have one."""
    for channel in spec.request.get("InputDataConfig") or ():
        source = channel["DataSource"].get("FileSystemDataSource")
        if source is None:
            continue
        name, identifier = channel["ChannelName"], source["FileSystemId"]
        place = spec.local.file_systems.get(identifier)
        if place is None:
            return (
                f"channel {name} needs the file system {identifier}: say which directory stands for it, "
                f'[local.file_systems] "{identifier}" = "/a/directory"'
            )
        if not Path(place).expanduser().is_dir():
            return f"channel {name}: {place}, which stands for the file system {identifier}, is no directory"
    return ""
