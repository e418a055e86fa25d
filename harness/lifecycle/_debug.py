"""What a debugged job's hosts have more than others: the hook, debugpy, and a directory to talk through."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from pathlib import Path, PurePosixPath
from typing import Final

from harness._values import dataclass
from harness.model import DebugOptions, JsonObject, Mount

__all__ = ["ATTENDED", "GO", "PAUSED", "DebugParts", "debug_parts"]

ATTENDED: Final = "attended"
"""Locked by `harness debug` as long as it lives."""
PAUSED: Final = "paused"
"""Locked by the host as long as its program stands in a debugger."""
GO: Final = "go"
"""Made when the debugged rank begins: the others begin then."""

_PLACE: Final = PurePosixPath("/run/harness/debug")
_INNER: Final = Path(__file__).parent.parent / "debugging" / "inner"
_DEBUGPY: Final = PurePosixPath("/run/harness/debugpy")
_IO: Final = PurePosixPath("/run/harness/debug-io")


@dataclass(frozen=True, kw_only=True)
class DebugParts:
    """What is added to a host's launch."""

    mounts: tuple[Mount, ...]
    environment: dict[str, str]
    prepend: dict[str, str]
    """Goes before what the request or the image has in these variables."""


def debug_parts(options: DebugOptions, request: JsonObject, *, directory: Path, host_rank: int) -> DebugParts:
    """Write the host's `directory`, which it sees at /run/harness/debug-io, and say what to add."""
    directory.mkdir(parents=True)
    mounts = [
        Mount(source=_INNER, target=_PLACE, mode="ro"),
        Mount(source=directory, target=_IO, mode="rw"),
    ]
    found = importlib.util.find_spec("debugpy") if options.mode == "debugpy" else None
    if found is not None and found.origin is not None:
        mounts.append(Mount(source=Path(found.origin).parent, target=_DEBUGPY / "debugpy", mode="ro"))
    program = _program(request)
    config = {
        "mode": options.mode,
        "rank": options.rank,
        "wait": options.wait,
        "attach_timeout": options.attach_timeout,
        "program": program,
        "host_rank": host_rank,
        "debugpy": str(_DEBUGPY),
        "debugpy_needs": _needs() if found is not None else (3, 8),
    }
    (directory / "config.json").write_text(json.dumps(config))
    for name in (ATTENDED, PAUSED):
        path = directory / name
        path.touch()
        path.chmod(0o666)
    # A container's user may be anybody. Who comes to a socket in there runs code as its program does, so only
    # the user gets through the directory above.
    directory.chmod(0o777)
    directory.parent.chmod(0o700)
    return DebugParts(
        mounts=tuple(mounts),
        environment={
            "HARNESS_HOOK": str(_PLACE / "hook.py"),
            "HARNESS_DEBUG_IO": str(_IO),
            "HARNESS_DEBUG_PROGRAM": program or "",
        },
        prepend={"PYTHONPATH": str(_PLACE / "site")},
    )


def _program(request: JsonObject) -> str | None:
    """The entry point, as the toolkit finds it (contract: A22)."""
    named = request.get("Environment", {}).get("SAGEMAKER_PROGRAM")
    if named is None:
        named = request.get("HyperParameters", {}).get("sagemaker_program")
        with contextlib.suppress(ValueError):  # a name without quotes, as the toolkit takes it too
            named = named if named is None else json.loads(named)
    return named if isinstance(named, str) else None


def _needs() -> tuple[int, int]:
    """The oldest Python that the installed debugpy runs on."""
    import importlib.metadata  # takes longer than all of a job's preparation

    wanted = importlib.metadata.metadata("debugpy")["Requires-Python"] or ""
    found = re.search(r">=\s*(\d+)\.(\d+)", wanted)
    return (int(found[1]), int(found[2])) if found else (3, 8)
