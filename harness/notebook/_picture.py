"""What there is to see of a job at one moment: what every rendering, text or HTML, is made of."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.home import Home
from harness.model import JsonObject, MetricPoint, Transition, Treatment
from harness.store import JobRecord, Progress, Store
from harness.targets import follow as following
from harness.telemetry import LogReader

__all__ = ["USAGE", "Picture", "Point"]

USAGE: Final = {
    "CPUUtilization": "CPU",
    "MemoryUtilization": "memory",
    "GPUUtilization": "GPU",
    "GPUMemoryUtilization": "GPU memory",
    "DiskUtilization": "disk",
}
"""What the hosts used, and how people call it."""

Point = tuple[float, float]
"""Seconds since the job was created, and a value."""
_ENDS: Final = ("Completed", "Failed", "Stopped", "MaxRuntimeExceeded", "MaxWaitTimeExceeded")
_BLINK: Final = 0.05
"""Seconds that nobody wants to hear about."""
_AROUND: Final = 3
_LINE: Final = 2000
"""Characters of a log line that are kept: a cell is no place for more."""


@dataclass(kw_only=True)
class Picture:
    """Grows with the events of a running job, or is made of a record."""

    record: JobRecord
    home: Home
    most_lines: int = 200
    transitions: list[Transition] = field(default_factory=list)
    lines: deque[tuple[str, str]] = field(default_factory=deque)
    """Host and message of the last lines."""
    more: bool = False
    """Whether there were lines before those."""
    metrics: dict[str, list[Point]] = field(default_factory=dict)
    """Values of metric definitions by name; where several hosts print one, all of theirs."""
    usage: dict[str, dict[str, list[Point]]] = field(default_factory=dict)
    """What the hosts used, in percent: metric → host → points."""
    progress: Progress | None = None
    said: list[str] = field(default_factory=list)
    """What was done to the job while one looked: interrupts."""

    @classmethod
    def of(cls, home: Home, name: str, *, most_lines: int = 40) -> Picture:
        """The job as it stands. Raises UsageError when there is none."""
        with Store(home) as store:
            picture = cls(record=store.job(name), home=home, most_lines=most_lines)
            picture.transitions = list(picture.record.transitions)
            picture.progress = store.progress(name)
            for sampled in (False, True):
                picture._add_points((point for _, point in store.metrics(name, sampled=sampled)), sampled)
        events = []
        for host in picture.hosts:
            reader = LogReader(home.logs(name, picture.record.attempt), host)
            final = picture.record.ended_for_good
            start = reader.tail(most_lines)
            picture.more |= start > 0
            found, _ = reader.read(start, limit=most_lines, final=final)
            events += [(event.timestamp_ms, host, event.message) for event in found]
            reader.close()
        picture.more |= len(events) > most_lines
        for _, host, message in sorted(events, key=lambda each: each[0])[-most_lines:]:
            picture._add_line(host, message)
        return picture

    def take(self, event: following.Event) -> None:
        """One event of `targets.follow`."""
        match event:
            case following.Line():
                self._add_line(event.host, event.event.message)
            case following.Phase():
                if self.transitions and self.transitions[-1].end is None:
                    last = self.transitions[-1]
                    self.transitions[-1] = Transition(
                        status=last.status,
                        start=last.start,
                        end=event.transition.start,
                        message=last.message,
                    )
                self.transitions.append(event.transition)
            case following.Metrics():
                self._add_points(event.points, event.sampled)
            case following.Tick():
                self.progress = event.progress
                self._status(event.record)
            case following.End():
                self.record = event.record
                self.transitions = list(event.record.transitions)

    def _status(self, summary: JobRecord) -> None:
        """The status of a summary, which has no documents."""
        import dataclasses

        if summary.modified != self.record.modified:
            keep = {name: getattr(self.record, name) for name in ("request", "spec", "plan", "result")}
            self.record = dataclasses.replace(summary, **keep)

    def _add_line(self, host: str, message: str) -> None:
        self.lines.append((host, message if len(message) <= _LINE else f"{message[:_LINE]}…"))
        if len(self.lines) > self.most_lines:
            self.lines.popleft()
            self.more = True

    def _add_points(self, points: Iterable[MetricPoint], sampled: bool) -> None:
        for point in points:
            at = (point.timestamp_ms / 1000 - self.record.created, point.value)
            if sampled:
                self.usage.setdefault(point.name, {}).setdefault(point.host, []).append(at)
            else:
                self.metrics.setdefault(point.name, []).append(at)

    # ------------------------------------------------------------------- facts

    @property
    def hosts(self) -> tuple[str, ...]:
        return following.host_names(self.record)

    @property
    def status(self) -> str:
        """As people want it: what a running job is doing, how an ended one ended."""
        record = self.record
        return record.status if record.ended_for_good else self.current or record.secondary_status

    @property
    def current(self) -> str:
        """The secondary status that was entered last."""
        return self.transitions[-1].status if self.transitions else ""

    @property
    def over(self) -> bool:
        return self.record.ended_for_good

    @property
    def seconds(self) -> float:
        """From the job's creation to its end, or to now."""
        return (self.record.ended or time.time()) - self.record.created

    @property
    def phases(self) -> list[tuple[str, float]]:
        """Secondary statuses in order, with the seconds spent in each; ends left out, repeats added up."""
        spent: dict[str, float] = {}
        for each in self.transitions:
            if each.status not in _ENDS:
                end = each.end or self.record.ended or time.time()
                spent[each.status] = spent.get(each.status, 0.0) + max(0.0, end - each.start)
        return [
            (name, seconds)
            for name, seconds in spent.items()
            if seconds >= _BLINK or (name == self.current and not self.over)
        ]

    @property
    def where(self) -> str:
        """What it runs on, here and in the cloud."""
        record = self.record
        return f"{record.instance_count} × {record.instance_type} in the {record.engine} engine"

    @property
    def notes(self) -> list[str]:
        """What the user should know, of the plan and of the result."""
        record = self.record
        notes = [*record.plan.get("notes", ()), *record.result.get("notes", ())]
        lost = [
            item
            for item in record.plan.get("treatments", ())
            if item["treatment"] in (Treatment.CLOUD_ONLY.value, Treatment.UNCLASSIFIED.value)
        ]
        if lost:
            seen = sum(item["visible"] for item in lost)
            noun = "field of the request has" if len(lost) == 1 else "fields of the request have"
            could = f", and the script could see {seen} of them" if seen else ""
            paths = ", ".join(item["path"] for item in lost)
            notes.append(f"{len(lost)} {noun} no effect here{could}: {paths}")
        return notes

    @property
    def artifacts(self) -> dict[str, Any]:
        """`model` and `output`: path, uri, bytes, files."""
        return dict(self.record.result.get("artifacts", {}))

    @property
    def log_place(self) -> Path:
        return self.home.logs(self.record.name, self.record.attempt)

    def last_usage(self) -> list[tuple[str, float]]:
        """The last sample of each kind; of several hosts the busiest."""
        return [
            (name, max(points[-1][1] for points in self.usage[metric].values()))
            for metric, name in USAGE.items()
            if self.usage.get(metric)
        ]

    @property
    def verdict(self) -> JsonObject | None:
        """Of a job that didn't end well: its post-mortem bundle (docs/post-mortem.md), if one was kept."""
        from harness.lifecycle import read_bundle

        if not self.over or self.record.status == "Completed":
            return None
        bundle = read_bundle(self.home, self.record.name)
        return None if bundle is None else bundle.document

    @property
    def failed_source(self) -> list[tuple[int, str, bool]]:
        """The lines around the one that failed: number, text, whether it is that one."""
        source = (self.verdict or {}).get("source")
        if not source:
            return []
        return [
            (number, text, number == source["line"])
            for number, text in enumerate(source["lines"], start=source["first"])
            if abs(number - source["line"]) <= _AROUND
        ]
