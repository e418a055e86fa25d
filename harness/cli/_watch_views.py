"""How `harness watch` shows itself where there is no terminal: plain lines, or one JSON object per line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from harness import errors
from harness.cli import _terminal
from harness.targets.follow import End, Event, Line, Metrics, Phase, Tick

if TYPE_CHECKING:
    from types import TracebackType

    from harness.cli._watch_board import Board, Run
    from harness.debugging import Change, FileChange

__all__ = ["JsonView", "Key", "PlainView", "View", "headline", "shown_path"]

Key = str
_DIFF_LINES: Final = 6


class View(Protocol):
    """Shows what happens; each call returns at once."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, message: str) -> None:
        """Something that the user should know."""

    def changed(self, change: Change) -> None:
        """Something was saved."""

    def refused(self, error: errors.HarnessError) -> None:
        """What was saved can't be run."""

    def started(self, run: Run) -> None:
        """The job is on record."""

    def event(self, run: Run, event: Event) -> None:
        """Something happened to it."""

    def stopping(self, run: Run, why: str) -> None:
        """It was asked to stop."""

    def ended(self, run: Run) -> None:
        """It is over."""

    def idle(self) -> Key | None:
        """Some time has passed; the key that the user pressed, if any."""

    def removed(self, names: list[str]) -> None:
        """Old runs of this watch were removed."""


class _Quiet:
    """A view with nothing to set up."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def idle(self) -> Key | None:
        return None


class PlainView(_Quiet):
    """Lines, for a pipe or a file."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._screen = _terminal.Screen(sys.stdout)

    def note(self, message: str) -> None:
        self._screen.write(f"note: {message}")

    def changed(self, change: Change) -> None:
        self._screen.write("", f"{_time(change.at)}  {headline(change)}")
        for line in _diff(change):
            self._screen.write(f"    {line}")

    def refused(self, error: errors.HarnessError) -> None:
        self._screen.write(f"error: {error}", "waiting for the next change")

    def started(self, run: Run) -> None:
        from harness.cli._display import Display

        self._display = Display(self._screen, run.name, run.plan)

    def event(self, run: Run, event: Event) -> None:
        del run
        self._display.show(event)

    def stopping(self, run: Run, why: str) -> None:
        self._screen.write(f"stopping {run.name}: {why}")

    def ended(self, run: Run) -> None:
        words = [f"run {run.number}: {run.status} in {_terminal.duration(run.seconds)}"]
        if run.to_first_line is not None:
            words.append(f"first line after {run.to_first_line:.2f} s")
        if run.warmth is not None:
            words.append(_terminal.harmless(run.warmth))
        self._screen.write(", ".join(words))
        if run.failure and not run.superseded:
            reason = run.verdict or run.failure
            self._screen.write(*(_terminal.harmless(line) for line in reason.splitlines()))
        if not self._board.waiting:
            self._screen.write("waiting for a change; Ctrl-C leaves")

    def removed(self, names: list[str]) -> None:
        self._screen.write(f"removed {', '.join(names)}: a watch keeps its last runs")


class JsonView(_Quiet):
    """One JSON object per line, each with `event` and `time` (epoch seconds)."""

    def _emit(self, event: str, **members: Any) -> None:
        json.dump({"event": event, "time": round(time.time(), 3), **members}, sys.stdout, ensure_ascii=False)
        sys.stdout.write("\n")
        sys.stdout.flush()

    def note(self, message: str) -> None:
        self._emit("note", message=message)

    def changed(self, change: Change) -> None:
        files = [
            {
                "path": file.path,
                "kind": file.kind,
                "added": file.added,
                "removed": file.removed,
                "lines": list(file.lines),
            }
            for file in change.files
        ]
        self._emit("change", saved=round(change.at, 3), files=files)

    def refused(self, error: errors.HarnessError) -> None:
        described = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        self._emit("refused", error=described)

    def started(self, run: Run) -> None:
        self._emit(
            "started", job=run.name, run=run.number, engine=run.plan.engine, notes=list(run.plan.notes)
        )

    def event(self, run: Run, event: Event) -> None:
        match event:
            case Phase():
                each = event.transition
                self._emit("phase", job=run.name, status=each.status, message=each.message, start=each.start)
            case Line():
                self._emit(
                    "line",
                    job=run.name,
                    host=event.host,
                    message=event.event.message,
                    timestamp_ms=event.event.timestamp_ms,
                )
            case Metrics():
                for point in event.points:
                    self._emit(
                        "metric",
                        job=run.name,
                        host=point.host,
                        name=point.name,
                        value=point.value,
                        timestamp_ms=point.timestamp_ms,
                        sampled=event.sampled,
                    )
            case Tick() | End():
                pass

    def stopping(self, run: Run, why: str) -> None:
        self._emit("stopping", job=run.name, why=why)

    def ended(self, run: Run) -> None:
        first = run.to_first_line
        self._emit(
            "ended",
            job=run.name,
            run=run.number,
            status=run.status,
            superseded=run.superseded,
            failure_reason=run.failure,
            verdict=run.verdict,
            seconds=round(run.seconds, 3),
            first_line_seconds=None if first is None else round(first, 3),
            warm=run.result.get("warm"),
            metrics={name: series.last for name, series in run.series.items() if series.count},
        )

    def removed(self, names: list[str]) -> None:
        self._emit("removed", jobs=names)


def headline(change: Change) -> str:
    """`train.py +1 -2, util.py added, 3 more files`."""
    if not change.files:
        return "run again"
    words = [_words(file) for file in change.files[:3]]
    more = len(change.files) - len(words)
    if more:
        words.append(f"{more} more file{'s' * (more != 1)}")
    return ", ".join(words)


def _words(file: FileChange) -> str:
    words = [shown_path(file.path)]
    if file.kind != "changed":
        words.append(file.kind)
    words += [f"{sign}{count}" for sign, count in (("+", file.added), ("-", file.removed)) if count]
    return " ".join(words)


def shown_path(path: str) -> str:
    """Relative to where the user is, when it is below."""
    try:
        found = str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        found = path
    return _terminal.harmless(found)


def _diff(change: Change) -> list[str]:
    lines = [_terminal.harmless(line) for file in change.files for line in file.lines]
    if len(lines) <= _DIFF_LINES:
        return lines
    return [*lines[:_DIFF_LINES], f"… {len(lines) - _DIFF_LINES} more changed lines"]


def _time(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
