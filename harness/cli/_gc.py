"""`harness gc`."""

from __future__ import annotations

import re
from typing import Any

import click

from harness.cli import _terminal
from harness.cli._options import json_option

__all__ = ["gc"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class _Age(click.ParamType[float]):
    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
        if match is None:
            self.fail(f"{value!r} is no age: write it as 12h, 7d or 2w", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command()
@click.option(
    "--older-than", type=_Age(), default="7d", show_default=True, help="Jobs that ended longer ago than this."
)
@click.option("--all", "everything", is_flag=True, help="All jobs that have ended.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc(older_than: float, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove the records and logs of old jobs, caches, hosts that are kept warm for nobody, and what dead
    processes left behind.

    What jobs have uploaded (model.tar.gz, checkpoints) stays.
    """
    from harness.home import Home
    from harness.targets import local

    found = local.collect(older_than=older_than, everything=everything, dry_run=dry_run)
    if not dry_run and (home := Home.find()).verify.is_dir():
        from harness.conformance import sweep

        sweep(home)
    if as_json:
        _terminal.emit_json({**found, "dry_run": dry_run})
        return
    for problem in found["problems"]:
        _terminal.tell(problem, kind="warning")
    verb = "would remove" if dry_run else "removed"
    for name in found["jobs"]:
        print(f"{verb} {name}")
    for name in found["warm"]:
        print(f"{verb} the warm host {name}")
    jobs = len(found["jobs"])
    print(
        f"{verb} {jobs} job{'s' * (jobs != 1)} ({_terminal.size(found['job_bytes'])}) "
        f"and {_terminal.size(found['cache_bytes'])} of caches"
    )
