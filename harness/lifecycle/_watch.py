"""The Training phase: the hosts of one attempt, from started to ended.

One thread per host drains its output; everything else (stop requests, time limits, samples, the store)
happens in the supervisor's own thread, which waits for events. So the store has one writer and the order
of what is decided is plain.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.contract import messages
from harness.engines import Host
from harness.errors import DiskError, HarnessError, MachineError
from harness.model import ExitStatus, MetricPoint
from harness.store import StopRequest, Store
from harness.telemetry import LogWriter, MetricScanner, Sampler, Witness

__all__ = ["StopCause", "Verdict", "Watch"]

_TICK: Final = 0.05
_SAMPLE_EVERY: Final = 2.0
_ROOM: Final = 8 << 20
_PEER_DELAY: Final = 2.0
"""Seconds that the other hosts get to end by themselves after one failed, and again between SIGTERM and
SIGKILL (contract: H7)."""


class StopCause:
    """Why hosts were told to stop."""

    USER: Final = "user"
    MAX_RUNTIME: Final = "max-runtime"
    MAX_WAIT: Final = "max-wait"
    PEER: Final = "peer"
    """Another host failed (contract: H7)."""
    DATA: Final = "data"
    """A Pipe channel can't be fed any more."""


_OVERTIME: Final = (StopCause.MAX_RUNTIME, StopCause.MAX_WAIT)
"""What ends a script that may not know where it hangs."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the hosts ended: statuses by host in the order they ended, and what was done to them."""

    ended: Mapping[str, ExitStatus]
    cause: str | None
    """A `StopCause`, or None when nobody stopped them."""
    killed: bool
    """SIGKILL was needed (or asked for)."""

    @property
    def first_failure(self) -> tuple[str, ExitStatus] | None:
        """The host that failed first by itself (contract: H7)."""
        return next(((host, status) for host, status in self.ended.items() if status.code), None)


@dataclass
class _Ladder:
    """SIGTERM now, SIGKILL at `deadline` (contract: G9)."""

    cause: str
    deadline: float
    killed: bool = False


