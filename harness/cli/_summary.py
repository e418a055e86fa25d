"""What is left of a job when it has ended: where things are, how long it took, what to know."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.cli import _terminal
from harness.home import Home
from harness.model import JsonObject, MetricPoint, Treatment
from harness.store import JobRecord, Store
from harness.targets.warmth import warmth

__all__ = ["document", "lines", "statistics"]

_INDENT = 14


def statistics(points: list[MetricPoint]) -> dict[str, JsonObject]:
    """Count, minimum, maximum, average and last value of each metric, by name."""
    series: dict[str, list[float]] = {}
    for point in points:
        series.setdefault(point.name, []).append(point.value)
    return {
        name: {
            "count": len(values),
            "min": min(values),
            "max": max(values),
            "avg": sum(values) / len(values),
            "last": values[-1],
        }
        for name, values in series.items()
    }


def document(home: Home, record: JobRecord) -> JsonObject:
    """The final document of `harness run --json`."""
    from harness.targets import local

    return {
        "TrainingJobName": record.name,
        "TrainingJobStatus": record.status,
        "SecondaryStatus": record.secondary_status,
        "FailureReason": record.failure_reason,
        "verdict": record.result.get("verdict"),
        "engine": record.engine,
        "artifacts": record.result.get("artifacts", {}),
        "logs": {host.name: str(_log(home, record, host.name)) for host in record.hosts},
        "directory": str(home.job(record.name)),
        "seconds": {name: round(seconds, 3) for name, seconds in _phases(record)},
        "exit_codes": {host.name: host.exit_code for host in record.hosts},
        "metrics": statistics(_points(home, record.name)),
        "warm": record.result.get("warm"),
        "strict_contract": record.result.get("strict"),
        "notes": list(record.result.get("notes", [])),
        "no_effect_here": [
            {"path": item["path"], "reason": item["reason"], "visible": item["visible"]}
            for item in _without_effect(record)
        ],
        "describe": local.describe(record.name, home=home),
    }


def lines(
    home: Home, record: JobRecord, screen: _terminal.Screen, *, spec: Path, told: Collection[str] = ()
) -> list[str]:
    """The same for people, without the notes that they were `told` already."""
    styles: dict[str, _terminal.Style] = {"Completed": "green", "Failed": "red", "Stopped": "yellow"}
    phases = _phases(record)
    total = (record.ended or record.modified) - record.created
    spans = ", ".join(f"{name} {_terminal.duration(seconds)}" for name, seconds in phases if seconds >= 0.05)
    verdict = screen.style(record.status, "bold", styles[record.status])
    if record.secondary_status != record.status:
        verdict += f" ({record.secondary_status})"
    found = [f"{verdict} in {_terminal.duration(total)}" + (f": {spans}" if spans else "")]
    if (why := record.result.get("verdict")) is not None:
        found += _entry("why", *_wrapped(screen, why, f"more: harness why {record.name}"))
    if record.failure_reason:
        found += _entry("reason", *_wrapped(screen, *record.failure_reason.splitlines()))
    for kind in ("model", "output"):
        artifact = record.result.get("artifacts", {}).get(kind)
        if artifact is not None:
            files = f"{artifact['files']:,} file{'s' * (artifact['files'] != 1)}"
            what = f"{_terminal.size(artifact['bytes'])}, {files}"
            found += _entry(kind, what, artifact["path"], artifact["uri"])
    checkpoints = record.request.get("CheckpointConfig")
    if checkpoints is not None:
        from harness.objects import ObjectStore

        found += _entry(
            "checkpoint", str(ObjectStore(home.s3).path(checkpoints["S3Uri"])), checkpoints["S3Uri"]
        )
    if record.hosts:
        logs = home.logs(record.name, record.attempt)
        found += _entry("logs", str(logs / f"{record.hosts[0].name}.log" if len(record.hosts) == 1 else logs))
    found += _entry("warm", *_wrapped(screen, *warmth(record)))
    found += _entry("strict", *_wrapped(screen, *_strict_lines(record)))
    found += _entry("metrics", *_metric_lines(home, record.name))
    notes = [note for note in record.result.get("notes", []) if note not in told]
    found += _entry("notes", *_wrapped(screen, *notes))
    lost = _without_effect(record)
    if lost:
        seen = sum(item["visible"] for item in lost)
        noun = "field has" if len(lost) == 1 else "fields have"
        says = f"{len(lost)} {noun} no effect here" + (
            f", and the script could see {seen} of them" if seen else ""
        )
        found += _entry("ledger", *_wrapped(screen, f"{says}: see `harness plan {spec}`"))
    return found


def _entry(name: str, *texts: str) -> list[str]:
    return [f"  {name if not number else '':<{_INDENT - 4}}  {text}" for number, text in enumerate(texts)]


def _wrapped(screen: _terminal.Screen, *texts: str) -> list[str]:
    return [line for text in texts for line in screen.wrap(_terminal.harmless(text), _INDENT)]


def _metric_lines(home: Home, name: str) -> list[str]:
    found = statistics(_points(home, name))
    if not found:
        return []
    rows = [
        (metric, *(_terminal.number(each[key]) for key in ("last", "min", "max")), f"{each['count']:,}")
        for metric, each in found.items()
    ]
    return _terminal.table(("", "last", "min", "max", "values"), rows, right=(1, 2, 3, 4))


def _strict_lines(record: JobRecord) -> list[str]:
    """Which of the defaults that expose bugs the job met, and whether it survived them."""
    told: JsonObject | None = record.result.get("strict")
    if told is None:
        return []
    lines = [f"{'survived' if told['survived'] else 'did not survive all of'}: {', '.join(told['met'])}"]
    if told["not_met"]:
        lines.append("not met: " + ", ".join(f"{name} ({why})" for name, why in told["not_met"].items()))
    return lines


def _points(home: Home, name: str) -> list[MetricPoint]:
    with Store(home) as store:
        return [point for _, point in store.metrics(name, sampled=False)]


def _phases(record: JobRecord) -> list[tuple[str, float]]:
    """Seconds in each secondary status, in order; those of a repeated one added up."""
    seconds: dict[str, float] = {}
    for each in record.transitions:
        if each.end is not None and each.end > each.start:
            seconds[each.status] = seconds.get(each.status, 0.0) + each.end - each.start
    return list(seconds.items())


def _without_effect(record: JobRecord) -> list[dict[str, Any]]:
    lost = (Treatment.CLOUD_ONLY.value, Treatment.UNCLASSIFIED.value)
    return [item for item in record.plan.get("treatments", ()) if item["treatment"] in lost]


def _log(home: Home, record: JobRecord, host: str) -> Path:
    return home.logs(record.name, record.attempt) / f"{host}.log"
