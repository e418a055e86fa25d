"""The hosts of a job as the cloud would have them."""

from __future__ import annotations

from typing import Final

from harness._values import dataclass
from harness.instances import Instance, lookup
from harness.model import JsonObject

__all__ = ["CloudHost", "cloud_hosts"]

_HOMOGENEOUS: Final = "homogeneousCluster"


@dataclass(frozen=True, kw_only=True)
class CloudHost:
    """One host, on the instance that it gets in the cloud."""

    name: str
    group: str
    instance: Instance


def cloud_hosts(request: JsonObject) -> tuple[CloudHost, ...]:
    """Every host, `algo-1` … `algo-N` sorted as strings (contract: C10, C12, H1).

    Raises:
        SpecError: an instance type that isn't in the catalogue.
    """
    resources = request["ResourceConfig"]
    found: list[CloudHost] = []
    for group, instance_type, count in _groups(resources):
        instance = lookup(instance_type)
        for _ in range(count):
            found.append(CloudHost(name=f"algo-{len(found) + 1}", group=group, instance=instance))
    return tuple(sorted(found, key=lambda host: host.name))


def _groups(resources: JsonObject) -> list[tuple[str, str, int]]:
    """Name, instance type and count of each group; of InstancePreferences the first is had at once."""
    if resources.get("InstanceGroups"):
        return [
            (group["InstanceGroupName"], group["InstanceType"], int(group["InstanceCount"]))
            for group in resources["InstanceGroups"]
        ]
    chosen = resources if "InstanceType" in resources else resources["InstancePreferences"][0]
    count = chosen.get("InstanceCount") or resources.get("InstanceCount") or 1
    return [(_HOMOGENEOUS, chosen["InstanceType"], int(count))]
