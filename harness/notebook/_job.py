"""A job as an object to hold in a notebook or a script."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from harness.errors import MachineError, UsageError
from harness.home import Home
from harness.model import JsonObject, MetricPoint
from harness.quantities import clock, duration
from harness.store import JobRecord, Store

if TYPE_CHECKING:
    from harness.telemetry import LogEvent

__all__ = ["Job", "Jobs", "Log", "Metrics", "job", "jobs"]


class Job:
    """A job on this machine, by its name. Everything is read when it is asked for, so it is never stale.

    In a notebook it shows itself: status, phases, metrics with their curves, what it printed last.
    """

    _shown: object = None
    """The cell that showed it live, and needn't show it again."""

    def __init__(self, name: str, *, home: Home | None = None) -> None:
        """Raises UsageError when there is no job of that name."""
        self._home = home or Home.find()
        with Store(self._home) as store:
            self.name = store.summary(name).name

    @property
    def record(self) -> JobRecord:
        """The whole record as it stands."""
        with Store(self._home) as store:
            return store.job(self.name)

    @property
    def status(self) -> str:
        """TrainingJobStatus: InProgress, Completed, Failed, Stopping or Stopped."""
        with Store(self._home) as store:
            return store.summary(self.name).status

    @property
    def secondary_status(self) -> str:
        """Starting, Downloading, Training… (contract: G2)"""
        with Store(self._home) as store:
            return store.summary(self.name).secondary_status

    @property
    def failure_reason(self) -> str | None:
        """FailureReason, as SageMaker words it."""
        with Store(self._home) as store:
            return store.summary(self.name).failure_reason

    @property
    def directory(self) -> Path:
        """Where everything of the job is kept."""
        return self._home.job(self.name)

    @property
    def artifacts(self) -> dict[str, Path]:
        """`model` and `output`, those that there are: the archive, or the directory of an uncompressed one."""
        found = self.record.result.get("artifacts", {})
        return {kind: Path(each["path"]) for kind, each in found.items() if each is not None}

    def describe(self) -> JsonObject:
        """DescribeTrainingJob's answer; times are epoch seconds."""
        from harness.targets import local

        return local.describe(self.name, home=self._home)

    def logs(self, *, host: str | None = None, tail: int | None = None) -> Log:
        """What the hosts printed, in the order of its times; `tail`: only the last lines of each host.

        Raises UsageError when the job has no such host.
        """
        from harness.targets.follow import host_names
        from harness.telemetry import LogReader

        record = self.record
        names = host_names(record)
        if host is not None and host not in names:
            raise UsageError(f"{self.name} has no host {host!r}: its hosts are {', '.join(names)}")
        wanted = [name for name in names if host in (None, name)]

        def of(name: str) -> Iterator[tuple[str, LogEvent]]:
            reader = LogReader(self._home.logs(self.name, record.attempt), name)
            start = reader.tail(tail) if tail is not None else 0
            return ((name, event) for event in reader.lines(start))

        merged = heapq.merge(*map(of, wanted), key=lambda each: each[1].timestamp_ms)
        several = len(wanted) > 1
        return Log(f"{name} │ {event.message}" if several else event.message for name, event in merged)

    def metrics(self, *, sampled: bool = False) -> Metrics:
        """The values of the metric definitions, or with `sampled` what the hosts used, in percent."""
        with Store(self._home) as store:
            return Metrics(point for _, point in store.metrics(self.name, sampled=sampled))

    def stop(self, *, now: bool = False) -> Job:
        """Stop it as StopTrainingJob does, or kill it; returns at once. UsageError when it has ended."""
        from harness.targets import local

        local.stop(self.name, now=now, home=self._home)
        return self

    def wait(self) -> Job:
        """Return when it has ended. Ctrl-C leaves it running."""
        from harness.targets import local

        local.wait(self.name, home=self._home)
        return self

    def watch(self) -> Job:
        """Show it live until it has ended, as `%harness run` does. Ctrl-C stops it."""
        from harness.notebook._live import attend

        return attend(self)

    def __repr__(self) -> str:
        record = self.record
        took = duration((record.ended or record.modified) - record.created)
        reason = f", {record.failure_reason.splitlines()[0]}" if record.failure_reason else ""
        return f"<Job {self.name}: {record.status}, {took}{reason}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from harness.notebook._live import executing
        from harness.notebook._picture import Picture
        from harness.notebook._text import text

        inside = cycle or len(printer.stack) > 1
        if inside or (self._shown is not None and self._shown == executing()):
            printer.text(repr(self))
            return
        printer.text(text(Picture.of(self._home, self.name)))

    def _repr_html_(self) -> str:
        from harness.notebook._curves import png
        from harness.notebook._html import html
        from harness.notebook._picture import Picture

        picture = Picture.of(self._home, self.name)
        return html(picture, png(picture))

    def _ipython_display_(self) -> None:
        """Nothing in the cell that has just shown it live; else IPython goes on to the other forms."""
        from harness.notebook._live import executing, has_front_end

        if has_front_end() and self._shown is not None and self._shown == executing():
            return
        raise NotImplementedError


