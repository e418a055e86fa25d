"""A running job in an output cell, or in a terminal: shown until it ends, stopped by an interrupt."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from harness.errors import UsageError
from harness.home import Home
from harness.notebook._job import Job
from harness.notebook._picture import Picture
from harness.quantities import duration
from harness.store import Store
from harness.targets import follow as following
from harness.targets.interrupts import Interrupts

__all__ = ["Interrupted", "attend", "executing", "has_front_end", "interruptible", "shell"]

_REDRAW: Final = 0.25
"""Seconds between two states of the panel."""
_CURVES: Final = 1.0
"""Seconds between two drawings of the curves; at least, and ten times what one takes."""
_LIVE_LINES: Final = 14
_KEPT_LINES: Final = 200
_METRICS: Final = 10.0
"""Seconds between two lines of metrics in a terminal."""


class Interrupted(KeyboardInterrupt):
    """The cell was interrupted; the job was stopped or killed, and has ended. Shown as one line."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class _View(Protocol):
    def show(self, picture: Picture, event: following.Event | None) -> None:
        """The picture after that event; None: before the first."""


def shell() -> Any:
    """The IPython that runs this cell, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def executing() -> object:
    """What identifies the cell that is being executed; None where there are no cells."""
    found = shell()
    return None if found is None else (id(found), found.execution_count)


def has_front_end() -> bool:
    """Whether outputs go to a notebook; a terminal only takes lines."""
    return hasattr(shell(), "kernel")


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Interrupts of the cell; in another thread than the main one there are none."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    with interrupts:
        yield interrupts


def attend(job: Job, interrupts: Interrupts | None = None, *, quiet: bool = False) -> Job:
    """Show the job until it has ended, handing interrupts on to it: the first stops, the second kills.

    Raises:
        Interrupted: it was interrupted, so that cells that wait for this one don't run; the job has ended.
    """
    if interrupts is None:
        with interruptible() as interrupts:
            interrupts.begin()
            return attend(job, interrupts, quiet=quiet)
    home = job._home
    picture = Picture(record=job.record, home=home, most_lines=_LIVE_LINES)
    view = _view(quiet)
    view.show(picture, None)
    for event in following.follow(home, job.name):
        picture.take(event)
        if interrupts.count > interrupts.told:
            count = interrupts.count
            picture.said.append(_interrupt(home, job.name, count))
            interrupts.told = count
        if isinstance(event, following.End):
            last = Picture.of(home, job.name, most_lines=_KEPT_LINES)
            last.said = picture.said
            picture = last
        view.show(picture, event)
    job._shown = executing()
    if interrupts.count:
        raise Interrupted(f"Interrupted: the job {job.name} is {picture.record.status}")
    return job


def _interrupt(home: Home, name: str, count: int) -> str:
    from harness.targets import local

    try:
        local.stop(name, now=count > 1, home=home)
    except UsageError:
        return "interrupted, but the job has ended already"
    if count > 1:
        return "interrupted again: killing the job"
    with Store(home) as store:
        grace = float(store.job(name).spec["local"]["stop_grace"])
    return (
        f"interrupted: stopping as SageMaker does: SIGTERM, up to {grace:.0f} s, then SIGKILL; "
        "interrupt again to kill it now"
    )


def _view(quiet: bool) -> _View:
    if quiet:
        return _Nothing()
    return _Panel() if has_front_end() else _Lines(print)


class _Nothing:
    def show(self, picture: Picture, event: following.Event | None) -> None:
        """Only the job object shows itself, when it is displayed."""


class _Panel:
    """One output of the cell, replaced as the job goes on: the saved notebook has its last state.

    No widgets: they need a living kernel, and are dead in a notebook that was saved.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn_at = 0.0
        self._image: bytes | None = None
        self._image_of = 0
        self._image_next = 0.0

    def show(self, picture: Picture, event: following.Event | None) -> None:
        now = time.monotonic()
        last = isinstance(event, following.End)
        if not last and event is not None and not isinstance(event, following.Tick):
            return
        if not last and now - self._drawn_at < _REDRAW:
            return
        self._drawn_at = now
        self._draw_curves(picture, now, last=last)
        self._display(picture)

    def _draw_curves(self, picture: Picture, now: float, *, last: bool) -> None:
        from harness.notebook._curves import png

        points = sum(map(len, picture.metrics.values())) + sum(
            len(each) for by_host in picture.usage.values() for each in by_host.values()
        )
        if points == self._image_of or (now < self._image_next and not last):
            return
        is_first = self._image is None
        self._image = png(picture)
        self._image_of = points
        # The first one takes as long as matplotlib to be imported, which says nothing about the next ones.
        took = 0.0 if is_first else time.monotonic() - now
        self._image_next = now + max(_CURVES, 10 * took)

    def _display(self, picture: Picture) -> None:
        from IPython import display as ipython

        from harness.notebook._html import html
        from harness.notebook._text import text

        bundle = {"text/html": html(picture, self._image), "text/plain": text(picture)}
        if self._handle is None:
            display: Any = ipython.display
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


class _Lines:
    """A terminal, or whatever else only takes lines: each thing once, as it happens."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._started: float | None = None
        self._values: dict[str, float] = {}
        self._told_at = time.monotonic()
        self._said = 0

    def show(self, picture: Picture, event: following.Event | None) -> None:
        from harness.quantities import number

        for sentence in picture.said[self._said :]:
            self._write(sentence)
        self._said = len(picture.said)
        match event:
            case None:
                self._write(f"{picture.record.name}: {picture.where}")
            case following.Phase():
                start = event.transition.start
                self._started = start if self._started is None else self._started
                passed = duration(start - self._started)
                self._write(f"{passed:>9}  {event.transition.status:<11}  {event.transition.message}")
            case following.Line():
                prefix = f"{event.host} │ " if len(picture.hosts) > 1 else "│ "
                self._write(f"{prefix}{event.event.message}")
            case following.Metrics(sampled=False):
                self._values |= {point.name: point.value for point in event.points}
            case following.Tick():
                if self._values and time.monotonic() - self._told_at >= _METRICS:
                    self._told_at = time.monotonic()
                    self._write("  ".join(f"{name} {number(value)}" for name, value in self._values.items()))
                    self._values = {}
            case following.End():
                from harness.notebook._text import headline, phases, summary, verdict

                for line in (headline(picture), f"  {phases(picture)}", *verdict(picture), *summary(picture)):
                    self._write(line)
            case _:
                pass
