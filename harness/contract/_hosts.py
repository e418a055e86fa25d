"""The hosts of a job: their names, groups and order, and what one of them is told of the others."""

from __future__ import annotations

from typing import Final

from harness._values import dataclass
from harness.model import JsonObject

__all__ = ["PROCESSES", "HostView", "InstanceGroup", "ec2_hostname", "groups", "host_names", "host_view"]

_HOMOGENEOUS: Final = "homogeneousCluster"

PROCESSES: Final = "sagemaker_mpi_num_of_processes_per_host"
"""The hyperparameter that says how many ranks every launcher starts on a host (contract: H13)."""


@dataclass(frozen=True, kw_only=True)
class InstanceGroup:
    """One item of resourceconfig.json's `instance_groups`."""

    name: str
    instance_type: str
    hosts: tuple[str, ...]
    """Not sorted, and the same for all hosts of the job (contract: C11, H12)."""


@dataclass(frozen=True, kw_only=True)
class HostView:
    """The cluster as one host sees it: all that resourceconfig.json says."""

    name: str
    hosts: tuple[str, ...]
    """All hosts of the job, sorted as strings (contract: C10)."""
    group: str
    instance_type: str
    groups: tuple[InstanceGroup, ...]
    interface: str = "eth0"


def host_names(n: int) -> tuple[str, ...]:
    """`algo-1` … `algo-n`, sorted as strings: algo-1, algo-10, algo-2 (contract: C10, H1)."""
    return tuple(sorted(f"algo-{number}" for number in range(1, n + 1)))


def groups(request: JsonObject, seed: str | int) -> tuple[InstanceGroup, ...]:
    """The job's instance groups with their hosts, shuffled by `seed` (contract: C11, C12, H12).

    One group `homogeneousCluster` unless the request has InstanceGroups; those get hosts in the order in
    which they are listed. Take one seed per job, its name for example: then every host sees one order.
    """
    resources = request["ResourceConfig"]
    wanted: list[tuple[str, str, int]]
    if resources.get("InstanceGroups"):
        wanted = [
            (group["InstanceGroupName"], group["InstanceType"], int(group["InstanceCount"]))
            for group in resources["InstanceGroups"]
        ]
    else:
        # InstancePreferences are tried in order; here the first is had at once.
        chosen = resources if "InstanceType" in resources else resources["InstancePreferences"][0]
        count = chosen.get("InstanceCount", resources.get("InstanceCount", 1))
        wanted = [(_HOMOGENEOUS, chosen["InstanceType"], int(count))]
    import random  # with what it loads, five times what the rest of the room takes

    shuffler = random.Random(str(seed))
    found = []
    first = 1
    for name, instance_type, count in wanted:
        hosts = [f"algo-{number}" for number in range(first, first + count)]
        shuffler.shuffle(hosts)
        found.append(InstanceGroup(name=name, instance_type=instance_type, hosts=tuple(hosts)))
        first += count
    return tuple(found)


def host_view(request: JsonObject, host: str, *, seed: str | int, interface: str = "eth0") -> HostView:
    """What `host` is told of the cluster; KeyError when the job has no such host."""
    found = groups(request, seed)
    own = {name: group for group in found for name in group.hosts}
    return HostView(
        name=host,
        hosts=host_names(len(own)),
        group=own[host].name,
        instance_type=own[host].instance_type,
        groups=found,
        interface=interface,
    )


def ec2_hostname(job: str, host: str, region: str = "us-east-1") -> str:
    """What gethostname() says on `host` (`algo-N`): an EC2 name, never `algo-N` (contract: A20, D9).

    Always the same for the same job and host, and different for all hosts of a job.
    """
    import hashlib

    start = int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "big")
    # 254 × 254 addresses: neither of the last two numbers is 0 or 255.
    high, low = divmod((start + int(host.rpartition("-")[2])) % (254 * 254), 254)
    return f"ip-10-0-{high + 1}-{low + 1}.{region}.compute.internal"
