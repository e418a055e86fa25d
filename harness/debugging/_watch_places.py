"""Where the kernel gives no notice of what others change: file systems that other machines share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["why_poll"]

_SHARED: Final = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ncpfs",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "virtiofs",
        "vboxsf",
        "prl_fs",
        "drvfs",
        "fakeowner",
        "osxfs",
        "davfs",
    ]
)
_MOUNTS: Final = Path("/proc/self/mountinfo")


def why_poll(directories: Iterable[str], mounts: Path = _MOUNTS) -> str | None:
    """Why these have to be looked at again and again, in a clause; None when the kernel tells of every change."""
    types = _types(mounts)
    for directory in directories:
        place = Path(directory)
        kind = next((types[str(each)] for each in (place, *place.parents) if str(each) in types), "")
        if kind in _SHARED or kind.startswith("fuse."):
            return f"{directory} is on {kind}, where others can change files unnoticed"
    return None


def _types(mounts: Path) -> dict[str, str]:
    """Mount point → type of its file system."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}  # no Linux
    found = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        found[point] = after.split(" ")[0]
    return found