class Watch:
    """Watches the hosts until all have ended."""

    def __init__(
        self,
        store: Store,
        name: str,
        hosts: Mapping[str, Host],
        *,
        logs: Path,
        scanner: MetricScanner,
        sampler: Sampler,
        grace: float,
        limits: Callable[[], str | None],
        companions: Sequence[Callable[[], None]],
        problem: Callable[[str], None],
        witness: Witness,
    ) -> None:
        """`limits` says which `StopCause` a time limit calls for now, if any; `companions` is what goes on
        beside the hosts, each called often; `problem` takes a sentence for the job's notes; `witness` sees what
        happens."""
        self._store = store
        self._name = name
        self._hosts = dict(hosts)
        self._logs = logs
        self._scanner = scanner
        self._sampler = sampler
        self._grace = grace
        self._limits = limits
        self._companions = (*companions, witness.tick)
        self._problem = problem
        self._witness = witness
        self._events: queue.Queue[list[MetricPoint] | tuple[str, ExitStatus] | str] = queue.Queue()
        self._ended: dict[str, ExitStatus] = {}
        self._ladder: _Ladder | None = None
        self._first_failure_at: float | None = None
        self._told_of_metrics = False

    def run(self) -> Verdict:
        """Until the last host has ended and its last byte is in the log."""
        for host in self._hosts.values():
            threading.Thread(target=self._pump, args=(host,), name=f"pump-{host.name}", daemon=True).start()
        next_sample = time.monotonic() + 0.5
        while len(self._ended) < len(self._hosts):
            self._take_events(wait=_TICK)
            self._obey()
            for companion in self._companions:
                companion()
            if time.monotonic() >= next_sample:
                next_sample = time.monotonic() + _SAMPLE_EVERY
                self._sample()
        self._take_events(wait=0)
        self._witness.finish()
        ladder = self._ladder
        return Verdict(
            ended=dict(self._ended),
            cause=ladder.cause if ladder else None,
            killed=ladder.killed if ladder else False,
        )

    # ---------------------------------------------------------------- the pump's side

    def _pump(self, host: Host) -> None:
        """Drain one host's output into its log and the metric scanner, then report its end."""
        name = host.name
        status: ExitStatus | None
        try:
            with contextlib.closing(LogWriter(self._logs, name)) as writer:
                # After a crash: the start of the line whose end is still to come.
                self._scanner.feed(name, writer.unterminated(), _now_ms())
                for chunk in host.output(skip=writer.size):
                    now = _now_ms()
                    self._witness.heard()
                    # The script must not block on a full pipe because our log can't be written; the
                    # writer keeps what the disk doesn't take, and counts what it has to drop.
                    with contextlib.suppress(DiskError):
                        writer.feed(chunk, now)
                    points = self._scanner.feed(name, chunk, now)
                    if points:
                        self._events.put(points)
            if writer.lost:
                self._events.put(
                    f"the disk was full: the last {writer.lost:,} bytes that {name} printed are missing in its log"
                )
            status = host.wait()
        except HarnessError as error:
            status = ExitStatus(code=255, vanished=True, error=str(error))
        except Exception as error:
            traceback.print_exc()
            status = ExitStatus(code=255, vanished=True, error=f"{type(error).__name__}: {error}")
        self._events.put((name, status or ExitStatus(code=255, vanished=True)))

    # --------------------------------------------------------- the supervisor's side

    def _take_events(self, *, wait: float) -> None:
        try:
            event = self._events.get(timeout=wait) if wait else self._events.get_nowait()
        except queue.Empty:
            return
        points: list[MetricPoint] = []
        while True:
            if isinstance(event, list):
                points += event
            elif isinstance(event, str):
                self._problem(event)
            else:
                self._end(*event)
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
        self._keep(points)

    def _end(self, host: str, status: ExitStatus) -> None:
        self._ended[host] = status
        self._witness.ended(host, status)
        if not status.vanished:  # its code is our guess: a supervisor that takes over must look for itself
            self._store.host_ended(self._name, host, status.code, oom_killed=status.oom_killed)
        if status.code and self._first_failure_at is None:
            self._first_failure_at = time.monotonic()
            self._store.merge_result(self._name, failed_first=host)

    def _obey(self) -> None:
        """Stop requests, time limits, and the fate of the peers of a failed host."""
        if all(host.wait(0) is not None for host in self._running()):
            return  # they ended by themselves, in time; only their last bytes are still to come
        now = time.monotonic()
        request = self._store.summary(self._name).stop_request
        if request is StopRequest.KILL:
            self._begin(StopCause.USER, 0)
        elif request is StopRequest.STOP:
            self._begin(StopCause.USER, self._grace)
        elif (cause := self._limits()) is not None:
            hopeless = cause == StopCause.DATA
            self._begin(cause, min(self._grace, _PEER_DELAY) if hopeless else self._grace)
        elif self._first_failure_at is not None and now >= self._first_failure_at + _PEER_DELAY:
            self._begin(StopCause.PEER, min(self._grace, _PEER_DELAY))
        ladder = self._ladder
        if ladder is not None and now >= ladder.deadline and not ladder.killed:
            ladder.killed = True
            for host in self._running():
                host.kill()

    def _begin(self, cause: str, grace: float) -> None:
        """Start the ladder, or shorten it: a kill overtakes a stop, a stop never lengthens one."""
        if self._ladder is None and cause in _OVERTIME:
            self._witness.before_stop(cause, self._running())
        deadline = time.monotonic() + grace
        if self._ladder is None:
            self._ladder = _Ladder(cause=cause, deadline=deadline)
            if cause not in (StopCause.PEER, StopCause.DATA):
                with self._store.transaction():
                    self._store.merge_result(self._name, stop={"cause": cause, "killed": False})
                    self._store.transition(self._name, "Stopping", messages.STOPPING, status="Stopping")
            if grace > 0:
                for host in self._running():
                    host.signal(signal.SIGTERM)
        elif deadline < self._ladder.deadline:
            self._ladder.deadline = deadline

    def _running(self) -> list[Host]:
        return [host for name, host in self._hosts.items() if name not in self._ended]

    def _sample(self) -> None:
        running = self._running()
        points = [point for host in running for point in self._sampler.sample(host)]
        for host in running:
            self._witness.look(host, self._sampler.last[host.name])
        self._keep(points, sampled=True)

    def _keep(self, points: list[MetricPoint], *, sampled: bool = False) -> None:
        """On a disk that is nearly full, room is left for what the job can't end without."""
        if not points:
            return
        try:
            if shutil.disk_usage(self._store.home.root).free < _ROOM:
                raise DiskError(f"less than {_ROOM >> 20} MiB are free")
            self._store.add_metrics(self._name, points, sampled=sampled)
        except MachineError as error:
            if not self._told_of_metrics:
                self._told_of_metrics = True
                self._problem(f"values of metrics are missing: {error}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
