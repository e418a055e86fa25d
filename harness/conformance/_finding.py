"""What was found about an image: one finding per check, and the report of them all."""

from __future__ import annotations

from enum import Enum

from harness._values import dataclass
from harness.conformance._clauses import clauses
from harness.model import JsonObject

__all__ = ["Finding", "Level", "Report", "failed", "not_checked", "passed", "warned"]


class Level(str, Enum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    """The image breaks the clause."""
    WARN = "warn"
    """It keeps the clause, but will surprise its user; or it can't be told for certain."""
    SKIP = "skip"
    """Not checked; the finding says what it would take."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One clause, held against the image."""

    clause: str
    check: str
    """What was checked, in a few words; the same in every report."""
    level: Level
    what: str
    """What happened, one or two sentences."""
    mend: str = ""
    """How to mend it; empty for what holds."""

    @property
    def title(self) -> str:
        """The clause's own."""
        return clauses()[self.clause].title


def passed(clause: str, check: str, what: str) -> Finding:
    return Finding(clause=clause, check=check, level=Level.PASS, what=what)


def failed(clause: str, check: str, what: str, mend: str) -> Finding:
    return Finding(clause=clause, check=check, level=Level.FAIL, what=what, mend=mend)


def warned(clause: str, check: str, what: str, mend: str) -> Finding:
    return Finding(clause=clause, check=check, level=Level.WARN, what=what, mend=mend)


def not_checked(clause: str, check: str, what: str, mend: str = "") -> Finding:
    return Finding(clause=clause, check=check, level=Level.SKIP, what=what, mend=mend)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one verification found."""

    subject: str
    """The image or the spec, as it was named."""
    image: str | None
    engine: str
    how: str
    """What was run in it, in a sentence."""
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """No clause is broken."""
        return not self.of(Level.FAIL)

    def of(self, level: Level) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level is level)

    def to_json(self) -> JsonObject:
        """The document of `harness verify --json`."""
        return {
            "subject": self.subject,
            "image": self.image,
            "engine": self.engine,
            "how": self.how,
            "ok": self.ok,
            "seconds": round(self.seconds, 2),
            "counts": {level.value: len(self.of(level)) for level in Level},
            "findings": [
                {
                    "clause": finding.clause,
                    "title": finding.title,
                    "check": finding.check,
                    "level": finding.level.value,
                    "what": finding.what,
                    "mend": finding.mend or None,
                }
                for finding in self.findings
            ],
        }
