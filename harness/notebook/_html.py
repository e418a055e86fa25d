"""A job as a panel of HTML.

Styles stand at the elements: what sanitises a notebook that isn't trusted removes sheets and scripts. Colours
are chosen to read on white and on black. Everything that a script, a spec or a file name says is escaped.
"""

from __future__ import annotations

import base64
from html import escape
from typing import Final

from harness.notebook._picture import Picture
from harness.quantities import duration, harmless, number, size
from harness.targets.warmth import warmth

__all__ = ["STATUS_COLOURS", "html", "jobs_table"]

STATUS_COLOURS: Final = {
    "Completed": "#1a8f5a",
    "Failed": "#d0342c",
    "Stopped": "#b07d00",
    "Stopping": "#b07d00",
}
_RUNNING: Final = "#2f7ed8"
_PHASE_COLOURS: Final = {
    "Starting": "#8d99ae",
    "Pending": "#b8b8b8",
    "Downloading": "#0fa3b1",
    "Training": "#2f7ed8",
    "Uploading": "#9b5de5",
    "Stopping": "#b07d00",
    "Interrupted": "#b07d00",
    "Restarting": "#8d99ae",
}
_HOST_COLOURS: Final = ("#0fa3b1", "#d1478c", "#b07d00", "#2f7ed8", "#1a8f5a")
_FAINT: Final = "#808890"
_LINE: Final = "rgba(128,136,144,.35)"
_MONO: Final = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
_PRE: Final = (
    f"white-space:pre-wrap;overflow-wrap:anywhere;background:none;color:inherit;font:12px/1.45 {_MONO}"
)
_WRONG: Final = "background:rgba(208,52,44,.22);font-weight:600"


def html(picture: Picture, image: bytes | None = None) -> str:
    """The panel, with that PNG of its curves."""
    parts = [
        _header(picture),
        _phases(picture),
        _progress(picture),
        _verdict(picture),
        _numbers(picture),
        _image(image),
        _log(picture),
        _results(picture),
    ]
    return (
        f'<div style="border:1px solid {_LINE};border-left:4px solid {_colour(picture)};border-radius:6px;'
        "padding:10px 14px;margin:4px 0;max-width:980px;font-family:system-ui,-apple-system,'Segoe UI',sans-serif;"
        f'font-size:13px;line-height:1.45">{"".join(parts)}</div>'
    )


def _colour(picture: Picture) -> str:
    return STATUS_COLOURS.get(picture.status, _RUNNING)


def _header(picture: Picture) -> str:
    colour = _colour(picture)
    return (
        '<div style="display:flex;align-items:baseline;flex-wrap:wrap;gap:10px">'
        f'<span style="background:{colour};color:#fff;border-radius:10px;padding:1px 10px;font-weight:600">'
        f"{_safe(picture.status)}</span>"
        f'<span style="font-weight:600;font-size:14px">{_safe(picture.record.name)}</span>'
        f'<span style="color:{_FAINT}">{_safe(picture.where)} · {duration(picture.seconds)}</span></div>'
    )


def _phases(picture: Picture) -> str:
    phases = picture.phases
    total = sum(seconds for _, seconds in phases)
    if not phases or total <= 0:
        return ""
    bar = "".join(
        f'<div style="width:{100 * seconds / total:.2f}%;background:{_phase_colour(name)}"></div>'
        for name, seconds in phases
    )
    labels = "".join(
        f'<span style="margin-right:14px;white-space:nowrap{";font-weight:600" if current else ""}">'
        f'<span style="color:{_phase_colour(name)}">●</span> {_safe(name)} '
        f'<span style="color:{_FAINT}">{duration(seconds)}</span></span>'
        for name, seconds in phases
        for current in [not picture.over and name == picture.current]
    )
    return (
        '<div style="display:flex;height:6px;border-radius:3px;overflow:hidden;margin:9px 0 4px">'
        f"{bar}</div><div>{labels}</div>"
    )


def _phase_colour(name: str) -> str:
    return _PHASE_COLOURS.get(name, _FAINT)


def _progress(picture: Picture) -> str:
    said = "".join(f'<div style="color:#b07d00">{_safe(each)}</div>' for each in picture.said)
    progress = picture.progress
    if picture.over or progress is None or not progress.total or progress.done >= progress.total:
        return said
    share = 100 * progress.done // progress.total
    return (
        f'{said}<div style="margin-top:5px">{_safe(progress.what)} {share} %'
        f'<div style="height:4px;background:{_LINE};border-radius:2px;max-width:320px">'
        f'<div style="height:4px;width:{share}%;background:{_RUNNING};border-radius:2px"></div></div></div>'
    )


def _verdict(picture: Picture) -> str:
    record = picture.record
    found = picture.verdict
    if found is None and not record.failure_reason:
        return ""
    parts = []
    if found is not None:
        parts.append(f'<div style="font-weight:600">{_safe(found["verdict"]["sentence"])}</div>')
        parts += [f"<div>{_safe(each)}</div>" for each in found["verdict"]["advice"]]
    source = picture.failed_source
    if source:
        rows = "".join(
            f'<div style="{_WRONG if here else ""}"><span style="color:{_FAINT}">{number:>4}  </span>'
            f"{_safe(text)}</div>"
            for number, text, here in source
        )
        parts.append(f'<pre style="margin:6px 0;{_PRE}">{rows}</pre>')
    if record.failure_reason:
        reason = _lines(record.failure_reason)
        parts.append(
            f'<div style="color:{_FAINT};margin-top:4px">FailureReason</div><pre style="margin:0;{_PRE}">{reason}</pre>'
        )
    command = f"%harness why {record.name}"
    parts.append(
        f'<div style="color:{_FAINT};margin-top:5px">all of it: <code style="font:12px {_MONO}">'
        f"{_safe(command)}</code></div>"
    )
    return (
        '<div style="margin:9px 0;padding:7px 10px;border-radius:4px;background:rgba(208,52,44,.10)">'
        f"{''.join(parts)}</div>"
    )


