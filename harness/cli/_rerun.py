"""`harness rerun`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.cli._options import job_argument, json_option
from harness.model import ENGINES

if TYPE_CHECKING:
    from harness.model import Spec

__all__ = ["rerun"]


@click.command()
@job_argument
@click.option(
    "--from-checkpoint", is_flag=True, help="Resume from the checkpoints that JOB left; else it starts fresh."
)
@click.option(
    "--code",
    type=click.Choice(["then", "current"]),
    default="then",
    show_default=True,
    help="The code as JOB ran it, or as its source directory has it now.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="WORD=VALUE",
    help="Change a word of the request, as in hyperparameters.lr=0.1; may be repeated.",
)
@click.option("--engine", type=click.Choice(ENGINES), help="What runs the hosts (default: as JOB said).")
@click.option(
    "--warm/--cold", default=None, help="Keep the hosts for the next run, or don't (default: as JOB said)."
)
@click.option("--job-name", metavar="NAME", help="The exact job name; else JOB's base name and the time.")
@click.option("-d", "--detach", is_flag=True, help="Return when the job is started; it runs on by itself.")
@json_option
def rerun(job: str, assignments: tuple[str, ...], detach: bool, as_json: bool, **options: Any) -> int:
    """Run JOB again under a new name: the same request, inputs and code.

    Where the request has a CheckpointConfig, SageMaker would resume from what JOB left there. Here a rerun
    starts fresh, under a checkpoint prefix of its own, unless --from-checkpoint asks to resume.
    """
    from harness.cli._session import run_spec
    from harness.home import Home

    def load() -> Spec:
        from harness import debugging
        from harness.spec import parse_set

        overrides = dict(parse_set(text) for text in assignments)
        return debugging.rerun(Home.find(), job, overrides=overrides, **options)

    return run_spec(load, named="SPEC", as_json=as_json, detach=detach)