class Log(list[str]):
    """Lines of a log; printed and shown as lines."""

    def __str__(self) -> str:
        return "\n".join(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        del cycle
        printer.text(str(self))


class Metrics(Sequence[MetricPoint]):
    """Points in the order of their arrival."""

    def __init__(self, points: Iterable[MetricPoint]) -> None:
        self._points: tuple[MetricPoint, ...] = tuple(points)

    @overload
    def __getitem__(self, index: int) -> MetricPoint: ...
    @overload
    def __getitem__(self, index: slice) -> Metrics: ...
    def __getitem__(self, index: int | slice) -> MetricPoint | Metrics:
        if isinstance(index, slice):
            return Metrics(self._points[index])
        return self._points[index]

    def __len__(self) -> int:
        return len(self._points)

    @property
    def names(self) -> list[str]:
        """The metrics that there are, in the order in which they appeared."""
        return list(dict.fromkeys(point.name for point in self._points))

    def values(self, name: str) -> list[float]:
        """The values of one metric. Raises UsageError when there is none of that name."""
        found = [point.value for point in self._points if point.name == name]
        if not found:
            raise UsageError(f"there is no metric {name!r}; there are {', '.join(self.names) or 'none'}")
        return found

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with the columns timestamp, name, host and value.

        Raises MachineError when pandas isn't installed.
        """
        from importlib import import_module

        try:
            pd: Any = import_module("pandas")
        except ImportError as error:
            raise MachineError(
                f"a frame of metrics needs pandas, which isn't here ({error}): pip install pandas"
            ) from error
        frame = pd.DataFrame(
            [(each.timestamp_ms, each.name, each.host, each.value) for each in self._points],
            columns=["timestamp", "name", "host", "value"],
        )
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="ms", utc=True)
        return frame

    def __repr__(self) -> str:
        from harness.notebook._curves import sparkline
        from harness.quantities import number

        if not self._points:
            return "<no metrics>"
        series = [(name, self.values(name)) for name in self.names]
        return "\n".join(
            f"{name}: {sparkline(values)} {number(values[-1])} ({len(values):,} values)"
            for name, values in series
        )


class Jobs(list[Job]):
    """Jobs, newest first; shown as a table."""

    def __init__(self, found: Sequence[tuple[Job, JobRecord]]) -> None:
        super().__init__(each for each, _ in found)
        self._rows = [
            (
                record.secondary_status if record.status == "InProgress" else record.status,
                record.name,
                clock(record.created),
                duration((record.ended or record.modified) - record.created),
                f"{record.instance_count} × {record.instance_type}",
            )
            for _, record in found
        ]

    def _repr_html_(self) -> str:
        from harness.notebook._html import jobs_table

        return jobs_table(self._rows)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        del cycle
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in self._rows
        ]
        printer.text("\n".join(lines) if lines else "there are no jobs")


def job(name: str, *, home: Home | None = None) -> Job:
    """The job of that name. Raises UsageError, with the name that was meant, when there is none."""
    return Job(name, home=home)


def jobs(
    *,
    status: str | None = None,
    name_contains: str | None = None,
    limit: int | None = 50,
    home: Home | None = None,
) -> Jobs:
    """Jobs on this machine, newest first."""
    place = home or Home.find()
    with Store(place) as store:
        records = store.jobs(limit=limit, status=status, name_contains=name_contains)
    return Jobs([(Job(record.name, home=place), record) for record in records])
