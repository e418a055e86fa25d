"""What `harness watch` knows: the runs so far, and everything about the present one that a screen can show."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from harness.targets.follow import End, Event, Line, Metrics, Phase, Tick

if TYPE_CHECKING:
    from harness.debugging import Change, Why
    from harness.model import Plan
    from harness.store import JobRecord, Progress

__all__ = ["Board", "Run", "Series"]

_TAIL: Final = 400
"""Lines that are kept to be shown; the log file has them all."""
_POINTS: Final = 256
_ANNOUNCED: Final = 1
_TOLD: Final = 2
_OVER: Final = 3
_AFTER: Final = 4
_COMMAND: Final = "Invoking script with the following command:"
_WAITING: Final = (
    " sagemaker-training-toolkit INFO     Waiting for the process to finish and give a return code."
)
"""What it says when the script's output has ended."""


@dataclass(kw_only=True)
class Series:
    """The values of one metric in one run, those of the host that was first to tell any: mixed they would
    jump to and fro."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=_POINTS))
    count: int = 0
    host: str = ""
    before: float | None = None
    """Its last value in the run before."""

    @property
    def last(self) -> float:
        return self.values[-1]


@dataclass(kw_only=True)
class Run:
    """One job of this watch."""

    number: int
    name: str
    plan: Plan
    change: Change | None
    began: float
    """When it was begun: when the change was saved, or for the first run when it was submitted; epoch seconds."""
    hosts: tuple[str, ...]
    status: str = "InProgress"
    superseded: bool = False
    """It was stopped because something changed."""
    stopping: bool = False
    interrupted: bool = False
    """The user stopped it; once more kills it."""
    ended: float | None = None
    first_line: float | None = None
    phases: list[Phase] = field(default_factory=list)
    tail: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_TAIL))
    lines: int = 0
    series: dict[str, Series] = field(default_factory=dict)
    samples: dict[str, dict[str, float]] = field(default_factory=dict)
    toolkit: dict[str, int] = field(default_factory=dict)
    """Host → how far its toolkit is: the command is announced, is told, the script prints, has ended."""
    progress: Progress | None = None
    failure: str | None = None
    """The FailureReason, as SageMaker words it."""
    verdict: str | None = None
    """Why it failed, in one sentence of ours."""
    traceback: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Remember what the screen will want to know."""
        match event:
            case Line():
                self.lines += 1
                state = self.toolkit.get(event.host, 0)
                if state == _AFTER or event.event.message.endswith(_WAITING):
                    self.toolkit[event.host] = _AFTER
                    return  # how it ended is told in fewer words than the toolkit's
                if state != _OVER and self._is_from_script(event.host, event.event.message):
                    self.toolkit[event.host] = _OVER
                    self.first_line = self.first_line or event.event.timestamp_ms / 1000
                    # A hundred lines of the toolkit's are in the log for whom they concern.
                    mine = [line for line in self.tail if line[0] != event.host]
                    self.tail = deque(mine, maxlen=_TAIL)
                self.tail.append((event.host, event.event.message))
            case Phase():
                self.phases.append(event)
            case Metrics(sampled=True):
                for point in event.points:
                    self.samples.setdefault(point.name, {})[point.host] = point.value
            case Metrics():
                for point in event.points:
                    series = self.series.setdefault(point.name, Series())
                    series.host = series.host or point.host
                    if point.host == series.host:
                        series.values.append(point.value)
                        series.count += 1
            case Tick():
                self.progress = event.progress
            case End():
                self.end(event.record)

    def _is_from_script(self, host: str, line: str) -> bool:
        """Not the toolkit's: it tells the script's command, a line of its own between empty ones, and some notes."""
        seen = self.toolkit.get(host, 0)
        if line == _COMMAND:
            seen = _ANNOUNCED
        elif seen == _ANNOUNCED and line:
            seen = _TOLD
        elif seen == _TOLD and line and " sagemaker-training-toolkit " not in line:
            return True
        self.toolkit[host] = seen
        return False

    def end(self, record: JobRecord) -> None:
        """The job is over."""
        self.status = record.status
        self.ended = record.ended
        self.failure = record.failure_reason
        self.result = record.result

    def explain(self, why: Why) -> None:
        """Remember what the post-mortem found."""
        self.verdict = why.verdict
        found = (why.bundle or {}).get("tracebacks") or ()
        self.traceback = tuple(found[0]["text"].rstrip().split("\n")) if found else ()

    @property
    def warmth(self) -> str | None:
        """Whether the hosts were warm, or why not; None when warm hosts were not asked for."""
        told = self.result.get("warm")
        if not told:
            return None
        if not told["reused"]:
            why = " ".join(str(told["why"]).split())
            return f"cold: {why}" if why else None
        words = (
            f"warm, {', '.join(told['preloaded'])} imported beforehand" if told.get("preloaded") else "warm"
        )
        return f"{words}; started anew: {told['no_fork']}" if told.get("no_fork") else words

    @property
    def seconds(self) -> float:
        """From the save that caused it to its end, or to now."""
        return max(0.0, (self.ended or time.time()) - self.began)

    @property
    def to_first_line(self) -> float | None:
        """Seconds from the save to the script's first line."""
        return None if self.first_line is None else max(0.0, self.first_line - self.began)


@dataclass(kw_only=True)
class Board:
    """All that was and is; views draw it."""

    spec: str
    on_change: str
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=50))
    count: int = 0
    refused: str | None = None
    """Why the last change gave no run."""
    change: Change | None = None
    """What was saved last."""
    waiting: bool = False
    """A change is waiting for the present run to end."""
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=3))

    @property
    def run(self) -> Run | None:
        """The last run; it may be over."""
        return self.runs[-1] if self.runs else None

    @property
    def is_running(self) -> bool:
        return bool(self.runs) and self.runs[-1].ended is None

    def begin(self, record: JobRecord, plan: Plan, change: Change | None) -> Run:
        """A new run; each of its metrics is compared with the last run that has it."""
        self.count += 1
        run = Run(
            number=self.count,
            name=record.name,
            plan=plan,
            change=change,
            began=min(record.created, change.at) if change else record.created,
            hosts=tuple(host.name for host in plan.hosts),
        )
        for earlier in self.runs:  # the last one that has a value of the metric
            for name, series in earlier.series.items():
                if series.count:
                    run.series[name] = Series(before=series.last)
        self.runs.append(run)
        self.refused = None
        self.waiting = False
        return run