def _safe(text: str) -> str:
    """What somebody else wrote: no markup, no control characters."""
    return escape(harmless(text))


def _lines(text: str) -> str:
    return "\n".join(map(_safe, text.splitlines()))


def _numbers(picture: Picture) -> str:
    rows = [(name, [value for _, value in points]) for name, points in picture.metrics.items() if points]
    cell = 'style="text-align:right;padding:1px 12px 1px 0;border:0;background:none"'
    left = 'style="text-align:left;padding:1px 18px 1px 0;border:0;background:none"'
    table = ""
    if rows:
        heads = "".join(
            f"<th {cell.replace('right', 'right;font-weight:400;color:' + _FAINT)}>{name}</th>"
            for name in ("last", "min", "max", "values")
        )
        body = "".join(
            f'<tr style="background:none"><td {left}>{_safe(name)}</td>'
            f"<td {cell}><b>{number(values[-1])}</b></td><td {cell}>{number(min(values))}</td>"
            f"<td {cell}>{number(max(values))}</td><td {cell}>{len(values):,}</td></tr>"
            for name, values in rows
        )
        table = (
            '<table style="border-collapse:collapse;border:0;margin:8px 0 0;font-size:13px;color:inherit;font-variant-numeric:tabular-nums">'
            f'<tr style="background:none"><th {left}></th>{heads}</tr>{body}</table>'
        )
    usage = " · ".join(f"{_safe(name)} <b>{value:.0f} %</b>" for name, value in picture.last_usage())
    when = "at the end" if picture.over else "now"
    return table + (f'<div style="color:{_FAINT};margin-top:6px">{when}: {usage}</div>' if usage else "")


def _image(image: bytes | None) -> str:
    if image is None:
        return ""
    data = base64.b64encode(image).decode()
    return (
        f'<img alt="curves of the metrics" src="data:image/png;base64,{data}" '
        f'style="display:block;max-width:100%;width:{_width(image)}px;margin-top:8px">'
    )


def _width(image: bytes) -> int:
    """Half the pixels of the PNG (its header has them): it is drawn twice as fine as it is shown."""
    return int.from_bytes(image[16:20], "big") // 2 * 5 // 4


def _log(picture: Picture) -> str:
    if not picture.lines:
        return ""
    several = len(picture.hosts) > 1
    colours = {host: _HOST_COLOURS[at % len(_HOST_COLOURS)] for at, host in enumerate(picture.hosts)}
    lines = "\n".join(
        (f'<span style="color:{colours.get(host, _FAINT)}">{_safe(host)} │ </span>' if several else "")
        + _safe(message)
        for host, message in picture.lines
    )
    command = _safe(f"%harness logs {picture.record.name}")
    before = f'<span style="color:{_FAINT}">… {command} has all lines</span>\n' if picture.more else ""
    # Turned upside down, the box stays at its end while lines come, without a script. The sheets of notebooks
    # let a <pre> scroll by itself: as high as the box, it would show its beginning.
    return (
        f'<div style="display:flex;flex-direction:column-reverse;max-height:15em;overflow:auto;margin-top:9px;'
        f'border-top:1px solid {_LINE};padding-top:6px">'
        f'<pre style="margin:0;flex:none;overflow:visible;{_PRE}">{before}{lines}</pre></div>'
    )


def _results(picture: Picture) -> str:
    rows = []
    for kind, artifact in picture.artifacts.items():
        if artifact is not None:
            files = f"{artifact['files']:,} file{'s' * (artifact['files'] != 1)}"
            rows.append((kind, f"{artifact['path']} ({size(artifact['bytes'])}, {files})"))
    if picture.over and picture.record.hosts:
        rows.append(("logs", str(picture.log_place)))
    rows += [("warm" if not number else "", each) for number, each in enumerate(warmth(picture.record))]
    body = "".join(
        f'<div><span style="color:{_FAINT};display:inline-block;min-width:52px">{_safe(name)}</span>'
        f'<code style="font:12px {_MONO};overflow-wrap:anywhere">{_safe(value)}</code></div>'
        for name, value in rows
    )
    notes = picture.notes
    if notes:
        items = "".join(f"<li>{_safe(note)}</li>" for note in notes)
        noun = "1 note" if len(notes) == 1 else f"{len(notes)} notes"
        body += (
            f'<details style="margin-top:4px"><summary style="color:{_FAINT};cursor:pointer">{noun}</summary>'
            f'<ul style="margin:4px 0 0;padding-left:20px">{items}</ul></details>'
        )
    return f'<div style="margin-top:9px">{body}</div>' if body else ""


def jobs_table(rows: list[tuple[str, str, str, str, str]]) -> str:
    """Jobs: status, name, created, time, instances."""
    cell = 'style="text-align:left;padding:2px 14px 2px 0"'
    body = "".join(
        f'<tr><td {cell}><b style="color:{STATUS_COLOURS.get(status, _RUNNING)}">{_safe(status)}</b></td>'
        + "".join(f"<td {cell}>{_safe(each)}</td>" for each in rest)
        + "</tr>"
        for status, *rest in rows
    )
    heads = "".join(f"<th {cell}>{name}</th>" for name in ("status", "job", "created", "time", "instances"))
    return f"<table><tr>{heads}</tr>{body}</table>"
