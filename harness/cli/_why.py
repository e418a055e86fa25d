"""`harness why`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import complete_job, json_option, open_store

if TYPE_CHECKING:
    from harness.debugging import Why

__all__ = ["why"]

_WIDTH: Final = 100
_LINES: Final = 40
_INDENT: Final = 13
_STYLES: Final[dict[str, _terminal.Style]] = {"Failed": "red", "Stopped": "yellow", "Completed": "green"}


@click.command()
@click.argument("job", required=False, shell_complete=complete_job)
@click.option("--full", is_flag=True, help="Everything: whole tracebacks, all stacks, the whole diff.")
@json_option
def why(job: str | None, full: bool, as_json: bool) -> int:
    """Say why JOB failed, in one screen; of a running one, where each of its processes is.

    Without JOB: the newest that failed. What was kept is in its directory, under post-mortem/.
    """
    from harness import debugging

    with open_store() as store:
        home = store.home
        name = job or debugging.latest(store)
    found = debugging.why(home, name)
    if as_json:
        _terminal.emit_json(_document(found))
        return errors.COMPLETED
    screen = _terminal.Screen(sys.stdout)
    lines = _Page(screen, found, full=full).lines()
    if not full and len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], screen.style("… --full shows the rest", "dim")]
    screen.write(*lines)
    return errors.COMPLETED


def _document(found: Why) -> dict[str, Any]:
    record = found.record
    return {
        "TrainingJobName": record.name,
        "TrainingJobStatus": record.status,
        "SecondaryStatus": record.secondary_status,
        "verdict": found.verdict,
        "source_edited": found.edited,
        "bundle": found.bundle,
        "directory": None if found.directory is None else str(found.directory),
        "stacks": found.live,
        "earlier": list(found.earlier),
        "next": list(found.next),
    }


class _Page:
    """The answer for people: the most telling first, the rest as far as there is room."""

    def __init__(self, screen: _terminal.Screen, found: Why, *, full: bool) -> None:
        self._screen = screen
        self._found = found
        self._full = full
        self._width = min(screen.width, _WIDTH) if screen.is_terminal else _WIDTH

    def lines(self) -> list[str]:
        found, screen = self._found, self._screen
        record = found.record
        status = screen.style(record.status, "bold", _STYLES.get(record.status, "cyan"))
        detail = f" ({record.secondary_status})" if record.secondary_status != record.status else ""
        when = f", {_terminal.ago(record.ended)}" if record.ended else ""
        head = [f"{screen.style(record.name, 'bold')}  {status}{detail}{when}"]
        head += [screen.style(line, "bold") for line in self._wrap(found.verdict, 0)]
        if found.live is not None:
            return [*head, *self._stacks(found.live), *self._next()]
        bundle = found.bundle
        if bundle is None:
            return [*head, *self._next()]
        return [
            *head,
            *self._source(bundle),
            *self._called(bundle),
            *self._entry("do", bundle["verdict"]["advice"]),
            *self._exit(bundle),
            *self._entry("reason", self._reason(bundle)),
            *self._changes(bundle),
            *self._at_death(bundle),
            *self._last_stacks(bundle),
            *self._last_lines(bundle),
            *self._entry("before", found.earlier),
            *self._entry("unknown", bundle["problems"]),
            *self._everything(bundle),
            *self._next(),
        ]

    # ------------------------------------------------------------------------ parts

    def _source(self, bundle: Mapping[str, Any]) -> list[str]:
        source, frame = bundle["source"], bundle["verdict"]["frame"]
        if source is None:
            if frame is None:
                return []
            place = f"{frame['path'] or frame['file']}:{frame['line']} in {frame['function']}"
            return ["", self._cut(f"  {_terminal.harmless(place)}")]
        place = f"{source['path'] or source['file']}:{source['line']}"
        lines = ["", f"  {self._screen.style(_terminal.harmless(place), 'cyan')} in {frame['function']}"]
        if self._found.edited:
            lines.append(self._screen.style("  (this is what ran: the file has been edited since)", "yellow"))
        reach = 5 if self._full else 3
        for number, text in enumerate(source["lines"], start=source["first"]):
            if abs(number - source["line"]) > reach:
                continue
            here = number == source["line"]
            row = self._cut(f"  {'→' if here else ' '} {number:>4}  {_terminal.harmless(text)}")
            lines.append(self._screen.style(row, "red") if here else row)
        return lines

    def _called(self, bundle: Mapping[str, Any]) -> list[str]:
        """Who called the user's line, and what it called in its turn."""
        told = _main_traceback(bundle)
        if told is None:
            return []
        if self._full:
            return ["", *(f"  {_terminal.harmless(line)}" for line in told["text"].splitlines())]
        frame = bundle["verdict"]["frame"]
        at = (
            max(
                (
                    n
                    for n, each in enumerate(told["frames"])
                    if each["file"] == frame["file"] and each["line"] == frame["line"]
                ),
                default=len(told["frames"]) - 1,
            )
            if frame
            else len(told["frames"]) - 1
        )
        callers = [
            f"{_place(each)} in {each['function']}  {each['source']}"
            for each in reversed(told["frames"][:at])
            if not each["file"].startswith("<frozen ")
        ]
        called = [
            f"{_place(each)} in {each['function']}  {each['source']}"
            for each in told["frames"][at + 1 :]
            if not each["file"].startswith("<frozen ")
        ]
        return [
            *self._entry("called by", callers[:3], cut=True),
            *self._entry("which fell", called[-2:], cut=True),
        ]

    def _exit(self, bundle: Mapping[str, Any]) -> list[str]:
        rows = []
        for host in bundle["hosts"]:
            if not host["exit_code"] and host["script_exit_code"] is None:
                continue
            name = f"{host['name']}: " if len(bundle["hosts"]) > 1 else ""
            row = f"{name}{host['exit_code']} ({host['exit_words']})"
            if host["script_exit_code"] is not None:
                by = host["failed_step"] or "the toolkit"
                whose = "pip" if bundle["verdict"]["kind"] == "install" else "the script"
                row = f"{name}{host['exit_code']} from {by}; {whose}'s own: {host['script_exit_code']}"
                row += f" ({host['script_exit_words']})"
            rows.append(row)
        return self._entry("exit", rows[: None if self._full else 4])

    def _reason(self, bundle: Mapping[str, Any]) -> list[str]:
        reason = bundle["failure_reason"]
        if not reason:
            return []
        if self._full:
            full = [text["text"] for text in bundle["failure"].values()]
            return [
                *reason.splitlines(),
                *(line for text in full for line in ("as it is:", *text.splitlines())),
            ]
        flat = " ".join(reason.split())
        return [flat if len(flat) <= 170 else f"{flat[:169]}…"]

    def _changes(self, bundle: Mapping[str, Any]) -> list[str]:
        changes = bundle["changes"]
        if changes["since"] is None:
            return (
                self._entry(
                    "changed", ["no earlier run of this spec completed, so there is nothing to compare with"]
                )
                if self._full
                else []
            )
        ended = _terminal.ago(changes["since_ended"]) if changes["since_ended"] else ""
        since = f"since {changes['since']}, which completed {ended}"
        rows = [
            f"{each['path']}: {_value(each['before'])} → {_value(each['after'])}"
            for each in (*changes["request"], *changes["machine"])
        ]
        rows += [
            f"{each['path']} {each['kind']}"
            + (f", +{each['added']} −{each['removed']} lines" if each["added"] or each["removed"] else "")
            for each in changes["files"]
        ]
        rows += [
            f"{each['path']} (package): {_value(each['before'])} → {_value(each['after'])}"
            for each in changes.get("packages", ())
        ]
        if changes["problem"]:
            rows.append(changes["problem"])
        if not rows:
            return self._entry("changed", [f"nothing {since}"])
        most = None if self._full else 5
        more = [f"… and {len(rows) - 5} more"] if most and len(rows) > most else []
        diff = self._diff(changes)
        return self._entry("changed", [f"{since}:", *rows[:most], *more, *diff], cut=True)

    def _diff(self, changes: Mapping[str, Any]) -> list[str]:
        if not changes["diff_file"] or self._found.directory is None:
            return []
        try:
            text = (self._found.directory / changes["diff_file"]).read_text(encoding="utf-8")
        except OSError:
            return []
        lines: list[str] = text.splitlines()
        if not self._full:
            lines = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            if len(lines) > 6:
                lines = [
                    *lines[:6],
                    f"… {len(lines) - 6} more lines: --full, or {self._found.directory / changes['diff_file']}",
                ]
        return lines

    def _at_death(self, bundle: Mapping[str, Any]) -> list[str]:
        rows = []
        for host, look in bundle["looks"].items():
            name = f"{host}: " if len(bundle["looks"]) > 1 else ""
            parts = [f"memory {_terminal.size(look['memory'])} of {_terminal.size(look['memory_limit'])}"]
            for key in ("shm", "disk"):
                if key in look:
                    each = look[key]
                    used = each["used"] if key == "shm" else each["size"] - each["free"]
                    label = "/dev/shm" if key == "shm" else "disk"
                    parts.append(f"{label} {_terminal.size(used)} of {_terminal.size(each['size'])}")
            parts += [
                f"gpu {gpu['index']} {_terminal.size(gpu['memory'])} of {_terminal.size(gpu['size'])}"
                for gpu in look.get("gpus", ())
                if "memory" in gpu
            ]
            parts.append(f"{len(look['processes'])} processes")
            before = max(0.0, (self._found.record.training_end or bundle["made"]) - look["at"])
            rows.append(f"{name}{', '.join(parts)} ({before:.1f} s before the end)")
            if self._full:
                rows += _tree(look["processes"])
        known = {each["pid"] for look in bundle["looks"].values() for each in look["processes"]}
        kernel = bundle["kernel"]["lines"]
        if not self._full:  # what it says of processes that may be others' is in the bundle
            kernel = [each for each in kernel if each["pid"] in known][-1:]
        said = [f"{'' if number else 'kernel':<11}{each['text']}" for number, each in enumerate(kernel)]
        return [
            *self._entry("last seen", rows[: None if self._full else 4]),
            *(self._cut(f"  {_terminal.harmless(line)}") for line in said),
        ]

    def _last_stacks(self, bundle: Mapping[str, Any]) -> list[str]:
        if not bundle["stacks"]:
            return []
        return self._stacks(bundle["stacks"][-1])

    def _stacks(self, stacks: Mapping[str, Any]) -> list[str]:
        moment = time.strftime("%H:%M:%S", time.localtime(stacks["at"]))
        if stacks["problem"]:
            return self._entry("stacks", [stacks["problem"]])
        from harness.telemetry import awaited_worker, read_stacks

        taken = read_stacks(stacks)
        awaited = {worker.pid for each in taken.scripts if (worker := awaited_worker(taken, each))}
        shown = [
            each
            for each in stacks["stacks"]
            if each["frames"] and (self._full or each["role"] == "script" or each["pid"] in awaited)
        ]
        shown = shown or [each for each in stacks["stacks"] if each["frames"]]
        shown.sort(key=lambda each: (each["role"] != "script", each["rank"] is None, each["rank"] or 0))
        depth = 100 if self._full else max(2, min(8, 24 // max(1, len(shown)) - 1))
        lines = ["", f"  at {moment}, innermost first:"]
        most = len(shown) if self._full else 8
        for each in shown[:most]:
            who = f"rank {each['rank']}" if each["rank"] is not None else str(each["role"])
            lines.append(
                self._cut(f"  {self._screen.style(who, 'bold')} ({each['host']}, process {each['pid']})")
            )
            frames = _telling(each["frames"], depth) if not self._full else each["frames"]
            lines += [self._cut(f"      {_place(frame)} in {frame['function']}") for frame in frames]
        if len(shown) > most:
            lines.append(f"  … and {len(shown) - most} more: --full")
        return lines

    def _last_lines(self, bundle: Mapping[str, Any]) -> list[str]:
        if bundle["verdict"]["kind"] in ("exception", "limit", "hang", "platform") and not self._full:
            return []
        rows = []
        for host in bundle["hosts"]:
            name = f"{host['name']} │ " if len(bundle["hosts"]) > 1 else ""
            said = [line for line in host["last_lines"] if "sagemaker-training-toolkit INFO" not in line]
            rows += [f"{name}{line}" for line in said[-40 if self._full else -6 :]]
        return self._entry("last words", rows[-12:] if not self._full else rows, cut=True)

    def _everything(self, bundle: Mapping[str, Any]) -> list[str]:
        if not self._full or self._found.directory is None:
            return []
        del bundle
        return self._entry("kept in", [str(self._found.directory)])

    def _next(self) -> list[str]:
        return ["", *self._entry("next", self._found.next)] if self._found.next else []

    # ------------------------------------------------------------------------ words

    def _entry(self, name: str, texts: Sequence[str], *, cut: bool = False) -> list[str]:
        rows: list[str] = []
        for text in texts:
            clean = _terminal.harmless(text)
            rows += [clean] if cut or self._full else self._wrap(clean, _INDENT)
        return [
            self._cut("  " + self._screen.style(f"{'' if number else name:<11}", "dim") + row)
            for number, row in enumerate(rows)
        ]

    def _wrap(self, text: str, indent: int) -> list[str]:
        import textwrap

        clean = _terminal.harmless(text)
        return textwrap.wrap(clean, self._width - indent, break_on_hyphens=False) or [""]

    def _cut(self, line: str) -> str:
        if self._full:
            return line
        import re

        bare = re.sub(r"\x1b\[\d+(?:;\d+)*m", "", line)
        if len(bare) <= self._width:
            return line
        return (
            f"{bare[: self._width - 1]}…"
            if bare == line
            else f"{line[: self._width + len(line) - len(bare) - 1]}…"
        )


def _main_traceback(bundle: Mapping[str, Any]) -> Mapping[str, Any] | None:
    verdict = bundle["verdict"]
    if verdict["kind"] != "exception":
        return None
    frame = verdict["frame"]
    for told in reversed(bundle["tracebacks"]):
        if told["launcher"] or told["host"] != verdict["host"]:
            continue
        if frame is None or any(
            each["file"] == frame["file"] and each["line"] == frame["line"] for each in told["frames"]
        ):
            found: Mapping[str, Any] = told
            return found
    return None


def _telling(frames: Sequence[Mapping[str, Any]], depth: int) -> list[Mapping[str, Any]]:
    """Of a deep stack the innermost frames, and the user's own."""
    from harness.telemetry import is_own_code

    if len(frames) <= depth:
        return list(frames)
    own = [n for n, frame in enumerate(frames) if is_own_code(frame["file"])][: depth - 1]
    inner = [n for n in range(len(frames)) if n not in own][: depth - len(own)]
    return [frames[n] for n in sorted({*own, *inner})]


def _place(frame: Mapping[str, Any]) -> str:
    from harness.telemetry import short_path

    return f"{short_path(frame['file'])}:{frame['line']}"


def _tree(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Processes, each below its parent."""
    pids = {each["pid"] for each in processes}
    rows: list[str] = []

    def add(parent: int | None, depth: int) -> None:
        for each in processes:
            if (each["parent"] if each["parent"] in pids else None) != parent:
                continue
            told = f"{_terminal.size(each['memory'])}, {each['threads']} threads"
            if each["open"] is not None:
                told += f", {each['open']} open files"
            command = " ".join(each["command"]) or each["name"]
            rows.append(f"{'  ' * depth}{each['pid']} {command[:160]} ({told})")
            add(each["pid"], depth + 1)

    add(None, 1)
    return rows


def _value(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
