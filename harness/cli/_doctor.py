"""`harness doctor`."""

from __future__ import annotations

import dataclasses
import sys

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import json_option

__all__ = ["doctor"]

_STYLES: dict[str, _terminal.Style] = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check what this machine can do, and say what to change.

    Exit code 3 when something keeps jobs from running.
    """
    from harness.home import Home
    from harness.machine import Machine, checks

    found = checks(Machine.probe(Home.find()))
    broken = any(check.status == "fail" for check in found)
    code = errors.MACHINE_CANNOT if broken else errors.COMPLETED
    if as_json:
        _terminal.emit_json({"checks": [dataclasses.asdict(check) for check in found], "ok": not broken})
        return code
    screen = _terminal.Screen(sys.stdout)
    width = max(len(check.name) for check in found)
    indent = " " * (width + 8)
    for check in found:
        mark = screen.style(f"{check.status:<4}", "bold", _STYLES[check.status])
        first, *rest = screen.wrap(check.detail, len(indent))
        advice = screen.wrap(f"→ {check.advice}", len(indent)) if check.advice else []
        screen.write(f"{mark}  {check.name:<{width}}  {first}", *(indent + line for line in (*rest, *advice)))
    return code
