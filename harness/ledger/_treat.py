"""From a request to the ledger's lines: one for each field that is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from harness.ledger import _around, _cluster, _container, _data
from harness.ledger._entry import Entry, Given, Verdict
from harness.model import FieldTreatment, Spec, Treatment

__all__ = ["ENTRIES", "HYPERPARAMETERS", "blockers", "treat"]

ENTRIES: Final[Mapping[str, Entry]] = MappingProxyType(
    {**_container.ENTRIES, **_data.ENTRIES, **_cluster.ENTRIES, **_around.ENTRIES}
)
"""Every node of CreateTrainingJob by its path: lists as `X[]`, with entries for structures too."""

HYPERPARAMETERS: Final[Mapping[str, Entry]] = MappingProxyType(dict(_container.HYPERPARAMETERS))
"""Hyperparameters that switch something of the toolkit; a user's own need none."""

_NEW: Final = Verdict(
    treatment=Treatment.UNCLASSIFIED,
    reason="Newer than this version of the harness: nothing here acts on it, and what the script would see is not known.",
)


def treat(spec: Spec, engine: str) -> tuple[FieldTreatment, ...]:
    """What happens to every field that the request gives, in its order, under `engine`.

    Leaves only: a structure is told by its members, an item of a list by a line of its own, a list of
    strings and a map by one line. Hyperparameters that switch something of the toolkit follow
    HyperParameters under `HyperParameters.<name>`. A field without an entry is UNCLASSIFIED, never dropped.
    """
    return tuple(treatment for treatment, _ in _lines(spec, engine))


def blockers(spec: Spec, engine: str) -> tuple[FieldTreatment, ...]:
    """The fields for which `engine` can't run the job at all."""
    return tuple(treatment for treatment, verdict in _lines(spec, engine) if verdict.impossible)


def _lines(spec: Spec, engine: str) -> Iterator[tuple[FieldTreatment, Verdict]]:
    for path, value in _leaves(spec.request, ""):
        yield _line(path, value, ENTRIES.get(path), engine, spec)
        if path == "HyperParameters":
            for name, entry in HYPERPARAMETERS.items():
                if name in value:
                    yield _line(f"{path}.{name}", value[name], entry, engine, spec)


def _line(
    path: str, value: Any, entry: Entry | None, engine: str, spec: Spec
) -> tuple[FieldTreatment, Verdict]:
    given = Given(value=value, engine=engine, request=spec.request, uploads=spec.uploads)
    verdict = _NEW if entry is None else entry.decide(given)
    treatment = FieldTreatment(
        path=path,
        value=value,
        treatment=verdict.treatment,
        reason=verdict.reason,
        visible=verdict.visible,
    )
    return treatment, verdict


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The members of a structure, in their order; structures and lists of structures are gone into.

    A map is told from a structure by the ledger: the members of a structure have entries. A structure
    that the ledger doesn't know is one line, with all that is in it.
    """
    for name, member in value.items():
        here = f"{path}.{name}" if path else name
        if isinstance(member, Mapping) and member and _inside(here + "."):
            yield from _leaves(member, here)
        elif isinstance(member, list) and member and all(isinstance(item, Mapping) for item in member):
            if _inside(here + "[]."):
                for item in member:
                    yield from _leaves(item, here + "[]")
            else:
                yield here, member
        else:
            yield here, member


def _inside(prefix: str) -> bool:
    return any(path.startswith(prefix) for path in ENTRIES)
