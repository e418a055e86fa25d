"""Every clause of the contract has an entry, and the table tells the truth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import conformance
from harness.conformance import Claim

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT.parent / "shared/spec/container-contract.md"
GROUPS = {"A": 29, "B": 26, "C": 32, "D": 40, "E": 32, "F": 27, "G": 35, "H": 28, "I": 20, "J": 31, "K": 28}


def test_every_clause_has_an_entry() -> None:
    expected = [f"{group}{number}" for group, most in GROUPS.items() for number in range(1, most + 1)]

    assert list(conformance.clauses()) == expected
    assert len(expected) == 328


@pytest.mark.skipif(not CONTRACT.exists(), reason="the contract itself is not part of this checkout")
def test_the_entries_are_the_contracts() -> None:
    assert re.findall(r"^- \*\*([A-K]\d+)\*\*", CONTRACT.read_text(), re.MULTILINE) == list(
        conformance.clauses()
    )


def test_what_is_claimed_as_tested_is_named_by_a_test() -> None:
    found = conformance.scan(ROOT)

    assert conformance.problems(conformance.coverage(found), found) == []


def test_what_is_not_there_has_a_reason() -> None:
    others = [clause for clause in conformance.clauses().values() if clause.claim is not Claim.TESTED]

    assert all(len(clause.reason) > 5 for clause in others)


def test_the_table_is_fresh() -> None:
    found = conformance.scan(ROOT)
    again = "stale: make it anew with `python -m harness.conformance`"

    assert json.loads((ROOT / "harness/conformance/marks.json").read_text()) == found, again
    expected = conformance.coverage_markdown(conformance.coverage(found))
    assert (ROOT / "docs/coverage.md").read_text() == expected, again


def test_a_mark_is_a_list_of_clauses(tmp_path: Path) -> None:
    for kind in ("harness", "tests"):
        (tmp_path / kind).mkdir()
    # The words are taken apart, or this file would name these clauses itself.
    mark = "contract" + ":"
    (tmp_path / "harness/a.py").write_text(f"x = 1  # {mark} A1, B2–B4. And C9 by the way\n")
    (tmp_path / "tests/b.py").write_text(f'"""{mark} A1,\n# A2"""\n# {mark} D1-D9\n')

    assert conformance.scan(tmp_path) == {
        "A1": {"harness": ["harness/a.py"], "tests": ["tests/b.py"]},
        "A2": {"harness": [], "tests": ["tests/b.py"]},
        **{name: {"harness": ["harness/a.py"], "tests": []} for name in ("B2", "B3", "B4")},
    }


def test_a_claim_without_a_test_is_a_problem() -> None:
    nothing = conformance.coverage({})
    said = conformance.problems(nothing, {"Z1": {}})

    assert "Z1 is marked, but the contract has no such clause" in said
    assert any(sentence.startswith("A1 is claimed as tested, but no test names it") for sentence in said)


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "verify", "--coverage", "--json"], capture_output=True, text=True
    )
    document = json.loads(done.stdout)

    assert done.returncode == 0
    assert len(document["clauses"]) == 328 == sum(document["counts"].values())
    assert document["clauses"][0]["id"] == "A1"
    text = subprocess.run(
        [sys.executable, "-m", "harness", "verify", "--coverage"], capture_output=True, text=True
    )
    assert "328 clauses: " in text.stdout
