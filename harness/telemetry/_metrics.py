"""Metric definitions evaluated on the log as it arrives."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.errors import ValidationError
from harness.model import MetricPoint
from harness.telemetry import _pattern
from harness.telemetry._reader import EVENT_BYTES

__all__ = ["MetricScanner"]

_LINE_SECONDS: Final = 0.05
"""What one search may take: of one line, or of one chunk at first."""
_STRIKES: Final = 3
_SLOW_SECONDS: Final = 2.0
_SLOW_SHARE: Final = 0.2
"""A definition whose searches run into the limit may take this share of the time, and 2 s at once."""
_SHORT_LINE: Final = 4096


class _Definition:
    """One metric definition and what came of it."""

    def __init__(self, name: str, pattern: str) -> None:
        import regex

        self.name = name
        self.pattern = pattern
        try:
            tree = _pattern.parse(pattern)
        except re.error as error:
            raise ValidationError(
                f"the regex of metric definition {name!r} does not compile: {error} in {pattern!r}"
            ) from None
        self.groups: int = tree.state.groups - 1
        if not self.groups:
            raise ValidationError(
                f"the regex of metric definition {name!r} has no group: put parentheses around "
                f"the number in {pattern!r}"
            )
        self.literals = _pattern.literals(tree)
        try:
            rewritten, flags = _pattern.rewrite(tree)
        except NotImplementedError as error:
            raise ValidationError(
                f"the regex of metric definition {name!r} uses {error}, which the harness can't search for: {pattern!r}"
            ) from None
        # The same flags have other numbers in `regex`.
        extra = regex.VERSION0 | regex.MULTILINE
        if flags & re.ASCII:
            extra |= regex.ASCII
        if flags & re.IGNORECASE:
            extra |= regex.IGNORECASE
        self._search: Any = regex.compile(rewritten, extra)
        self._cheap = re.compile(rewritten, flags) if _pattern.is_cheap(tree) else None
        self.off = False
        self.strikes = 0
        self._budget = _SLOW_SECONDS
        self._budget_at = time.monotonic()
        self.matches = 0
        self.not_numbers = 0
        self.first_not_number = ""
        self.not_finite = 0
        self.in_progress_bar = False

    def maybe_in(self, lines: str) -> bool:
        """False when there is surely no match in `lines`."""
        if self.off:
            return False
        return not self.literals or any(literal in lines for literal in self.literals)

    def values(self, lines: str, *, short: bool) -> list[float]:
        """The values in `lines`, each of which ends with a newline; one per line at most.

        `short` says that no line is longer than `_SHORT_LINE`.
        """
        found: list[Any]
        if short and self._cheap is not None:
            found = self._cheap.findall(lines)
        else:
            try:
                found = self._search.findall(lines, timeout=_LINE_SECONDS)
            except TimeoutError:
                found = self._line_by_line(lines)
        if not found:
            return []
        # One group can come as a tuple, too: `regex` counts a group in a repeat twice.
        if isinstance(found[0], tuple):
            found = [groups[0] for groups in found]
        self.matches += len(found)
        if not self.in_progress_bar and "\r" in lines:
            self.in_progress_bar = self._is_in_progress_bar(lines)
        return self._numbers(found)

    def _is_in_progress_bar(self, lines: str) -> bool:
        bars = [line for line in lines.split("\n") if "\r" in line.rstrip("\r")]
        try:
            return any(self._search.search(bar + "\n", timeout=_LINE_SECONDS) for bar in bars)
        except TimeoutError:
            return False

    def _line_by_line(self, lines: str) -> list[Any]:
        found: list[Any] = []
        before = time.monotonic()
        earned = _SLOW_SHARE * (before - self._budget_at)
        self._budget = min(_SLOW_SECONDS, self._budget + earned) - _LINE_SECONDS
        for line in lines.split("\n")[:-1]:
            if not self.maybe_in(line):
                continue
            try:
                found += self._search.findall(line + "\n", timeout=_LINE_SECONDS)
            except TimeoutError:
                self.strikes += 1
            now = time.monotonic()
            self._budget -= now - before
            self._budget_at = before = now
            if self.strikes >= _STRIKES or self._budget < 0:
                self.off = True
                break
        return found

    def _numbers(self, texts: list[str]) -> list[float]:
        values = []
        for text in texts:
            try:
                value = float(text)
            except ValueError:
                # contract: I8: no number, no metric
                if not self.not_numbers:
                    self.first_not_number = text
                self.not_numbers += 1
                continue
            if math.isfinite(value):
                values.append(value)
            else:
                self.not_finite += 1
        return values


class MetricScanner:
    """Finds the metrics of a job's definitions in what its hosts print.

    `re.search` in each line, the first group, `float()` (contract: I7, I8, I9). A line is what a newline
    ends: a progress bar that only returns the carriage is one long line, and is looked at when it ends or
    at each 256 KiB (contract: I4, I20). Threads may share a scanner, one per host.
    """

    def __init__(self, definitions: Sequence[Mapping[str, str]]) -> None:
        """`definitions` in AWS's shape, `{"Name": …, "Regex": …}`.

        Raises `ValidationError` for a regex that does not compile or has no group.
        """
        self._definitions = [_Definition(each["Name"], each["Regex"]) for each in definitions]
        self._carried: dict[str, bytes] = {}
        self._any_line = False
        self._lock = threading.Lock()

    def feed(self, host: str, data: bytes, now_ms: int) -> list[MetricPoint]:
        """The metrics in the lines that `data`, the next bytes of `host`'s output, completes.

        Points have the time `now_ms`; those of one metric are in the order of their lines.
        """
        if not self._definitions:
            return []
        with self._lock:
            return self._feed(host, data, now_ms)

    def finish(self, now_ms: int | None = None) -> list[MetricPoint]:
        """The metrics in the hosts' last lines, where no newline ended them; call once, at the end."""
        now = int(time.time() * 1000) if now_ms is None else now_ms
        with self._lock:
            carried, self._carried = self._carried, {}
            return [point for host, line in carried.items() for point in self._scan(host, line + b"\n", now)]

    def problems(self) -> list[str]:
        """What the user should know about the definitions, one sentence each."""
        with self._lock:
            return [text for each in self._definitions for text in _problems(each, self._any_line)]

    def _feed(self, host: str, data: bytes, now_ms: int) -> list[MetricPoint]:
        carried = self._carried.pop(host, b"")
        if carried:
            data = carried + data
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        lines = data[:end]
        if len(rest) > EVENT_BYTES:
            # contract: I20
            whole = len(rest) - len(rest) % EVENT_BYTES
            pieces = (rest[at : at + EVENT_BYTES] for at in range(0, whole, EVENT_BYTES))
            lines += b"\n".join(pieces) + b"\n"
            rest = rest[whole:]
        if rest:
            self._carried[host] = rest
        return self._scan(host, lines, now_ms) if lines else []

    def _scan(self, host: str, data: bytes, now_ms: int) -> list[MetricPoint]:
        self._any_line = True
        lines = data.decode("utf-8", "replace")
        hopeful = [each for each in self._definitions if each.maybe_in(lines)]
        if not hopeful:
            return []
        short = max(map(len, lines.split("\n"))) <= _SHORT_LINE
        return [
            MetricPoint(name=each.name, value=value, timestamp_ms=now_ms, host=host)
            for each in hopeful
            for value in each.values(lines, short=short)
        ]


