"""A job as it happens: a pure reader of the store and the log files.

It makes no difference who started the job, or whether its supervisor is the first: `harness run` and
`harness logs -f` see the same events.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from harness.home import Home
from harness.lifecycle import owned, recover
from harness.model import MetricPoint, Transition
from harness.store import JobRecord, Progress, Store
from harness.telemetry import EVIDENCE, LogEvent, LogReader, read_evidence

__all__ = ["End", "Event", "Line", "Metrics", "Notice", "Phase", "Tick", "follow", "host_names"]

_OWNER_EVERY: Final = 1.0
_LINES: Final = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The job entered a secondary status."""

    transition: Transition
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A host printed a line."""

    host: str
    event: LogEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Values of metric definitions and samples of hosts that arrived since the last look."""

    points: tuple[MetricPoint, ...]
    sampled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """The supervisor saw something while the job ran that its user should know at once: that it hangs."""

    at: float
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """One look at the job is over: `progress` is that of its long phase, if it is in one."""

    progress: Progress | None
    record: JobRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The job is in a terminal state, and everything it printed was seen; always the last event."""

    record: JobRecord


Event: TypeAlias = Phase | Line | Metrics | Notice | Tick | End


def host_names(record: JobRecord) -> tuple[str, ...]:
    """The job's hosts, from its plan."""
    return tuple(host["name"] for host in record.plan.get("hosts", ()))


def follow(
    home: Home,
    name: str,
    *,
    hosts: Collection[str] | None = None,
    tail: int | None = None,
    metrics: bool = True,
    poll: float = 0.03,
) -> Iterator[Event]:
    """Everything that happens to the job, from its beginning until it ends.

    What one look finds comes in the order of its times. `hosts` limits the lines to those hosts, `tail`
    begins each host's log that many lines before its present end. Should the job's supervisor die, a new
    one is started. Raises UsageError when there is no such job.
    """
    with Store(home) as store:
        yield from _Follower(home, store, name, hosts=hosts, tail=tail, metrics=metrics).events(poll)


class _Follower:
    def __init__(
        self,
        home: Home,
        store: Store,
        name: str,
        *,
        hosts: Collection[str] | None,
        tail: int | None,
        metrics: bool,
    ) -> None:
        self._home = home
        self._store = store
        self._name = name
        record = store.job(name)
        self._hosts = [host for host in host_names(record) if hosts is None or host in hosts]
        self._metrics = metrics
        self._last_metric = {False: 0, True: 0}
        self._modified = 0.0
        self._phases = 0
        self._owner_at = time.monotonic()
        self._evidence_seen = 0
        self._hangs_told = 0
        self._behind = False
        self._open(record.attempt)
        if tail is not None:
            self._tokens = {host: reader.tail(tail) for host, reader in self._readers.items()}

    def events(self, poll: float) -> Iterator[Event]:
        while True:
            # The record is read first: what it says is over has written all it had to.
            record = self._store.summary(self._name)
            while record.attempt > self._attempt:
                lines = self._lines(final=True)
                yield from lines
                if not lines:
                    self._open(self._attempt + 1)
            over = record.ended_for_good or record.secondary_status == "Uploading"
            lines = self._lines(final=over)
            # A log that is far behind must not be overtaken by what happened later.
            phases = self._new_phases(record, until=_at(lines[-1]) if self._behind else None)
            yield from heapq.merge(phases, lines, key=_at)
            yield from self._new_notices()
            if self._metrics:
                yield from self._new_metrics()
            if record.ended_for_good and not self._behind:
                yield End(record=self._store.job(self._name))
                return
            yield Tick(progress=self._store.progress(self._name), record=record)
            if not lines:
                time.sleep(poll)
            self._keep_owned()

    def _open(self, attempt: int) -> None:
        directory = self._home.logs(self._name, attempt)
        self._attempt = attempt
        self._readers = {host: LogReader(directory, host) for host in self._hosts}
        self._tokens = dict.fromkeys(self._hosts, 0)

    def _new_phases(self, record: JobRecord, *, until: float | None) -> list[Event]:
        if record.modified == self._modified:
            return []
        transitions = self._store.transitions(self._name)[self._phases :]
        new = [each for each in transitions if until is None or each.start <= until]
        self._phases += len(new)
        if len(new) == len(transitions):
            self._modified = record.modified
        return [Phase(transition=transition, attempt=record.attempt) for transition in new]

    def _lines(self, *, final: bool) -> list[Event]:
        streams: list[list[Event]] = []
        self._behind = False
        for host, reader in self._readers.items():
            events, self._tokens[host] = reader.read(self._tokens[host], final=final, limit=_LINES)
            self._behind |= bool(events) and final and self._tokens[host] < reader.size
            self._behind |= len(events) == _LINES
            streams.append([Line(host=host, event=event) for event in events])
        return streams[0] if len(streams) == 1 else list(heapq.merge(*streams, key=_at))

    def _new_metrics(self) -> Iterator[Metrics]:
        for sampled in (False, True):
            rows = self._store.metrics(self._name, after=self._last_metric[sampled], sampled=sampled)
            if rows:
                self._last_metric[sampled] = rows[-1][0]
                yield Metrics(points=tuple(point for _, point in rows), sampled=sampled)

    def _keep_owned(self) -> None:
        now = time.monotonic()
        if now - self._owner_at < _OWNER_EVERY:
            return
        self._owner_at = now
        if not owned(self._home, self._name):
            recover(self._home, self._store)

    def _new_notices(self) -> Iterator[Notice]:
        """Hangs that the supervisor's witness has found; the file is read only when it is another one."""
        place = self._home.job(self._name) / "post-mortem"
        try:
            seen = (place / EVIDENCE).stat().st_mtime_ns
        except OSError:
            return
        if seen == self._evidence_seen:
            return
        self._evidence_seen = seen
        hangs = read_evidence(place).get("hangs", [])
        for each in hangs[self._hangs_told :]:
            yield Notice(at=each["at"], sentence=f"it seems to hang: {each['sentence']}")
        self._hangs_told = len(hangs)


def _at(event: Event) -> float:
    match event:
        case Phase():
            return event.transition.start
        case Line():
            return event.event.timestamp_ms / 1000
        case _:
            raise TypeError(f"{type(event).__name__} has no time")
