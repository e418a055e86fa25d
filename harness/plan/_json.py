"""The plan for programs: `harness plan --json`. Its keys are documented in docs/plan-json.md."""

from __future__ import annotations

from typing import Final

from harness.model import FieldTreatment, JsonObject, Plan

__all__ = ["VERSION", "to_json"]

VERSION: Final = 1
"""Raised when a key changes its meaning or goes; new keys don't raise it."""


def to_json(plan: Plan) -> JsonObject:
    """A JSON-ready object; see docs/plan-json.md."""
    return {
        "version": VERSION,
        "engine": {"name": plan.engine, "reason": plan.engine_reason, "python": plan.python},
        "image": {"name": plan.image, "asked": plan.image_asked, "note": plan.image_note},
        "hosts": [
            {
                "name": host.name,
                "instance_type": host.instance_type,
                "instance_group": host.instance_group,
                "gpus": host.gpus,
                "cloud_gpus": host.cloud_gpus,
                "processes": host.processes,
            }
            for host in plan.hosts
        ],
        "gpus": plan.gpus,
        "world_size": plan.world_size,
        "cloud_world_size": plan.cloud_world_size,
        "limits": {
            "cpus": plan.cpus,
            "memory_bytes": plan.memory_bytes,
            "shm_bytes": plan.shm_bytes,
            "disk_free_bytes": plan.disk_free_bytes,
        },
        "network_interface": plan.network_interface,
        "notes": list(plan.notes),
        "fields": [_field(item) for item in plan.treatments],
    }


def _field(item: FieldTreatment) -> JsonObject:
    return {
        "path": item.path,
        "value": item.value,
        "treatment": item.treatment.value,
        "reason": item.reason,
        "visible": item.visible,
    }
