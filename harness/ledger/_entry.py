"""What an entry of the ledger is: what happens here to one field, and when something else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness._values import dataclass
from harness.model import JsonObject, Treatment, Upload

__all__ = ["Case", "Entry", "Given", "Verdict", "cloud_only", "emulated", "honoured", "mapped", "when"]


@dataclass(frozen=True, kw_only=True)
class Given:
    """A field as one request gives it."""

    value: Any
    engine: str
    request: JsonObject
    uploads: tuple[Upload, ...] = ()

    @property
    def hosts(self) -> int:
        """How many hosts the job has."""
        resources = self.request.get("ResourceConfig") or {}
        groups = (
            resources.get("InstanceGroups") or resources.get("InstancePreferences", [])[:1] or [resources]
        )
        return sum(int(group.get("InstanceCount") or 1) for group in groups)

    @property
    def uploaded(self) -> bool:
        """The value is the place in S3 of a local path that the spec gives."""
        return any(self.value == upload.uri for upload in self.uploads)

    @property
    def sandbox(self) -> bool:
        return self.engine == "sandbox"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What happens here to a field."""

    treatment: Treatment
    reason: str
    """One sentence, true of this version: what happens here."""
    visible: bool = False
    """Cloud-only, and the script could see the difference: what `--strict` refuses."""
    impossible: bool = False
    """A job that has it can't be run with this engine at all."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A condition on the value, the engine or the rest of the request, and what happens under it."""

    holds: Callable[[Given], bool]
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One field of the request: the first case that holds, else `otherwise`."""

    otherwise: Verdict
    cases: tuple[Case, ...] = ()

    def decide(self, given: Given) -> Verdict:
        """What happens here to the field, as this request gives it."""
        return next((case.verdict for case in self.cases if case.holds(given)), self.otherwise)

    def but(self, *cases: Case) -> Entry:
        """This entry with further cases, each before those that come after it."""
        return Entry(otherwise=self.otherwise, cases=(*self.cases, *cases))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Everything that can happen to the field."""
        return (*(case.verdict for case in self.cases), self.otherwise)


def honoured(reason: str) -> Entry:
    """An entry that does here what it does in the cloud."""
    return Entry(otherwise=Verdict(treatment=Treatment.HONOURED, reason=reason))


def emulated(reason: str) -> Entry:
    """An entry whose effect on the script comes about by other means."""
    return Entry(otherwise=Verdict(treatment=Treatment.EMULATED, reason=reason))


def mapped(reason: str) -> Entry:
    """An entry that something of this machine stands in for."""
    return Entry(otherwise=Verdict(treatment=Treatment.MAPPED, reason=reason))


def cloud_only(reason: str, *, visible: bool = False, impossible: bool = False) -> Entry:
    """An entry without effect here; `impossible` implies `visible`, being the greatest difference there is."""
    return Entry(
        otherwise=Verdict(
            treatment=Treatment.CLOUD_ONLY,
            reason=reason,
            visible=visible or impossible,
            impossible=impossible,
        )
    )


def when(condition: Callable[[Given], bool] | object, entry: Entry) -> Case:
    """`entry` where `condition` holds: a function of what is given, or the value that the field has."""
    holds = condition if callable(condition) else lambda given: given.value == condition
    return Case(holds=holds, verdict=entry.otherwise)
