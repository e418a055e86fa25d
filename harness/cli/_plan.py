"""`harness plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli import _terminal
from harness.cli._options import json_option, load_spec, spec_options

__all__ = ["plan"]


@click.command()
@spec_options
@json_option
def plan(spec: Path, as_json: bool, **options: Any) -> None:
    """Say how this machine would run the job of SPEC, and what happens to each field of its request.

    Nothing is started or written. With --strict a field that would have no effect here, and that the
    script could notice, makes exit code 2.
    """
    from harness.home import Home
    from harness.machine import Probe

    with Probe(Home.find()) as probe:
        from harness import plan as planning
        from harness.targets import local

        loaded = load_spec(spec, **options)
        found = local.make_plan(loaded, probe=probe)
    if not as_json:
        planning.render(found, loaded, _terminal.console())
    if loaded.local.strict:
        local.check_strict(found)
    if as_json:  # the plan or the error, one document
        for warning in loaded.warnings:
            _terminal.tell(warning, kind="warning")
        _terminal.emit_json(planning.to_json(found))
