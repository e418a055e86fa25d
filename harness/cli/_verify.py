"""`harness verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import json_option

if TYPE_CHECKING:
    from harness.conformance import Finding, Report
    from harness.model import Spec

__all__ = ["verify"]

_MARKS: Final[dict[str, tuple[str, _terminal.Style]]] = {
    "fail": ("✗", "red"),
    "warn": ("!", "yellow"),
    "skip": ("–", "dim"),
    "pass": ("✓", "green"),
}
_INDENT: Final = " " * 7
_WORDS: Final = {"fail": "broken", "warn": "with warnings", "skip": "not checked", "pass": "hold"}


class _Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE"""

    name = "NAME=VALUE"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is no pair: write it as NAME=VALUE", param, ctx)
        return name, text


@click.command()
@click.argument("subject", metavar="IMAGE|SPEC", required=False)
@click.option(
    "--hyperparameter",
    "hyperparameters",
    type=_Pair(),
    multiple=True,
    help="For an image's own program; may be repeated.",
)
@click.option(
    "--channel",
    "channels",
    type=_Pair(),
    multiple=True,
    metavar="NAME=PATH",
    help="A local directory for an image's own program; may be repeated.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="WORD=VALUE",
    help="Override a word of the spec; may be repeated.",
)
@click.option("--engine", type=click.Choice(("docker", "sandbox")), help="For a spec: what runs the hosts.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL; 120 in SageMaker.",
)
@click.option(
    "--most",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop each run of somebody's own program after this time.",
)
@click.option(
    "--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the report as JUnit XML too."
)
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the report as one HTML page too."
)
@click.option(
    "--only",
    type=click.Choice(("values", "fail", "term", "resume", "alone", "hosts")),
    multiple=True,
    help="Besides starting it, run only this; may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say of what holds, too, what happened.")
@click.option("--coverage", is_flag=True, help="Say which clauses of the contract this harness keeps itself.")
@json_option
def verify(
    subject: str | None,
    hyperparameters: tuple[tuple[str, str], ...],
    channels: tuple[tuple[str, str], ...],
    assignments: tuple[str, ...],
    engine: str | None,
    grace: float,
    most: float,
    junit: Path | None,
    html: Path | None,
    only: tuple[str, ...],
    verbose: bool,
    coverage: bool,
    as_json: bool,
) -> int:
    """Hold a training image, or the image and program of a spec, against SageMaker's container contract.

    An image with AWS's training toolkit runs a script of ours; any other image, and a spec, runs its own
    program: as it is, with unusual hyperparameters, with bad input, stopped, killed and started again,
    without a network, and on two hosts. Nothing of these jobs stays.

    Exit code 0 when no clause is broken, 1 when one is.
    """
    if coverage:
        if subject is not None:
            raise errors.UsageError("--coverage is about this harness itself: leave the image or spec out")
        return _coverage(as_json=as_json)
    if subject is None:
        raise errors.UsageError("what is to be verified? Give an image or a spec, or --coverage")
    from harness import conformance

    for path in (junit, html):
        if path is not None and not path.absolute().parent.is_dir():
            raise errors.UsageError(f"{path} can't be written: {path.absolute().parent} is no directory")
    told = _terminal.Screen(sys.stderr)
    try:
        report = conformance.verify(
            subject,
            load=lambda: _load(subject, assignments, engine),
            hyperparameters=dict(hyperparameters),
            channels={name: Path(path) for name, path in channels},
            engine=engine,
            grace=grace,
            most=most,
            only=only,
            progress=lambda words: told.status(f"{words} …"),
        )
    finally:
        told.status("")
    for path, render in ((junit, conformance.junit), (html, conformance.html)):
        if path is not None:
            _write(path, render(report))
    if as_json:
        _terminal.emit_json(report.to_json())
    else:
        _show(report, _terminal.Screen(sys.stdout), verbose=verbose)
    return errors.COMPLETED if report.ok else errors.FAILED


def _load(subject: str, assignments: tuple[str, ...], engine: str | None) -> Spec:
    from harness.spec import load, parse_set

    overrides = dict(parse_set(text) for text in assignments)
    return load(subject, overrides=overrides, local={"engine": engine})


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise errors.DiskError(f"the report {path} can't be written: {error.strerror}") from error


def _show(report: Report, screen: _terminal.Screen, *, verbose: bool) -> None:
    """What is wrong first, each with its mending; what holds by its name only, unless more is wanted."""
    by_level = {level: [f for f in report.findings if f.level.value == level] for level in _MARKS}
    screen.write(f"{screen.style(report.subject, 'bold')}: {report.how}, by the {report.engine} engine", "")
    for level, found in by_level.items():
        if level == "pass" and not verbose:
            _show_names(found, screen)
        else:
            for finding in found:
                _show_one(finding, level, screen)
    counts = ", ".join(f"{len(found)} {_WORDS[level]}" for level, found in by_level.items() if found)
    verdict = "It keeps the container contract" if report.ok else "It breaks the container contract"
    styled = screen.style(verdict, "bold", "green" if report.ok else "red")
    screen.write("", f"{styled}: {counts}; {_terminal.duration(report.seconds)}.")


def _show_one(finding: Finding, level: str, screen: _terminal.Screen) -> None:
    mark, colour = _MARKS[level]
    first, *rest = screen.wrap(_terminal.harmless(f"{finding.check}: {finding.what}"), len(_INDENT))
    mend = screen.wrap(f"→ {finding.mend}", len(_INDENT)) if finding.mend else []
    head = f"{screen.style(mark, 'bold', colour)} {finding.clause:<4}"
    screen.write(f"{head} {first}", *(_INDENT + line for line in (*rest, *mend)))


def _show_names(found: list[Finding], screen: _terminal.Screen) -> None:
    import textwrap

    mark, colour = _MARKS["pass"]
    names = "; ".join(f"{finding.clause}\xa0{finding.check}" for finding in found)
    lines = textwrap.wrap(names, screen.width - 3, break_on_hyphens=False) or ["nothing"]
    first, *rest = (line.replace("\xa0", " ") for line in lines)
    screen.write(f"{screen.style(mark, 'bold', colour)} {first}", *(f"  {line}" for line in rest))


def _coverage(*, as_json: bool) -> int:
    from harness import conformance

    covered = conformance.coverage()
    if as_json:
        _terminal.emit_json(conformance.coverage_json(covered))
        return errors.COMPLETED
    screen = _terminal.Screen(sys.stdout)
    for item in covered:
        claim = item.clause.claim
        if claim is conformance.Claim.TESTED:
            continue
        colour: _terminal.Style = "dim" if claim is conformance.Claim.CLOUD_ONLY else "yellow"
        head = f"{item.clause.id:<4} {screen.style(f'{claim.value:<10}', colour)} "
        first, *rest = screen.wrap(f"{item.clause.title}: {item.clause.reason}", 16)
        screen.write(head + first, *(" " * 16 + line for line in rest))
    counts = conformance.coverage_json(covered)["counts"]
    screen.write(
        "",
        f"{len(covered)} clauses: {counts['tested']} implemented and tested, {counts['cloud-only']} cloud-only, "
        f"{counts['missing']} missing. Where each is kept: docs/coverage.md, or --json.",
    )
    return errors.COMPLETED
