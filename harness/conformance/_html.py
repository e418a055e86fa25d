"""A report as one HTML file without anything outside it."""

from __future__ import annotations

from html import escape
from typing import Final

from harness.conformance._finding import Finding, Level, Report
from harness.quantities import duration

__all__ = ["html"]

_ORDER: Final = (Level.FAIL, Level.WARN, Level.SKIP, Level.PASS)
_WORDS: Final = {
    Level.FAIL: "broken",
    Level.WARN: "warnings",
    Level.SKIP: "not checked",
    Level.PASS: "hold",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --fail: #c62828; --warn: #b26a00; --skip: #777; --pass: #2e7d32; }}
@media (prefers-color-scheme: dark) {{ :root {{ --fail: #ff7b72; --warn: #e3b341; --skip: #999; --pass: #56d364; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
.verdict {{ font-weight: 600; }}
article {{ border-top: 1px solid var(--line); padding: .6rem 0; display: grid; grid-template-columns: 4.5rem 1fr; }}
article b {{ font-variant-numeric: tabular-nums; }}
p {{ margin: .1rem 0; overflow-wrap: anywhere; }}
.clause {{ opacity: .7; font-size: .9rem; }}
.fail {{ color: var(--fail); }} .warn {{ color: var(--warn); }} .skip {{ color: var(--skip); }} .pass {{ color: var(--pass); }}
</style>
</head>
<body>
<h1>{subject}</h1>
<p class="verdict {colour}">{verdict}</p>
<p class="clause">{about}</p>
{sections}
</body>
</html>
"""


def html(report: Report) -> str:
    """Broken clauses first, each with what happened and how to mend it."""
    sections = "\n".join(
        f'<h2 class="{level.value}">{len(found)} {_WORDS[level]}</h2>\n' + "\n".join(map(_article, found))
        for level in _ORDER
        if (found := report.of(level))
    )
    return _PAGE.format(
        title=escape(f"{report.subject}: container contract"),
        subject=escape(report.subject),
        verdict="It keeps the container contract." if report.ok else "It breaks the container contract.",
        colour="pass" if report.ok else "fail",
        about=escape(f"{report.how}, by the {report.engine} engine, in {duration(report.seconds)}"),
        sections=sections,
    )


def _article(finding: Finding) -> str:
    mend = f"<p><strong>To mend it:</strong> {escape(finding.mend)}.</p>" if finding.mend else ""
    return (
        f'<article><b class="{finding.level.value}">{finding.clause}</b><div>'
        f"<p><strong>{escape(finding.check)}</strong>: {escape(finding.what)}</p>{mend}"
        f'<p class="clause">{escape(finding.title)}</p></div></article>'
    )
