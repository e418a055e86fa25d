"""A way to run the subject, and what is judged by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness._values import dataclass
from harness.conformance._finding import Finding
from harness.conformance._run import Run, Runner

__all__ = ["Scenario"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One or more jobs that follow one another, and the findings of them."""

    names: tuple[str, ...]
    """By which it can be asked for."""
    title: str
    """For people who wait."""
    run: Callable[[Runner], tuple[Run, ...]]
    judge: Callable[[tuple[Run, ...]], Iterator[Finding]]
