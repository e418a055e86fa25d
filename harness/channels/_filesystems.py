"""EFS and FSx channels: directories of this machine stand in for the file systems."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from harness.errors import ClientError
from harness.model import JsonObject, LocalOptions

__all__ = ["find_file_system"]


def find_file_system(channel: str, source: JsonObject, local: LocalOptions) -> Path:
    """The directory that stands for DirectoryPath of the channel's file system (contract: B17, E26).

    FSx for Lustre paths begin with the mount name, which a mounted file system doesn't show: the rest is
    tried as well. Raises ClientError when the file system isn't mapped or the directory isn't there.
    """
    identifier = source["FileSystemId"]
    if identifier not in local.file_systems:
        raise ClientError(
            f"channel {channel} needs the file system {identifier}: say which directory stands for it, "
            f'[local.file_systems] "{identifier}" = "/a/directory"'
        )
    root = Path(local.file_systems[identifier]).expanduser().absolute()
    parts = [part for part in PurePosixPath(source["DirectoryPath"]).parts if part != "/"]
    if ".." in parts:
        raise ClientError(
            f"channel {channel}: DirectoryPath {source['DirectoryPath']!r} may not contain '..'"
        )
    tried = [root.joinpath(*parts)]
    if source.get("FileSystemType") == "FSxLustre" and parts:
        tried.append(root.joinpath(*parts[1:]))
    for path in tried:
        if path.is_dir():
            return path
    raise ClientError(
        f"Data download failed: channel {channel} has DirectoryPath {source['DirectoryPath']} of {identifier}, "
        f"and {' or '.join(str(path) for path in tried)} is no directory that can be read"
    )
