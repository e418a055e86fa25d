"""Metric definitions evaluated on the log as it arrives."""

from __future__ import annotations

import math
import re
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
_FEED_SECONDS: Final = 0.5
"""What one definition may take of one feed, line by line."""
_PROGRESS_BAR: Final = re.compile(r"\r(?!\n)")


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
        self._search: Any = regex.compile(_pattern.rewrite(tree), regex.VERSION0 | regex.MULTILINE)
        self.off = False
        self.strikes = 0
        self.matches = 0
        self.not_numbers = 0
        self.first_not_number = ""
        self.not_finite = 0
        self.in_progress_bar = False

    def values(self, lines: str) -> list[float]:
        """The values in `lines`, each of which ends with a newline; one per line at most."""
        if self.off or (self.literals and not any(literal in lines for literal in self.literals)):
            return []
        try:
            found = self._search.findall(lines, timeout=_LINE_SECONDS)
        except TimeoutError:
            found = self._line_by_line(lines)
        if not found:
            return []
        if self.groups > 1:
            found = [groups[0] for groups in found]
        self.matches += len(found)
        if not self.in_progress_bar and "\r" in lines:
            self.in_progress_bar = _PROGRESS_BAR.search(lines) is not None
        return self._numbers(found)

    def _line_by_line(self, lines: str) -> list[Any]:
        found: list[Any] = []
        end = time.monotonic() + _FEED_SECONDS
        for line in lines.split("\n")[:-1]:
            if self.literals and not any(literal in line for literal in self.literals):
                continue
            try:
                found += self._search.findall(line + "\n", timeout=_LINE_SECONDS)
            except TimeoutError:
                self.strikes += 1
            if self.strikes >= _STRIKES or time.monotonic() > end:
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
    at each 256 KiB (contract: I4, I20). Not for several threads at once.
    """

    def __init__(self, definitions: Sequence[Mapping[str, str]]) -> None:
        """`definitions` in AWS's shape, `{"Name": …, "Regex": …}`.

        Raises `ValidationError` for a regex that does not compile or has no group.
        """
        self._definitions = [_Definition(each["Name"], each["Regex"]) for each in definitions]
        self._carried: dict[str, bytes] = {}
        self._any_line = False

    def feed(self, host: str, data: bytes, now_ms: int) -> list[MetricPoint]:
        """The metrics in the lines that `data`, the next bytes of `host`'s output, completes.

        Points have the time `now_ms`; those of one metric are in the order of their lines.
        """
        if not self._definitions:
            return []
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

    def finish(self, now_ms: int | None = None) -> list[MetricPoint]:
        """The metrics in the hosts' last lines, where no newline ended them; call once, at the end."""
        now = int(time.time() * 1000) if now_ms is None else now_ms
        carried, self._carried = self._carried, {}
        return [point for host, line in carried.items() for point in self._scan(host, line + b"\n", now)]

    def problems(self) -> list[str]:
        """What the user should know about the definitions, one sentence each."""
        return [sentence for each in self._definitions for sentence in _problems(each, self._any_line)]

    def _scan(self, host: str, data: bytes, now_ms: int) -> list[MetricPoint]:
        self._any_line = True
        lines = data.decode("utf-8", "replace")
        return [
            MetricPoint(name=each.name, value=value, timestamp_ms=now_ms, host=host)
            for each in self._definitions
            for value in each.values(lines)
        ]


def _problems(definition: _Definition, any_line: bool) -> list[str]:
    name = f"metric {definition.name!r}"
    found = []
    if definition.off:
        found.append(
            f"{name} was switched off: its regex {definition.pattern!r} takes longer than "
            f"{_LINE_SECONDS * 1000:.0f} ms for a line; values after that are missing"
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
