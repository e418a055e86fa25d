"""`harness logs`."""

from __future__ import annotations

import heapq
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import job_argument, json_option, open_store

if TYPE_CHECKING:
    from harness.home import Home
    from harness.store import JobRecord
    from harness.targets.follow import Line

__all__ = ["logs"]

_BATCH = 1000


@click.command()
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="Only this host; may be repeated.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of each host.")
@click.option("-t", "--timestamps", is_flag=True, help="The time before each line.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Of a retried job: this attempt.")
@json_option
def logs(
    job: str,
    follow: bool,
    hosts: tuple[str, ...],
    tail: int | None,
    timestamps: bool,
    attempt: int | None,
    as_json: bool,
) -> None:
    """Show the log of JOB as CloudWatch Logs would hold it: one event a line, control characters escaped.

    With --json and -f, each event is a JSON document on a line of its own.
    """
    from harness.targets import follow as following

    with open_store() as store:
        record = store.job(job)
        home = store.home
    names = following.host_names(record)
    for host in hosts:
        if host not in names:
            raise errors.UsageError(f"{job} has no host {host!r}: its hosts are {', '.join(names)}")
    wanted = [name for name in names if not hosts or name in hosts]
    lines: Iterable[Line]
    if follow:
        if attempt is not None:
            raise errors.UsageError("--attempt shows one attempt, -f follows the job through all: choose one")
        lines = _running(following.follow(home, job, hosts=wanted, tail=tail, metrics=False))
    else:
        lines = _stored(home, record, wanted, tail, attempt or record.attempt)
    if as_json:
        _print_json(lines, record, stream=follow)
    else:
        _print(lines, wanted, timestamps=timestamps)


def _running(events: Iterable[object]) -> Iterator[Line]:
    from harness.targets.follow import Line

    return (event for event in events if isinstance(event, Line))


def _stored(
    home: Home, record: JobRecord, hosts: list[str], tail: int | None, attempt: int
) -> Iterator[Line]:
    from harness.targets.follow import Line
    from harness.telemetry import LogReader

    directory = home.logs(record.name, attempt)
    if attempt > record.attempt:
        raise errors.UsageError(
            f"{record.name} had {record.attempt} attempt(s), there is no attempt {attempt}"
        )

    def of(host: str) -> Iterator[Line]:
        reader = LogReader(directory, host)
        start = reader.tail(tail) if tail is not None else 0
        return (Line(host=host, event=event) for event in reader.lines(start))

    return heapq.merge(*map(of, hosts), key=lambda line: line.event.timestamp_ms)


def _print(lines: Iterable[Line], hosts: list[str], *, timestamps: bool) -> None:
    from harness.cli._display import prefix

    screen = _terminal.Screen(sys.stdout)
    width = max(map(len, hosts), default=0)
    prefixes = {
        host: prefix(screen, host, position, width) if len(hosts) > 1 else ""
        for position, host in enumerate(hosts)
    }

    def text(line: Line) -> str:
        stamp = screen.style(f"{_time(line.event.timestamp_ms)}  ", "dim") if timestamps else ""
        return f"{prefixes[line.host]}{stamp}{line.event.message}"

    for batch in _batches(map(text, lines)):
        screen.write(*batch)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Lines that came at once together, others as they come."""
    batch: list[str] = []
    began = time.monotonic()
    for text in texts:
        batch.append(text)
        now = time.monotonic()
        if len(batch) >= _BATCH or now - began > 0.01:
            yield batch
            batch, began = [], now
    yield batch


def _print_json(lines: Iterable[Line], record: JobRecord, *, stream: bool) -> None:
    streams = {host.name: host.stream for host in record.hosts}
    documents = (
        json.dumps(
            {
                "timestamp": line.event.timestamp_ms,
                "message": line.event.message,
                "logStreamName": streams.get(line.host, f"{record.name}/{line.host}"),
                "host": line.host,
            },
            ensure_ascii=False,
        )
        for line in lines
    )
    if stream:
        for each in documents:
            print(each, flush=True)
        return
    sys.stdout.write('{"events": [')
    for separator, each in zip(itertools.chain(["\n  "], itertools.repeat(",\n  ")), documents, strict=False):
        sys.stdout.write(separator + each)
    sys.stdout.write("\n]}\n")


def _time(timestamp_ms: int) -> str:
    return f"{_terminal.clock(timestamp_ms / 1000)}.{timestamp_ms % 1000:03d}"
