"""The container contract as a measure: of somebody else's image (`verify`), and of this harness (`coverage`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.conformance._clauses import Claim, Clause, clauses
    from harness.conformance._coverage import (
        Covered,
        coverage,
        coverage_json,
        coverage_markdown,
        problems,
        scan,
    )
    from harness.conformance._finding import Finding, Level, Report
    from harness.conformance._html import html
    from harness.conformance._junit import junit
    from harness.conformance._place import place, sweep
    from harness.conformance._verify import SCENARIOS, verify
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_clauses": ("Claim", "Clause", "clauses"),
            "_coverage": ("Covered", "coverage", "coverage_json", "coverage_markdown", "problems", "scan"),
            "_finding": ("Finding", "Level", "Report"),
            "_html": ("html",),
            "_junit": ("junit",),
            "_place": ("place", "sweep"),
            "_verify": ("SCENARIOS", "verify"),
        },
    )

__all__ = [
    "SCENARIOS",
    "Claim",
    "Clause",
    "Covered",
    "Finding",
    "Level",
    "Report",
    "clauses",
    "coverage",
    "coverage_json",
    "coverage_markdown",
    "html",
    "junit",
    "place",
    "problems",
    "scan",
    "sweep",
    "verify",
]
