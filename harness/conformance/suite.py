"""`harness verify` as tests: `pytest --pyargs harness.conformance.suite --harness-image IMAGE`."""

from __future__ import annotations

import pytest

from harness.conformance import Level, Report

GROUPS = {
    "A": "image start",
    "B": "file system",
    "C": "configuration files",
    "D": "environment and arguments",
    "E": "input modes",
    "F": "outputs",
    "G": "life cycle",
    "H": "many hosts",
    "I": "logs",
}


@pytest.mark.parametrize("group", GROUPS, ids=list(GROUPS.values()))
def test_the_image_keeps_the_contract(harness_report: Report, group: str) -> None:
    found = [finding for finding in harness_report.findings if finding.clause.startswith(group)]
    broken = [each for each in found if each.level is Level.FAIL]
    told = "\n".join(f"{each.clause} {each.check}: {each.what}\n  to mend it: {each.mend}" for each in broken)
    if broken:
        pytest.fail(told, pytrace=False)
    if not any(each.level in (Level.PASS, Level.WARN) for each in found):
        pytest.skip("; ".join(each.what for each in found) or "nothing of it can be seen of an image")
