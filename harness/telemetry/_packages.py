"""Which Python packages a host has, read off the names of the directories that pip leaves beside them.

No interpreter is asked and no file is opened: three directories are listed, in about a millisecond.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["installed_by_pip", "packages_of", "packages_of_process", "places_of"]

_INSTALLED: Final = re.compile(
    r"^([A-Za-z0-9][\w.]*(?:-[\w.]+)*?)-(\d[^-]*)(?:-py\d[\w.]*)?\.(?:dist|egg)-info$"
)
_VERSIONED: Final = re.compile(r"^python3(?:\.\d+)?$")
_KINDS: Final = ("dist-packages", "site-packages")
_SAID: Final = re.compile(r"^Successfully installed (.+)$", re.MULTILINE)
_SCRIPT: Final = "Invoking script with the following command:"


def places_of(python: str, root: str = "") -> list[str]:
    """The directories of that interpreter's packages, first that of its virtual environment; `root` is put
    before each: how another mount namespace's files are seen from here."""
    prefix = os.path.dirname(os.path.dirname(python))  # noqa: PTH120 - `..` would follow links
    prefixes = [prefix]
    if not os.path.exists(f"{root}{prefix}/pyvenv.cfg"):  # noqa: PTH110
        prefixes = ["/usr/local", "/usr"] if prefix in ("/usr", "/usr/local", "") else [prefix]
    found = []
    for each in prefixes:
        library = f"{root}{each}/lib"
        for version in sorted(filter(_VERSIONED.match, _names(library))):
            found += [place for kind in _KINDS if os.path.isdir(place := f"{library}/{version}/{kind}")]  # noqa: PTH112
    return found


def packages_of(places: Iterable[str]) -> dict[str, str]:
    """Name, as pip normalises it, → version; of two with one name the first place's counts."""
    found: dict[str, str] = {}
    for place in places:
        for entry in _names(place):
            if match := _INSTALLED.match(entry):
                found.setdefault(_normal(match[1]), match[2])
    return dict(sorted(found.items()))


def packages_of_process(pid: int) -> dict[str, str]:
    """Those of the Python that runs as that process, as its own mount namespace has them; empty where this user
    can't look into it, and when it is no Python."""
    root = f"/proc/{pid}/root"
    for python in _interpreters(pid):
        if found := packages_of(places_of(python, root)):
            return found
    return {}


def installed_by_pip(log: Path) -> dict[str, str]:
    """What pip said it installed before the script began (requirements.txt); it may come after the last look."""
    try:
        with log.open("rb") as file:
            text = file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in _SAID.findall(text.partition(_SCRIPT)[0]):
        for word in line.split():
            name, _, version = word.rpartition("-")
            if name:
                found[_normal(name)] = version
    return found


def _interpreters(pid: int) -> Iterator[str]:
    """As it was called, which tells a virtual environment, then as it is."""
    try:
        first = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
        program = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115
        directory = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115
    except OSError:
        return
    if "python" not in os.path.basename(program):  # noqa: PTH119
        return
    if "/" in first and "python" in os.path.basename(first):  # noqa: PTH119
        yield first if first.startswith("/") else os.path.normpath(f"{directory}/{first}")
    yield program


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - a PurePath for each costs more than the listing
    except OSError:
        return []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
