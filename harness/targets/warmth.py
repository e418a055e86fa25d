"""What a job's record says of warm hosts, in sentences for people."""

from __future__ import annotations

from harness.store import JobRecord

__all__ = ["warmth"]


def warmth(record: JobRecord) -> list[str]:
    """Whether the job found warm hosts, why not, and whether the next one will; empty when it wanted none."""
    told = record.result.get("warm")
    if not told:
        return []
    said = []
    imported = ", ".join(told.get("preloaded") or ())
    if told["reused"]:
        said.append(f"yes{f', {imported} imported beforehand' if imported else ''}")
    elif told["why"]:  # nobody knows of a job that ended before it had hosts
        said.append(f"cold: {told['why']}")
    if told.get("discarded"):
        said.append(f"the next one will be cold: {told['discarded']}")
    said += [
        f"{name} is not imported beforehand: {why}" for name, why in (told.get("excluded") or {}).items()
    ]
    if told.get("no_fork"):
        said.append(f"the script was started anew: {told['no_fork']}")
    return said
