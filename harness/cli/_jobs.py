"""`harness jobs`, `harness describe`, `harness stop`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import job_argument, json_option, open_store

if TYPE_CHECKING:
    from harness.model import JsonObject
    from harness.store import JobRecord

__all__ = ["describe", "jobs", "stop"]

_STATUSES = ("InProgress", "Completed", "Failed", "Stopping", "Stopped")
_STATUS_STYLES: dict[str, _terminal.Style] = {
    "Completed": "green",
    "Failed": "red",
    "Stopped": "yellow",
    "Stopping": "yellow",
    "InProgress": "cyan",
}


@click.command()
@click.option("--status", type=click.Choice(_STATUSES, case_sensitive=False), help="Only these.")
@click.option("--name-contains", metavar="TEXT", help="Only those with TEXT in the name.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--warm", is_flag=True, help="Instead the hosts that are kept for next jobs.")
@json_option
def jobs(
    status: str | None, name_contains: str | None, limit: int, everything: bool, warm: bool, as_json: bool
) -> None:
    """List jobs, newest first."""
    with open_store() as store:
        if warm:
            from harness.cli._warm import show_warm

            show_warm(store.home, as_json=as_json)
            return
        found = store.jobs(
            limit=None if everything else limit + 1, status=status, name_contains=name_contains
        )
    more = not everything and len(found) > limit
    shown = found[:limit] if more else found
    if as_json:
        _terminal.emit_json({"TrainingJobSummaries": [_row(record) for record in shown]})
        return
    screen = _terminal.Screen(sys.stdout)
    if not shown:
        narrowed = " that match" if status or name_contains else "; `harness run` starts one"
        screen.write(f"there are no jobs{narrowed}")
        return
    head, *rows = _terminal.table(
        ("STATUS", "CREATED", "TIME", "INSTANCES", "NAME"), [_cells(record) for record in shown]
    )
    screen.write(screen.style(head, "bold"))
    for record, row in zip(shown, rows, strict=True):
        length = len(_status(record))
        style = _STATUS_STYLES.get(record.status, "bold")
        screen.write(screen.style(row[:length], style) + row[length:])
    if more:
        screen.write(
            screen.style(f"the newest {limit} of more; --all shows all, --name-contains fewer", "dim")
        )


def _status(record: JobRecord) -> str:
    """The status, or what a running job is doing."""
    return record.secondary_status if record.status == "InProgress" else record.status


def _cells(record: JobRecord) -> tuple[str, ...]:
    span = (record.ended or time.time()) - record.created
    instances = f"{record.instance_count} × {record.instance_type}"
    return _status(record), _terminal.clock(record.created), _terminal.duration(span), instances, record.name


def _row(record: JobRecord) -> JsonObject:
    """ListTrainingJobs' summary, and what only we know."""
    return {
        "TrainingJobName": record.name,
        "TrainingJobArn": record.arn,
        "CreationTime": _terminal.json_time(record.created),
        "TrainingEndTime": _terminal.json_time(record.training_end),
        "LastModifiedTime": _terminal.json_time(record.modified),
        "TrainingJobStatus": record.status,
        "SecondaryStatus": record.secondary_status,
        "InstanceType": record.instance_type,
        "InstanceCount": record.instance_count,
        "Engine": record.engine,
    }


@click.command()
@job_argument
@json_option
def describe(job: str, as_json: bool) -> None:
    """Show JOB in DescribeTrainingJob's shape, as JSON.

    Without --json, values of environment variables that look like secrets are hidden.
    """
    from harness.targets import local

    with open_store() as store:
        home = store.home
    found = _with_iso_times(local.describe(job, home=home))
    if not as_json and "Environment" in found:
        found["Environment"] = _terminal.mask(found["Environment"])
    _terminal.emit_json(found)


def _with_iso_times(value: JsonObject) -> JsonObject:
    """Times as the AWS CLI prints them."""

    def convert(name: str, each: object) -> object:
        if isinstance(each, dict):
            return {key: convert(key, item) for key, item in each.items()}
        if isinstance(each, list):
            return [convert(name, item) for item in each]
        is_time = name.endswith("Time") or name == "Timestamp"
        return _terminal.json_time(each) if is_time and isinstance(each, (int, float)) else each

    return {key: convert(key, item) for key, item in value.items()}


@click.command()
@job_argument
@click.option("--now", is_flag=True, help="Kill it: SIGKILL at once.")
@click.option("--wait", is_flag=True, help="Return when the job has ended.")
@json_option
def stop(job: str, now: bool, wait: bool, as_json: bool) -> int:
    """Stop JOB as StopTrainingJob does: SIGTERM, up to 120 seconds, SIGKILL.

    A job that stands in a debugger is killed at once."""
    from harness.store import StopRequest
    from harness.targets import local

    with open_store() as store:
        home = store.home
    record = local.stop(job, now=now, home=home)
    if wait:
        record = local.wait(job, home=home)
    if as_json:
        _terminal.emit_json(_row(record))
    elif record.ended_for_good:
        print(f"{record.name} is {record.status}")
    else:
        print(f"{'killing' if record.stop_request is StopRequest.KILL else 'stopping'} {record.name}")
    return errors.COMPLETED
