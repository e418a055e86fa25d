"""A job in plain text: for terminals, logs of `nbconvert`, and whatever shows no HTML."""

from __future__ import annotations

from typing import Final

from harness.notebook._curves import sparkline
from harness.notebook._picture import Picture
from harness.quantities import duration, harmless, number, size
from harness.targets.warmth import warmth

__all__ = ["headline", "phases", "summary", "text", "verdict"]

_TAIL: Final = 12
_NAME: Final = 24


def text(picture: Picture, *, tail: int = _TAIL) -> str:
    """The whole picture."""
    return "\n".join(
        [
            headline(picture),
            *_phase_lines(picture),
            *verdict(picture),
            *_log(picture, tail),
            *summary(picture),
        ]
    )


def headline(picture: Picture) -> str:
    """One line."""
    took = duration(picture.seconds)
    return f"{picture.record.name}: {picture.status}, {took}, {picture.where}"


def phases(picture: Picture) -> str:
    """`Starting 0.1 s › Training 12 s`"""
    return " › ".join(f"{name} {duration(seconds)}" for name, seconds in picture.phases)


def summary(picture: Picture) -> list[str]:
    """Metrics, usage, artifacts, notes."""
    return [*_metrics(picture), *_usage(picture), *_results(picture)]


def _phase_lines(picture: Picture) -> list[str]:
    lines = [f"  {phases(picture)}"] if picture.phases else []
    progress = picture.progress
    if progress is not None and not picture.over and progress.total and progress.done < progress.total:
        lines.append(f"  {harmless(progress.what)} {100 * progress.done // progress.total} %")
    return lines + [f"  {each}" for each in picture.said]


def verdict(picture: Picture) -> list[str]:
    """Why it didn't end well: one sentence, the lines of the source, then SageMaker's own words."""
    found, reason = picture.verdict, picture.record.failure_reason
    lines = [f"  {harmless(found['verdict']['sentence'])}"] if found else []
    lines += [
        f"  {'→' if here else ' '} {number:>4}  {harmless(line)}"
        for number, line, here in picture.failed_source
    ]
    return lines + [f"  {harmless(line)}" for line in (reason or "").splitlines()]


def _log(picture: Picture, tail: int) -> list[str]:
    several = len(picture.hosts) > 1
    shown = list(picture.lines)[-tail:]
    more = picture.more or len(shown) < len(picture.lines)
    lines = [f"  … %harness logs {picture.record.name} has all lines"] if more else []
    return lines + [f"  │ {f'{host} │ ' if several else ''}{message}" for host, message in shown]


def _metrics(picture: Picture) -> list[str]:
    rows = [(name[:60], [value for _, value in points]) for name, points in picture.metrics.items() if points]
    width = min(_NAME, max((len(name) for name, _ in rows), default=0))
    return [
        f"  {harmless(name):<{width}}  {sparkline(values)}  {number(values[-1])}"
        f"  (min {number(min(values))}, max {number(max(values))}, {len(values):,} values)"
        for name, values in rows
    ]


def _usage(picture: Picture) -> list[str]:
    values = [f"{name} {value:.0f} %" for name, value in picture.last_usage()]
    return [f"  {' · '.join(values)}"] if values else []


def _results(picture: Picture) -> list[str]:
    lines = []
    for kind, artifact in picture.artifacts.items():
        if artifact is not None:
            lines.append(f"  {kind}: {harmless(artifact['path'])} ({size(artifact['bytes'])})")
    lines += [f"  warm: {harmless(each)}" for each in warmth(picture.record)]
    return lines + [f"  note: {harmless(note)}" for note in picture.notes] if picture.over else lines