def _problems(definition: _Definition, any_line: bool) -> list[str]:
    name = f"metric {definition.name!r}"
    found = []
    if definition.off:
        found.append(
            f"{name} was switched off: its regex {definition.pattern!r} takes too long "
            "to search for; values after that are missing"
        )
    elif not definition.matches:
        seen = "the log has no match of" if any_line else "the log is empty, so there is no match of"
        found.append(f"{name} never matched: {seen} {definition.pattern!r}")
    if definition.strikes and not definition.off:
        found.append(
            f"{name}: {_count(definition.strikes, 'line was', 'lines were')} skipped, its regex takes too long there"
        )
    if definition.not_numbers:
        found.append(
            f"{name}: {_count(definition.not_numbers, 'captured text is no number', 'captured texts are no numbers')} "
            f"and gave no value (the first: {definition.first_not_number[:60]!r})"
        )
    if definition.not_finite:
        found.append(
            f"{name}: {_count(definition.not_finite, 'value was', 'values were')} NaN or infinite and dropped"
        )
    if definition.groups > 1:
        found.append(f"{name} has {definition.groups} groups in its regex; the first is the value")
    if definition.in_progress_bar:
        found.append(
            f"{name} matched in a line with carriage returns (a progress bar): SageMaker sees one line "
            "there and takes its first match; print a newline to get every value"
        )
    return found


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
