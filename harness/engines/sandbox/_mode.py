"""Whether this machine lets us make namespaces, and if not, which setting forbids it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from harness.errors import EngineError
from harness.machine import sandbox

__all__ = ["MARK", "Mode", "launcher_command", "launcher_environment", "sandbox_mode"]

MARK: Final = "harness-sandbox"
"""Stands in every launcher's command line, for `ps`, and to find it again."""

_START: Final = "import sys; sys.path.insert(0, {!r}); from inner import launcher; launcher.main()"


class Mode(NamedTuple):
    """What the sandbox can do here."""

    name: Literal["namespaces", "rewrite"]
    """rewrite: no namespaces; SAGEMAKER_BASE_DIR stands for /opt/ml, and hard-coded paths don't work."""
    reason: str
    """Why not namespaces, with the setting to change; empty when all is well."""
    user_namespace: bool = False
    """False for real root where user namespaces are forbidden: it needs none."""


def launcher_command(mode: str, status: int, marks: Sequence[str] = ()) -> list[str]:
    """The command line of the launcher; `marks`: more words for its command line."""
    start = _START.format(str(Path(__file__).parent))
    return [sys.executable, "-I", "-S", "-c", start, mode, str(status), *marks]


def launcher_environment() -> dict[str, str]:
    """Only what this interpreter itself may need to start."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def sandbox_mode() -> Mode:
    """What the sandbox can do on this machine, as `harness.machine` found out.

    Raises:
        EngineError: this is not Linux.
    """
    if sys.platform != "linux":
        raise EngineError(f"the sandbox engine needs Linux, this is {sys.platform}: use the docker engine")
    found = sandbox()
    return Mode("namespaces" if found.ok else "rewrite", found.reason, found.user_namespace)
