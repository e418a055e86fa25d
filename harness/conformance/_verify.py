"""The whole of a verification: find the subject, run it, judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from harness.conformance._finding import Finding, Report
from harness.conformance._own import judge_start, own_scenarios, start
from harness.conformance._place import place
from harness.conformance._probed import probed_scenarios
from harness.conformance._run import Runner
from harness.conformance._scenario import Scenario
from harness.conformance._static import static_findings
from harness.conformance._subject import Subject, find_subject
from harness.home import Home
from harness.model import Spec

__all__ = ["SCENARIOS", "verify"]

SCENARIOS: Final = ("values", "fail", "term", "resume", "alone", "hosts")
"""What can be asked for by name."""

_NOTHING: Final[Mapping[str, str]] = {}
_NO_CHANNELS: Final[Mapping[str, Path]] = {}


def verify(
    subject: str,
    *,
    load: Callable[[], Spec] | None = None,
    hyperparameters: Mapping[str, str] = _NOTHING,
    channels: Mapping[str, Path] = _NO_CHANNELS,
    engine: str | None = None,
    grace: float = 10.0,
    most: float = 60.0,
    only: Collection[str] = (),
    home: Home | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Hold an image, or the image and program of a spec, against the container contract.

    An image with AWS's toolkit is run with a script of ours, any other with its own program. Jobs run in a
    state directory of their own, which is removed.

    Args:
        subject: a local image, or a spec file.
        load: gives the spec of that file; default: as it stands there.
        hyperparameters, channels: for an image's own program.
        engine: "docker" or "sandbox", for a spec.
        grace: seconds between SIGTERM and SIGKILL.
        most: seconds after which a run of somebody's own program is stopped.
        only: names of scenarios (`SCENARIOS`); empty: all. The program is started in any case.
        progress: gets a few words for each thing that is done.

    Raises:
        SpecError: the spec or a word is wrong. MachineError: this machine can't run it.
    """
    from harness.spec import load as load_file

    began = time.monotonic()
    progress = progress or _silence
    with place(home or Home.find()) as throwaway:
        progress("looking at the image")
        found = find_subject(
            subject,
            throwaway,
            hyperparameters=hyperparameters,
            channels=channels,
            engine=engine,
            grace=grace,
            load=load or (lambda: load_file(subject)),
        )
        findings = [] if found.image is None else list(static_findings(found, found.image))
        runner = Runner(throwaway, found.spec)
        findings += _dynamic(found, runner, most, only, progress)
        return Report(
            subject=subject,
            image=found.image.name if found.image else None,
            engine=runner.plan.engine,
            how=_how(found),
            findings=tuple(findings),
            seconds=time.monotonic() - began,
        )


def _dynamic(
    subject: Subject, runner: Runner, most: float, only: Collection[str], progress: Callable[[str], None]
) -> Iterable[Finding]:
    if subject.probed:
        return _side_by_side(runner, probed_scenarios(subject.spec.local.stop_grace), only, progress)
    progress(f"running {subject.program} as it is")
    base = start(runner, most)
    findings = list(judge_start(subject, base))
    if base.status != "Failed":
        findings += _side_by_side(runner, own_scenarios(subject, base, most), only, progress)
    return findings


def _side_by_side(
    runner: Runner, scenarios: tuple[Scenario, ...], only: Collection[str], progress: Callable[[str], None]
) -> list[Finding]:
    """The findings in the scenarios' order, whatever ends first."""
    scenarios = tuple(each for each in scenarios if not only or set(each.names) & set(only))
    findings: dict[tuple[str, ...], list[Finding]] = {}
    with ThreadPoolExecutor(max_workers=max(len(scenarios), 1), thread_name_prefix="verify") as pool:
        running = {pool.submit(scenario.run, runner): scenario for scenario in scenarios}
        try:
            progress(f"running: {_titles(running)}")
            for future in as_completed(tuple(running)):
                scenario = running.pop(future)
                findings[scenario.names] = list(scenario.judge(future.result()))
                if running:
                    progress(f"still running: {_titles(running)}")
        except (
            BaseException
        ):  # Ctrl-C, too: else leaving this block would wait for everything that still runs
            runner.cancel()
            raise
    return [finding for scenario in scenarios for finding in findings[scenario.names]]


def _titles(running: Mapping[Any, Scenario]) -> str:
    return ", ".join(scenario.title for scenario in running.values())


def _silence(sentence: str) -> None:
    del sentence


def _how(subject: Subject) -> str:
    if subject.probed:
        return "its toolkit ran a script of ours"
    return f"{subject.program} was run"
