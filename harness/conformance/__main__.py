"""`python -m harness.conformance`: make docs/coverage.md and the marks anew, from the checkout that this is in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harness.conformance._coverage import coverage, coverage_markdown, problems, scan

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    found = scan(ROOT)
    covered = coverage(found)
    (ROOT / "harness/conformance/marks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs/coverage.md").write_text(coverage_markdown(covered), encoding="utf-8")
    wrong = problems(covered, found)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
