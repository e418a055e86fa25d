"""`harness watch`."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import click

from harness import errors
from harness.cli._options import load_spec, spec_options

if TYPE_CHECKING:
    from harness.cli._watch_board import Board, Run
    from harness.cli._watch_views import View
    from harness.debugging import Change, Watcher
    from harness.home import Home
    from harness.machine import Probe
    from harness.model import Plan, Spec
    from harness.store import JobRecord
    from harness.targets.interrupts import Interrupts

__all__ = ["watch"]

_GRACE: Final = 0.3
_KEPT: Final = 10
_POLL: Final = 0.02
_IDLE: Final = 0.1
_FRESH: Final = 2.0
"""Seconds after which what was found out about the machine is out of date."""


@click.command()
@spec_options
@click.option(
    "--on-change",
    type=click.Choice(["restart", "wait"]),
    default="restart",
    show_default=True,
    help="Stop the running job for the next one, or let it finish first.",
)
@click.option(
    "--stop-grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help=f"Time between SIGTERM and SIGKILL (default: {_GRACE}, a loop has to be quick).",
)
@click.option("--no-warm", is_flag=True, help="Start cold hosts for each run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line and event on stdout.")
def watch(
    spec: Path, on_change: str, stop_grace: float | None, no_warm: bool, as_json: bool, **options: Any
) -> int:
    """Run SPEC, and again whenever its code or the spec itself is saved with another content.

    Watches source_dir, dependencies, the spec file and the single files that it names, but not what
    .gitignore ignores, nor channels that are directories. A save that changes nothing doesn't count, and
    many at a time, such as a checkout, count once. Every run is a job as any other; when ten newer ones
    are there, the record and directory of one that completed or was stopped are removed.

    Hosts are kept warm unless the spec says `warm = false`. Ctrl-C stops the running job and leaves with
    exit code 130, a second one kills it. On a terminal, r runs again and q leaves.
    """
    from harness.cli._watch_board import Board
    from harness.debugging import Watcher
    from harness.home import Home

    board = Board(spec=str(spec), on_change=on_change)
    with _Signals() as signals, Watcher() as watcher:
        view = _view(board, as_json=as_json)
        with view:
            loop = _Loop(
                file=spec,
                home=Home.find(),
                options={**options, "stop_grace": stop_grace},
                warm=not no_warm,
                board=board,
                view=view,
                watcher=watcher,
            )
            with contextlib.suppress(KeyboardInterrupt), loop:
                loop.run()
    return signals.exit_code


def _view(board: Board, *, as_json: bool) -> View:
    from harness.cli import _terminal
    from harness.cli._watch_views import JsonView, PlainView

    if as_json:
        return JsonView()
    if not _terminal.Screen(sys.stdout).is_terminal:
        return PlainView(board)
    from harness.cli._watch_screen import ScreenView

    return ScreenView(board)


class _Signals:
    """SIGTERM and SIGHUP do what Ctrl-C does: the job is stopped and the terminal given back."""

    exit_code = errors.INTERRUPTED

    def __enter__(self) -> _Signals:
        self._before = {
            number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.exit_code = 128 + number
        signal.raise_signal(signal.SIGINT)


class _Loop:
    """Runs the spec, waits for a change, runs it again."""

    def __init__(
        self,
        *,
        file: Path,
        home: Home,
        options: dict[str, Any],
        warm: bool,
        board: Board,
        view: View,
        watcher: Watcher,
    ) -> None:
        self._file = file
        self._home = home
        self._options = options
        self._warm = warm
        self._board = board
        self._view = view
        self._watcher = watcher
        self._names: list[str] = []
        self._told: set[str] = set()
        self._untold: list[str] = []
        self._ahead: tuple[float, Probe] | None = None
        """A look at the machine that was begun when something stirred, and when that was."""

    def __enter__(self) -> _Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_ahead()

    def run(self) -> None:
        """Until somebody interrupts: ends with KeyboardInterrupt.

        Raises SpecError when there is no spec to begin with: who mistyped its name would wait for ever.
        """
        from harness.debugging import scope_of_file

        if not self._file.is_file():
            load_spec(self._file, **self._options)
        # What is saved from here on is seen: also while the first run is prepared.
        self._watcher.set(scope_of_file(self._file))
        change: Change | None = None
        while True:
            change = self._once(change) or self._wait()

    def _wait(self) -> Change:
        while True:
            self._notices()
            found = self._watcher.change(_IDLE)
            if found is not None:
                return found
            self._look_ahead()
            match self._view.idle():
                case "r":
                    return _by_hand()
                case "q":
                    raise KeyboardInterrupt
                case _:
                    pass

    def _look_ahead(self) -> None:
        """Look at the machine while the user's editor is still saving: the kernel's answers take as long."""
        now = time.monotonic()
        if self._ahead is not None and now - self._ahead[0] > _FRESH:
            self._drop_ahead()
        if self._watcher.stirs and self._ahead is None:
            from harness.machine import Probe

            self._ahead = (now, Probe(self._home))

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead[1].__exit__(None, None, None)

    def _probe(self) -> Probe:
        from harness.machine import Probe

        if self._ahead is not None and time.monotonic() - self._ahead[0] > _FRESH:
            self._drop_ahead()
        ahead, self._ahead = self._ahead, None
        return Probe(self._home) if ahead is None else ahead[1]

    def _once(self, change: Change | None) -> Change | None:
        """One run; the change that came while it ran."""
        from harness.targets.interrupts import Interrupts

        self._board.change = change
        if change is not None:
            self._view.changed(change)
        with Interrupts() as interrupts:
            run = self._start(change, interrupts)
            if isinstance(run, errors.HarnessError):
                self._tell_notes()
                self._board.refused = str(run)
                self._view.refused(run)
                return None
            following = self._attend(run, interrupts)
        # Only now: a Ctrl-C in the last moment is counted too.
        if interrupts.count:
            raise KeyboardInterrupt
        self._tidy()
        return following

    # ------------------------------------------------------------------ the start

    def _start(self, change: Change | None, interrupts: Interrupts) -> Run | errors.HarnessError:
        """The run, or why there is none. Shows nothing: what keeps the view from being written isn't that."""
        try:
            with self._probe() as probe:
                spec = self._load()
                plan, record = self._submit(spec, probe, interrupts)
        except errors.HarnessError as error:
            return error
        self._names.append(record.name)
        return self._board.begin(record, plan, change)

    def _load(self, job_name: str | None = None) -> Spec:
        from harness.debugging import scope_of, scope_of_file

        try:
            words = {**self._options, "job_name": job_name or self._options["job_name"]}
            spec = load_spec(self._file, **words)
        except errors.HarnessError:
            # What it names may be missing: when that comes, it is seen. So is what it named before.
            self._watcher.set(scope_of_file(self._file).joined(self._watcher.scope))
            raise
        # Watched before it is packed: a file that changes while it is packed makes another run.
        self._watcher.set(scope_of(self._file, spec))
        for warning in spec.warnings:
            self._note(warning)
        given = self._options["stop_grace"]
        grace = min(spec.local.stop_grace, _GRACE) if given is None else given
        warm = spec.local.warm or (self._warm and not self._says_cold())
        return dataclasses.replace(
            spec, local=dataclasses.replace(spec.local, stop_grace=grace, warm=warm and self._warm)
        )

    def _says_cold(self) -> bool:
        """Whether `warm = false` is written somewhere, which is more than to say nothing about it."""
        from harness.spec import read

        if any(text.partition("=")[0].strip() == "local.warm" for text in self._options["assignments"]):
            return True
        table = read(self._file).get("local")
        return isinstance(table, dict) and "warm" in table

    def _submit(self, spec: Spec, probe: Probe, interrupts: Interrupts) -> tuple[Plan, JobRecord]:
        """Names can't be used again (contract: G35): where the spec gives an exact one, the time is added."""
        from harness.cli._session import submit
        from harness.spec import timestamped
        from harness.store import Store

        with Store(self._home) as store:
            try:
                store.check_free(spec.job_name)
            except errors.JobExistsError:
                self._note(
                    f"there is a job {spec.job_name} already: the time is added to the name of each run"
                )
                spec = self._load(timestamped(spec.job_name, None))
        return submit(spec, self._home, probe, interrupts)

    # ------------------------------------------------------------------ the run

    def _attend(self, run: Run, interrupts: Interrupts) -> Change | None:
        from harness.targets.follow import Tick, follow

        following: Change | None = None
        try:
            self._tell_notes()
            self._view.started(run)
            for event in follow(self._home, run.name, poll=_POLL):
                run.take(event)
                self._view.event(run, event)
                if isinstance(event, Tick):
                    self._pass_on(run, interrupts)
                    following = self._take_change(run, following)
        except BaseException:
            _stop(self._home, run.name)
            raise
        if run.status == "Failed":
            from harness.debugging import why

            with contextlib.suppress(errors.HarnessError):  # what can't be explained is told all the same
                run.explain(why(self._home, run.name))
        self._view.ended(run)
        return following

    def _pass_on(self, run: Run, interrupts: Interrupts) -> None:
        if self._view.idle() == "q":
            signal.raise_signal(signal.SIGINT)
        if interrupts.count > interrupts.told:
            count = interrupts.count
            _stop(self._home, run.name, now=count > 1)
            run.stopping = run.interrupted = True
            self._view.stopping(run, "killed" if count > 1 else "interrupted; Ctrl-C again kills it")
            interrupts.told = count

    def _take_change(self, run: Run, before: Change | None) -> Change | None:
        self._notices()
        found = self._watcher.change()
        if found is None:
            return before
        if self._board.on_change == "restart" and not run.stopping:
            _stop(self._home, run.name)
            run.stopping = run.superseded = True
            self._view.stopping(run, "something changed")
        self._board.waiting = True
        return found if before is None else before.and_then(found)

    # ------------------------------------------------------------------ around it

    def _tidy(self) -> None:
        from harness.targets import local

        old, self._names = self._names[:-_KEPT], self._names[-_KEPT:]
        removed = local.forget(old, statuses=("Completed", "Stopped"), home=self._home)
        if removed:
            self._view.removed(removed)

    def _notices(self) -> None:
        notices, self._watcher.notices = self._watcher.notices, []
        for notice in notices:
            self._note(notice)
        self._tell_notes()

    def _note(self, sentence: str) -> None:
        """To be told as soon as something is shown; each once."""
        if sentence not in self._told:
            self._told.add(sentence)
            self._board.notes.append(sentence)
            self._untold.append(sentence)

    def _tell_notes(self) -> None:
        untold, self._untold = self._untold, []
        for sentence in untold:
            self._view.note(sentence)


def _stop(home: Home, name: str, *, now: bool = False) -> None:
    from harness.targets import local

    with contextlib.suppress(errors.UsageError):  # it has ended already
        local.stop(name, now=now, home=home)


def _by_hand() -> Change:
    from harness.debugging import Change

    return Change(files=(), at=time.time())
