"""`harness run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import json_option, load_spec, spec_options

if TYPE_CHECKING:
    from harness.home import Home
    from harness.machine import Probe
    from harness.model import Plan, Spec
    from harness.store import JobRecord
    from harness.targets.interrupts import Interrupts

__all__ = ["run"]

_STATUS_CODES = {"Completed": errors.COMPLETED, "Failed": errors.FAILED, "Stopped": errors.STOPPED}


@click.command()
@spec_options
@click.option("-d", "--detach", is_flag=True, help="Return when the job is started; it runs on by itself.")
@click.option(
    "--stop-grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL (default: 120, as in SageMaker).",
)
@json_option
def run(spec: Path, detach: bool, as_json: bool, **options: Any) -> int:
    """Run the training job of SPEC (job.toml, or a CreateTrainingJob request as .json or .yaml) on this machine.

    Shows its phases, its log and its metrics until it ends, then where everything is. The job belongs to a
    process of its own: closing the terminal does not end it. Ctrl-C stops it as SageMaker would, a second
    Ctrl-C kills it.

    With --json everything but the final document goes to stderr.
    """
    from harness.home import Home
    from harness.machine import Probe
    from harness.targets.interrupts import Interrupts

    home = Home.find()
    with Interrupts() as interrupts:
        with Probe(home) as probe:
            loaded = load_spec(spec, **options)
            for warning in loaded.warnings:
                _terminal.tell(warning, kind="warning")
            planned, record = _submit(loaded, home, probe, interrupts)
        if detach and not interrupts.count:
            _detached(record, as_json=as_json)
            return errors.COMPLETED
        screen = _terminal.Screen(sys.stderr if as_json else sys.stdout)
        ended = _attend(home, record.name, planned, screen, interrupts)
    from harness.cli import _summary

    if as_json:
        _terminal.emit_json(_summary.document(home, ended))
    else:
        screen.write("", *_summary.lines(home, ended, screen, spec=spec, told=loaded.warnings))
    return errors.INTERRUPTED if interrupts.count else _STATUS_CODES[ended.status]


def _submit(spec: Spec, home: Home, probe: Probe, interrupts: Interrupts) -> tuple[Plan, JobRecord]:
    from harness.targets import local

    planned = local.make_plan(spec, home, probe=probe)
    return planned, local.submit(spec, home=home, plan=planned, accepting=interrupts.begin)


def _detached(record: JobRecord, *, as_json: bool) -> None:
    if as_json:
        _terminal.emit_json(
            {"TrainingJobName": record.name, "TrainingJobArn": record.arn, "TrainingJobStatus": record.status}
        )
        return
    print(f"started {record.name}")
    print(f"  follow  harness logs -f {record.name}")
    print(f"  look    harness describe {record.name}")
    print(f"  stop    harness stop {record.name}")


def _attend(
    home: Home, name: str, planned: Plan, screen: _terminal.Screen, interrupts: Interrupts
) -> JobRecord:
    """Show the job until it ends, handing Ctrl-C on to it."""
    from harness.cli._display import Display
    from harness.targets.follow import End, Tick, follow

    display = Display(screen, name, planned)
    for event in follow(home, name):
        display.show(event)
        match event:
            case Tick() if interrupts.count > interrupts.told:
                count = interrupts.count
                screen.write(_interrupt(home, name, count, grace=_grace(home, name)))
                interrupts.told = count
            case End():
                return event.record
            case _:
                pass
    raise AssertionError("a followed job ends with End")


def _interrupt(home: Home, name: str, count: int, *, grace: float) -> str:
    from harness.targets import local

    try:
        local.stop(name, now=count > 1, home=home)
    except errors.UsageError:
        return "the job has ended already"
    if count > 1:
        return "killing the job"
    return f"stopping as SageMaker does: SIGTERM, up to {grace:.0f} s, then SIGKILL; Ctrl-C again kills now"


def _grace(home: Home, name: str) -> float:
    from harness.store import Store

    with Store(home) as store:
        return float(store.job(name).spec["local"]["stop_grace"])
