"""A running job on the screen: phases, log lines, metrics, and what it is doing now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from harness.cli import _terminal
from harness.targets.follow import End, Event, Line, Metrics, Notice, Phase, Tick

if TYPE_CHECKING:
    from harness.model import Plan, Transition

__all__ = ["PREFIX_STYLES", "Display", "prefix"]

PREFIX_STYLES: Final[tuple[_terminal.Style, ...]] = ("cyan", "magenta", "yellow", "blue", "green")
_METRICS_EVERY: Final = 10.0
"""Seconds between two lines of metrics where no status line can show them."""
_LONG: Final = ("Starting", "Downloading", "Uploading")
"""The phases that have progress."""
_SHORT_NAMES: Final = {
    "CPUUtilization": "cpu",
    "MemoryUtilization": "memory",
    "GPUUtilization": "gpu",
    "GPUMemoryUtilization": "gpu memory",
}
_STATUS_STYLES: Final[dict[str, _terminal.Style]] = {
    "Completed": "green",
    "Failed": "red",
    "Stopped": "yellow",
    "MaxRuntimeExceeded": "yellow",
    "MaxWaitTimeExceeded": "yellow",
}


def prefix(screen: _terminal.Screen, host: str, position: int, width: int) -> str:
    """What stands before each line of a host."""
    return screen.style(f"{host:<{width}} │ ", PREFIX_STYLES[position % len(PREFIX_STYLES)])


class Display:
    """Shows the events of one job, in the order in which they are given."""

    def __init__(self, screen: _terminal.Screen, name: str, plan: Plan) -> None:
        self._screen = screen
        hosts = [host.name for host in plan.hosts]
        width = max(map(len, hosts))
        self._prefixes = {host: prefix(screen, host, at, width) for at, host in enumerate(hosts)}
        self._started: float | None = None
        self._phase = ""
        self._phase_since = 0.0
        self._attempt = 1
        self._buffer: list[str] = []
        self._values: dict[str, float] = {}
        self._samples: dict[str, dict[str, float]] = {}
        self._untold: dict[str, float] = {}
        self._told_at = 0.0
        screen.write(screen.style(name, "bold"), *screen.wrap(f"{plan.engine} engine: {plan.engine_reason}"))
        for note in plan.notes:
            first, *rest = screen.wrap(note, 6)
            screen.write(f"{screen.style('note:', 'cyan')} {first}", *(f"      {line}" for line in rest))

    def show(self, event: Event) -> None:
        """Take one event; what belongs together is written at the next tick."""
        match event:
            case Line():
                self._buffer.append(self._prefixes[event.host] + event.event.message)
                if len(self._buffer) >= 1000:
                    self._flush()
            case Phase():
                self._enter(event.transition, event.attempt)
            case Notice():
                self._flush()
                first, *rest = self._screen.wrap(event.sentence, 6)
                self._screen.write(
                    f"{self._screen.style('note:', 'cyan')} {first}", *(f"      {line}" for line in rest)
                )
            case Metrics(sampled=True):
                for point in event.points:
                    self._samples.setdefault(point.name, {})[point.host] = point.value
            case Metrics():
                new = {point.name: point.value for point in event.points}
                self._values |= new
                self._untold |= new
            case Tick():
                self._flush()
                self._tell_metrics()
                self._screen.status(self._status(event))
            case End():
                self._flush()
                self._tell_metrics(last=True)
                self._screen.status("")

    def _flush(self) -> None:
        lines, self._buffer = self._buffer, []
        self._screen.write(*lines)

    def _enter(self, transition: Transition, attempt: int) -> None:
        if self._started is None:
            self._started = transition.start
        if attempt != self._attempt:
            self._attempt = attempt
            self._buffer.append(f"attempt {attempt}")
        self._phase, self._phase_since = transition.status, transition.start
        passed = _terminal.duration(transition.start - self._started)
        style = _STATUS_STYLES.get(transition.status, "bold")
        name = self._screen.style(f"{transition.status:<11}", style)
        self._buffer.append(f"{passed:>9}  {name}  {transition.message}")

    def _tell_metrics(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._screen.is_terminal or not self._untold:
            return
        if last or now - self._told_at >= _METRICS_EVERY:
            self._told_at = now
            self._screen.write(f"  metrics  {_values(self._untold)}")
            self._untold = {}

    def _status(self, tick: Tick) -> str:
        progress = tick.progress
        passed = _terminal.duration(max(0.0, time.time() - self._phase_since))
        parts = [f"{self._phase} {passed}"]
        if self._phase not in _LONG or (progress is not None and progress.done >= progress.total > 0):
            progress = None  # what is left on record of a phase that is over
        if progress is not None and progress.total:
            bar = self._screen.bar(progress.done, progress.total)
            parts.append(f"{progress.what} {bar} {100 * progress.done // progress.total} %")
        elif progress is not None:
            parts.append(f"{progress.what}: {progress.done:,}")
        if self._phase == "Training":
            if self._values:
                parts.append(_values(self._values))
            for name, short in _SHORT_NAMES.items():
                if name in self._samples:
                    parts.append(f"{short} {max(self._samples[name].values()):.0f} %")
        return " · ".join(parts)


def _values(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {_terminal.number(value)}" for name, value in values.items())
