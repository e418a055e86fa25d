"""A report as JUnit XML, for continuous integration."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from harness.conformance._finding import Level, Report

__all__ = ["junit"]

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 can't hold; a container's last words may."""


def junit(report: Report) -> str:
    """One test case per finding: broken clauses are failures, what wasn't checked is skipped."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"harness verify {report.subject}",
        tests=str(len(report.findings)),
        failures=str(len(report.of(Level.FAIL))),
        errors="0",
        skipped=str(len(report.of(Level.SKIP))),
        time=f"{report.seconds:.3f}",
    )
    for finding in report.findings:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"harness.verify.{finding.clause}",
            name=_plain(f"{finding.clause} {finding.check}"),
        )
        told = _plain(finding.what + (f"\nTo mend it: {finding.mend}." if finding.mend else ""))
        if finding.level is Level.FAIL:
            ElementTree.SubElement(case, "failure", message=_plain(finding.what)).text = told
        elif finding.level is Level.SKIP:
            ElementTree.SubElement(case, "skipped", message=_plain(finding.what))
        else:
            prefix = "warning: " if finding.level is Level.WARN else ""
            ElementTree.SubElement(case, "system-out").text = prefix + told
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
