"""`harness run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli._options import json_option, load_spec, spec_options

__all__ = ["run"]


@click.command()
@spec_options
@click.option("-d", "--detach", is_flag=True, help="Return when the job is started; it runs on by itself.")
@click.option(
    "--stop-grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL (default: 120, as in SageMaker).",
)
@click.option(
    "--warm/--no-warm",
    default=None,
    help="Keep the hosts for the next such job, with the script's heavy modules imported.",
)
@json_option
def run(spec: Path, detach: bool, as_json: bool, **options: Any) -> int:
    """Run the training job of SPEC (job.toml, or a CreateTrainingJob request as .json or .yaml) on this machine.

    Shows its phases, its log and its metrics until it ends, then where everything is. The job belongs to a
    process of its own: closing the terminal does not end it. Ctrl-C stops it as SageMaker would, a second
    Ctrl-C kills it.

    With --json everything but the final document goes to stderr.
    """
    from harness.cli._session import run_spec

    return run_spec(lambda: load_spec(spec, **options), named=spec, as_json=as_json, detach=detach)
