"""A job of this command line's own, from the spec to the exit code: what run, debug, rerun and watch share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from harness import errors
from harness.cli import _terminal

if TYPE_CHECKING:
    from harness.home import Home
    from harness.machine import Probe
    from harness.model import Plan, Spec
    from harness.store import JobRecord
    from harness.targets.interrupts import Interrupts

__all__ = ["STATUS_CODES", "attend", "detached", "run_spec", "submit"]

STATUS_CODES: Final = {
    "Completed": errors.COMPLETED,
    "Failed": errors.FAILED,
    "Stopped": errors.STOPPED,
}


def run_spec(
    load: Callable[[], Spec],
    *,
    named: Path | str,
    as_json: bool = False,
    detach: bool = False,
    check: Callable[[Plan], None] | None = None,
    beside: Callable[[JobRecord, _terminal.Screen], AbstractContextManager[object]] | None = None,
    screen: Callable[[TextIO], _terminal.Screen] = _terminal.Screen,
) -> int:
    """Run the job of the spec that `load` gives, show it to its end, and return the exit code.

    `load` is called while the machine is looked at. `named`: the words that name the spec on a command
    line. `check` may refuse the plan by raising. `beside` is entered when the job is on record and left
    when it has ended. `screen` makes what is written to. With `as_json` everything but the final document
    goes to stderr.

    Raises what `load`, `local.make_plan` and `local.submit` raise.
    """
    from harness.home import Home
    from harness.machine import Probe
    from harness.targets.interrupts import Interrupts

    home = Home.find()
    with Interrupts() as interrupts:
        with Probe(home) as probe:
            loaded = load()
            for warning in loaded.warnings:
                _terminal.tell(warning, kind="warning")
            planned, record = submit(loaded, home, probe, interrupts, check)
        if detach and not interrupts.count:
            detached(record, as_json=as_json)
            return errors.COMPLETED
        shown = screen(sys.stderr if as_json else sys.stdout)
        if beside is None:
            ended = attend(home, record.name, planned, shown, interrupts)
        else:
            with beside(record, shown):
                ended = attend(home, record.name, planned, shown, interrupts)
    from harness.cli import _summary

    if as_json:
        _terminal.emit_json(_summary.document(home, ended))
    else:
        shown.write("", *_summary.lines(home, ended, shown, spec=Path(named), told=loaded.warnings))
    return errors.INTERRUPTED if interrupts.count else STATUS_CODES[ended.status]


def submit(
    spec: Spec,
    home: Home,
    probe: Probe,
    interrupts: Interrupts,
    check: Callable[[Plan], None] | None = None,
) -> tuple[Plan, JobRecord]:
    """Plan the job and put it on record; from then on `interrupts` counts."""
    from harness.targets import local

    planned = local.make_plan(spec, home, probe=probe)
    if check is not None:
        check(planned)
    return planned, local.submit(spec, home=home, plan=planned, accepting=interrupts.begin)


def detached(record: JobRecord, *, as_json: bool) -> None:
    """Say what runs now, and the commands that look at it."""
    if as_json:
        _terminal.emit_json(
            {"TrainingJobName": record.name, "TrainingJobArn": record.arn, "TrainingJobStatus": record.status}
        )
        return
    print(f"started {record.name}")
    print(f"  follow  harness logs -f {record.name}")
    print(f"  look    harness describe {record.name}")
    print(f"  stop    harness stop {record.name}")


def attend(
    home: Home, name: str, planned: Plan, screen: _terminal.Screen, interrupts: Interrupts
) -> JobRecord:
    """Show the job until it ends, handing Ctrl-C on to it."""
    from harness.cli._display import Display
    from harness.targets.follow import End, Tick, follow

    display = Display(screen, name, planned)
    for event in follow(home, name):
        display.show(event)
        match event:
            case Tick() if interrupts.count > interrupts.told:
                count = interrupts.count
                screen.write(_interrupt(home, name, count, grace=_grace(home, name)))
                interrupts.told = count
            case End():
                return event.record
            case _:
                pass
    raise AssertionError("a followed job ends with End")


def _interrupt(home: Home, name: str, count: int, *, grace: float) -> str:
    from harness.store import StopRequest
    from harness.targets import local

    try:
        record = local.stop(name, now=count > 1, home=home)
    except errors.UsageError:
        return "the job has ended already"
    if count > 1:
        return "killing the job"
    if record.stop_request is StopRequest.KILL:
        return "killing the job: it stands in a debugger, where no SIGTERM can reach the script"
    return f"stopping as SageMaker does: SIGTERM, up to {grace:.0f} s, then SIGKILL; Ctrl-C again kills now"


def _grace(home: Home, name: str) -> float:
    from harness.store import Store

    with Store(home) as store:
        return float(store.job(name).spec["local"]["stop_grace"])
