"""The launcher that a request asks for, and how many ranks it starts: there, and here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from harness._values import dataclass
from harness.model import HostPlan, JsonObject
from harness.plan._hosts import CloudHost

__all__ = ["Launcher", "asked", "cloud_ranks", "processes", "ranks"]


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """What starts the script's processes."""

    title: str
    needs: str
    """What an image must have for it beside PyTorch; empty: nothing."""


_LAUNCHERS: Final = (  # in the toolkit's order of precedence; contract: H11
    ("sagemaker_mpi_enabled", Launcher(title="mpirun", needs="sshd and Open MPI")),
    ("sagemaker_pytorch_ddp_enabled", Launcher(title="smddprun", needs="sshd and Open MPI")),
    ("sagemaker_torch_distributed_enabled", Launcher(title="torchrun", needs="")),
    ("sagemaker_distributed_dataparallel_enabled", Launcher(title="smddprun", needs="sshd and Open MPI")),
    ("sagemaker_pytorch_xla_multi_worker_enabled", Launcher(title="xla_spawn", needs="torch_xla")),
)


def asked(request: JsonObject) -> Launcher | None:
    """The launcher that the toolkit would use; None for a plain start, once on every host (contract: H9)."""
    if request["AlgorithmSpecification"].get("ContainerEntrypoint"):
        return None  # then it isn't the toolkit that starts the script
    given = request.get("HyperParameters") or {}
    return next((launcher for name, launcher in _LAUNCHERS if _value(given.get(name))), None)


def cloud_ranks(request: JsonObject, hosts: Sequence[CloudHost]) -> int:
    """Ranks that start in the cloud: one a GPU, or a Neuron core, or what the request says (contract: H13)."""
    if asked(request) is None:
        return len(hosts)
    return sum(
        _per_host(request) or host.instance.gpus or host.instance.neuron_cores or 1
        for host in hosts
        if _distributed(request, host.group)
    )


def ranks(request: JsonObject, hosts: Sequence[HostPlan]) -> int:
    """Ranks that start here under the same launcher (contract: H13, H18)."""
    if asked(request) is None:
        return len(hosts)
    return sum(
        host.processes or _per_host(request) or host.gpus or 1
        for host in hosts
        if _distributed(request, host.instance_group)
    )


def processes(request: JsonObject, wanted: str, host: CloudHost, gpus: int) -> int | None:
    """What the launcher has to be told so that `host` starts as many ranks as in the cloud; None: nothing."""
    there = host.instance.gpus or host.instance.neuron_cores or 1
    if wanted != "cloud" or asked(request) is None or _per_host(request) or there == (gpus or 1):
        return None
    return there if _distributed(request, host.group) else None


def _per_host(request: JsonObject) -> int:
    """Processes on each host as the request says; 0 when it doesn't."""
    value = _value((request.get("HyperParameters") or {}).get("sagemaker_mpi_num_of_processes_per_host"))
    return int(value) if isinstance(value, (int, float)) else 0


def _distributed(request: JsonObject, group: str) -> bool:
    """The launcher runs in this instance group; in the others the script is started plainly."""
    groups = _value((request.get("HyperParameters") or {}).get("sagemaker_distribution_instance_groups"))
    return not isinstance(groups, list) or group in groups


def _value(text: str | None) -> Any:
    """A hyperparameter as the toolkit reads it (contract: D24)."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text
