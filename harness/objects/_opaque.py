"""Objects whose keys can't be files: `a//b`, `a/../b`, a marker `a/`, a segment over 255 bytes, or `a`
beside `a/b`.

Each is two files named by the hash of its key: `<hash>.key` holds the key, `<hash>.data` the object. The
key is written first, so data without a key never exists; a key without data is no object.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["Opaque"]


class Opaque:
    """The opaque objects of one bucket."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, key: str) -> Path:
        """Where the object is, or would be."""
        return self._directory / f"{_name(key)}.data"

    def adopt(self, key: str, temporary: Path) -> Path:
        """Make the file `temporary` the object of that key."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / f"{_name(key)}.key").write_bytes(_encode(key))
        target = self.path(key)
        temporary.rename(target)
        return target

    def discard(self, key: str) -> bool:
        """Remove the object; whether there was one."""
        try:
            self.path(key).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        with suppress(FileNotFoundError):
            (self._directory / f"{_name(key)}.key").unlink()
        return True

    def scan(self, prefix: str) -> Iterator[tuple[str, str, os.stat_result]]:
        """Key, path and stat of every object whose key begins with the prefix, in key order."""
        try:
            names = [entry.name for entry in os.scandir(self._directory) if entry.name.endswith(".key")]
        except FileNotFoundError:
            return
        found = []
        for name in names:
            try:
                key = (self._directory / name).read_bytes().decode("utf-8", "surrogateescape")
                path = self.path(key)
                if key.startswith(prefix):
                    found.append((key, str(path), path.stat()))
            except FileNotFoundError:
                continue
        yield from sorted(found, key=lambda item: item[0])


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _name(key: str) -> str:
    return hashlib.sha256(_encode(key)).hexdigest()
