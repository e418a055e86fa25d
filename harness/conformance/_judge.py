"""Judgements that hold for any program: how a job ended, and what it left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from harness.conformance._finding import Finding, failed, passed, warned
from harness.conformance._run import Run

__all__ = ["last_words", "outside", "said_failure", "seconds", "strayed"]

_SANCTIONED: Final = re.compile(
    r"/(?:opt(?:/ml(?:/.*)?)?|tmp(?:/.*)?|var|var/tmp(?:/.*)?|dev(?:/.*)?|proc|sys|run(?:/.*)?|var/run(?:/.*)?|etc"
    r"|etc/(?:hosts|hostname|resolv\.conf|mtab|ld\.so\.cache)|root|home|home/[^/]+"
    r"|(?:root|home/[^/]+)/\.(?:cache|config|local|nv|triton|keras|matplotlib)(?:/.*)?"
    r"|var/(?:cache|log|lib)(?:/.*)?)"
)
"""Where a program may write, or what the container engine itself makes."""
_PYTHONS: Final = re.compile(r"/__pycache__(?:/|$)|\.pyc$")
_ADDED: Final = 1
_SHOWN: Final = 4


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def last_words(run: Run) -> str:
    """What the program said last, for a sentence."""
    lines = [line.strip() for line in run.log.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    return f"its last line: {lines[-1][:200]}"


def said_failure(run: Run) -> str | None:
    """The sign of failure that a run left although it may have exited with 0; None when there is none."""
    from harness.telemetry import scan

    found = scan(run.log.splitlines())
    if found.tracebacks:
        last = found.tracebacks[-1]
        return f"{last.type}: {last.message.splitlines()[0] if last.message else ''}".rstrip(": ")
    if run.failure_file:
        return f"/opt/ml/output/failure: {' '.join(run.failure_file.split())[:200]}"
    return None


def outside(changes: Mapping[str, int]) -> list[str]:
    """What was added or changed where a program has no business, its own byte code aside."""
    # A directory is told as modified when something in it was made, which is told as well.
    inner = {parent for path in changes for parent in _parents(path)}
    return sorted(
        path
        for path in changes
        if path not in inner and not _SANCTIONED.fullmatch(path) and not _PYTHONS.search(path)
    )


def _parents(path: str) -> Iterable[str]:
    while path := path.rpartition("/")[0]:
        yield path


def strayed(run: Run) -> Finding:
    """contract: B10"""
    check = "writes only where it may"
    found = outside(run.changes)
    if not found:
        return passed("B10", check, "it wrote nothing outside /opt/ml, /tmp and caches of its user.")
    shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    if all(run.changes[path] != _ADDED for path in found):
        return warned(
            "B10",
            check,
            f"it changed files of the image: {shown}.",
            "write to /opt/ml or /tmp: all else lies on a small root disk and is lost with the container",
        )
    return failed(
        "B10",
        check,
        f"it wrote to {shown}: that lies on a small root disk, is uploaded nowhere, and is lost with the container.",
        "write results to /opt/ml/model or /opt/ml/output/data, and scratch files to /tmp",
    )
