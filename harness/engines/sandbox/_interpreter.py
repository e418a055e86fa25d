"""The interpreter that stands for the image's: what it needs to see, and where its pip writes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
from harness._values import dataclass
from harness.engines.sandbox.inner import facts
from harness.errors import EngineError

__all__ = ["Interpreter", "describe"]

OWN_PLACES = ("/root", "/tmp", "/var/tmp", "/opt/ml", "/dev", "/proc")
"""Where a host sees its own things instead of the machine's."""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """One Python of this machine, as a sandbox needs to know it."""

    executable: Path
    version: str
    keep: tuple[tuple[str, str], ...]
    """(real path, path) of what it needs and a host would not see, since it lies in one of its own places."""
    writable: tuple[str, ...]
    """Directories that pip installs to: a writable layer goes over each."""
    managed: bool
    """Its pip refuses to install unless it's told otherwise (PEP 668); an image's doesn't."""


def describe(python: str | None) -> Interpreter:
    """The interpreter `python` (a path, or a name on PATH), or the one that runs the harness.

    Raises:
        EngineError: there is no such interpreter, or it doesn't start.
    """
    return _describe(python or sys.executable)


@functools.cache
def _describe(python: str) -> Interpreter:
    found = shutil.which(python)
    if found is None:
        raise EngineError(f"the sandbox's interpreter {python} is not an executable file: set [local] python")
    executable = Path(found).absolute()
    told = facts.facts() if str(executable) == sys.executable else _ask(executable)
    return Interpreter(
        executable=executable,
        version=told["version"],
        keep=tuple(_keep(executable, told)),
        writable=_writable(told),
        managed=bool(told["managed"]),
    )


def _ask(python: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [python, "-I", facts.__file__], capture_output=True, text=True, check=True, timeout=60
        )
        told: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        words = (getattr(error, "stderr", "") or str(error)).strip()[-300:]
        raise EngineError(
            f"the sandbox's interpreter {python} doesn't start: {words}; set [local] python"
        ) from error
    return told


def _keep(executable: Path, told: dict[str, Any]) -> list[tuple[str, str]]:
    wanted = [told["prefix"], told["base_prefix"], *told["path"], str(Path(harness.__file__).parent)]
    link = executable
    for _ in range(40):
        prefix = link.parent.parent
        wanted.append(str(link if str(prefix) in (*OWN_PLACES, "/") else prefix))
        if not link.is_symlink():
            break
        link = Path(os.path.normpath(link.parent / link.readlink()))
    keep: list[tuple[str, str]] = []
    for path in sorted({os.path.normpath(entry) for entry in wanted}):
        hidden = any(path.startswith(place + "/") for place in OWN_PLACES)
        inside_another = any(path.startswith(done + "/") for _, done in keep)
        if hidden and not inside_another and Path(path).exists():
            keep.append((os.path.realpath(path), path))
            real = keep[-1][0]
            if real != path and any(real.startswith(place + "/") for place in OWN_PLACES):
                keep.append((real, real))
    return keep


def _writable(told: dict[str, Any]) -> tuple[str, ...]:
    places = {told["purelib"], told["platlib"], told["scripts"]}
    prefix = told["prefix"]
    whole = ("/", "/usr", *OWN_PLACES)
    if prefix not in whole and all(place.startswith(prefix + "/") for place in places):
        return (prefix,)
    common = os.path.commonpath(places)
    if common not in whole and Path(common).is_dir():
        return (common,)
    return tuple(sorted(place for place in places if Path(place).is_dir()))
