"""The clauses of the container contract, and what this harness claims of each."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Final

from harness._values import dataclass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Claim", "Clause", "clauses"]

_REGISTRY: Final = Path(__file__).parent / "clauses.toml"


class Claim(str, Enum):
    """What the registry says of a clause."""

    TESTED = "tested"
    """Implemented, and at least one test names it."""
    CLOUD_ONLY = "cloud-only"
    """Nothing here can have it; the reason says why."""
    MISSING = "missing"
    """Not here yet; the reason says what is to be done."""


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One clause: its number in the contract, a title, and the claim."""

    id: str
    title: str
    claim: Claim
    reason: str = ""
    """Of what is not claimed as tested."""


@functools.cache
def clauses() -> Mapping[str, Clause]:
    """Every clause by its number, in the contract's order."""
    tables = tomllib.loads(_REGISTRY.read_text(encoding="utf-8"))
    others = {Claim.CLOUD_ONLY: tables["cloud-only"], Claim.MISSING: tables["missing"]}
    found = {}
    for number, title in tables["titles"].items():
        claim, reason = next(
            ((claim, table[number]) for claim, table in others.items() if number in table),
            (Claim.TESTED, ""),
        )
        found[number] = Clause(id=number, title=title, claim=claim, reason=reason)
    return found
