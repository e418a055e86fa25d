"""`harness metrics`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from harness.cli import _terminal
from harness.cli._options import job_argument, json_option, open_store

if TYPE_CHECKING:
    from harness.model import MetricPoint

__all__ = ["metrics"]


@click.command()
@job_argument
@click.option("--name", "names", multiple=True, metavar="NAME", help="Only this metric; may be repeated.")
@json_option
def metrics(job: str, names: tuple[str, ...], as_json: bool) -> None:
    """Show the metrics of JOB: those of its metric definitions, then what its hosts used, in percent.

    With --json the whole series.
    """
    from harness.cli._summary import statistics

    with open_store() as store:
        record = store.job(job)
        found = {
            sampled: [
                point for _, point in store.metrics(job, sampled=sampled) if not names or point.name in names
            ]
            for sampled in (False, True)
        }
    if as_json:
        series = [*_series(found[False], sampled=False), *_series(found[True], sampled=True)]
        _terminal.emit_json({"TrainingJobName": job, "metrics": series})
        return
    screen = _terminal.Screen(sys.stdout)
    rows = []
    for name, each in statistics(found[False]).items():
        rows.append((name, "", each))
    several = len(record.hosts) > 1
    for host in sorted({point.host for point in found[True]}):
        of_host = [point for point in found[True] if point.host == host]
        rows += [(name, host if several else "", each) for name, each in statistics(of_host).items()]
    if not rows:
        what = "of that name" if names else "yet" if not record.ended_for_good else ""
        screen.write(f"{job} has no metrics {what}".rstrip())
        return
    cells = [
        (
            name,
            *([host] if several else []),
            f"{each['count']:,}",
            *(_terminal.number(each[key]) for key in ("min", "max", "avg", "last")),
        )
        for name, host, each in rows
    ]
    head = ("METRIC", *(["HOST"] if several else []), "VALUES", "MIN", "MAX", "AVG", "LAST")
    first, *rest = _terminal.table(head, cells, right=tuple(range(len(head) - 5, len(head))))
    screen.write(screen.style(first, "bold"), *rest)


def _series(points: list[MetricPoint], *, sampled: bool) -> list[dict[str, object]]:
    series: dict[tuple[str, str], list[list[float]]] = {}
    for point in points:
        series.setdefault((point.name, point.host), []).append([point.timestamp_ms, point.value])
    return [
        {
            "name": name,
            "host": host,
            "sampled": sampled,
            **({"unit": "Percent"} if sampled else {}),  # contract: I14
            "points": values,
        }
        for (name, host), values in series.items()
    ]
